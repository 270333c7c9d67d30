"""Each claim's verdict, on outcomes small enough to decide by hand."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from stages.claims.__main__ import open_pairs
from stages.claims.verdicts import CLAIMS, Pair, hops_lag
from stages.params import load
from stages.scoring import scores

# Method → what succeeds: shares of rephrasings and pictures reached, of others' answers kept, of hops.
WORLD = {
    "base": (0, 0, 0, 1, 0),
    "grace": (1, 0.25, 0.5, 1, 0),
    "ft": (1, 1, 1, 0.5, 0.5),
    "balancedit": (1, 0.75, 0.75, 0.75, 0.25),
}
KINDS = ("edit", "text_generality", "image_generality", "near_image", "hop1")


def outcomes(world: dict = WORLD, **more) -> pd.DataFrame:
    """Four edits, four probes of each kind; the first ones of a kind succeed."""
    rows = [
        {
            "dataset": "okedit", "backbone": "tiny", "method": method, "seed": 0, "edit_id": f"e{edit}", "kind": kind,
            "target": probe < 4 * share, "same": probe < 4 * share, "target_off": False, "correct_off": True, "tf": 1.0,
            "top10": 1.0, "diverged": False, "fitted": False, "weights": "aa",
        }
        for method, shares in world.items()
        for edit in range(4)
        for kind, share in zip(KINDS, shares, strict=True)
        for probe in range(4)
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(**more)


def pair(found: pd.DataFrame, baselines=("ft", "grace")) -> Pair:
    return Pair("okedit", "tiny", found, ["balancedit"], baselines, scores.resample(4, 100, 0), 0.95, sequences())


def sequences(*after: float, alone: float = 0.75) -> pd.DataFrame:
    """HM of each edit alone, and after all edits in each order; after one edit it is perfect."""
    at = {"method": "balancedit", "protocol": "strict", "metric": "hm"}
    rows = [{"memory": "alone", "order": 0, "made": 9, "value": alone}]
    for order, last in enumerate(after):
        rows += [{"memory": "codebook", "order": order, "made": made, "value": value} for made, value in ((1, 1.0), (9, last))]
    return pd.DataFrame([at | row for row in rows])


def judged(found: Pair) -> dict[str, dict]:
    return {claim.id: claim.judge(found) for claim in CLAIMS}


def test_claims_by_hand() -> None:
    found = judged(pair(outcomes()))
    assert (found["C1"]["measured"], found["C1"]["holds"]) == (1, True)
    assert (found["C2"]["measured"], found["C2"]["holds"]) == (3, True)
    assert (found["C3"]["measured"], found["C3"]["holds"]) == (-0.25, False) and "grace" in found["C3"]["reason"]
    assert (found["C5"]["measured"], found["C5"]["holds"]) == (0, True)
    assert (found["C6"]["measured"], found["C6"]["holds"]) == (1, True)
    gain = 0.75 - 3 / (1 + 1 + 2)
    assert found["C7"]["measured"] == pytest.approx(gain) and not found["C7"]["holds"] and "ft" in found["C7"]["reason"]
    assert (found["L2"]["measured"], found["L2"]["holds"]) == (0.5, True)
    for name in ("C4", "L1"):
        assert found[name]["holds"] is None and found[name]["measured"] is None and found[name]["reason"]
    assert all(c["low"] <= c["measured"] <= c["high"] for c in found.values() if c["low"] is not None)
    json.dumps(list(found.values()), allow_nan=False)


def test_a_verdict_that_the_interval_leaves_open_says_so() -> None:
    """Two methods that are as good on average, each on another edit; where all edits agree there is no doubt."""
    found = outcomes(WORLD | {"ft": WORLD["balancedit"]})
    best = (found["method"] + found["edit_id"]).isin(["balancedite0", "fte1"])
    found[["target", "same"]] = found[["target", "same"]].to_numpy() | best.to_numpy()[:, None]
    doubtful = judged(pair(found, ["ft"]))["C7"]
    assert doubtful["low"] < 0 < doubtful["high"] and "open" in doubtful["reason"]
    assert "open" not in judged(pair(outcomes(WORLD | {"ft": (1, 1, 1, 0.25, 0)}), ["ft"]))["C7"]["reason"]


def test_claims_that_fail() -> None:
    world = WORLD | {"balancedit": (0.75, 0.25, 0.75, 1, 0.25), "ft": (1, 1, 1, 0.75, 0)}
    found = outcomes(world)
    found.loc[found["method"] == "balancedit", ["fitted", "weights"]] = [True, "bb"]
    verdicts = {name: c["holds"] for name, c in judged(pair(found)).items()}
    assert verdicts == {
        "C1": False, "C2": False, "C3": False, "C4": None, "C5": False, "C6": False, "C7": False, "L1": None, "L2": False,
    }  # fmt: skip


def test_a_claim_without_its_methods_has_no_verdict() -> None:
    alone = outcomes({"balancedit": WORLD["balancedit"]})
    found = judged(pair(alone, baselines=()))
    assert [name for name, c in found.items() if c["holds"] is not None] == ["C1", "C5", "L2"]
    assert all(c["reason"] for c in found.values() if c["holds"] is None)
    nobody = judged(replace(pair(outcomes()), ours=[]))
    assert {c["holds"] for c in nobody.values()} == {None}


def test_nothing_is_divided_by_zero() -> None:
    found = judged(pair(outcomes(WORLD | {"grace": (1, 0, 0.5, 1, 0)})))["C2"]
    assert found["measured"] is None and found["holds"] and "0" in found["reason"]


@pytest.mark.parametrize(("after", "holds"), [((0.75, 0.71), True), ((0.75, 0.69), False)])
def test_what_a_sequence_may_lose(after: tuple[float, ...], holds: bool) -> None:
    found = judged(replace(pair(outcomes()), sequences=sequences(*after)))["C4"]
    assert found["holds"] == holds and found["measured"] == pytest.approx(np.mean(after) - 0.75)
    assert found["low"] == pytest.approx(after[1] - 0.75)


def test_edits_without_hops_have_no_lag() -> None:
    found = outcomes()
    assert hops_lag(pair(found[found["kind"] != "hop1"])).holds is None


def test_cells_are_those_of_the_parameters() -> None:
    params = load()
    renamed = outcomes(backbone=next(iter(params.edited)))
    left = pd.DataFrame(columns=["dataset", "backbone"])
    opened, *others = open_pairs(params, pd.concat([renamed, renamed.assign(backbone="gone")]), left)
    assert [len(one.outcomes) for one in others] == [0] * (len(params.datasets) * len(params.edited) - 1)
    assert opened.ours == ["balancedit"] and set(opened.baselines) == set(params.methods) - {"base", "balancedit"}
    assert len(opened.outcomes) == len(renamed) and opened.draws.shape == (params.metrics.resamples, 4)
    assert np.array_equal(opened.draws, open_pairs(params, renamed, left)[0].draws)
