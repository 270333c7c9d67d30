"""BalancEdit at other depths: the same edits with another decoder layer edited, each depth under its own α: reports/layers.csv.

    python -m stages.layers

The stage is frozen, its table in Git: every depth reads its probes anew, and the lower it lies, the more layers an edit and its
probes run through. Interrupted work resumes.
"""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from stages.backbone.depth import seen_from
from stages.backbone.vlm import Backbone
from stages.editing import tuning
from stages.editing.cell import Cell
from stages.editing.plan import Plan
from stages.editing.resume import Records
from stages.editing.team import Team
from stages.metrics.files import write_csv
from stages.params import Params, UserError, derive_seed, load, run
from stages.scoring import routing, scores
from stages.scoring.scope import settled

OUT = Path("reports/layers.csv")
COLUMNS = ["dataset", "backbone", "method", "layer", "alpha", "inverted", "protocol", "metric", "mean", "low", "high", "n"]
SHOWN = ("reliability", *scores.HM_PARTS)


def main() -> None:
    params = load()
    torch.set_num_threads(params.threads)
    ours = next((m.name for m in params.methods.values() if params.is_ours(m)), None)
    if ours is None:
        raise UserError("methods: BalancEdit with the global key and radius is not among them; allowed: an entry of it")
    tables = []
    for dataset, backbone in product(params.datasets, params.edited):
        whole = Cell.open(params, Plan.of(params, dataset, backbone, ours))
        hyper = tuning.chosen_beside(Team.alone(whole))  # what its edits have at their own depth
        cell = few_edits(whole, params)
        views = [seen_from(cell.backbone, layer) for layer in params.layers.at]
        cells = [at_depth(cell, view) for view in views]
        with contextlib.ExitStack() as stack:
            kept = [stack.enter_context(records(one)) for one in cells]
            for one, made in zip(cells, kept, strict=True):
                table = depth(params, one, hyper, made)
                tables.append(table.assign(dataset=dataset, backbone=backbone, method=ours, layer=one.backbone.layer))
    found = pd.concat(tables)[COLUMNS]
    write_csv(OUT, found)
    shown = found[(found["protocol"] == "strict") & (found["metric"] == "hm")]
    print(shown.drop(columns=["protocol", "metric"]).to_string(index=False))
    print(f"[layers] {len(params.layers.at)} layers x {params.layers.test} edits -> {OUT}")


def at_depth(cell: Cell, view: Backbone) -> Cell:
    """The cell with the same model seen with another edited layer."""
    name = f"{cell.backbone_name}-layer{view.layer}"
    trunk = replace(cell.trunk, backbone=view, folder=cell.trunk.folder.with_name(name))
    return replace(cell, backbone=view, fingerprint=view.fingerprint, backbone_name=name, trunk=trunk)


def records(cell: Cell) -> Records:
    """Where a depth's finished edits are kept."""
    made_from = [cell.code, cell.fingerprint, cell.grid, cell.rows, cell.samples, cell.trunk.pictures]
    return Records(Path("data/.resume") / cell.name, json.dumps(made_from))


def few_edits(cell: Cell, params: Params) -> Cell:
    """The cell with its first test edits, as many dev edits and a few probes of each kind."""
    test, dev = ([row for row in cell.rows if row["split"] == split][: params.layers.test] for split in ("test", "dev"))
    return replace(cell.asking(params.layers.probes), rows=[*test, *dev])


def depth(params: Params, cell: Cell, hyper: Mapping[str, Any], records: Records) -> pd.DataFrame:
    """α, the share of edits with d⁺ > d⁻, and protocol, metric, mean, low, high, n of one depth's test edits."""
    trace = pd.DataFrame(Team.alone(cell).trace(hyper, cell.rows, cell.seeds[:1], records))
    method = settled(cell.method, trace)
    routed = routing.route(trace, routing.routed_on(trace, method))
    test = routed[routed["split"] == "test"]
    reach = routing.radii(trace, method.key, method.radius)
    inverted = reach[reach["split"] == "test"]["inverted"].mean()
    seed = derive_seed(params.seed, "layers", cell.dataset)
    draws = scores.resample(test["edit_id"].nunique(), params.metrics.resamples, seed)
    tables = []
    for protocol in scores.PROTOCOLS:
        table = scores.per_edit(test, protocol)
        shown = table[[c for c in SHOWN if c in table]]
        tables.append(scores.summarise(shown, draws, params.metrics.level).assign(protocol=protocol))
    return pd.concat(tables).assign(alpha=method.radius.alpha, inverted=inverted)


if __name__ == "__main__":
    run(main)
