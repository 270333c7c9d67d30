"""What is chosen for a method's sequences and needs no trying: reports/sequence_tuning.csv has it.

Importing this loads no model library.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stages.editing import tried
from stages.editing.trace_cache import Stamp
from stages.editing.tried import Line
from stages.sequences import cache
from stages.settings import Method

TABLE = Path("reports/sequence_tuning.csv")


@dataclass(frozen=True)
class Choice:
    """Settings, rule for conflicts and value of the scope, and the code that chose them."""

    settings: Mapping[str, Any]
    rule: str
    scope: float
    code: str


def reach(method: Method) -> str:
    """A digest of how a method's edits reach, but for the value of its scope."""
    radius = asdict(method.radius) | {"alpha": 0.0, "epsilon": 0.0}
    return hashlib.sha256(json.dumps([method.router, method.scope, asdict(method.key), radius]).encode()).hexdigest()[:16]


def choice_of(line: Line) -> Choice:
    """The choice that a line holds."""
    return Choice(json.loads(line["setting"]), line["rule"], float(line["scope"]), line["code"])


def of_cell(names: Sequence[str], path: Path = TABLE) -> list[Line]:
    """What was tried for a cell: as the stamp beside its tables says, else as Git has it."""
    stamp = cache.STAMPS / f"{'-'.join(names)}.json"
    if stamp.exists() and (lines := Stamp.read(stamp).tried):
        return list(lines)
    return [line for line in tried.read(path) if tried.cell_of(line) == tuple(names)]


def of_scope(names: Sequence[str], method: Method, path: Path = TABLE) -> Choice | None:
    """What was chosen for a method that reaches as far as it does now, but for the value of its scope; None where nothing was."""
    lines = (line for line in of_cell(names, path) if line["chosen"] == "True" and line["reach"] == reach(method))
    return next(map(choice_of, lines), None)
