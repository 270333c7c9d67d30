"""Make the edits of long sequences and trace what they do to each other: data/sequences/<dataset>-<backbone>-<method>/.

    python -m stages.chains okedit llava-smollm2 balancedit    # a dataset, a backbone and a method

trace.parquet has every edit by itself, crossings.parquet what it does to the others' probes behind a codebook, and played.parquet
what is left where all edits share one set of weights. Tables have no rows where a method has no such sequence. Interrupted work
resumes: each finished edit or order is kept under data/.partial.
"""

import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import torch

from stages.chains.asked import Asked, queries_of
from stages.chains.crossing import each
from stages.chains.played import orders, played, points
from stages.editing.cell import Cell
from stages.editing.editor import module_of
from stages.okedit.schema import read_sequence
from stages.params import Params, UserError, derive_seed, load, run, write_atomically


def main() -> None:
    if len(sys.argv) != 4:
        raise UserError(f"arguments: {' '.join(sys.argv[1:])!r}; needed: a dataset, a backbone and a method")
    params, name = load(), "-".join(sys.argv[1:])
    torch.set_num_threads(params.threads)
    method, hyper = params.method(sys.argv[3]), settings_of(Path("data/traces") / f"{name}.parquet")
    routed, goes_on = method.router == "codebook", getattr(module_of(method.editor), "goes_on", lambda _: False)(hyper)
    found = chain(params, hyper, routed, goes_on) if routed or goes_on else dict.fromkeys(("trace", "crossings", "played"))
    for table, rows in found.items():
        keep(Path("data/sequences") / name / f"{table}.parquet", pd.DataFrame() if rows is None else rows)
    made = 0 if found["trace"] is None else found["trace"]["edit_id"].nunique()
    print(f"[chains] {name}: {made} edits -> data/sequences/{name}")


def settings_of(path: Path) -> Mapping[str, Any]:
    """What a cell's edits were made with, as their trace says."""
    if not path.exists():
        raise UserError(f"trace: {path} is missing; run the `edits` stage first")
    return json.loads(pq.read_table(path, columns=["settings"])["settings"][0].as_py())


def chain(params: Params, hyper: Mapping[str, Any], routed: bool, goes_on: bool) -> dict[str, pd.DataFrame]:
    """The tables of one cell."""
    dataset, backbone, method = sys.argv[1:]
    folder, settings = Path("data/okedit") / params.dataset(dataset).name, params.sequence
    rows = read_sequence(folder, params.edits, settings.edits if routed else min(settings.edits, settings.shared))
    cell = Cell.open(params, dataset, backbone, method, rows, partial(queries_of, count=settings.probes))
    code = "".join(path.read_text() for path in sorted(Path(__file__).parent.glob("*.py")))
    with cell.records("chain-", hyper, cell.method.key.span, settings.at, settings.orders, settings.probes, code) as records:
        asked = [Asked.of(cell, row) for row in rows]
        made = [one.row for one in asked if not one.held_out]
        seed, left = derive_seed(params.seed, "sequence", dataset), pd.DataFrame()
        drawn = orders(range(len(made)), settings.orders, seed)
        trace, crossings = each(cell, hyper, made, asked, drawn, points(settings, len(made)), records)
        if goes_on:
            left = played(cell, hyper, made[: settings.shared], asked, settings, seed, records)
    return {"trace": trace, "crossings": crossings, "played": left}


def keep(path: Path, table: pd.DataFrame) -> None:
    """One parquet file, whole or not at all."""
    with write_atomically(path) as temporary:
        table.to_parquet(temporary, index=False, compression="zstd")


if __name__ == "__main__":
    run(main)
