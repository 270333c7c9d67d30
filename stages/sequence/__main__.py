"""What is left of every edit after many, for every method whose edits can follow on each other: reports/sequences.csv.

python -m stages.sequence
"""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from stages.editing import crossing
from stages.metrics.files import read_trace, write_csv
from stages.metrics.tuning import settled
from stages.params import Params, UserError, derive_seed, load, run
from stages.scoring import routing
from stages.sequence import retention

CELL = ["dataset", "backbone", "method", "memory"]
OUT = Path("reports/sequences.csv")


def open_cell(dataset: str, backbone: str, method: str) -> retention.Cell:
    """A cell's trace, crossings and played sequences; tables without rows where the method has none."""
    trace, folder = read_trace(dataset, backbone, method), Path("data/sequences") / f"{dataset}-{backbone}-{method}"
    parts = []
    for name in ("crossings", "played"):
        path = folder / f"{name}.parquet"
        if not path.exists():
            raise UserError(f"sequences: {path} is missing; run `python -m stages.editing {dataset} {backbone} {method}`")
        parts.append(pd.read_parquet(path))
    edits = trace[trace["split"] == "test"]["edit_id"].drop_duplicates().tolist()
    return retention.Cell(trace, *parts, edits)


def sequences(params: Params, dataset: str, backbone: str, name: str) -> pd.DataFrame:
    """Scores at every point of every order, of each kind of memory that the method can have."""
    cell = open_cell(dataset, backbone, name)
    method = settled(params.method(name), cell.trace)
    orders = played_orders(params, dataset, cell.edits)
    points = crossing.points(params.sequence, len(cell.edits))
    found = []
    if method.router == "codebook" and len(cell.crossings):
        reach = routing.radii(cell.trace, method.key, method.radius)
        radii = reach[reach["seed"] == reach["seed"].min()].set_index("edit_id")["epsilon"].to_dict()
        column = routing.distance_column(method.key, method.radius)
        kinds = {"codebook": retention.codebook(cell, orders, points, radii, column)}
        if len(cell.played):
            kinds["released code"] = retention.shared(cell, orders, radii, column)
    elif len(cell.played):
        kinds = {"weights": retention.shared(cell, orders, None, "")}
    else:
        kinds = {}
    if kinds:
        on = pd.Series(routing.routed_on(cell.trace, method), index=pd.MultiIndex.from_frame(cell.trace[retention.QUERY]))
        kinds["alone"] = [retention.alone(cell, on[~on.index.duplicated()])]
    for memory, reached in kinds.items():
        found += [{"memory": memory} | row for point in reached for row in retention.scored(point, cell.edits)]
    return pd.DataFrame(found).assign(dataset=dataset, backbone=backbone, method=name)


def played_orders(params: Params, dataset: str, edits: list[str]) -> list[list[int]]:
    """The orders that were played, as numbers of edits."""
    rows = [{"edit_id": edit, "number": i} for i, edit in enumerate(edits)]
    drawn = crossing.orders(rows, params.sequence.orders, derive_seed(params.seed, "sequence", dataset))
    return [[row["number"] for row in order] for order in drawn]


def main() -> None:
    params = load()
    cells = list(product(params.datasets, params.edited, params.methods))
    tables = [sequences(params, *cell) for cell in tqdm(cells, desc="sequences")]
    whole = pd.concat([table for table in tables if len(table)])
    columns = [*CELL, "order", "made", "protocol", "metric", "value", "n"]
    write_csv(OUT, whole[columns].replace({"value": {np.nan: None}}))
    print(f"[sequence] {whole[CELL].drop_duplicates().shape[0]} kinds of memory, {len(whole):,} rows -> {OUT}")


if __name__ == "__main__":
    run(main)
