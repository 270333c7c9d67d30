"""Each claim's verdict, on outcomes small enough to decide by hand."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import stages.claims.__main__ as claims
from stages.claims.__main__ import open_pairs
from stages.claims.verdicts import CLAIMS, FAILS, HOLDS, OPEN, UNKNOWN, Pair, hops_lag
from stages.params import load
from stages.scoring import scores

# Method → what succeeds: shares of rephrasings and pictures reached, of others' answers kept, of hops.
WORLD = {
    "base": (0, 0, 0, 1, 0),
    "grace": (1, 0.25, 0.5, 1, 0),
    "ft": (1, 1, 1, 0.5, 0.5),
    "balancedit": (1, 0.75, 0.75, 0.75, 0.25),
}
NEAREST = "codebook, nearest"
KINDS = ("edit", "text_generality", "image_generality", "near_image", "hop1")


def outcomes(world: dict = WORLD, **more) -> pd.DataFrame:
    """Four edits, four probes of each kind; the first ones of a kind succeed."""
    rows = [
        {
            "dataset": "okedit", "backbone": "tiny", "method": method, "seed": 0, "edit_id": f"e{edit}", "kind": kind,
            "target": probe < 4 * share, "same": probe < 4 * share, "target_off": False, "correct_off": True, "tf": 1.0,
            "top10": 1.0, "diverged": False, "fitted": False, "weights": "aa", "tried": 4,
        }
        for method, shares in world.items()
        for edit in range(4)
        for kind, share in zip(KINDS, shares, strict=True)
        for probe in range(4)
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(**more)


def pair(found: pd.DataFrame, baselines=("ft", "grace"), **more) -> Pair:
    costs = pd.DataFrame(columns=["method", "cost", "entries", "value", "low", "high"])
    draws = scores.resample(4, 100, 0)
    made = Pair("okedit", "tiny", found, ["balancedit"], baselines, draws, 0.95, sequences(), costs, dev=3)
    return replace(made, **more)


def sequences(*after: float, alone: float = 0.75) -> pd.DataFrame:
    """HM of each edit alone, and after all edits in each order; after one edit it is perfect."""
    at = {"method": "balancedit", "chosen_on": "sequence", "protocol": "strict", "metric": "hm"}
    rows = [{"memory": "alone", "order": 0, "made": 9, "value": alone}]
    for order, last in enumerate(after):
        rows += [{"memory": NEAREST, "order": order, "made": made, "value": value} for made, value in ((1, 1.0), (9, last))]
    return pd.DataFrame([at | row for row in rows])


def judged(found: Pair) -> dict[str, dict]:
    """By id and, where there are two, reading; the claim among methods that reach something apart."""
    rows = [claim.judge(found) for claim in CLAIMS]
    return {f"{row['id']} {row['reading']}{' floor' * (' 0.5' in row['claim'])}".strip(): row for row in rows}


def test_claims_by_hand() -> None:
    found = judged(pair(outcomes()))
    verdicts = {name: (row["measured"], row["verdict"]) for name, row in found.items()}
    assert verdicts["C1"] == (1, HOLDS)
    assert verdicts["C2 even"] == (3, HOLDS) and verdicts["C2 as published"] == (None, UNKNOWN)
    assert verdicts["C3 even"] == (-0.25, FAILS) and "grace" in found["C3 even"]["reason"]
    assert verdicts["C3 even floor"] == (0.5, HOLDS) and "ft" in found["C3 even floor"]["reason"]  # GRACE reaches .375
    assert verdicts["C5 as published"] == (0, HOLDS) and verdicts["C5 even"] == (3, FAILS)
    assert verdicts["C6"] == (1, HOLDS)
    gain = 0.75 - 3 / (1 + 1 + 2)
    assert found["C7 even"]["measured"] == pytest.approx(gain) == found["C7 as published"]["measured"]
    assert found["C7 even"]["verdict"] == OPEN and "ft" in found["C7 even"]["reason"]  # no better, and no edit differs
    assert verdicts["L2"] == (0.5, HOLDS)
    for name in ("C4", "C8 even", "L1"):
        assert verdicts[name] == (None, UNKNOWN) and found[name]["reason"]
    assert all(c["low"] <= c["measured"] <= c["high"] for c in found.values() if c["low"] is not None)
    json.dumps(list(found.values()), allow_nan=False)


def test_readings_ask_the_published_rows_or_the_tuned_ones() -> None:
    """GRACE's published row reaches a quarter of the rephrasings, the tuned one all of them."""
    world = WORLD | {"grace_published": WORLD["grace"], "grace": (1, 1, 1, 1, 0)}
    found = judged(pair(outcomes(world), ["ft", "grace", "grace_published"]))
    assert found["C2 as published"]["measured"] == 3 and found["C2 even"]["measured"] == 0.75
    assert found["C2 even"]["verdict"] == FAILS and found["C7 even"]["reason"].endswith(": grace")
    assert found["C7 as published"]["reason"].endswith(": ft")


def test_a_claim_whose_line_the_interval_covers_is_left_open() -> None:
    """Two methods that are as good on average, each on another edit; where all edits agree there is no doubt."""
    found = outcomes(WORLD | {"ft": WORLD["balancedit"]})
    best = (found["method"] + found["edit_id"]).isin(["balancedite0", "fte1"])
    found[["target", "same"]] = found[["target", "same"]].to_numpy() | best.to_numpy()[:, None]
    doubtful = judged(pair(found, ["ft"]))["C7 even"]
    assert doubtful["low"] < 0 < doubtful["high"] and doubtful["verdict"] == OPEN
    assert judged(pair(outcomes(WORLD | {"ft": (1, 1, 1, 0.25, 0)}), ["ft"]))["C7 even"]["verdict"] == HOLDS


def test_claims_that_fail() -> None:
    world = WORLD | {"balancedit": (0.75, 0.25, 0.75, 1, 0.25), "ft": (1, 1, 1, 0.75, 0)}
    found = outcomes(world)
    found.loc[found["method"] == "balancedit", ["fitted", "weights"]] = [True, "bb"]
    verdicts = {name: c["verdict"] for name, c in judged(pair(found)).items()}
    failed = {"C1", "C2 even", "C3 even", "C3 as published", "C5 as published", "C5 even", "C6", "C7 even", "C7 as published"}
    assert {name for name, verdict in verdicts.items() if verdict == FAILS} == failed
    assert verdicts["L2"] == OPEN  # as many hops as rephrasings


def test_a_claim_without_its_methods_has_no_verdict() -> None:
    alone = outcomes({"balancedit": WORLD["balancedit"]})
    found = judged(pair(alone, baselines=()))
    assert [n for n, c in found.items() if c["verdict"] != UNKNOWN] == ["C1", "C5 as published", "C5 even", "L2"]
    assert all(c["reason"] for c in found.values() if c["verdict"] == UNKNOWN)
    assert {c["verdict"] for c in judged(pair(outcomes(), ours=[])).values()} == {UNKNOWN}


def test_nothing_is_divided_by_zero() -> None:
    found = judged(pair(outcomes(WORLD | {"grace": (1, 0, 0.5, 1, 0)})))["C2 even"]
    assert found["measured"] is None and found["verdict"] == HOLDS and "0" in found["reason"]


@pytest.mark.parametrize(("after", "verdict"), [((0.75, 0.71), HOLDS), ((0.75, 0.69), OPEN), ((0.65, 0.6), FAILS)])
def test_what_a_sequence_may_lose(after: tuple[float, ...], verdict: str) -> None:
    found = judged(pair(outcomes(), sequences=sequences(*after)))["C4"]
    assert found["verdict"] == verdict and found["measured"] == pytest.approx(np.mean(after) - 0.75)
    assert found["low"] == pytest.approx(after[1] - 0.75)


def test_a_radius_for_each_edit_is_compared_with_one_for_all() -> None:
    """The same edits behind one radius reach everything and keep less."""
    constant = outcomes({"balancedit": (1, 1, 1, 0.25, 0)})
    found = judged(pair(outcomes(), constant=constant))["C8 even"]
    assert found["measured"] == pytest.approx(0.75 - 3 / (1 + 1 + 4)) and found["verdict"] == HOLDS


@pytest.mark.parametrize(("low", "verdict"), [(1.02, HOLDS), (0.98, OPEN)])
def test_the_cost_of_routing_is_what_the_costs_say(low: float, verdict: str) -> None:
    row = {"method": "balancedit", "cost": "routed_miss_per_unedited", "entries": 300.0, "value": 1.05, "low": low, "high": 1.1}
    found = judged(pair(outcomes(), costs=pd.DataFrame([row, row | {"entries": 1.0, "value": 9.0}])))["L1"]
    assert (found["measured"], found["verdict"]) == (1.05, verdict)


def test_hops_are_asked_of_edits_whose_hop_was_known() -> None:
    found = outcomes()
    assert hops_lag(pair(found[found["kind"] != "hop1"])).verdict == UNKNOWN
    found.loc[(found["kind"] == "hop1") & (found["edit_id"] != "e0"), "correct_off"] = False
    assert "of 1 edits" in hops_lag(pair(found)).reason


def test_cells_are_those_of_the_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    params = load()
    monkeypatch.setattr(claims, "behind_one_radius", lambda *_: None)
    renamed = outcomes(backbone=next(iter(params.edited)))
    left = pd.DataFrame(columns=["dataset", "backbone"])
    opened, *others = open_pairs(params, pd.concat([renamed, renamed.assign(backbone="gone")]), left, left)
    assert [len(one.outcomes) for one in others] == [0] * (len(params.datasets) * len(params.edited) - 1)
    edited = {name for name, one in params.methods.items() if one.editor != "balancedit" and one.router != "never"}
    assert opened.ours == ["balancedit"] and set(opened.baselines) == edited and opened.dev == params.edits.dev
    assert len(opened.outcomes) == len(renamed) and opened.draws.shape == (params.metrics.resamples, 4)
    assert np.array_equal(opened.draws, open_pairs(params, renamed, left, left)[0].draws)
