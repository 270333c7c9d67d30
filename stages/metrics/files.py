"""Traces in, tables out. Cells are enumerated from the parameters, never by what lies in a folder."""

from pathlib import Path

import pandas as pd

from stages.params import UserError, write_atomically

TRACES = Path("data/traces")


def read_trace(dataset: str, backbone: str, method: str) -> pd.DataFrame:
    """One cell's trace: a row a (seed, edit, probe), in that order."""
    path = TRACES / f"{dataset}-{backbone}-{method}.parquet"
    if not path.exists():
        raise UserError(f"trace: {path} is missing; run `python -m stages.editing {dataset} {backbone} {method}`")
    return pd.read_parquet(path)


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Six decimals, Unix line ends, whole or not at all."""
    with write_atomically(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6f", lineterminator="\n")
