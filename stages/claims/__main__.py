"""Put each claim of the paper beside what was measured: reports/claims.json.

python -m stages.claims
"""

import json
from itertools import product
from pathlib import Path

import pandas as pd

from stages.claims.verdicts import CLAIMS, Pair
from stages.params import Params, derive_seed, load, run, write_atomically
from stages.scoring import scores

OUT = Path("reports/claims.json")


def open_pairs(params: Params, outcomes: pd.DataFrame, sequences: pd.DataFrame) -> list[Pair]:
    """Every pair of a dataset and a backbone, with the bootstrap draws of its scores."""
    ours = [m.name for m in params.methods.values() if params.is_ours(m)]
    baselines = [m.name for m in params.methods.values() if m.router != "never" and m.editor != "balancedit"]
    pairs = []
    for dataset, backbone in product(params.datasets, params.edited):
        found, left = (t[(t["dataset"] == dataset) & (t["backbone"] == backbone)] for t in (outcomes, sequences))
        seed = derive_seed(params.seed, "bootstrap", dataset, backbone)
        draws = scores.resample(found["edit_id"].nunique(), params.metrics.resamples, seed)
        pairs.append(Pair(dataset, backbone, found, ours[:1], baselines, draws, params.metrics.level, left))
    return pairs


def main() -> None:
    params = load()
    pairs = open_pairs(params, pd.read_parquet("data/metrics/outcomes.parquet"), pd.read_csv("reports/sequences.csv"))
    claims = [claim.judge(pair) for claim in CLAIMS for pair in pairs]
    with write_atomically(OUT) as temporary:
        temporary.write_text(json.dumps(claims, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    verdicts = ", ".join(
        f"{c['id']} {'not measured' if c['holds'] is None else 'holds' if c['holds'] else 'fails'}" for c in claims
    )
    print(f"[claims] {verdicts} -> {OUT}")


if __name__ == "__main__":
    run(main)
