"""Where the tables of a cell's sequences stand, and what stands in Git of them: they take an hour and more to make, and are made
only where something that decides them has changed.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from stages.editing import trace_cache
from stages.editing.plan import Plan
from stages.params import write_atomically
from stages.settings import Sequence as Settings

MADE, KEPT = Path("data/sequences"), Path("reports/sequences")
TABLES, STAMP = ("trace", "interference", "rollout"), "made_from"


def made_from(plan: Plan, hyper: Mapping[str, Any], settings: Settings) -> str:
    """A digest of what a cell's sequences depend on, but for the code and the device."""
    size = [settings.edits, settings.shared, settings.orders, settings.at, settings.probes]
    return trace_cache.made_from(plan, hyper, plan.seeds[:1], plan.method.router, plan.method.key.span, size)


def write(folder: Path, tables: Mapping[str, pd.DataFrame], digest: str) -> None:
    """One parquet file a table, whole or not at all, and what they were made from."""
    for name in TABLES:
        with write_atomically(folder / f"{name}.parquet") as temporary:
            tables.get(name, pd.DataFrame()).to_parquet(temporary, index=False, compression="zstd")
    (folder / STAMP).write_text(digest)


def stands(folder: Path, digest: str) -> bool:
    """Whether a folder's tables were made from what `digest` says."""
    return (folder / STAMP).exists() and (folder / STAMP).read_text() == digest


def copy(source: Path, target: Path) -> None:
    """Put a folder's tables in the place of another's."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
