"""Radii, routing and scores: cases small enough to compute by hand, and properties that must hold for any trace."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.backbone.views import HELD_OUT_VENDORS, SEEN_VENDORS
from stages.metrics import paired, strata
from stages.metrics.__main__ import PAIRED, against_baselines
from stages.params import UserError, load
from stages.scoring import routing, scores
from stages.settings import Key, Method, Radius, Sequence

RADIUS = Radius(strategy="balanced", alpha=0.25, epsilon=1.0, distance="euclidean", positives=1, negative=("black",))
KEY = Key("prompt")
SEQUENCE = Sequence(
    datasets=(), backbones=(), methods=(), edits=1, shared=1, shared_elsewhere=1, orders=1, orders_elsewhere=1, at=(1,), probes=1
)
METHOD = Method(name="m", key=KEY, radius=RADIUS, sequence=SEQUENCE, editor="balancedit", router="codebook")
NAN = float("nan")


def row(edit: str, probe: int, kind: str, distance: float, *, target=(False, True), same: bool = False, **more) -> dict:
    base = {
        "seed": 0, "split": "test", "edit_id": edit, "probe": probe, "kind": kind, "euclidean_prompt": distance,
        "cosine_prompt": distance / 100, "target_off": target[0], "target_on": target[1], "same_on": same,
        "tf_off": 0.0 if kind in scores.REACHED else 1.0, "tf_on": 1.0 if kind in scores.REACHED else 0.5,
        "top10_on": NAN if kind in scores.REACHED else 0.8, "correct_off": True, "score": NAN, "diverged": False,
        "image_id": None,
    }  # fmt: skip
    return base | more


@pytest.fixture()
def trace() -> pd.DataFrame:
    """Edit a: d+ = 2, d- = 10, so that α = .25 gives ε = 8; edit b: d+ = 6, d- = 4 (inverted), ε = 4.5."""
    return pd.DataFrame(
        [
            row("a", 0, "edit", 0.0),
            row("a", 1, "text_generality", 3.0), row("a", 2, "text_generality", 9.0),
            row("a", 3, "image_generality", 8.0), row("a", 4, "image_generality", 7.0, target=(False, False)),
            row("a", 5, "near_image", 7.0), row("a", 6, "near_image", 7.5, same=True), row("a", 7, "far_image", 20.0),
            row("a", 8, "text_only", NAN), row("a", 9, "hop1", 5.0, target=(False, False)),
            row("a", 10, "sample_positive", 2.0), row("a", 11, "sample_positive", 4.0), row("a", 12, "sample_black", 10.0),
            row("b", 0, "edit", 0.0), row("b", 1, "text_generality", 4.0), row("b", 2, "image_generality", 5.0),
            row("b", 3, "near_image", 4.4, correct_off=False), row("b", 4, "far_image", 4.6), row("b", 5, "text_only", 3.0),
            row("b", 6, "sample_positive", 6.0), row("b", 7, "sample_positive", 8.0), row("b", 8, "sample_black", 4.0),
        ]
    )  # fmt: skip


def test_radii_by_hand(trace: pd.DataFrame) -> None:
    found = routing.radii(trace, KEY, RADIUS).set_index("edit_id")
    assert found["epsilon"].to_dict() == {"a": 8.0, "b": 4.5}
    assert found["inverted"].to_dict() == {"a": False, "b": True}
    two = routing.radii(trace, KEY, replace(RADIUS, positives=2)).set_index("edit_id")
    assert two["d_plus"].to_dict() == {"a": 3.0, "b": 7.0}
    white = trace[trace["kind"] == "sample_black"].replace("sample_black", "sample_white")
    white["euclidean_prompt"] += 6
    both = routing.radii(pd.concat([trace, white]), KEY, replace(RADIUS, negative=("black", "white"))).set_index("edit_id")
    assert both["d_minus"].to_dict() == {"a": 13.0, "b": 7.0}
    cosine = routing.radii(trace, KEY, replace(RADIUS, distance="cosine")).set_index("edit_id")
    assert cosine["epsilon"].to_dict() == pytest.approx({"a": 0.08, "b": 0.045})
    assert (routing.radii(trace, KEY, replace(RADIUS, strategy="constant", epsilon=3.0))["epsilon"] == 3.0).all()
    assert (routing.radii(trace, KEY, replace(RADIUS, strategy="mean"))["epsilon"] == (8 + 4.5) / 2).all()


def test_a_sample_that_has_no_distance_is_named(trace: pd.DataFrame) -> None:
    with pytest.raises(UserError, match="key.span: 'image'"):
        routing.radii(trace.assign(euclidean_image=NAN), Key("image"), RADIUS)


def test_routing_by_hand(trace: pd.DataFrame) -> None:
    on = trace["probe"][routing.routed_on(trace, METHOD)]
    assert on[trace["edit_id"] == "a"].tolist() == [0, 1, 3, 4, 5, 6, 9, 10, 11]
    assert on[trace["edit_id"] == "b"].tolist() == [0, 1, 3, 5, 8]
    assert not routing.routed_on(trace, replace(METHOD, router="never")).any()
    assert routing.routed_on(trace, replace(METHOD, router="always")).all()
    oracle = trace["probe"][routing.routed_on(trace, replace(METHOD, router="oracle"))]
    assert oracle[trace["edit_id"] == "a"].tolist() == [0, 1, 2, 3, 4, 9]
    scored = trace.assign(score=trace["kind"].map({"near_image": 0.5, "far_image": 0.4}))  # the others have none
    builtin = replace(METHOD, router="builtin", threshold=0.5)
    assert scored["probe"][routing.routed_on(scored, builtin)].tolist() == [5, 6, 3]
    assert scored["probe"][routing.routed_on(scored, replace(builtin, threshold=0.4))].tolist() == [5, 6, 7, 3, 4]


def test_a_diverged_edit_counts_as_failed_and_is_counted(trace: pd.DataFrame) -> None:
    """Edit b diverged: its outcomes are the unedited model's, its row stays in every mean, and its share is told."""
    b = trace["edit_id"] == "b"
    trace.loc[b, ["diverged", "target_on", "same_on", "tf_on"]] = [True, False, True, 0.0]
    routed = routing.route(trace, routing.routed_on(trace, METHOD))
    summary = scores.summarise(scores.per_edit(routed, "strict"), scores.resample(2, 50, 0), 0.95).set_index("metric")
    assert summary.loc["diverged", "mean"] == 0.5
    assert (summary.loc["reliability", "mean"], summary.loc["reliability", "n"]) == (0.5, 2)


def test_scores_by_hand(trace: pd.DataFrame) -> None:
    routed = routing.route(trace, routing.routed_on(trace, METHOD))
    table = scores.per_edit(routed, "strict")
    assert table["reliability"].tolist() == [1, 1]
    assert table["text_generality"].tolist() == [0.5, 1.0]
    assert table["image_generality"].tolist() == [0.5, 0.0]
    assert table["near_image"].tolist() == [0.5, 0.0]
    assert table["far_image"].tolist() == [1.0, 1.0]
    assert table["text_only"].tolist() == [1.0, 0.0]
    assert table["image_locality"].tolist() == [0.75, 0.5]
    assert table["locality"].tolist() == pytest.approx([2.5 / 3, 1 / 3])
    assert table["hop1"].tolist()[0] == 0 and np.isnan(table["hop1"].iloc[1])
    assert table["near_image_unedited_right"].iloc[0] == 0.5 and np.isnan(table["near_image_unedited_right"].iloc[1])
    forced = scores.per_edit(routed, "teacher_forced")
    assert forced["near_image"].tolist() == [0.5, 0.5]
    assert forced["locality_top10"].tolist() == pytest.approx([(0.8 + 1 + 1) / 3, (0.8 + 1 + 0.8) / 3])
    summary = scores.summarise(table, scores.resample(2, 50, 0), 0.95).set_index("metric")
    assert summary.loc["text_generality", "mean"] == 0.75 and summary.loc["hop1", "n"] == 1
    parts = np.array([0.75, 0.25, (2.5 / 3 + 1 / 3) / 2])
    assert summary.loc["hm", "mean"] == pytest.approx(3 / (1 / parts).sum())


def test_settings_that_all_lack_a_part_are_equal() -> None:
    """A set without other pictures has no HM: nothing is better, and one is still taken."""
    parts = np.stack([np.full((2, 3), 0.5), np.full((2, 3), 0.75)])
    parts[..., 1] = NAN
    assert scores.tied(parts, 0).tolist() == [True, True]


def test_seeds_are_averaged_within_an_edit(trace: pd.DataFrame) -> None:
    other = trace.assign(seed=1, target_on=False)
    both = pd.concat([trace, other])
    routed = routing.route(both, routing.routed_on(both, METHOD))
    assert scores.per_edit(routed, "strict")["reliability"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("protocol", scores.PROTOCOLS)
def test_the_unedited_model_is_perfectly_local(trace: pd.DataFrame, protocol: str) -> None:
    routed = routing.route(trace, routing.routed_on(trace, replace(METHOD, router="never")))
    table = scores.per_edit(routed, protocol)
    assert (table["locality"] == 1).all() and (table["reliability"] == 0).all()


@pytest.mark.parametrize("protocol", scores.PROTOCOLS)
def test_scores_by_kind_are_the_first_of_all_scores(trace: pd.DataFrame, protocol: str) -> None:
    routed = routing.route(trace, routing.routed_on(trace, METHOD))
    found, whole = scores.by_kind(routed, protocol), scores.per_edit(routed, protocol)
    pd.testing.assert_frame_equal(found, whole[whole.columns[: found.shape[1]]])


@given(st.lists(st.floats(0.01, 1), min_size=3, max_size=3))
def test_the_harmonic_mean_lies_between_its_parts(parts: list[float]) -> None:
    mean = scores.harmonic_mean(np.array(parts))
    assert min(parts) - 1e-12 <= mean <= max(parts) + 1e-12


def test_the_harmonic_mean_of_a_zero_is_zero() -> None:
    assert scores.harmonic_mean(np.array([1.0, 0.0, 1.0])) == 0


def tied(*settings: list[float]) -> list[bool]:
    """Which settings are tied with the first: of each the edits' values of one part of HM; all other parts are 1."""
    parts = np.ones((len(settings), len(settings[0]), 3))
    parts[..., 0] = settings
    return scores.tied(parts, 0).tolist()


def test_ties_by_hand() -> None:
    """A part of mean m beside ones: HM = 3m / (1 + 2m), its slope 3 / (1 + 2m)². Of [0 1] HM is 0.75 and the slope too, the two
    edits pull by 0.75 · ±½ / 2 = ±0.1875, an error of 0.265, more than the 0.25 to the best. Of [½ 1] HM is 0.9, the slope 0.48,
    the error 0.48 · ¼ / 2 · √2 = 0.085, less than 0.1.
    """
    assert tied([1, 1], [0, 1], [0.5, 1], [1, 1]) == [True, True, False, True]
    assert tied([1, 1, 1], [0, 1, NAN], [0.5, 1, NAN]) == [True, True, False]  # an edit without the part says nothing
    assert tied([1, 1], [0, 0]) == [True, False]


def test_ties_are_paired() -> None:
    """[0.9 0] lies 0.04 below [1 0], and its own error is 0.26; but the same edits pull both alike: the paired error is 0.001."""
    assert tied([1, 0], [0.9, 0], [0, 1]) == [True, False, True]


def test_a_missing_part_is_never_best() -> None:
    parts = np.array([[[0.1, 0.1, 0.1]], [[1, 1, NAN]]])
    assert scores.hm_of(parts).tolist() == pytest.approx([0.1, -1]) and not scores.tied(parts, 0)[1]


@st.composite
def traces(draw) -> pd.DataFrame:
    """Any trace of two edits with two positive samples, a black negative one and a few probes."""
    distance = st.floats(0, 100, allow_nan=False)
    rows = []
    for edit in "ab":
        kinds = ["text_generality", "image_generality", "near_image", "text_only"]
        kinds += ["sample_positive", "sample_positive", "sample_black"]
        rows += [row(edit, i, kind, draw(distance), same=draw(st.booleans())) for i, kind in enumerate(kinds)]
    return pd.DataFrame(rows)


@settings(max_examples=30, deadline=None)
@given(traces(), st.floats(0, 1), st.floats(0, 1))
def test_properties_of_the_radius(trace: pd.DataFrame, alpha: float, other: float) -> None:
    def on(**change) -> np.ndarray:
        return routing.routed_on(trace, replace(METHOD, radius=replace(RADIUS, **change)))

    assert (on(alpha=1.0) == on(strategy="positive")).all()
    assert (on(alpha=0.0) == on(strategy="negative")).all()
    small, large = sorted((1 + 50 * alpha, 1 + 50 * other))
    assert (on(strategy="constant", epsilon=small) <= on(strategy="constant", epsilon=large)).all()
    found = routing.radii(trace, KEY, replace(RADIUS, alpha=alpha))
    assert (found["epsilon"] >= found[["d_plus", "d_minus"]].min(axis=1) - 1e-9).all()
    assert (found["epsilon"] <= found[["d_plus", "d_minus"]].max(axis=1) + 1e-9).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=5, max_size=30), st.integers(0, 2**32 - 1))
def test_the_interval_holds_the_mean(values: list[float], seed: int) -> None:
    table = pd.DataFrame(dict.fromkeys(scores.HM_PARTS, values))
    summary = scores.summarise(table, scores.resample(len(values), 400, seed), 0.999)
    assert ((summary["low"] <= summary["mean"] + 1e-9) & (summary["mean"] <= summary["high"] + 1e-9)).all()


EVERY_SIGN = np.array([[1 - 2 * (i >> k & 1) for k in range(3)] for i in range(8)], dtype=float)


def table(reliability, text=(0.5,) * 3, image=(0.5,) * 3, locality=(0.5,) * 3) -> pd.DataFrame:
    columns = {"reliability": reliability, "text_generality": text, "image_generality": image, "locality": locality}
    return pd.DataFrame(columns, index=["a", "b", "c"])


def compared(ours: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    return paired.compare(ours, other, EVERY_SIGN, scores.resample(3, 200, 0), 0.9).set_index("metric")


def test_a_paired_test_by_hand() -> None:
    found = compared(table([1, 1, 1]), table([0, 0, 0.4])).loc["reliability"]
    assert found["difference"] == pytest.approx(2.6 / 3) and found["n"] == 3
    assert found["p"] == pytest.approx(3 / 9)  # of eight swaps, that of none and that of all are as far; the one seen counts too
    assert 0.6 <= found["low"] <= 2.6 / 3 <= found["high"] <= 1
    same = compared(table([1, 0, 1]), table([1, 0, 1]))
    assert (same["difference"] == 0).all() and (same["p"] == 1).all()


def test_hm_is_compared_as_hm_of_means() -> None:
    ours, other = table([1] * 3, text=[1, 0.5, 0]), table([1] * 3, text=[0.5, 0, 0.25])
    found = compared(ours, other).loc["hm"]
    assert found["difference"] == pytest.approx(3 / (2 + 2 + 2) - 3 / (4 + 2 + 2))
    swapped = []
    for signs in EVERY_SIGN:
        a, b = (np.where(signs > 0, x["text_generality"], y["text_generality"]).mean() for x, y in ((ours, other), (other, ours)))
        swapped.append(3 / (1 / a + 4) - 3 / (1 / b + 4))
    as_far = sum(abs(s) >= found["difference"] - 1e-12 for s in swapped)
    assert found["p"] == pytest.approx((1 + as_far) / 9)


def test_only_edits_with_the_metric_are_compared() -> None:
    found = compared(table([1, 1, 1], text=[0.5, NAN, 1]), table([1, 1, 1], text=[0.25, 1, 0.5]))
    assert found.loc["text_generality", "n"] == 2 and found.loc["hm", "n"] == 2
    assert found.loc["text_generality", "difference"] == pytest.approx(0.375)


@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)), min_size=3, max_size=3))
def test_who_is_ours_only_turns_the_sign(pairs) -> None:
    ours, other = (table([1] * 3, text=list(values)) for values in zip(*pairs, strict=True))
    one, turned = compared(ours, other), compared(other, ours)
    np.testing.assert_allclose(one["difference"], -turned["difference"], atol=1e-12)
    np.testing.assert_allclose(one["low"], -turned["high"], atol=1e-12)
    assert one["p"].tolist() == turned["p"].tolist()


def test_holm_by_hand() -> None:
    assert paired.holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert paired.holm([0.6, 0.7]).tolist() == [1, 1] and paired.holm([0.2]).tolist() == [0.2]


def test_each_metric_is_one_family_of_methods() -> None:
    params = load()
    tables = {("strict", m): table([1, float(m == "balancedit"), 1]) for m in params.methods}
    found = against_baselines(params, tables, scores.resample(3, 50, 0))
    assert set(found["method"]) == set(params.methods) - {"balancedit"} and set(PAIRED) <= {*found.columns}
    assert (found["p_holm"] >= found["p"]).all() and (found["ours"] == "balancedit").all()
    others = replace(params, methods={"base": params.method("base")})
    assert against_baselines(others, {("strict", "base"): tables["strict", "base"]}, scores.resample(3, 50, 0)).empty


@pytest.mark.parametrize(
    ("answer", "kind"),
    [("Yes", "yes or no"), ("four", "number"), ("two hundred", "number"), ("12", "number"), ("Japan", "one word"),
     ("South Korea", "several words"), ("one way", "several words")],
)  # fmt: skip
def test_types_of_answers(answer: str, kind: str) -> None:
    assert strata.answer_type(answer) == kind


def test_strata_by_hand() -> None:
    """Two edits of one relation and one of another: each stratum is the mean over its own edits."""
    table = pd.DataFrame({part: [1.0, 0.0, 1.0] for part in ("reliability", *scores.HM_PARTS)}, index=["a", "b", "c"])
    by = pd.DataFrame({"relation": ["x", "x", "y"]}, index=["a", "b", "c"])
    found = strata.stratify(table, by, 50, 0.95, 0).set_index(["stratum", "metric"])
    assert found.loc[("x", "locality"), ["mean", "n"]].tolist() == [0.5, 2]
    assert found.loc[("y", "hm"), ["mean", "low", "high", "n"]].tolist() == [1, 1, 1, 1]


def test_other_pictures_by_who_drew_them() -> None:
    """Of three other pictures two are by artists that were seen; photos have no artist, and no such score."""
    rows = [row("a", i, "image_generality", 0.0) | {"image_id": f"{who}/U+1"} for i, who in enumerate(("Appl", "Joy", "Twtr"))]
    trace = pd.DataFrame(rows).assign(target_on=[True, False, True], target_off=False)
    outcomes = routing.route(trace, np.ones(3, dtype=bool))
    found = scores.per_edit(outcomes, "strict").iloc[0]
    assert (found["image_generality_seen_artists"], found["image_generality_unseen_artists"]) == (0.5, 1.0)
    photos = scores.per_edit(outcomes.assign(image_id="val2014/p3.jpg"), "strict")
    assert not [name for name in photos if name.endswith("_artists")]


def test_the_artists_are_those_of_the_backbones() -> None:
    assert scores.UNSEEN == HELD_OUT_VENDORS and set(scores.ARTISTS) == {*SEEN_VENDORS, *HELD_OUT_VENDORS}
