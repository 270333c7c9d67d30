"""The number of a method's scope by hand: what there is to choose from, what is chosen, and that dev edits alone choose it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_metrics import METHOD, NAN, RADIUS, row

from stages.params import UserError
from stages.scoring import routing, scope
from stages.settings import Method

ALPHA = replace(METHOD, radius=replace(RADIUS, alpha="dev"))
EPSILON = replace(METHOD, radius=replace(RADIUS, strategy="constant", epsilon="dev"))
THRESHOLD = replace(METHOD, router="builtin", threshold="dev")
KINDS = ("edit", "text_generality", "image_generality", "near_image")


def edit(name: str, *distances: float, plus: float = 2.0, minus: float = 10.0, split: str = "dev") -> list[dict]:
    """One edit: its query, a rephrasing, another picture and a near picture, as far from its key and with as low scores."""
    rows = [row(name, i, *pair, split=split, score=-pair[1]) for i, pair in enumerate(zip(KINDS, distances, strict=True))]
    samples = (("sample_positive", plus), ("sample_black", minus))
    return rows + [row(name, 9 + i, kind, far, split=split) for i, (kind, far) in enumerate(samples)]


def trace(*edits: list[dict]) -> pd.DataFrame:
    return pd.DataFrame([one for rows in edits for one in rows])


def points(of: Method, *edits: list[dict], count: int) -> list[float]:
    return scope.points(trace(*edits), of, count).tolist()


def test_where_queries_come_in_by_hand() -> None:
    """d⁺ = 2 and d⁻ = 10: ε = 10 − 8α is 3 at α = 7/8, and 10 at α = 0. A radius is a distance, a score itself."""
    one = trace(edit("a", 0.0, 3.0, 10.0, NAN))
    assert scope.entering(one, ALPHA)[:3].tolist() == [1.25, 0.875, 0.0] and np.isnan(scope.entering(one, ALPHA)[3])
    assert scope.entering(one, EPSILON)[:3].tolist() == [0, 3, 10]
    assert scope.entering(one, THRESHOLD)[:3].tolist() == [0, -3, -10]
    two = trace(edit("a", 0.0, 3.0, 3.0, 3.0), edit("b", 0.0, 3.0, 3.0, 3.0, plus=4.0, minus=12.0))
    mean = replace(ALPHA, radius=replace(ALPHA.radius, strategy="mean"))
    assert scope.entering(two, mean)[[1, 7]].tolist() == [1, 1]  # d⁺ is 3 on average, of both
    assert scope.entering(two, ALPHA)[[1, 7]].tolist() == [0.875, 1.125]


def test_values_to_choose_from_are_quantiles_the_ends_of_alpha_and_what_is_published() -> None:
    """Queries come in at α = 7/8, 1/2 and 1/4 (the edit's own, at 5/4, always does), at ε = 3, 6 and 8, at scores of their
    negatives and 0. Samples ask nothing.
    """
    one = edit("a", 0.0, 3.0, 6.0, 8.0)
    assert points(ALPHA, one, count=5) == [0, 0.25, 0.5, 0.875, 1]
    assert points(replace(ALPHA, published=0.3), one, count=6) == [0, 0.25, 0.3, 0.5, 0.875, 1]
    assert points(EPSILON, one, count=3) == [3, 6, 8]
    assert points(EPSILON, one, count=5) == [3, 4.5, 6, 7, 8]
    assert points(replace(EPSILON, published=1.0), one, count=3) == [1, 3, 8]
    assert points(THRESHOLD, one, count=4) == [-8, -6, -3, 0]
    assert points(replace(THRESHOLD, published=0.5), one, count=3) == [-8, 0, 0.5]
    assert points(replace(THRESHOLD, published=-3.0), one, count=5) == [-8, -6, -3, 0]  # what is there stands once
    unscored = trace(one).assign(score=NAN)
    assert scope.points(unscored, replace(THRESHOLD, published=0.5)).tolist() == [0.5]


def test_every_method_has_as_many_values() -> None:
    """Where enough queries come in apart from each other."""
    edits = [edit(name, *np.random.default_rng(i).uniform(3, 9, 4)) for i, name in enumerate("abcdefghijkl")]
    for method in (ALPHA, EPSILON, THRESHOLD):
        for published in (None, 0.7123):
            assert len(points(replace(method, published=published), *edits, count=scope.POINTS)) == scope.POINTS


def test_the_best_is_chosen_and_of_equals_the_middle_one() -> None:
    """The rephrasing and the picture come in at 3, the near picture at 7: radii from 3 on and below 7 are perfect, and
    scores above −7 and up to −3.
    """
    dev = trace(edit("a", 0.0, 3.0, 3.0, 7.0))
    found = scope.choose(dev, EPSILON)
    best = found.values[found.hms == 1]
    assert found.hms.max() == 1 and (best >= 3).all() and (best < 7).all() and len(best) > 4
    assert found.method.radius.epsilon == best[(len(best) - 1) // 2] and best[0] < found.method.radius.epsilon < best[-1]
    assert found.parts.tolist() == [[1, 1, 1]] and len(found.hms) == len(found.values)
    told = scope.choose(dev, THRESHOLD)
    assert -7 < told.method.threshold < -3 and told.hms.max() == 1 and told.method.radius == THRESHOLD.radius


def test_the_published_value_is_taken_where_it_is_tied() -> None:
    """Perfect from 3 to below 7. 6.5 is perfect too; at 8 the near pictures answer as well, which one edit in two tells."""
    dev = trace(edit("a", 0.0, 3.0, 3.0, 7.0), edit("b", 0.0, 3.0, 3.0, 7.0))
    assert scope.choose(dev, replace(EPSILON, published=6.5)).method.radius.epsilon == 6.5
    worse = scope.choose(dev, replace(EPSILON, published=8.0))
    assert 8.0 in worse.values and worse.method.radius.epsilon != 8.0  # HM 0 is no tie
    noisy = trace(edit("a", 0.0, 3.0, 3.0, 7.0), edit("b", 0.0, 3.0, 3.0, 20.0))
    found = scope.choose(noisy, replace(EPSILON, published=8.0))
    assert found.method.radius.epsilon == 8.0 and found.hms[found.values == 8.0] == pytest.approx(0.75) and found.hms.max() == 1
    assert found.parts[:, 2].tolist() == [0, 1]  # the parts are those of what is chosen


def test_a_method_without_a_number_stays_as_it_is() -> None:
    dev, always = trace(edit("a", 0.0, 3.0, 3.0, 7.0)), replace(METHOD, router="always")
    found = scope.choose(dev, always)
    assert found.method == always and np.isnan(found.values).all() and found.parts.tolist() == [[1, 1, 0]]
    assert found.hms.tolist() == [0]


@pytest.mark.parametrize(("method", "name"), [(ALPHA, "radius.alpha"), (EPSILON, "radius.epsilon"), (THRESHOLD, "threshold")])
def test_dev_edits_alone_settle_the_number(method: Method, name: str) -> None:
    """What is perfect for the dev edit (3 in, 7 out) is not for the test edit, which would want 5 in and 5.5 out."""
    both = trace(edit("a", 0.0, 3.0, 3.0, 7.0), edit("b", 0.0, 5.0, 5.0, 5.5, split="test"))
    found = scope.settled(method, both)
    assert found.number_value == scope.choose(both[both["split"] == "dev"], method).method.number_value != "dev"
    more = both.assign(seed=1, target_on=False)
    assert scope.settled(method, pd.concat([more, both])).number_value == found.number_value  # of several seeds the first
    with pytest.raises(UserError, match=f"^{name}: 'dev' .* without dev edits; allowed: a number"):
        scope.settled(method, both[both["split"] == "test"])


def test_alpha_is_chosen_in_the_middle_of_where_it_is_perfect() -> None:
    """ε = 10 − 8α reaches 3 and leaves 7 for α in (.375, .875]: nine of the nineteen quantiles, of which the fifth is chosen."""
    dev = trace(edit("a", 0.0, 3.0, 3.0, 7.0))
    assert scope.settled(ALPHA, dev).radius.alpha == pytest.approx(0.375 + 0.5 * 5 / 9)


def test_what_is_settled_stays_and_alpha_is_nan_where_it_has_no_use() -> None:
    dev = trace(edit("a", 0.0, 3.0, 3.0, 7.0))
    assert scope.settled(METHOD, dev) == METHOD
    constant = replace(ALPHA, radius=replace(ALPHA.radius, strategy="constant"))
    found = scope.settled(constant, dev).radius
    assert np.isnan(found.alpha) and found.epsilon == constant.radius.epsilon
    for router in ("always", "never", "oracle"):
        assert scope.settled(replace(ALPHA, router=router), dev) == replace(ALPHA, router=router)


def two_keys(name: str, *places: tuple[float, float]) -> list[dict]:
    """One edit whose queries lie so far in picture and question; views at 1, the nearest picture at 3, rephrasings at ½ and
    another question at 1½.
    """
    rows = [row(name, i, kind, 0.0, split="dev") for i, kind in enumerate(KINDS)]
    samples = [("sample_view", 1.0, 0.0), ("sample_nearest", 3.0, 0.1), ("sample_positive", 0.0, 0.5)]
    rows += [row(name, 9 + i, kind, 0.0, split="dev") for i, (kind, *_) in enumerate(samples)]
    rows.append(row(name, 20, "sample_other_question", 0.0, split="dev"))
    far = [*places, *(pair[1:] for pair in samples), (0.0, 1.5)]
    return [one | {"euclidean_picture": a, "euclidean_last": b} for one, (a, b) in zip(rows, far, strict=True)]


TWO = replace(ALPHA, scope="two_keys")


def test_two_keys_by_hand() -> None:
    """At α = ½ an edit reaches 2 by its picture and 1 by its question: within both, within one, without a picture."""
    one = trace(two_keys("a", (0.0, 0.0), (0.0, 0.9), (2.0, 1.05), (NAN, 0.0)))
    assert routing.routed_on(one, scope.at(TWO, 0.5))[:4].tolist() == [True, True, False, False]
    assert routing.routed_on(one, scope.at(TWO, 0.4))[:4].tolist() == [True, True, True, False]
    # ε = 3 − 2α by the picture and 1½ − α by the question: the later of both lets a query in
    assert scope.entering(one, TWO)[:3].tolist() == pytest.approx([1.5, 0.6, 0.45]) and np.isnan(scope.entering(one, TWO)[3])


def test_a_scope_without_its_key_is_named() -> None:
    with pytest.raises(UserError, match="keys: 'picture' is missing"):
        routing.routed_on(trace(edit("a", 0.0, 3.0, 6.0, 8.0)), scope.at(TWO, 0.5))


def test_a_constant_is_chosen_whatever_alpha_says() -> None:
    """α may say `dev` too, which is no number: a constant radius has no use for it."""
    method = replace(EPSILON, radius=replace(EPSILON.radius, alpha="dev"))
    found = scope.choose(trace(edit("a", 0.0, 3.0, 6.0, 8.0), edit("b", 0.0, 2.0, 5.0, 9.0)), method)
    assert 6 <= found.method.radius.epsilon < 8
