"""Measure what editing costs on this machine: reports/cost.csv. Wall-clock is no result to be reproduced: this stands outside the
graph, and compares things only within one run.

    python -m stages.cost okedit llava-smollm2                       # a dataset and a backbone: all methods in one run
    python -m stages.cost okedit llava-smollm2 grace balancedit      # some anew; the other rows stay as they are
"""

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from stages.backbone.vlm import Query
from stages.cost import frozen, serving
from stages.cost.clock import measure, middle
from stages.editing import full_forward, tuning
from stages.editing.cell import Cell
from stages.editing.edits import Edit
from stages.editing.fitting import fitted
from stages.editing.plan import Plan
from stages.editing.size import size_of, tensors_in
from stages.editing.team import Team
from stages.editing.trunk import request_of
from stages.params import UserError, load, run, write_atomically

REPORT = Path("reports/cost.csv")
EDITS, ROUNDS = 8, 5  # the edits' own queries make the batch that is served
TURNS = 20  # rounds of what is served: its ratios are near 1
SIZES = (1, 10, 50, 100, 300, 1_000, 10_000)  # entries of a codebook
COLUMNS = ["dataset", "backbone", "method", "cost", "entries", "value", "low", "high", "n"]
LAYER_COPIES = "balancedit"  # the editor whose entries are copies of a layer


def main() -> None:
    if len(sys.argv) < 3:
        raise UserError(
            f"arguments: {' '.join(sys.argv[1:])!r}; needed: a dataset and a backbone, and methods unless all are meant"
        )
    params, place, some = load(), sys.argv[1:3], sys.argv[3:]
    torch.set_num_threads(params.threads)
    methods = [params.method(name).name for name in some or params.methods]
    found: list[dict[str, Any]] = []
    for method in methods:
        cell = Cell.open(params, Plan.of(params, *place, method))
        hyper = tuning.chosen_beside(Team.alone(cell))
        at = dict(zip(COLUMNS, (*place, method), strict=False))
        found += [at | one for one in costs(cell, hyper)]
    table = pd.DataFrame(found)[COLUMNS]
    keep(table, beside=bool(some))
    print(table.to_string(index=False))
    print(f"[cost] {len(found)} costs of {len(methods)} methods -> {REPORT}")


def keep(table: pd.DataFrame, beside: bool) -> None:
    """Write the report, `beside` what stands there of other methods and cells or in its place."""
    if beside and REPORT.exists():
        old, at = pd.read_csv(REPORT), COLUMNS[:3]
        others = old[~pd.MultiIndex.from_frame(old[at]).isin(pd.MultiIndex.from_frame(table[at]))]
        table = pd.concat([others, table.astype({"entries": float})])
    with write_atomically(REPORT) as temporary:
        table.to_csv(temporary, index=False, float_format="%.10g", lineterminator="\n")


def costs(cell: Cell, hyper: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All that is measured of one method, medians over edits or rounds."""
    rows = [row for row in cell.rows if row["split"] == "test"][:EDITS]
    make, shared, seconds = prepare(cell, hyper)
    edits, taken = timed(cell, hyper, rows, make)
    found = [cost("prepare_seconds", [seconds]), cost("edit_seconds", taken)]
    found.append(cost("edit_bytes", [size_of(edit, shared) for edit in edits]))
    if not edits[0].changes_nothing:
        found.append(cost("edited_per_unedited_forward", applied(cell, rows[0], edits[0])))
    if cell.method.router == "codebook":
        found += of_codebook(cell, hyper, rows, edits)
    if cell.method.editor == LAYER_COPIES:
        low, _ = timed(cell, {**hyper, "rank": 1}, rows, make)
        found.append(cost("low_rank_bytes", [size_of(edit) for edit in low]))
        found.append(cost("low_rank_reached", [float(edit.reached) for edit in low]))
    return found


def of_codebook(
    cell: Cell, hyper: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], edits: Sequence[Edit]
) -> list[dict[str, Any]]:
    """What the frozen trunk saves, and what routing costs, of a method behind a codebook."""
    last = pd.DataFrame(frozen.optimisation(cell, hyper, row) for row in rows)
    found = [cost("full_per_trunk_seconds", last["full"] / last["trunk"])]
    found.append(cost("full_per_trunk_loss", last["full_loss"] / last["trunk_loss"]))
    probes, states = cell.queries[rows[0]["edit_id"]], cell.states(rows[0])
    found.append(cost("trace_per_forward", frozen.tracing(cell.backbone, rows[0], probes, states, edits[0], ROUNDS)))
    asked = [Query(row["question"], row["image_id"]) for row in rows]
    seconds = dict(serving.served(cell.backbone, asked, edits, cell.method.key.span, SIZES, TURNS))
    unedited = seconds.pop("unedited")
    for (size, where), taken in seconds.items():
        found.append(cost(f"routed_{where}_seconds", taken, size))
        found.append(cost(f"routed_{where}_per_unedited", taken / unedited, size))
    return found


def cost(name: str, values: Sequence[float], entries: int | None = None) -> dict[str, Any]:
    """One row of the report."""
    return {"cost": name, "entries": entries, **middle(np.array(values))}


def prepare(cell: Cell, hyper: Mapping[str, Any]) -> tuple[Callable[..., Edit], list[torch.Tensor], float]:
    """The method's `edit` once it has learnt what it learns of the train split, the tensors that it learnt, and the seconds."""
    if not hasattr(cell.editor, "fit"):
        return cell.editor.edit, [], 0.0
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        learnt = fitted(cell.editor, cell.backbone, cell.examples, {**hyper, "seed": 0}, "", Path(folder))
    seconds = time.perf_counter() - begin
    return partial(cell.editor.edit, fitted=learnt), tensors_in(learnt), seconds


def timed(
    cell: Cell, hyper: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], make: Callable[..., Edit]
) -> tuple[list[Edit], list[float]]:
    """The edits of some rows and the seconds of each, from what the trunk says of it; one more, to warm up, does not count."""
    edits, taken = [], []
    for row in (rows[0], *rows):
        request = request_of(cell.states(row), row)
        begin = time.perf_counter()
        edits.append(make(cell.backbone, request, cell.editor.Settings(**hyper)))
        taken.append(time.perf_counter() - begin)
    return edits[1:], taken[1:]


def applied(cell: Cell, row: Mapping[str, Any], edit: Edit) -> np.ndarray:
    """[rounds] seconds of a forward over an edit's queries with it applied, over those of the unedited model."""
    queries = [p.query for p in cell.queries[row["edit_id"]] if not p.is_sample]
    mask = cell.backbone.prompts(queries).mask

    def forward(edit: Edit) -> None:
        with edit.applied(cell.backbone, mask):
            past = full_forward.before(cell.backbone, edit.prefix)
            full_forward.begin(cell.backbone, cell.backbone.prompts(queries), past)

    taken = measure({"edited": partial(forward, edit), "unedited": partial(forward, Edit())}, ROUNDS)
    return taken["edited"] / taken["unedited"]


if __name__ == "__main__":
    run(main)
