"""What is left of every edit after many, for every method whose edits can follow on each other: reports/sequences.csv.

python -m stages.retention
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from stages import beside
from stages.editing.conflicts import RULES
from stages.editing.declared import declared
from stages.metrics.files import read_trace, write_csv
from stages.params import Params, UserError, derive_seed, load, run
from stages.sequences import retention
from stages.scoring import routing
from stages.scoring.scope import settled
from stages.sequences import cache
from stages.sequences.orders import HELD_OUT, orders, points

AXES = ["dataset", "backbone", "method", "memory"]
OUT = Path("reports/sequences.csv")


def open_tables(dataset: str, backbone: str, method: str) -> retention.Tables:
    """What `stages.sequences` wrote of a method on a backbone and a dataset."""
    parts = []
    for path in cache.files(cache.MADE / f"{dataset}-{backbone}-{method}"):
        if not path.exists():
            raise UserError(f"sequences: {path} is missing; run `python -m stages.sequences {dataset} {backbone} {method}`")
        parts.append(pd.read_parquet(path))
    trace = parts[0]
    return retention.Tables(*parts, trace.loc[trace["split"] != HELD_OUT, "edit_id"].drop_duplicates().tolist())


def sequences(params: Params, place: tuple[str, str, str]) -> pd.DataFrame:
    """Scores of a method on a dataset and backbone, at every point of every order, of each kind of memory that it can have."""
    dataset, backbone, name = place
    tables, method, found = open_tables(dataset, backbone, name), params.method(name), []
    few = replace(tables, edits=tables.edits[: method.sequence.rollouts(dataset, backbone)[0]])
    kinds, drawn, made = {}, orders_of(params, dataset, few.edits), tables.trace[tables.trace["edit_id"].isin(tables.edits)]
    method = settled(method, read_trace(dataset, backbone, name))
    if method.router == "codebook":
        reach, column = routing.radii(made, method.key, method.radius), routing.distance_column(method.key, method.radius)
        radii = reach.set_index("edit_id")["epsilon"].to_dict()
        whole, at = orders_of(params, dataset, tables.edits), points(params.sequence, len(tables.edits))
        for rule in RULES:
            kinds[f"codebook, {rule}"] = retention.codebook(tables, whole, at, radii, column, rule)
        if len(tables.rollout):
            kinds["released code"] = retention.shared(few, drawn, radii, column)
    else:
        threshold = method.threshold if method.router == "builtin" else None
        beside = getattr(declared(method.editor), "MEMORY_BASED", False)
        kinds["memory" if beside else "weights"] = retention.shared(few, drawn, None, "", beside, threshold)
    on = pd.Series(routing.routed_on(made, method), index=pd.MultiIndex.from_frame(made[retention.QUERY]))
    kinds["alone"] = [retention.alone(tables, on)]
    for memory, reached in kinds.items():
        found += [{"memory": memory} | row for point in reached for row in retention.scored(point, tables.edits)]
    return pd.DataFrame(found).assign(dataset=dataset, backbone=backbone, method=name)


def orders_of(params: Params, dataset: str, edits: Sequence[str]) -> list[list[int]]:
    """The orders in which the edits are made, as their numbers."""
    return orders(range(len(edits)), params.sequence.orders, derive_seed(params.seed, "sequence", dataset))


def main() -> None:
    params = load()
    places = list(product(params.sequence.datasets, params.sequence.backbones, params.sequence.methods))
    whole = pd.concat(beside.each(partial(sequences, params), places, "retention"))
    columns = [*AXES, "order", "made", "protocol", "metric", "value", "n"]
    write_csv(OUT, whole[columns].replace({"value": {np.nan: None}}))
    print(f"[retention] {whole[AXES].drop_duplicates().shape[0]} kinds of memory, {len(whole):,} rows -> {OUT}")


if __name__ == "__main__":
    run(main)
