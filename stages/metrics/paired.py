"""Is one method better than another on the same edits? Paired permutation tests over edits, Holm-corrected.

Under the null hypothesis the two methods' scores of an edit may be swapped (Good, Permutation Tests, 2000). HM is that of the
means, so it is computed anew for every swap. Several baselines are one family (Holm, 1979).
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from stages.scoring.scores import HM_PARTS, harmonic_mean, interval, resampled

POWER = 1.959964 + 0.841621  # standard errors: the normal quantiles of a two-sided 5 % and of 80 %
COMPARED = ("reliability", *HM_PARTS, "hm")


def swaps(edits: int, permutations: int, seed: int) -> np.ndarray:
    """[permutations, edits] of ±1: which edits keep their methods and which swap them."""
    return np.random.default_rng(seed).integers(2, size=(permutations, edits)) * 2.0 - 1


def compare(ours: pd.DataFrame, other: pd.DataFrame, signs: np.ndarray, draws: np.ndarray, level: float) -> pd.DataFrame:
    """metric, difference (ours − other) with a bootstrap interval, two-sided p, `detectable` and n, from two `per_edit` tables.

    `draws` come from `scores.resample`, `signs` from `swaps`. Every edit counts that has the metric; its n is theirs.
    `detectable` is the smallest difference that a test at 5 % finds in four of five studies of as many edits that vary as
    these do.
    """
    rows, parts = [], ["reliability", *HM_PARTS]
    whole = [table[parts].to_numpy(dtype=float) for table in (ours, other)]
    for metric in COMPARED:
        at = [parts.index(part) for part in (HM_PARTS if metric == "hm" else [metric])]
        a, b = (values[:, at] for values in whole)
        known = np.isfinite(a).all(1) & np.isfinite(b).all(1)
        if not known.any():
            continue
        difference = _score(a[known].mean(0)) - _score(b[known].mean(0))
        middle = (a[known] + b[known]).mean(0) / 2
        half = signs @ np.where(known[:, None], a - b, 0) / known.sum() / 2
        swapped = _score(middle + half) - _score(middle - half)
        as_far = np.abs(swapped) >= abs(difference) - 1e-12
        both = [_score(resampled(np.where(known[:, None], x, np.nan), draws)) for x in (a, b)]
        low, high = interval(both[0] - both[1], level)
        p = (1 + as_far.sum()) / (1 + len(signs))
        found = {"metric": metric, "difference": difference, "low": low, "high": high, "p": p}
        rows.append(found | {"detectable": POWER * float(np.std(both[0] - both[1])), "n": int(known.sum())})
    return pd.DataFrame(rows)


def _score(means: np.ndarray) -> np.ndarray:
    """A metric from the means of its parts [..., parts]: itself, or their harmonic mean."""
    return means[..., 0] if means.shape[-1] == 1 else harmonic_mean(means)


def holm(p: Sequence[float]) -> np.ndarray:
    """Adjusted p values of one family, in the given order."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted
