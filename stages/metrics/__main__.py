"""Route every trace, score it, compare methods: reports/{scores,paired,radii,settings,tuned,strata,frontier,areas}.csv,
reports/metrics.json and data/metrics/{outcomes,depths}.parquet.

python -m stages.metrics
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages import beside
from stages.editing import tried as tuning
from stages.metrics import frontier, paired, strata
from stages.metrics.files import read_trace, write_csv
from stages.params import Params, derive_seed, load, run, write_atomically
from stages.scoring import routing, scores
from stages.scoring.scope import choose, settled
from stages.sections import readable
from stages.settings import DEV, Method

AXES = ["backbone", "dataset", "method"]
PAIRED = ["ours", "protocol", "metric", "difference", "low", "high", "p", "p_holm", "detectable", "n"]
TRIED = [*AXES, "setting", "scope", *scores.HM_PARTS, "hm", "tied", "steps", "edits", "chosen"]
RADII = [*AXES, "seed", "edit_id", "split", "alpha", "d_plus", "d_minus", "epsilon", "inverted"]
INTERVALS = ["mean", "low", "high", "low_relation", "high_relation", "n"]


def main() -> None:
    params = load()
    found = beside.each(partial(score, params), list(product(params.datasets, params.edited)), "metrics")
    whole = {name: pd.concat([part[name] for part in found]) for name in found[0]}
    table, reach = whole["scores"], whole["radii"]
    for name in ("scores", "radii", "settings", "tuned", "strata", "frontier", "areas", "paired"):
        write_csv(Path(f"reports/{name}.csv"), whole[name])
    with write_atomically("reports/metrics.json") as temporary:
        temporary.write_text(json.dumps(nested(table), indent=2) + "\n")
    with write_atomically("data/metrics/depths.parquet") as temporary:
        whole["depths"].to_parquet(temporary, index=False)
    with write_atomically("data/metrics/outcomes.parquet") as temporary:
        whole["outcomes"].reset_index(drop=True).to_parquet(temporary, compression="zstd")
    inverted = reach.groupby("method")["inverted"].sum()
    listed = ", ".join(f"{method} {count} of {(reach['method'] == method).sum()}" for method, count in inverted.items())
    print(f"[metrics] d+ > d-: {listed}")
    print(f"[metrics] read {len(whole['settings'])} traces -> reports/scores.csv ({len(table):,} rows)")


def score(params: Params, place: tuple[str, str]) -> dict[str, pd.DataFrame]:
    """The tables of a dataset and backbone: every method's scores, radii, settings, strata, frontier and outcomes, and paired
    tests.
    """
    dataset, backbone = place
    scored, radii, outcomes, used, tried, stratified, curves, areas, draws, tables = [], [], [], [], [], [], [], [], None, {}
    deep = [pd.DataFrame(columns=[*AXES, "edit_id", "kind"])]
    for method in params.compared.values():
        cell = dict(zip(AXES, (backbone, dataset, method.name), strict=True))
        trace = read_trace(dataset, backbone, method.made_as)
        used.append(cell | trace[["tried", "settings"]].iloc[0].to_dict())
        tried += tried_for((dataset, backbone, method.name)) if method.edits is None else chosen_for(method, trace, cell)
        method = settled(method, trace)
        routed = routing.route(trace, routing.routed_on(trace, method))
        if method.router == "codebook" and method.scope == "ball":
            radii.append(routing.radii(trace, method.key, method.radius).assign(**cell, alpha=method.radius.alpha))
        if method.scope != "ball":
            deep.append(depths(trace, method).assign(**cell))
        routed = routed[routed["split"] == "test"].assign(**cell)
        outcomes.append(routed)
        if draws is None:
            seed = derive_seed(params.seed, "bootstrap", dataset, backbone)
            draws = scores.resample(routed["edit_id"].nunique(), params.metrics.resamples, seed)
            relations = routed.drop_duplicates("edit_id").sort_values("edit_id")["relation"].to_numpy()
            by_relation = scores.resample_groups(relations, params.metrics.resamples, seed)
        curve, area = frontier.measured(trace[trace["split"] == "test"], method, draws, params.metrics.level)
        curves.append(curve.assign(**cell))
        areas.append(cell | area)
        for protocol in scores.PROTOCOLS:
            tables[protocol, method.name] = table = scores.per_edit(routed, protocol)
            summary = scores.summarise(table, draws, params.metrics.level)
            groups = scores.summarise(table, by_relation, params.metrics.level)
            scored.append(summary.join(groups[["low", "high"]].add_suffix("_relation")).assign(**cell, protocol=protocol))
        seed = derive_seed(params.seed, "strata", dataset, backbone)
        chosen = params.metrics.resamples, params.metrics.level, seed
        parts = strata.stratify(tables["strict", method.name], strata.groups(routed), *chosen)
        stratified.append(parts.assign(**cell, protocol="strict"))
    compared = against_baselines(params, tables, draws).assign(backbone=backbone, dataset=dataset)
    return {
        "scores": pd.concat(scored)[[*AXES, "protocol", "metric", *INTERVALS]],
        "radii": pd.concat(radii)[RADII] if radii else pd.DataFrame(columns=RADII),
        "settings": pd.DataFrame(used),
        "tuned": pd.DataFrame(tried, columns=TRIED),
        "strata": pd.concat(stratified),
        "frontier": pd.concat(curves)[[*AXES, *frontier.COLUMNS]],
        "areas": pd.DataFrame(areas),
        "paired": compared[[*AXES, *PAIRED]],
        "outcomes": pd.concat(outcomes),
        "depths": pd.concat(deep),
    }


def depths(trace: pd.DataFrame, method: Method) -> pd.DataFrame:
    """How deep each test edit's probes lie in its scope, by each key: one row a probe, of the first seed."""
    found = trace[["split", "seed", "edit_id", "kind"]].assign(**routing.depths(trace, method))
    probes = ~found["kind"].str.startswith("sample_") & (found["split"] == "test") & (found["seed"] == found["seed"].min())
    return found[probes].drop(columns=["split", "seed"])


def tried_for(names: Sequence[str]) -> Sequence[Mapping[str, str]]:
    """What was tried for a cell; UserError where the table that says it cannot be read."""
    with readable(tuning.TABLE, "`git checkout` it, or run `python -m stages.editing tune`"):
        return tuning.of_cell(names)


def chosen_for(method: Method, trace: pd.DataFrame, cell: Mapping[str, str]) -> list[dict[str, Any]]:
    """The line of what dev edits choose for a method that has another's edits, with the settings of these: its scope alone."""
    dev = trace[(trace["split"] == "dev") & (trace["seed"] == trace["seed"].min())]
    if method.number_value != DEV or dev.empty:
        return []
    steps = float(dev.groupby("edit_id")["steps"].first().mean())
    counted = {"tied": True, "steps": steps, "edits": dev["edit_id"].nunique(), "chosen": True}
    return [{**cell, "setting": trace["settings"].iloc[0]} | choose(dev, method).line | counted]


def against_baselines(params: Params, tables: dict[tuple[str, str], pd.DataFrame], draws: np.ndarray) -> pd.DataFrame:
    """BalancEdit with the key and radius of params.yaml against every other method, from `per_edit` tables of one cell.

    `tables` maps (protocol, method). The other methods are one family for Holm's correction. Empty without such a method.
    """
    ours = next((m.name for m in params.methods.values() if params.is_ours(m)), None)
    seed = derive_seed(params.seed, "permutations")
    found, signs = [], None
    for (protocol, name), table in tables.items():
        if ours is not None and name != ours:
            if signs is None or signs.shape[1] != len(table):
                signs = paired.swaps(len(table), params.metrics.permutations, seed)
            compared = paired.compare(tables[protocol, ours], table, signs, draws, params.metrics.level)
            found.append(compared.assign(ours=ours, method=name, protocol=protocol))
    if not found:
        return pd.DataFrame(columns=["method", *PAIRED])
    whole = pd.concat(found, ignore_index=True)
    return whole.assign(p_holm=whole.groupby(["protocol", "metric"])["p"].transform(paired.holm))


def nested(table: pd.DataFrame) -> dict:
    """The main metrics as dataset → backbone → method → protocol → metric → mean."""
    result: dict = {}
    for row in table[table["metric"].isin(scores.MAIN)].itertuples():
        at = result.setdefault(row.dataset, {}).setdefault(row.backbone, {}).setdefault(row.method, {})
        at.setdefault(row.protocol, {})[row.metric] = round(row.mean, 6)
    return result


if __name__ == "__main__":
    run(main)
