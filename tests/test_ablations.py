"""Ablations agree with the metrics they are made of, on a small trace."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_metrics import METHOD, RADIUS, row

from stages.ablations import sweeps
from stages.metrics.tuning import ALPHAS, settled
from stages.report import names
from stages.scoring import routing, scores
from stages.settings import NEGATIVES, SPANS


@pytest.fixture()
def cell() -> sweeps.Cell:
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
    return sweeps.Cell(pd.DataFrame(rows), METHOD, draws, 0.95)


def at(table: pd.DataFrame, **where: object) -> float:
    for column, value in where.items():
        table = table[table[column] == value]
    assert len(table) == 1
    return table["mean"].iloc[0]


WHERE = {"split": "test", "protocol": "strict", "metric": "locality"}


def test_the_sweep_agrees_with_the_configured_radius(cell: sweeps.Cell) -> None:
    sweep = sweeps.alpha_sweep(cell)
    assert at(sweep, alpha=RADIUS.alpha, distance="euclidean", **WHERE) == at(cell.scored(), **WHERE)
    assert sorted(sweep["alpha"].unique()) == list(ALPHAS) and set(sweep["split"]) == {"dev", "test"}


def test_strategies_are_the_ends_of_the_sweep(cell: sweeps.Cell) -> None:
    sweep, table = sweeps.alpha_sweep(cell), sweeps.strategies(cell)
    for strategy, alpha in (("positive", 1.0), ("negative", 0.0), ("balanced", RADIUS.alpha)):
        assert at(table, strategy=strategy, **WHERE) == at(sweep, alpha=alpha, distance="euclidean", **WHERE)
    constant = table[(table["strategy"] == "constant") & (table["metric"] == "text_generality")]
    constant = constant[(constant["split"] == "test") & (constant["protocol"] == "strict")].sort_values("epsilon")
    assert constant["mean"].is_monotonic_increasing


def test_every_anchor_and_span_is_tried(cell: sweeps.Cell) -> None:
    assert set(sweeps.anchors(cell)["negative"]) == set(NEGATIVES)
    assert set(sweeps.spans(cell)["span"]) == set(SPANS)
    assert at(sweeps.anchors(cell), negative="black", **WHERE) == at(cell.scored(), **WHERE)


def test_more_samples_are_means_over_several(cell: sweeps.Cell) -> None:
    table = sweeps.numbers(cell)
    assert list(table["samples"].unique()) == ["1+1", "2+1", "3+1", "1+2", "1+3", "1+4", "1+5", "1+6"] == list(names.NUMBERS)
    assert at(table, samples="1+1", **WHERE) == at(cell.scored(), **WHERE)
    two = cell.scored(radius=replace(RADIUS, negative=("black", "white")))
    assert at(table, samples="1+2", **WHERE) == at(two, **WHERE)


def test_every_variant_has_its_own_alpha_where_dev_edits_choose_it(cell: sweeps.Cell) -> None:
    """Each row is what an experiment with that value gives."""
    asked = replace(cell, method=replace(METHOD, radius=replace(RADIUS, alpha="dev")))
    table = sweeps.anchors(asked)
    for name in NEGATIVES:
        chosen = settled(replace(METHOD, radius=replace(RADIUS, alpha="dev", negative=(name,))), cell.trace)
        assert set(table[table["negative"] == name]["alpha"]) == {chosen.radius.alpha}
        assert at(table, negative=name, **WHERE) == at(cell.scored(radius=chosen.radius), **WHERE)
    assert table["alpha"].nunique() > 1 and sweeps.strategies(asked).set_index("strategy")["alpha"].isna()["constant"].all()


def test_the_same_edits_behind_other_routers(cell: sweeps.Cell) -> None:
    ours = replace(METHOD, radius=replace(RADIUS, alpha="dev"))
    table = sweeps.routers(cell, ours)
    assert set(table["router"]) == {
        "configured", "oracle", "always", "never", "balanced", "matched", "grace_matched", "grace_1", "grace_5",
    }  # fmt: skip
    reached = WHERE | {"metric": "text_generality"}
    assert [at(table, router=r, **reached) for r in ("oracle", "always", "never")] == [1, 1, 0]
    assert [at(table, router=r, **WHERE) for r in ("oracle", "always", "never")] == [1, 0, 1]
    assert at(table, router="configured", **WHERE) == at(cell.scored(), **WHERE)
    tuned = cell.scored(radius=replace(RADIUS, alpha=settled(ours, cell.trace).radius.alpha))
    assert at(table, router="balanced", **WHERE) == at(tuned, **WHERE)
    wide = cell.scored(key=sweeps.GRACE_KEY, radius=replace(RADIUS, strategy="constant", epsilon=5.0))
    assert at(table, router="grace_5", **WHERE) == at(wide, **WHERE)
    assert set(sweeps.routers(replace(cell, method=replace(METHOD, router="always")), ours)["router"]) == {
        "configured",
        *sweeps.FORCED,
    }


def test_areas_by_hand(cell: sweeps.Cell) -> None:
    table = sweeps.areas(cell).set_index(["distance", "span", "kind"])["auc"]
    assert table["euclidean", "prompt", "near_image"] > 0.5
    assert table["euclidean", "image", "text_only"] == 1.0  # a query without the span is outside every radius
    test = cell.trace[cell.trace["split"] == "test"]
    reached = test[test["kind"].isin(scores.GENERALITY)]["euclidean_prompt"].to_numpy()
    near = test[test["kind"] == "near_image"]["euclidean_prompt"].to_numpy()
    assert table["euclidean", "prompt", "near_image"] == pytest.approx((reached[:, None] < near[None]).mean())


def test_best_alpha_is_chosen_on_dev(cell: sweeps.Cell) -> None:
    sweep = sweeps.alpha_sweep(cell)
    best = sweeps.best_alpha(sweep, RADIUS)
    hm = sweep[(sweep["metric"] == "hm") & (sweep["protocol"] == "strict") & (sweep["distance"] == "euclidean")]
    dev = hm[hm["split"] == "dev"]
    assert dev.loc[dev["alpha"] == best["best_alpha_on_dev"], "mean"].iloc[0] == dev["mean"].max()
    assert best["test_hm_at_best_alpha"] == pytest.approx(at(hm, split="test", alpha=best["best_alpha_on_dev"]), abs=1e-6)


def test_a_methods_own_point_is_its_score(cell: sweeps.Cell) -> None:
    routed = routing.route(cell.trace, routing.routed_on(cell.trace, METHOD))
    summary = scores.summarise(scores.per_edit(routed, "strict"), scores.resample(4, 5, 0), 0.95).assign(protocol="strict")
    point = sweeps.frontier([("m", None, summary)]).iloc[0]
    mean = summary.set_index("metric")["mean"]
    assert point["generality"] == (mean["text_generality"] + mean["image_generality"]) / 2
    assert point["locality"] == mean["locality"]


def test_alpha_dev_is_the_sweeps_best_on_dev(cell: sweeps.Cell) -> None:
    asked = replace(METHOD, radius=replace(RADIUS, alpha="dev"))
    best = sweeps.best_alpha(sweeps.alpha_sweep(cell), RADIUS)["best_alpha_on_dev"]
    assert settled(asked, cell.trace).radius.alpha == best


def test_no_two_constant_radii_have_one_name(cell: sweeps.Cell) -> None:
    alike = cell.trace["kind"].str.startswith("sample_")
    trace = cell.trace.assign(euclidean_prompt=cell.trace["euclidean_prompt"].mask(alike, 2 + cell.trace["probe"] / 1e5))
    table = sweeps.strategies(replace(cell, trace=trace))
    assert table.loc[table["strategy"] == "constant", "epsilon"].unique().tolist() == [2.0]
