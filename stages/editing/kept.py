"""What stands in Git of the traces: a cell's edits take minutes to an hour, and are made only where something that decides them
has changed.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from stages.editing.plan import Plan
from stages.params import UserError, write_atomically

MADE, KEPT = Path("data/traces"), Path("reports/traces")


def made_from(plan: Plan, hyper: Mapping[str, Any], seeds: Sequence[int], *more: object) -> str:
    """A digest of what a plan's edits, and `more` that is asked of them, depend on, but for the code and the device."""
    made = {row["edit_id"] for row in plan.rows}
    samples = [sample for sample in plan.samples if sample["edit_id"] in made]
    text = json.dumps([plan.fingerprint, plan.method.editor, hyper, seeds, plan.rows, samples, plan.learnt, *more])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def stands(name: str, digest: str) -> bool:
    """Whether Git's trace of a cell was made from what `digest` says."""
    path = KEPT / f"{name}.parquet"
    return path.exists() and pq.read_table(path, columns=["made_from"])["made_from"][0].as_py() == digest


def copy(source: Path, target: Path) -> None:
    """Put a file in the place of another; UserError where it is missing."""
    if not source.exists():
        raise UserError(f"trace: {source} is missing; run the `edits` stage first")
    with write_atomically(target) as temporary:
        shutil.copyfile(source, temporary)
