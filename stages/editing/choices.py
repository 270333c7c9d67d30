"""reports/tuning.csv: which settings were tried in each cell, and which was chosen. A choice that stands there is not made again.

Importing this loads no model library.
"""

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.editing.plan import Plan, label
from stages.okedit.schema import of_split
from stages.params import write_atomically

TABLE = Path("reports/tuning.csv")
AXES = ("dataset", "backbone", "method")
Line = Mapping[str, str]


def made_from(plan: Plan) -> str:
    """A digest of what a choice depends on, but for the code, pictures, and the key and the radius of the method: an experiment
    with these makes no edit again.
    """
    dev, method = of_split(plan.rows, "dev"), [plan.method.editor, plan.method.router, plan.grid]
    ids = {row["edit_id"] for row in dev}
    samples = [sample for sample in plan.samples if sample["edit_id"] in ids]
    text = json.dumps([plan.fingerprint, *method, dev, samples, plan.asked, plan.learnt, plan.seeds[:1]])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def known(plan: Plan, path: Path = TABLE) -> tuple[Mapping[str, Any] | None, str | None]:
    """The settings that need no trying, and the code that chose them: the only ones, by no code, or what was chosen before from
    the same; None where there are none.
    """
    if len(plan.grid) == 1:
        return plan.grid[0], None
    at = (plan.dataset, plan.backbone_name, plan.method.name)
    for line in read(path):
        if cell_of(line) == at and line["made_from"] == made_from(plan) and line["chosen"] == "True":
            return next(hyper for hyper in plan.grid if label(hyper) == line["setting"]), line["code"]
    return None, None


def cell_of(line: Line) -> tuple[str, ...]:
    """The dataset, backbone and method of a line."""
    return tuple(line[name] for name in AXES)


def read(path: Path = TABLE) -> list[Line]:
    """All that was tried so far, as text."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def keep(tried: Sequence[Line], path: Path = TABLE) -> None:
    """Write what was tried in some cells in the place of what stood there."""
    cells = {cell_of(line) for line in tried}
    lines = sorted([*(line for line in read(path) if cell_of(line) not in cells), *tried], key=cell_of)
    with write_atomically(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(lines)
