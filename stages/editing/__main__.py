"""Make every dev and test edit of one cell and trace what it does: data/traces/<dataset>-<backbone>-<method>.parquet.

    python -m stages.editing okedit llava-smollm2 balancedit    # a dataset, a backbone and a method
    python -m stages.editing tune                               # reports/tuning.csv: each method's settings, by its dev edits
    python -m stages.editing tune okedit llava-smollm2 ft       # of one cell
    python -m stages.editing keep                               # put what was made into reports/traces, which Git keeps

What stands in reports/traces is not made again where it was made from the same; without it, everything is. Interrupted work
resumes: each finished edit is kept under data/.resume until the trace is whole.
"""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import torch

from stages.backbone.vlm import Backbone
from stages.editing import trace_cache, tuning
from stages.editing.cell import Cell, label
from stages.editing.plan import Plan
from stages.okedit.schema import write_table
from stages.params import Params, UserError, load, run


def main() -> None:
    does, names = ("", sys.argv[1:]) if sys.argv[1:2] not in (["tune"], ["keep"]) else (sys.argv[1], sys.argv[2:])
    if len(names) != 3 and (names or not does):
        raise UserError(f"arguments: {' '.join(sys.argv[1:])!r}; needed: [tune | keep] and a dataset, a backbone and a method")
    params = load()
    torch.set_num_threads(params.threads)
    cells = [names] if names else list(product(params.datasets, params.edited, params.methods))
    if does == "tune":
        tune(params, cells)
    elif does == "keep":
        keep(cells)
    else:
        plan = Plan.of(params, *names)
        hyper = tuning.known(plan)
        if hyper is None or not taken(plan, hyper):
            edit(params, Cell.open(params, plan))


def taken(plan: Plan, hyper: Mapping[str, Any]) -> bool:
    """Take a cell's trace from Git, if it was made from what would make it now."""
    name = f"{plan.name}.parquet"
    if not trace_cache.stands(plan.name, trace_cache.made_from(plan, hyper, plan.seeds)):
        return False
    trace_cache.copy(trace_cache.KEPT / name, trace_cache.MADE / name)
    print(f"[edits] {plan.name}: as {trace_cache.KEPT / name} has it")
    return True


def edit(params: Params, cell: Cell) -> None:
    """Make and trace a cell's edits, or take them from Git."""
    path = trace_cache.MADE / f"{cell.name}.parquet"
    with cell.records() as records:
        hyper = tuning.chosen(cell, records)
        if taken(cell, hyper):
            return
        before = fingerprint(cell.backbone)
        # dev edits choose α; other methods have no use for them once settings are chosen
        rows = cell.rows if cell.method.router == "codebook" else [row for row in cell.rows if row["split"] == "test"]
        traced = cell.trace(hyper, rows, cell.seeds, records)
        after = fingerprint(cell.backbone)
        if after != before:
            raise RuntimeError(f"{cell.name}: the backbone's weights changed; editing must leave them bit-identical")
        said = {"fitted": hasattr(cell.editor, "fit"), "weights": after[:16], "settings": label(hyper), "tried": len(cell.grid)}
        said |= {"device": params.device, "made_from": trace_cache.made_from(cell, hyper, cell.seeds)}
        write_table(path, [row | said for row in traced])
    diverged = {(r["seed"], r["edit_id"]) for r in traced if r["diverged"]}
    failed = f", {len(diverged)} diverged" if diverged else ""
    print(f"[edits] {cell.name}: {len(rows)} edits x {len(cell.seeds)} seeds{failed}, {len(traced)} rows -> {path}")


def keep(cells: Sequence[Sequence[str]]) -> None:
    """Put the traces of cells into the folder that Git keeps."""
    for name in map("-".join, cells):
        trace_cache.copy(trace_cache.MADE / f"{name}.parquet", trace_cache.KEPT / f"{name}.parquet")
    print(f"[edits] {len(cells)} traces -> {trace_cache.KEPT}")


def tune(params: Params, cells: Sequence[Sequence[str]]) -> None:
    """Choose the settings of every cell whose method has several to choose from."""
    for names in cells:
        method = params.method(names[2])
        if not any(isinstance(value, list) for value in method.hyper.values()):
            print(f"[tune] {'-'.join(names)}: one value each, nothing to choose")
            continue
        cell = Cell.open(params, Plan.of(params, *names))
        with cell.records() as records:
            table = tuning.tried(cell, records)
            tuning.keep(table)
        best = table[table["chosen"]].iloc[0]
        print(f"[tune] {cell.name}: of {len(table)} settings {best['setting']}, HM {best['hm']:.3f} -> {tuning.TABLE}")


def fingerprint(backbone: Backbone) -> str:
    """A digest of every weight of the model, bit for bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


if __name__ == "__main__":
    run(main)
