"""reports/tuning.csv: which settings were tried in each cell, and which was chosen.

Importing this loads no model library.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from stages.editing import trace_cache
from stages.params import write_atomically

TABLE = Path("reports/tuning.csv")
AXES = ("dataset", "backbone", "method")
Line = Mapping[str, str]


def of_cell(names: Sequence[str], path: Path = TABLE) -> list[Line]:
    """What was tried for a cell: as the stamp beside its trace says, else as Git has it; nothing where there was no choice."""
    stamp = trace_cache.STAMPS / f"{'-'.join(names)}.json"
    if stamp.exists() and (lines := trace_cache.Stamp.read(stamp).tried):
        return list(lines)
    return [line for line in read(path) if cell_of(line) == tuple(names) and "scope" in line]


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
    """Write what was tried in some cells in the place of what stood there. Lines with other columns, which an earlier version
    wrote, say nothing that would be read.
    """
    cells = {cell_of(line) for line in tried}
    stay = (line for line in read(path) if cell_of(line) not in cells and line.keys() == tried[0].keys())
    lines = sorted([*stay, *tried], key=cell_of)
    with write_atomically(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(lines)
