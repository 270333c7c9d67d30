"""Make the edits of long sequences and trace what they do to each other: data/sequences/<dataset>-<backbone>-<method>/.

    python -m stages.sequences okedit llava-smollm2 balancedit    # a dataset, a backbone and a method
    python -m stages.sequences keep                               # put what was made into reports/sequences, which Git keeps

trace.parquet has every edit by itself, interference.parquet what it does to the others' probes behind a codebook, and
rollout.parquet what is left where each edit goes on from the one before. Tables have no rows where a method has no such sequence.
What stands in reports/sequences is not made again where it was made from the same. Interrupted work resumes: each finished edit
or order is kept under data/.resume.
"""

import json
import sys
from collections.abc import Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import torch

from stages.editing.cell import Cell
from stages.editing.editors import module_of
from stages.editing.plan import Plan
from stages.okedit.schema import read_sequence
from stages.params import Params, UserError, derive_seed, load, run
from stages.sequences import cache
from stages.sequences.interference import each
from stages.sequences.probes import HELD_OUT, ProbeSet, queries_of
from stages.sequences.rollout import orders, points, rollout
from stages.settings import Sequence as Settings


def main() -> None:
    keeps, names = sys.argv[1:] == ["keep"], sys.argv[1:]
    if len(names) != 3 and not keeps:
        raise UserError(f"arguments: {' '.join(names)!r}; needed: a dataset, a backbone and a method, or keep")
    params = load()
    torch.set_num_threads(params.threads)
    if keeps:
        keep(params)
    else:
        make(params, *names)


def make(params: Params, dataset: str, backbone: str, name: str) -> None:
    """The tables of one cell, as they are kept or made."""
    place = f"{dataset}-{backbone}-{name}"
    method = params.method(name)
    settings = method.sequence
    routed, goes_on = method.router == "codebook", getattr(module_of(method.editor), "SEQUENTIAL", False)
    if not routed and not goes_on:
        raise UserError(
            f"sequence.methods: {name!r} is not allowed; allowed: router codebook, or an editor whose edits go on from each other"
        )
    hyper = settings_of(Path("data/traces") / f"{place}.parquet")
    rows = read_sequence(
        Path("data/okedit") / params.dataset(dataset).name,
        params.edits,
        settings.edits if routed else min(settings.edits, settings.shared),
    )
    plan = Plan.of(params, dataset, backbone, name, rows)
    digest = cache.made_from(plan, hyper, settings)
    if cache.stands(cache.KEPT / place, digest):
        cache.copy(cache.KEPT / place, cache.MADE / place)
        print(f"[sequences] {place}: as {cache.KEPT / place} has it")
        return
    cell = Cell.open(params, plan, partial(queries_of, count=settings.probes))
    tables = chain(cell, hyper, settings, derive_seed(params.seed, "sequence", dataset), goes_on)
    cache.write(cache.MADE / place, tables, digest)
    made = tables["trace"].loc[tables["trace"]["split"] != HELD_OUT, "edit_id"].nunique()
    print(f"[sequences] {place}: {made} edits -> {cache.MADE / place}")


def keep(params: Params) -> None:
    """Put all cells that were made into the folder that Git keeps."""
    for place in map("-".join, product(params.sequence.datasets, params.sequence.backbones, params.sequence.methods)):
        if not (cache.MADE / place).exists():
            raise UserError(f"sequences: {cache.MADE / place} is missing; run the `sequences` stage first")
        cache.copy(cache.MADE / place, cache.KEPT / place)
        print(f"[sequences] {cache.MADE / place} -> {cache.KEPT / place}")


def settings_of(path: Path) -> Mapping[str, Any]:
    """What a cell's edits were made with, as their trace says."""
    if not path.exists():
        raise UserError(f"trace: {path} is missing; run the `edits` stage first")
    return json.loads(pq.read_table(path, columns=["settings"])["settings"][0].as_py())


def chain(cell: Cell, hyper: Mapping[str, Any], settings: Settings, seed: int, goes_on: bool) -> dict[str, pd.DataFrame]:
    """The tables of one cell, made."""
    code = "".join(path.read_text() for path in sorted(Path(__file__).parent.glob("*.py")))
    with cell.records("chain-", hyper, cell.method.key.span, settings.at, settings.orders, settings.probes, code) as records:
        probes = [ProbeSet.of(cell, row) for row in cell.rows]
        made, left = [one.row for one in probes if not one.held_out], pd.DataFrame()
        drawn = orders(range(len(made)), settings.orders, seed)
        trace, interference = each(cell, hyper, made, probes, drawn, points(settings, len(made)), records)
        if goes_on:
            left = rollout(cell, hyper, made[: settings.shared], probes, settings, seed, records)
    return {"trace": trace, "interference": interference, "rollout": left}


if __name__ == "__main__":
    run(main)
