"""Make a cell's edits and trace them, or check that what other code made may be taken."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
import torch

from stages.backbone.vlm import Backbone
from stages.editing import check, choices, trace_cache, tuning
from stages.editing.cell import Cell
from stages.editing.plan import Plan, label
from stages.editing.resume import Records
from stages.editing.trace_cache import Planned
from stages.okedit.schema import write_table
from stages.params import Params


def make(params: Params, plan: Plan, planned: Planned) -> None:
    """A cell's trace, which Git does not have as it is planned."""
    torch.set_num_threads(params.threads)
    edit(params, Cell.open(params, plan), planned)


def edit(params: Params, cell: Cell, planned: Planned) -> None:
    """Make and trace a cell's edits. Where Git has what other code made from the same, that is taken if a few edits made again
    are the same. Settings that other code chose stand as long as its edits do.
    """
    with cell.records() as records:
        known = planned.fits(planned.settings)
        settings, tried = (planned.settings, []) if known else tuning.chosen(cell, records)
        if planned.fits(settings):
            if planned.kept.code == planned.code:
                return trace_cache.take(cell.name, replace(planned.kept, tried=tried))
            some, there = check.drawn(cell, params.seed), pd.read_parquet(trace_cache.KEPT / f"{cell.name}.parquet")
            if not (found := check.differs(cell, settings, some, there, records)):
                return trace_cache.take(cell.name, planned.stamp(settings, tried, len(some)))
            print(f"[edits] {cell.name}: the code has changed and with it {found}; made anew")
            if known:
                settings, tried = tuning.chosen(cell, records)
        whole = traced(cell, settings, records)
        write_table(trace_cache.MADE / f"{cell.name}.parquet", whole)
        planned.stamp(settings, tried).write(trace_cache.STAMPS / f"{cell.name}.json")
    diverged = {(r["seed"], r["edit_id"]) for r in whole if r["diverged"]}
    failed = f", {len(diverged)} diverged" if diverged else ""
    size = f"{len(cell.to_trace)} edits x {len(cell.seeds)} seeds{failed}, {len(whole)} rows"
    print(f"[edits] {cell.name}: {size} -> {trace_cache.MADE}")


def traced(cell: Cell, settings: Mapping[str, Any], records: Records) -> list[dict[str, Any]]:
    """The rows of a cell's trace, all made, with what is said of the cell as a whole."""
    before = fingerprint(cell.backbone)
    rows = cell.trace(settings, cell.to_trace, cell.seeds, records)
    after = fingerprint(cell.backbone)
    if after != before:
        raise RuntimeError(f"{cell.name}: the backbone's weights changed; editing must leave them bit-identical")
    said = {"fitted": hasattr(cell.editor, "fit"), "weights": after[:16], "settings": label(settings), "tried": len(cell.grid)}
    return [row | said for row in rows]


def tune(params: Params, plan: Plan) -> None:
    """Choose the settings of a cell whose method has several to choose from."""
    if len(plan.grid) == 1:
        print(f"[tune] {plan.name}: one value each, nothing to choose")
        return
    torch.set_num_threads(params.threads)
    cell = Cell.open(params, plan)
    with cell.records() as records:
        table = tuning.tried(cell, records)
        choices.keep(tuning.lines(table))
    best = table[table["chosen"]].iloc[0]
    print(f"[tune] {cell.name}: of {len(table)} settings {best['setting']}, HM {best['hm']:.3f} -> {choices.TABLE}")


def fingerprint(backbone: Backbone) -> str:
    """A digest of every weight of the model, bit for bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
