"""How a section of params.yaml becomes a dataclass: checks of single values, and the error whose text the user reads."""

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
# A check takes (key, value, stages folder) and returns the value for the dataclass, or raises UserError.
Check = Callable[[str, Any, Path], Any]


class UserError(Exception):
    """A mistake the user can mend; its text is one line: the key, its value, what is allowed."""


@dataclass(frozen=True)
class Hyper:
    """The beginning of every editor's `Settings`. `seed` is that of what is random about an edit; params.yaml does not set it."""

    seed: int = field(default=0, kw_only=True)


def refuse(key: str, value: Any, allowed: str) -> UserError:
    return UserError(f"{key}: {value!r} is not allowed; allowed: {allowed}")


def number(
    low: float = -math.inf, high: float = math.inf, *, above: float = -math.inf, whole: bool = False, word: str = ""
) -> Check:
    """A finite number in [low, high] and > above; `whole` asks for an int; `word` may stand in its place."""
    words = ["a whole number" if whole else "a number"]
    if math.isfinite(low):
        words.append(f"from {low} to {high}" if math.isfinite(high) else f">= {low}")
    if math.isfinite(above):
        words.append(f"> {above}")
    if word:
        words.append(f"or {word}")

    def check(key: str, value: Any, stages: Path) -> float | int | str:
        if word and value == word:
            return word
        right_type = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not (right_type and math.isfinite(value) and low <= value <= high and value > above):
            raise refuse(key, value, " ".join(words))
        return int(value) if whole else float(value)

    return check


count = partial(number, whole=True)


def counts(low: int) -> Check:
    """Whole numbers >= `low`, at least one of them, from a list."""

    def check(key: str, value: Any, stages: Path) -> tuple[int, ...]:
        if not isinstance(value, list) or not value:
            raise refuse(key, value, f"a list of whole numbers >= {low}")
        return tuple(count(low)(key, one, stages) for one in value)

    return check


def counts_of(*names: str) -> Check:
    """A whole number >= 1 for each of some names, which may be left out."""

    def check(key: str, value: Any, stages: Path) -> dict[str, int]:
        section = mapping(key, value)
        expect(f"{key}.", section, list(names), [])
        return {name: count(1)(f"{key}.{name}", one, stages) for name, one in section.items()}

    return check


def one_of(*allowed: str) -> Check:
    def check(key: str, value: Any, stages: Path) -> str:
        if value not in allowed:
            raise refuse(key, value, ", ".join(allowed))
        return value

    return check


def some_of(*allowed: str) -> Check:
    """One of some words, or a list of several."""

    def check(key: str, value: Any, stages: Path) -> tuple[str, ...]:
        listed = value if isinstance(value, list) else [value]
        if not listed or any(one not in allowed or listed.count(one) > 1 for one in listed):
            raise refuse(key, value, f"{', '.join(allowed)}, or a list of different ones")
        return tuple(listed)

    return check


def module_of(folder: str, has: str = "") -> Check:
    """The name of a module in stages/<folder>, with hyphens or underscores, that has a line which begins so."""

    def check(key: str, value: Any, stages: Path) -> str:
        files = (path for path in (stages / folder).glob("*.py") if not path.stem.startswith("__"))
        found = {path.stem for path in files if f"\n{has}" in path.read_text(encoding="utf-8")}
        if not isinstance(value, str) or value.replace("-", "_") not in found:
            raise refuse(key, value, ", ".join(sorted(found)) or f"nothing: no module in stages/{folder}")
        return value

    return check


def text(key: str, value: Any, stages: Path) -> str:
    """Some text; a revision such as 1234567 must be quoted, or YAML reads a number."""
    if not isinstance(value, str) or not value.strip():
        raise refuse(key, value, "a text that is not empty")
    return value


def texts(key: str, value: Any, stages: Path) -> tuple[str, ...]:
    """A list of texts, at least one, no two alike."""
    if not isinstance(value, list) or not value or len(set(map(str, value))) < len(value):
        raise refuse(key, value, "a list of different texts")
    return tuple(text(key, one, stages) for one in value)


def template_text(key: str, value: Any, stages: Path) -> str:
    if not isinstance(value, str) or any(value.count(part) != 1 for part in ("{image}", "{question}")):
        raise refuse(key, value, "a text with {image} and {question}, once each")
    return value


def entry(check: Check, **default: Any) -> Any:
    """A dataclass field that is read from params.yaml through `check`."""
    return field(metadata={"check": check}, **default)


def mapping(at: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise refuse(at, value, "a section of `key: value` lines")
    return value


def expect(at: str, section: Mapping[str, Any], allowed: list[str], needed: list[str]) -> None:
    for name in section:
        if name not in allowed:
            raise UserError(f"{at}{name}: {section[name]!r}: unknown key; allowed: {', '.join(allowed)}")
    for name in needed:
        if name not in section:
            raise UserError(f"{at}{name}: missing; needed: {', '.join(needed)}")


def read_section(cls: type[T], at: str, value: Any, stages: Path, *, base: T | None = None, **given: Any) -> T:
    """Read the section `value` into `cls`; what it leaves out comes from `base` or the field's default, and what it has
    besides goes to the field `own`, if there is one."""
    section, names = mapping(at, value), [f.name for f in fields(cls) if not f.kw_only]
    checked = {f.name: f for f in fields(cls) if "check" in f.metadata}
    needed = [name for name, f in checked.items() if base is None and f.default is MISSING]
    if "own" in names:
        given["own"] = {name: part for name, part in section.items() if name not in checked}
    expect(f"{at}.", section, [*given.get("own", ()), *(n for n in names if n != "name")], needed)
    present = [f for name, f in checked.items() if name in section]
    read = {f.name: f.metadata["check"](f"{at}.{f.name}", section[f.name], stages) for f in present}
    return replace(base, **read) if base is not None else cls(**given, **read)
