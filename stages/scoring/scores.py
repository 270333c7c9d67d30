"""Scores in both protocols with paired bootstrap intervals over edits (design §3).

A score is a macro mean: over the probes of an edit, then over edits (seeds are averaged within an edit). Strict: greedy
decoding. Teacher-forced: the field's mean argmax accuracy and top-1 agreement.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from stages.scoring.routing import REACHED

PROTOCOLS = ("strict", "teacher_forced")
GENERALITY = ("text_generality", "image_generality", "joint_generality")
IMAGE_LOCALITY = ("near_image", "far_image", "other_question", "unrelated", "no_image")
LOCALITY = (*IMAGE_LOCALITY, "text_only")
HOPS = ("hop1", "hop2")
HM_PARTS = ("text_generality", "image_generality", "locality")  # the parts of HM, as in the paper
AVERAGES = ("text_locality", "image_locality", "locality", "hm")
MAIN = ("reliability", *GENERALITY, *LOCALITY, *AVERAGES, *HOPS, "black_image", "diverged")


def per_edit(outcomes: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """One row an edit, one column a metric, NaN where an edit has no such probe.

    `outcomes` come from `routing.route`, of one method.
    """
    reached = outcomes["kind"].isin(REACHED)
    strict = outcomes["target"].where(reached, outcomes["same"]).astype(float)
    value = strict if protocol == "strict" else outcomes["tf"]
    rows = outcomes.assign(value=value)
    rows["kind"] = rows["kind"].replace({"edit": "reliability"})

    def means(chosen: pd.DataFrame) -> pd.DataFrame:
        return chosen.groupby(["edit_id", "kind"])["value"].mean().unstack("kind")

    table = means(rows).reindex(sorted(outcomes["edit_id"].unique()))
    kinds = [k for k in LOCALITY if k in table]
    wrong = means(rows[rows["kind"].isin(GENERALITY) & ~rows["target_off"]]).add_suffix("_unedited_wrong")
    right = means(rows[rows["kind"].isin(LOCALITY) & rows["correct_off"]]).add_suffix("_unedited_right")
    table["text_locality"] = table.get("text_only", np.nan)
    table["image_locality"] = table[[k for k in IMAGE_LOCALITY if k in table]].mean(axis=1)
    table["locality"] = table[kinds].mean(axis=1)
    table = table.join(wrong).join(right)
    table["diverged"] = outcomes.groupby("edit_id")["diverged"].mean()  # these count as they are: the unedited model's outcomes
    if protocol == "teacher_forced":
        top10 = rows[rows["kind"].isin(LOCALITY)].groupby(["edit_id", "kind"])["top10"].mean().unstack("kind")
        table["locality_top10"] = top10.mean(axis=1)
    return table


def harmonic_mean(parts: np.ndarray) -> np.ndarray:
    """Along the last axis; 0 where a part is 0, NaN where one is NaN."""
    with np.errstate(divide="ignore", over="ignore"):
        return parts.shape[-1] / (1 / parts).sum(-1)


def hm_and_parts(table: pd.DataFrame) -> dict[str, float]:
    """The parts of HM, each the mean of a `per_edit` table, and `hm`: -1 where a part is missing, so that it is never best."""
    parts = {part: float(table[part].mean()) if part in table else float("nan") for part in HM_PARTS}
    return parts | {"hm": float(np.nan_to_num(harmonic_mean(np.array(list(parts.values()))), nan=-1.0))}


def resample(edits: int, resamples: int, seed: int) -> np.ndarray:
    """[resamples, edits] indices with replacement: the same draw for every method, so that differences are paired."""
    return np.random.default_rng(seed).integers(edits, size=(resamples, edits))


def summarise(table: pd.DataFrame, draws: np.ndarray, level: float) -> pd.DataFrame:
    """mean, low, high and n of every metric of a `per_edit` table, HM included; n counts the edits that have the metric."""
    parts = list(HM_PARTS)
    columns = [*table.columns, "hm"]
    values = table.to_numpy(dtype=float)
    n = np.isfinite(values).sum(0)
    means = _with_hm(nanmean(values), table.columns, parts)
    resampled = _with_hm(nanmean(values[draws].swapaxes(0, 1)), table.columns, parts)
    low, high = np.nanquantile(resampled, [(1 - level) / 2, (1 + level) / 2], axis=0)
    result = pd.DataFrame({"metric": columns, "mean": means, "low": low, "high": high, "n": [*n, len(table)]})
    return result[result["n"] > 0].reset_index(drop=True)


def nanmean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis that leaves NaN out, and is NaN where nothing is left."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(0) / known.sum(0)


def _with_hm(means: np.ndarray, columns: Sequence[str], parts: Sequence[str]) -> np.ndarray:
    """`means` [..., metrics] with HM as a last column."""
    at = [list(columns).index(part) for part in parts]
    return np.concatenate([means, harmonic_mean(means[..., at])[..., None]], -1)
