"""How a section of params.yaml becomes a dataclass: checks of single values, and the error whose text the user reads."""

import json
import math
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

T = TypeVar("T")
# A check takes (key, value, stages folder) and returns the value for the dataclass, or raises UserError.
Check = Callable[[str, Any, Path], Any]

MOST = 1_000_000  # of whatever is counted, where nothing else bounds it: more is a slip, and would be asked of the memory
SIZE, DEPTH = 250_000, 50  # bytes of the file, and levels of brackets
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxdict = 3, 80, 80, 12, 12, 8


class UserError(Exception):
    """A mistake the user can mend; its text is one line: the key, its value, what is allowed."""


@dataclass(frozen=True)
class Hyper:
    """The beginning of every editor's `Settings`. `seed` is that of what is random about an edit; params.yaml does not set it."""

    seed: int = field(default=0, kw_only=True)


def shown(value: Any) -> str:
    """A value as a line shows it, however long or deep it is."""
    try:
        text = _SHORT.repr(value)
        return text if len(text) <= 160 else f"{text[:150]} ..."
    except (ValueError, RecursionError):  # a number of thousands of digits
        return f"a {type(value).__name__} too long to show"


@contextmanager
def readable(path: str | Path, remedy: str) -> Iterator[None]:
    """Whatever a library raises over a file that is missing, cut or foreign is a UserError here, which names the file and what
    makes it again.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: missing; {remedy}") from None
    except Exception as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path}: cannot be read: {why}; {remedy}") from error


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """A file that holds one JSON object; UserError names the file, what is wrong and what makes it again."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise UserError(f"{path}: cannot be read: {why}; {remedy}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: a JSON {type(found).__name__}; needed: an object; {remedy}")
    return found


def refuse(key: str, value: Any, allowed: str) -> UserError:
    return UserError(f"{key}: {shown(value)} is not allowed; allowed: {allowed}")


def number(
    low: float = -math.inf, high: float = math.inf, *, above: float = -math.inf, whole: bool = False, word: str = ""
) -> Check:
    """A finite number in [low, high] and > above; `whole` asks for an int, at most `MOST` where there is no `high`; `word` may
    stand in its place.
    """
    words, most = ["a whole number" if whole else "a number"], MOST if whole and high == math.inf else high
    if math.isfinite(low):
        words.append(f"from {low} to {high}" if math.isfinite(high) else f">= {low}")
    if math.isfinite(above):
        words.append(f"> {above}")
    if word:
        words.append(f"or {word}")

    def check(key: str, value: Any, stages: Path) -> float | int | str:
        if word and isinstance(value, str) and value == word:
            return word
        if not isinstance(value, int if whole else (int, float)) or isinstance(value, bool):
            raise refuse(key, value, " ".join(words))
        try:
            found = float(value)
        except OverflowError:  # a whole number that no float is as large as
            found = math.inf if value > 0 else -math.inf
        if whole and high == math.inf and found > MOST:
            raise refuse(key, value, " ".join([*words, f"and <= {MOST}"]))
        if not (math.isfinite(found) and low <= found <= most and found > above):
            raise refuse(key, value, " ".join(words))
        return int(value) if whole else found

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
        if not isinstance(value, str) or value not in allowed:
            raise refuse(key, value, ", ".join(allowed))
        return value

    return check


def some_of(*allowed: str) -> Check:
    """One of some words, or a list of several."""

    def check(key: str, value: Any, stages: Path) -> tuple[str, ...]:
        listed = value if isinstance(value, list) else [value]
        if not listed or any(not isinstance(one, str) or one not in allowed or listed.count(one) > 1 for one in listed):
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


def module_text(folder: str, name: str, stages: Path) -> str:
    """The source of a module that `module_of` allows."""
    return (stages / folder / f"{name.replace('-', '_')}.py").read_text(encoding="utf-8")


def text(key: str, value: Any, stages: Path) -> str:
    """Some text; a revision such as 1234567 must be quoted, or YAML reads a number."""
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise refuse(key, value, "a text of one line that is not empty")
    return value


def texts(key: str, value: Any, stages: Path) -> tuple[str, ...]:
    """A list of texts, at least one, no two alike."""
    if not isinstance(value, list) or not value:
        raise refuse(key, value, "a list of different texts")
    found = tuple(text(key, one, stages) for one in value)
    if len(set(found)) < len(found):
        raise refuse(key, value, "a list of different texts")
    return found


def template_text(key: str, value: Any, stages: Path) -> str:
    if not isinstance(value, str) or any(value.count(part) != 1 for part in ("{image}", "{question}")):
        raise refuse(key, value, "a text with {image} and {question}, once each")
    return value


def entry(check: Check, **default: Any) -> Any:
    """A dataclass field that is read from params.yaml through `check`."""
    return field(metadata={"check": check}, **default)


def named(key: Any) -> str:
    """A key as a line shows it: what is no short text of one line, as a value."""
    return key if isinstance(key, str) and len(key) <= 80 and key.isprintable() else shown(key)


def mapping(at: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise refuse(at, value, "a section of `key: value` lines")
    return value


def expect(at: str, section: Mapping[str, Any], allowed: list[str], needed: list[str]) -> None:
    for name in section:
        if name not in allowed:
            raise UserError(f"{at}{named(name)}: {shown(section[name])}: unknown key; allowed: {', '.join(allowed)}")
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


def entries(axis: str, value: Any, read: Callable[..., T], hyphen: str = "", name: bool = False) -> dict[str, T]:
    """Entries by name, each told its `name` where it has use for it. UserError for a name that is no text: YAML's 1 and "1" would
    be two entries of one name.
    """
    section, allowed = mapping(axis, value), "1 to 60 of lower-case letters, digits, _" + (" and -" if hyphen else "")
    for one in section:
        if not isinstance(one, str):
            raise refuse(f"{axis}: the name", one, f"a text, in quotes: {allowed}")
        if not re.fullmatch(rf"[a-z0-9][a-z0-9_{hyphen}]{{0,59}}", one):
            raise refuse(f"{axis}: the name", one, allowed)
    return {one: read(f"{axis}.{one}", own, **({"name": one} if name else {})) for one, own in section.items()}


def parse(path: Path) -> Mapping[str, Any]:
    """The file as YAML has it; UserError for whatever YAML makes of it that is no section."""
    try:
        if (size := path.stat().st_size) > SIZE:
            raise UserError(f"{path}: {size} bytes; allowed: at most {SIZE}")
        text, depth = path.read_text(encoding="utf-8"), 0
        for bracket in re.findall(r"[\[\]{}]", text):  # the library takes long over what is nested deeply
            depth = max(depth + (1 if bracket in "[{" else -1), 0)
            if depth > DEPTH:
                raise RecursionError
        return mapping(str(path), YAML(typ="safe", pure=True).load(text))
    except UserError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    except RecursionError:
        raise UserError(f"{path}: not valid YAML: lists or sections are nested too deeply; allowed: {DEPTH} levels") from None
    except Exception as error:  # the library lets pass what its own steps raise, such as a number that Python cannot read
        marked = isinstance(error, MarkedYAMLError) and error.problem_mark
        where = f"line {error.problem_mark.line + 1}: {error.problem}" if marked else str(error)
        raise UserError(f"{path}: not valid YAML: {' '.join(where.split())[:200]}") from error
