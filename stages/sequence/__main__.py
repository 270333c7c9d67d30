"""Edit one model many times over and test what is left: data/sequences/<dataset>-<backbone>-<method>.csv.

    python -m stages.sequence okedit llava-smollm2 balancedit

Radii are those of reports/radii.csv, settings those that the single edits used.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from stages.editing import tuning
from stages.editing.cell import Cell
from stages.params import UserError, derive_seed, load, run, write_atomically
from stages.scoring import routing, scores
from stages.sequence import play
from stages.sequence.memory import Memory
from stages.settings import Sequence

RADII = Path("reports/radii.csv")
PARTS = ("reliability", *scores.BALANCE)


def main() -> None:
    if len(sys.argv) != 4:
        raise UserError(f"arguments: {' '.join(sys.argv[1:])!r}; needed: a dataset, a backbone and a method")
    params = load()
    torch.set_num_threads(params.threads)
    cell = Cell.open(params, *sys.argv[1:])
    play.memory_of(cell, False)  # a method without sequences stops here
    with cell.records() as records:
        hyper = tuning.chosen(cell, records)
    found, radii = [], radii_of(cell)
    variants = {"": False} | ({"released code": True} if cell.method.editor == "balancedit" else {})
    test = [row for row in cell.rows if row["split"] == "test"]
    for variant, faithful in variants.items():
        seed = derive_seed(params.seed, "sequence", cell.dataset)
        for order, rows in enumerate(play.orders(test, params.sequence.orders, seed)):
            empty, at_points = play.memory_of(cell, faithful), points(params.sequence, len(test))
            for made, memory in play.play(cell, hyper, rows, radii, empty, at_points):
                at = {"variant": variant, "order": order, "edits": made, "entries": memory.entries}
                found += [at | one for one in scored(cell, rows[:made], memory, params.sequence.probes)]
                print(f"[sequence] {cell.name} {variant}: order {order}, {made} edits", flush=True)
    path = Path("data/sequences") / f"{cell.name}.csv"
    table = pd.DataFrame(found).assign(dataset=cell.dataset, backbone=cell.backbone_name, method=cell.method.name)
    with write_atomically(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6f", lineterminator="\n")
    print(f"[sequence] {cell.name}: {params.sequence.orders} orders of {len(test)} edits -> {path}")


def points(settings: Sequence, edits: int) -> list[int]:
    """The numbers of edits after which all is tested: those of params.yaml that there are edits for, and all edits."""
    return sorted({at for at in settings.at if at < edits} | {edits})


def radii_of(cell: Cell) -> dict[str, float]:
    """Each edit's radius, as the `metrics` stage found it; none of a method without a codebook."""
    if cell.method.router != "codebook":
        return {}
    if not RADII.exists():
        raise UserError(f"{RADII}: missing; run the `metrics` stage first")
    table = pd.read_csv(RADII)
    own = (table["dataset"] == cell.dataset) & (table["backbone"] == cell.backbone_name) & (table["method"] == cell.method.name)
    return table[own].groupby("edit_id")["epsilon"].first().to_dict()


def scored(cell: Cell, made: list[Mapping[str, Any]], memory: Memory, probes: int) -> list[dict[str, Any]]:
    """protocol, metric, value and n: of every edit made so far, and locality on the dev edits, which are never made."""
    dev = [row for row in cell.rows if row["split"] == "dev"]
    past, others = play.tested(cell, made, memory, probes), play.held_out(play.tested(cell, dev, memory, probes))
    found = []
    for protocol in scores.PROTOCOLS:
        table = score(past, protocol)
        values = {part: table[part].mean() for part in PARTS if part in table}
        values["hm"] = scores.balance(table)["hm"]
        values["held_out_locality"] = score(others, protocol)["locality"].mean()
        found += [{"protocol": protocol, "metric": name, "value": value, "n": len(made)} for name, value in values.items()]
    return found


def score(traced: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """`per_edit` scores of a trace that is routed already."""
    return scores.per_edit(routing.route(traced, traced["kind"].notna().to_numpy()), protocol)


if __name__ == "__main__":
    run(main)
