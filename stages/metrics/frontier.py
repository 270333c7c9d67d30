"""Generality against locality over all values of a method's scope: a comparison that no choice of one value can bend.

A method with a scope has a curve; one that always answers is one point. At a generality g stands the highest locality that some
value gives with a generality of at least g. The area under that line, from 0 to 1, is a method's in one number; leaving all as it
is counts for every method, so that a point's area is its generality times its locality and what the unedited model has already.
"""

import numpy as np
import pandas as pd

from stages.scoring import routing, scope, scores
from stages.settings import Method

POINTS = 101  # values of a scope on the curve
COLUMNS = ["value", "generality", "locality"]


def curve(trace: pd.DataFrame, method: Method) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values of the scope's number, and generality (the mean of text and image) and locality [values, edits] under each, strict.

    Without such a number there is one value, NaN. Nothing edited stands first.
    """
    values = [float("nan")] if method.number is None else scope.points(trace, method, POINTS)
    settled = [method if method.number is None else scope.at(method, float(one)) for one in values]
    on = np.stack([np.zeros(len(trace), dtype=bool), *(routing.routed_on(trace, one) for one in settled)])
    parts = scores.hm_parts(trace, on)
    return np.array([np.nan, *values]), parts[..., :2].mean(-1), parts[..., 2]


def area(generality: np.ndarray, locality: np.ndarray) -> np.ndarray:
    """[...]: the area under the line, of points [..., values]."""
    order = np.argsort(-generality, axis=-1, kind="stable")
    x, y = (np.take_along_axis(one, order, -1) for one in (generality, locality))
    best = np.maximum.accumulate(y, axis=-1)  # from the highest generality down
    widths = x - np.concatenate([x[..., 1:], np.zeros_like(x[..., :1])], -1)
    return (widths * best).sum(-1)


def measured(trace: pd.DataFrame, method: Method, draws: np.ndarray, level: float) -> tuple[pd.DataFrame, dict[str, float]]:
    """The curve of a trace's test edits as a table, and its area with a bootstrap interval and n."""
    values, generality, locality = curve(trace, method)
    means = [scores.nanmean(one, axis=-1) for one in (generality, locality)]
    drawn = [scores.resampled(one.T, draws) for one in (generality, locality)]
    low, high = scores.interval(area(*drawn), level)
    table = pd.DataFrame(dict(zip(COLUMNS, (values, *means), strict=True)))
    return table, {"area": float(area(*means)), "low": float(low), "high": float(high), "n": generality.shape[-1]}
