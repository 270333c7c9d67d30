"""All ablations over the radius, from the traces of every BalancEdit cell, and every method's edits behind other routers:
reports/ablations/*.csv and summary.json.

python -m stages.ablations
"""

import json
from functools import partial
from itertools import product
from pathlib import Path

import pandas as pd

from stages import beside
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
    places = list(product(params.datasets, params.edited))
    found = beside.each(partial(sweep, params), places, "ablations")
    for name, columns in COLUMNS.items():
        parts, columns = [table for tables, _ in found for table in tables[name]], ["dataset", "backbone", "method", *columns]
        write_csv(OUT / f"{name}.csv", pd.concat(parts)[columns] if parts else pd.DataFrame(columns=columns))
    summary: dict = {}
    for (dataset, backbone), (_, best) in zip(places, found, strict=True):
        summary.setdefault(dataset, {})[backbone] = best
    with write_atomically(OUT / "summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n")
    print(f"[ablations] {len(places)} of a dataset and a backbone -> {len(COLUMNS)} tables in {OUT}")


def sweep(params: Params, place: tuple[str, str]) -> tuple[dict[str, list[pd.DataFrame]], dict[str, dict]]:
    """The tables of a dataset and backbone, and of each swept method the best α."""
    dataset, backbone = place
    at, best = {"dataset": dataset, "backbone": backbone}, {}
    tables: dict[str, list[pd.DataFrame]] = {name: [] for name in COLUMNS}
    swept = [m.name for m in params.methods.values() if params.is_ours(m)]  # crosses with other radii are no sweep's
    for method in swept:
        cell = open_sweep(params, dataset, backbone, method)
        alphas = sweeps.alpha_sweep(cell)
        for name, table in (
            ("alpha", alphas),
            ("strategies", sweeps.strategies(cell)),
            ("negative_samples", sweeps.negative_samples(cell)),
            ("sample_counts", sweeps.sample_counts(cell)),
            ("spans", sweeps.spans(cell)),
            ("roc", sweeps.areas(cell)),
        ):
            tables[name].append(table.assign(**at, method=method))
        best[method] = sweeps.best_alpha(alphas, settled(cell.method, cell.trace).radius)
    edited = [m.name for m in params.methods.values() if m.router != "never"]
    for ours, method in product(swept[:1], edited):
        routed = sweeps.routers(open_sweep(params, dataset, backbone, method), params.method(ours))
        tables["routers"].append(routed.assign(**at, method=method))
    return tables, best


if __name__ == "__main__":
    run(main)
