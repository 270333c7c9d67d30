"""All ablations over the radius, from the traces of every BalancEdit cell, and every method's edits behind other routers:
reports/ablations/*.csv and summary.json.

python -m stages.ablations
"""

import json
from itertools import product
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from stages.ablations import sweeps
from stages.metrics.files import read_trace, write_csv
from stages.params import Params, derive_seed, load, run, write_atomically
from stages.scoring import scores
from stages.scoring.scope import settled

OUT = Path("reports/ablations")
TAIL = ["protocol", "metric", "mean", "low", "high", "n"]
COLUMNS = {
    "alpha": ["split", "distance", "span", "alpha", *TAIL],
    "strategies": ["split", "strategy", "epsilon", "alpha", *TAIL],
    "negative_samples": ["split", "negative", "alpha", *TAIL],
    "sample_counts": ["split", "samples", "alpha", *TAIL],
    "spans": ["split", "span", "alpha", *TAIL],
    "routers": ["split", "router", *TAIL],
    "roc": ["distance", "span", "kind", "auc", "n"],
    "frontier": ["alpha", "protocol", "generality", "locality"],
}


def open_sweep(params: Params, dataset: str, backbone: str, method: str) -> sweeps.Sweep:
    """The trace of a cell with one bootstrap draw per split that has edits."""
    trace = read_trace(dataset, backbone, method)
    draws = {}
    for split, part in trace.groupby("split"):
        seed = derive_seed(params.seed, "ablations", dataset, backbone, split)
        draws[split] = scores.resample(part["edit_id"].nunique(), params.metrics.resamples, seed)
    return sweeps.Sweep(trace, params.method(method), draws, params.metrics.level)


def main() -> None:
    params = load()
    scored = pd.read_csv("reports/scores.csv")
    tables: dict[str, list[pd.DataFrame]] = {name: [] for name in COLUMNS}
    summary: dict = {}
    swept = [m.name for m in params.methods.values() if params.is_ours(m)]  # crosses with other radii are no sweep's
    for dataset, backbone, method in tqdm(list(product(params.datasets, params.edited, swept)), desc="ablations"):
        sweep = open_sweep(params, dataset, backbone, method)
        at = {"dataset": dataset, "backbone": backbone, "method": method}
        alphas = sweeps.alpha_sweep(sweep)
        for name, table in (
            ("alpha", alphas),
            ("strategies", sweeps.strategies(sweep)),
            ("negative_samples", sweeps.negative_samples(sweep)),
            ("sample_counts", sweeps.sample_counts(sweep)),
            ("spans", sweeps.spans(sweep)),
            ("roc", sweeps.areas(sweep)),
        ):
            tables[name].append(table.assign(**at))
        shown = alphas[(alphas["split"] == "test") & (alphas["distance"] == sweep.method.radius.distance)]
        points = [(method, alpha, part) for alpha, part in shown.groupby("alpha")]
        here = scored[(scored["dataset"] == dataset) & (scored["backbone"] == backbone)]
        points += [(name, None, part) for name, part in here.groupby("method", sort=False)]
        tables["frontier"].append(sweeps.frontier(points).assign(dataset=dataset, backbone=backbone))
        best = sweeps.best_alpha(alphas, settled(sweep.method, sweep.trace).radius)
        summary.setdefault(dataset, {}).setdefault(backbone, {})[method] = best
    edited = [m.name for m in params.methods.values() if m.router != "never"]
    for ours, dataset, backbone, method in product(swept[:1], params.datasets, params.edited, edited):
        routed = sweeps.routers(open_sweep(params, dataset, backbone, method), params.method(ours))
        tables["routers"].append(routed.assign(dataset=dataset, backbone=backbone, method=method))
    for name, columns in COLUMNS.items():
        write_csv(OUT / f"{name}.csv", pd.concat(tables[name])[["dataset", "backbone", "method", *columns]])
    with write_atomically(OUT / "summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n")
    print(f"[ablations] read {len(tables['alpha'])} traces -> {len(COLUMNS)} tables in {OUT}")


if __name__ == "__main__":
    run(main)
