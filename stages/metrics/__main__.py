"""Route every trace and score it: reports/scores.csv, reports/metrics.json, reports/radii.csv and data/metrics/outcomes.parquet.

python -m stages.metrics
"""

import json
from itertools import product
from pathlib import Path

import pandas as pd

from stages.metrics import routing, scores
from stages.metrics.files import read_trace, write_csv
from stages.params import derive_seed, load, run, write_atomically

CELL = ["backbone", "dataset", "method"]


def main() -> None:
    params = load()
    scored, radii, outcomes, rows = [], [], [], 0
    for dataset, backbone in product(params.datasets, params.backbones):
        draws = None
        for method in params.methods.values():
            cell = dict(zip(CELL, (backbone, dataset, method.name), strict=True))
            trace = read_trace(dataset, backbone, method.name)
            rows += len(trace)
            routed = routing.route(trace, routing.routed_on(trace, method))
            if method.router == "codebook":
                radii.append(routing.radii(trace, method.key, method.radius).assign(**cell))
            routed = routed[routed["split"] == "test"].assign(**cell)
            outcomes.append(routed)
            if draws is None:
                seed = derive_seed(params.seed, "bootstrap", dataset, backbone)
                draws = scores.resample(routed["edit_id"].nunique(), params.metrics.resamples, seed)
            for protocol in scores.PROTOCOLS:
                summary = scores.summarise(scores.per_edit(routed, protocol), draws, params.metrics.level)
                scored.append(summary.assign(**cell, protocol=protocol))
    table = pd.concat(scored)[[*CELL, "protocol", "metric", "mean", "low", "high", "n"]]
    reach = pd.concat(radii)[[*CELL, "seed", "edit_id", "split", "d_plus", "d_minus", "epsilon", "inverted"]]
    write_csv(Path("reports/scores.csv"), table)
    write_csv(Path("reports/radii.csv"), reach)
    with write_atomically("reports/metrics.json") as temporary:
        temporary.write_text(json.dumps(nested(table), indent=2) + "\n")
    with write_atomically("data/metrics/outcomes.parquet") as temporary:
        pd.concat(outcomes).reset_index(drop=True).to_parquet(temporary, compression="zstd")
    inverted = reach.groupby("method")["inverted"].sum()
    told = ", ".join(f"{method} {count} of {(reach['method'] == method).sum()}" for method, count in inverted.items())
    print(f"[metrics] d+ > d-: {told}")
    print(f"[metrics] read {len(scored) // 2} traces ({rows:,} rows) -> reports/scores.csv ({len(table):,} rows)")


def nested(table: pd.DataFrame) -> dict:
    """The main metrics as dataset → backbone → method → protocol → metric → mean."""
    result: dict = {}
    for row in table[table["metric"].isin(scores.MAIN)].itertuples():
        at = result.setdefault(row.dataset, {}).setdefault(row.backbone, {}).setdefault(row.method, {})
        at.setdefault(row.protocol, {})[row.metric] = round(row.mean, 6)
    return result


if __name__ == "__main__":
    run(main)
