"""Checks of params.yaml entries that only dataset sources have: texts, paths, sections of which one entry decides the rest."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.params import UserError
from stages.sections import Check, read_section, refuse


def text(pattern: str = r"\S.*", words: str = "a text of one line") -> Check:
    """A string that `pattern` matches whole."""

    def check(key: str, value: Any, stages: Path) -> str:
        if not isinstance(value, str) or not value.isprintable() or not re.fullmatch(pattern, value):
            raise refuse(key, value, words)
        return value

    return check


def path(key: str, value: Any, stages: Path) -> Path:
    """A path; whether it exists is asked when it is needed, by `need`."""
    return Path(text(words="a path")(key, value, stages))


def paths(key: str, value: Any, stages: Path) -> tuple[Path, ...]:
    """One path or a list of them."""
    listed = value if isinstance(value, list) else [value]
    if not listed:
        raise refuse(key, value, "a path or a list of paths")
    return tuple(path(key, one, stages) for one in listed)


def variant(chooser: str, variants: Mapping[str, type]) -> Check:
    """A section whose entry `chooser` names the dataclass that its other entries are read into."""

    def check(key: str, value: Any, stages: Path) -> Any:
        chosen = value.get(chooser) if isinstance(value, Mapping) else None
        if not isinstance(chosen, str) or chosen not in variants:
            raise refuse(f"{key}.{chooser}", chosen, ", ".join(variants))
        rest = {name: entry for name, entry in value.items() if name != chooser}
        return read_section(variants[chosen], key, rest, stages)

    return check


def need(key: str, *found: Path) -> None:
    """Raise UserError, naming the key, for a file or folder that is not there."""
    for one in found:
        if not one.exists():
            raise UserError(f"{key}: {str(one)!r} does not exist; allowed: the path of a file or folder that does")
