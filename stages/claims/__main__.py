"""Put each claim of the paper beside what was measured: reports/claims.json.

python -m stages.claims
"""

import json
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import pandas as pd

from stages.claims.verdicts import CLAIMS, Pair
from stages.metrics.files import read_table, read_trace
from stages.params import Params, derive_seed, load, run, write_atomically
from stages.scoring import routing, scope, scores
from stages.settings import DEV

OUT = Path("reports/claims.json")
TABLES = {
    "data/metrics/outcomes.parquet": "stages.metrics", "reports/sequences.csv": "stages.retention",
    "reports/cost.csv": "stages.cost",
}  # fmt: skip  # what is judged, and what makes it
PLACE = ["dataset", "backbone", "method"]


def open_pairs(params: Params, outcomes: pd.DataFrame, sequences: pd.DataFrame, costs: pd.DataFrame) -> list[Pair]:
    """Every pair of a dataset and a backbone, with the bootstrap draws of its scores."""
    ours = [m.name for m in params.methods.values() if params.is_ours(m)][:1]
    baselines = [m.name for m in params.methods.values() if m.router != "never" and m.editor != "balancedit"]
    pairs = []
    for dataset, backbone in product(params.datasets, params.edited):
        here = [t[(t["dataset"] == dataset) & (t["backbone"] == backbone)] for t in (outcomes, sequences, costs)]
        seed, dev = derive_seed(params.seed, "bootstrap", dataset, backbone), min(params.edits.dev, params.dataset(dataset).dev)
        draws = scores.resample(here[0]["edit_id"].nunique(), params.metrics.resamples, seed)
        one = behind_one_radius(params, dataset, backbone, ours[0]) if ours else None
        pairs.append(Pair(dataset, backbone, here[0], ours, baselines, draws, params.metrics.level, here[1], here[2], dev, one))
    return pairs


def behind_one_radius(params: Params, dataset: str, backbone: str, name: str) -> pd.DataFrame | None:
    """Test outcomes of BalancEdit's edits behind its own key with one radius for all, chosen on dev edits; None where its own
    radius is no balanced one.
    """
    method, trace = params.method(name), read_trace(dataset, backbone, name)
    if method.radius.strategy != "balanced" or trace[trace["split"] == "dev"].empty:
        return None
    constant = scope.settled(replace(method, radius=replace(method.radius, strategy="constant", epsilon=DEV)), trace)
    routed = routing.route(trace, routing.routed_on(trace, constant))
    return routed[routed["split"] == "test"]


def main() -> None:
    params = load()
    pairs = open_pairs(params, *(read_table(Path(path), f"run `python -m {maker}`", PLACE) for path, maker in TABLES.items()))
    claims = [claim.judge(pair) for claim in CLAIMS for pair in pairs]
    with write_atomically(OUT) as temporary:
        temporary.write_text(json.dumps(claims, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    counts = Counter(claim["verdict"] for claim in claims)
    print(f"[claims] {', '.join(f'{verdict}: {n}' for verdict, n in counts.items())} -> {OUT}")


if __name__ == "__main__":
    run(main)
