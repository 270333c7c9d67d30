"""Traces in, tables out. Cells are enumerated from the parameters, never by what lies in a folder.

A table that is missing, cut or foreign is a UserError that names it and what makes it again.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from stages.params import UserError, write_atomically
from stages.scoring.routing import READ
from stages.sections import readable

TRACES = Path("data/traces")


def read_trace(dataset: str, backbone: str, method: str) -> pd.DataFrame:
    """One cell's trace: a row a (seed, edit, probe), in that order."""
    path = TRACES / f"{dataset}-{backbone}-{method}.parquet"
    remedy = f"run `python -m stages.editing {dataset} {backbone} {method}`"
    if not path.exists():
        raise UserError(f"trace: {path} is missing; {remedy}")
    found = read_table(path, remedy, [*READ, "settings", "tried"])
    if found.empty:
        raise UserError(f"trace: {path} has no rows; {remedy}")
    return found


def read_table(path: Path, remedy: str, columns: Sequence[str] = ()) -> pd.DataFrame:
    """One table, .csv or .parquet, which has all of some columns."""
    with readable(path, remedy):
        found = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    lacks = [name for name in columns if name not in found]
    if lacks:
        raise UserError(f"{path}: the column {lacks[0]!r} is missing; {remedy}")
    return found


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Six decimals, Unix line ends, whole or not at all."""
    with write_atomically(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6f", lineterminator="\n")
