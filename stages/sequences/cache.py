"""Where the tables of a cell's sequences stand, and what Git keeps of them: they take an hour and more to make.

Importing this loads no model library.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from stages.editing import trace_cache
from stages.editing.trace_cache import Stamp

MADE, KEPT = Path("data/sequences"), Path("reports/sequences")
PLANS, STAMPS = Path("data/plans/sequences"), Path("data/stamps/sequences")
TABLES, STAMP = ("trace", "interference", "rollout"), "stamp.json"


def files(folder: Path) -> list[Path]:
    """The files of a cell's tables."""
    return [folder / f"{name}.parquet" for name in TABLES]


def take(name: str, stamp: Stamp) -> None:
    """Take a cell's tables from Git, under `stamp`."""
    for source, target in zip(files(KEPT / name), files(MADE / name), strict=True):
        trace_cache.copy(source, target)
    stamp.write(STAMPS / f"{name}.json")
    said = f", checked on {stamp.checked} edits made again by the code of now" if stamp.checked else ""
    print(f"[sequences] {name}: as {KEPT / name} has it{said}")


def keep(names: Sequence[str]) -> list[Mapping[str, str]]:
    """Put the tables and stamps of cells where Git keeps them, and give what was tried for them; the same table is not written
    again.
    """
    tried = []
    for name in names:
        for made, there in zip(files(MADE / name), files(KEPT / name), strict=True):
            if not (made.exists() and there.exists() and made.read_bytes() == there.read_bytes()):
                trace_cache.copy(made, there)
        stamp = Stamp.read(STAMPS / f"{name}.json")
        replace(stamp, tried=[]).write(KEPT / name / STAMP)
        tried += stamp.tried
        print(f"[sequences] {MADE / name} -> {KEPT / name}")
    return tried
