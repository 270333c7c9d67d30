"""The frontier of generality against locality and the area under it, by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_metrics import METHOD, RADIUS, row

from stages.metrics import frontier
from stages.scoring import scores


def test_the_area_by_hand() -> None:
    """From the highest generality down: .4 between 1 and .5, .8 down to .2, and all is kept below."""
    generality, locality = np.array([0.2, 0.5, 1.0]), np.array([1.0, 0.8, 0.4])
    assert frontier.area(generality, locality) == pytest.approx(0.5 * 0.4 + 0.3 * 0.8 + 0.2 * 1.0)
    worse = np.append(generality, 0.4), np.append(locality, 0.3)  # below the line: it changes nothing
    assert frontier.area(*worse) == pytest.approx(0.64)
    assert frontier.area(np.stack([generality, generality]), np.stack([locality, locality * 0])).tolist() == pytest.approx(
        [0.64, 0]
    )


@pytest.fixture()
def trace() -> pd.DataFrame:
    """One edit: rephrasings and pictures enter at ε = 1 and 3, a near and a far picture at 2 and 4."""
    found = [("edit", 0.0), ("text_generality", 1.0), ("image_generality", 3.0), ("near_image", 2.0), ("far_image", 4.0)]
    found += [("sample_positive", 0.5), ("sample_black", 9.0)]
    return pd.DataFrame([row("a", i, kind, far) for i, (kind, far) in enumerate(found)])


def test_a_curve_has_every_step_of_a_scope(trace: pd.DataFrame) -> None:
    constant = replace(METHOD, radius=replace(RADIUS, strategy="constant"))
    values, generality, locality = frontier.curve(trace, constant)
    steps = dict(zip(zip(generality[:, 0], locality[:, 0], strict=True), values, strict=True))
    assert set(steps) == {(0, 1), (0.5, 1), (0.5, 0.5), (1, 0.5), (1, 0)} and np.isnan(values[0])
    table, area = frontier.measured(trace, constant, scores.resample(1, 10, 0), 0.95)
    assert area == pytest.approx({"area": 0.75, "low": 0.75, "high": 0.75, "n": 1})
    assert table["value"].iloc[1:].is_monotonic_increasing


def test_a_method_without_a_scope_is_a_point(trace: pd.DataFrame) -> None:
    values, generality, locality = frontier.curve(trace, replace(METHOD, router="always"))
    assert np.isnan(values).all() and generality[:, 0].tolist() == [0, 1] and locality[:, 0].tolist() == [1, 0]
    _, area = frontier.measured(trace.assign(same_on=True), replace(METHOD, router="always"), scores.resample(1, 10, 0), 0.95)
    assert area["area"] == 1  # it reaches all and keeps all


def test_an_areas_interval_is_that_of_its_edits(trace: pd.DataFrame) -> None:
    """Another edit reaches nothing: the mean of the two, from neither to both."""
    other = trace.assign(edit_id="b", target_on=False)
    always = replace(METHOD, router="always")
    _, area = frontier.measured(pd.concat([trace, other]).assign(same_on=True), always, scores.resample(2, 200, 0), 0.95)
    assert (area["area"], area["low"], area["high"], area["n"]) == (0.5, 0, 1, 2)
