"""Ablations agree with the metrics they are made of, on a small trace."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_metrics import METHOD, RADIUS, row

from stages.ablations import sweeps
from stages.report import names
from stages.scoring import scope, scores
from stages.scoring.scope import settled
from stages.settings import NEGATIVES, SPANS


@pytest.fixture()
def sweep() -> sweeps.Sweep:
    """Four edits, two of them dev, whose probes lie at random distances."""
    rng = np.random.default_rng(0)
    kinds = ["edit", *["text_generality"] * 3, *["image_generality"] * 3, *["near_image"] * 3, *["far_image"] * 3, "text_only"]
    kinds += ["sample_positive", *(f"sample_{n}" for n in NEGATIVES)]
    rows = []
    for edit, split in zip("abcd", ("test", "test", "dev", "dev"), strict=True):
        for i, kind in enumerate(kinds):
            distance = 0.0 if kind == "edit" else float(rng.uniform(1, 4) + 3 * (kind in scores.LOCALITY))
            spans = {f"{d}_{s}": distance * (1 + j / 10) for j, s in enumerate(SPANS) for d in ("euclidean", "cosine")}
            if kind == "text_only":
                spans |= {"euclidean_image": np.nan, "cosine_image": np.nan}
            rows.append(row(edit, i, kind, distance, split=split) | spans)
    draws = {split: scores.resample(2, 20, 0) for split in ("dev", "test")}
    return sweeps.Sweep(pd.DataFrame(rows), METHOD, draws, 0.95)


def at(table: pd.DataFrame, **where: object) -> float:
    for column, value in where.items():
        table = table[table[column] == value]
    assert len(table) == 1
    return table["mean"].iloc[0]


WHERE = {"split": "test", "protocol": "strict", "metric": "locality"}


def test_the_sweep_agrees_with_the_configured_radius(sweep: sweeps.Sweep) -> None:
    alphas = sweeps.alpha_sweep(sweep)
    assert at(alphas, alpha=RADIUS.alpha, distance="euclidean", **WHERE) == at(sweep.scored(), **WHERE)
    assert sorted(alphas["alpha"].unique()) == list(sweeps.ALPHAS) and set(alphas["split"]) == {"dev", "test"}


def test_strategies_are_the_ends_of_the_sweep(sweep: sweeps.Sweep) -> None:
    alphas, table = sweeps.alpha_sweep(sweep), sweeps.strategies(sweep)
    for strategy, alpha in (("positive", 1.0), ("negative", 0.0), ("balanced", RADIUS.alpha)):
        assert at(table, strategy=strategy, **WHERE) == at(alphas, alpha=alpha, distance="euclidean", **WHERE)
    constant = table[(table["strategy"] == "constant") & (table["metric"] == "text_generality")]
    constant = constant[(constant["split"] == "test") & (constant["protocol"] == "strict")].sort_values("epsilon")
    assert constant["mean"].is_monotonic_increasing


def test_every_negative_sample_and_span_is_tried(sweep: sweeps.Sweep) -> None:
    assert set(sweeps.negative_samples(sweep)["negative"]) == set(NEGATIVES)
    assert set(sweeps.spans(sweep)["span"]) == set(SPANS)
    assert at(sweeps.negative_samples(sweep), negative="black", **WHERE) == at(sweep.scored(), **WHERE)


def test_more_samples_are_means_over_several(sweep: sweeps.Sweep) -> None:
    table = sweeps.sample_counts(sweep)
    tried = ["1+1", "2+1", "3+1", "1+2", "1+3", "1+4", "1+5", "1+6"]
    assert list(table["samples"].unique()) == tried == list(names.SAMPLE_COUNTS)
    assert at(table, samples="1+1", **WHERE) == at(sweep.scored(), **WHERE)
    two = sweep.scored(radius=replace(RADIUS, negative=("black", "white")))
    assert at(table, samples="1+2", **WHERE) == at(two, **WHERE)


def test_every_variant_has_its_own_alpha_where_dev_edits_choose_it(sweep: sweeps.Sweep) -> None:
    """Each row is what an experiment with that value gives."""
    asked = replace(sweep, method=replace(METHOD, radius=replace(RADIUS, alpha="dev")))
    table = sweeps.negative_samples(asked)
    for name in NEGATIVES:
        chosen = settled(replace(METHOD, radius=replace(RADIUS, alpha="dev", negative=(name,))), sweep.trace)
        assert set(table[table["negative"] == name]["alpha"]) == {chosen.radius.alpha}
        assert at(table, negative=name, **WHERE) == at(sweep.scored(radius=chosen.radius), **WHERE)
    assert table["alpha"].nunique() > 1 and sweeps.strategies(asked).set_index("strategy")["alpha"].isna()["constant"].all()


def test_the_same_edits_behind_other_routers(sweep: sweeps.Sweep) -> None:
    ours = replace(METHOD, radius=replace(RADIUS, alpha="dev"))
    table = sweeps.routers(sweep, ours)
    assert set(table["router"]) == {
        "configured", "oracle", "always", "never", "balanced", "matched", "grace_matched", "grace_1", "grace_5",
    }  # fmt: skip
    reached = WHERE | {"metric": "text_generality"}
    assert [at(table, router=r, **reached) for r in ("oracle", "always", "never")] == [1, 1, 0]
    assert [at(table, router=r, **WHERE) for r in ("oracle", "always", "never")] == [1, 0, 1]
    assert at(table, router="configured", **WHERE) == at(sweep.scored(), **WHERE)
    tuned = sweep.scored(radius=replace(RADIUS, alpha=settled(ours, sweep.trace).radius.alpha))
    assert at(table, router="balanced", **WHERE) == at(tuned, **WHERE)
    wide = sweep.scored(key=sweeps.GRACE_KEY, radius=replace(RADIUS, strategy="constant", epsilon=5.0))
    assert at(table, router="grace_5", **WHERE) == at(wide, **WHERE)
    assert set(sweeps.routers(replace(sweep, method=replace(METHOD, router="always")), ours)["router"]) == {
        "configured",
        *sweeps.FORCED,
    }


def test_areas_by_hand(sweep: sweeps.Sweep) -> None:
    table = sweeps.areas(sweep).set_index(["distance", "span", "kind"])["auc"]
    assert table["euclidean", "prompt", "near_image"] > 0.5
    assert table["euclidean", "image", "text_only"] == 1.0  # a query without the span is outside every radius
    test = sweep.trace[sweep.trace["split"] == "test"]
    reached = test[test["kind"].isin(scores.GENERALITY)]["euclidean_prompt"].to_numpy()
    near = test[test["kind"] == "near_image"]["euclidean_prompt"].to_numpy()
    assert table["euclidean", "prompt", "near_image"] == pytest.approx((reached[:, None] < near[None]).mean())


def test_best_alpha_is_chosen_on_dev(sweep: sweeps.Sweep) -> None:
    alphas = sweeps.alpha_sweep(sweep)
    best = sweeps.best_alpha(alphas, RADIUS)
    hm = alphas[(alphas["metric"] == "hm") & (alphas["protocol"] == "strict") & (alphas["distance"] == "euclidean")]
    dev = hm[hm["split"] == "dev"]
    assert dev.loc[dev["alpha"] == best["best_alpha_on_dev"], "mean"].iloc[0] == dev["mean"].max()
    assert best["test_hm_at_best_alpha"] == pytest.approx(at(hm, split="test", alpha=best["best_alpha_on_dev"]), abs=1e-6)


def test_alpha_dev_has_on_dev_edits_the_score_it_was_chosen_for(sweep: sweeps.Sweep) -> None:
    """The sweep says of the chosen α what the choice went by, and of no α at which a query comes in anything better."""
    asked, trace = replace(METHOD, radius=replace(RADIUS, alpha="dev")), sweep.trace
    dev, on_dev = trace[trace["split"] == "dev"], WHERE | {"split": "dev", "metric": "hm"}
    found = scope.choose(dev, asked)
    assert settled(asked, trace) == found.method
    assert at(sweep.scored(radius=found.method.radius), **on_dev) == pytest.approx(found.hms.max())
    tried = [at(sweep.scored(radius=replace(RADIUS, alpha=float(one))), **on_dev) for one in found.values]
    assert tried == pytest.approx(found.hms.tolist()) and len(set(tried)) > 2


def test_no_two_constant_radii_have_one_name(sweep: sweeps.Sweep) -> None:
    alike = sweep.trace["kind"].str.startswith("sample_")
    trace = sweep.trace.assign(euclidean_prompt=sweep.trace["euclidean_prompt"].mask(alike, 2 + sweep.trace["probe"] / 1e5))
    table = sweeps.strategies(replace(sweep, trace=trace))
    assert table.loc[table["strategy"] == "constant", "epsilon"].unique().tolist() == [2.0]
