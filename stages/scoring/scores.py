"""Scores in both protocols with paired bootstrap intervals over edits (design §3).

A score is a macro mean: over the probes of an edit, then over edits (seeds are averaged within an edit). Strict: greedy
decoding. Teacher-forced: the field's mean argmax accuracy and top-1 agreement.
"""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from stages.scoring.means import Asked, across
from stages.scoring.routing import REACHED

PROTOCOLS = ("strict", "teacher_forced")
GENERALITY = ("text_generality", "image_generality", "joint_generality")
IMAGE_LOCALITY = ("near_image", "far_image", "other_question", "unrelated", "no_image")
LOCALITY = (*IMAGE_LOCALITY, "text_only")
HARD_LOCALITY = ("near_image", "far_image", "other_question")  # a codebook keeps the other kinds nearly by itself
HOPS = ("hop1", "hop2")
UNSEEN = ("Twtr", "Wind")  # artists that no embedded backbone was trained on, as picture ids begin
ARTISTS = ("Appl", "Goog", "FB", "Sams", "Joy", *UNSEEN)
HM_PARTS = ("text_generality", "image_generality", "locality")  # the parts of HM, as in the paper
AVERAGES = ("text_locality", "image_locality", "locality", "hard_locality", "hm")
MAIN = ("reliability", *GENERALITY, *LOCALITY, *AVERAGES, *HOPS, "black_image", "diverged")


def per_edit(outcomes: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """One row an edit, one column a metric, NaN where an edit has no such probe.

    `outcomes` come from `routing.route`, of one method.
    """
    asked, kind, value = Asked.of(outcomes), outcomes["kind"], values(outcomes, protocol)
    table, kept = of_kinds(asked.means(value)), kind.isin(LOCALITY).to_numpy()
    wrong = kind.isin(GENERALITY).to_numpy() & ~outcomes["target_off"].to_numpy(dtype=bool)
    image = outcomes["image_id"] if "image_id" in outcomes else pd.Series("", outcomes.index)
    artist = image.fillna("").astype(str).str.split("/").str[0]
    shown = (kind == "image_generality").to_numpy()
    right = kept & outcomes["correct_off"].to_numpy(dtype=bool)
    parts = {"unedited_wrong": wrong, "unedited_right": right}
    if artist.isin(ARTISTS).any():  # photos have none
        unseen = artist.isin(UNSEEN).to_numpy()
        parts |= {"seen_artists": shown & ~unseen, "unseen_artists": shown & unseen}
    for name, chosen in parts.items():
        table |= {f"{kind}_{name}": means for kind, means in asked.means(value, chosen).items()}
    all_kinds = Asked(asked.edits, ["diverged"], asked.place // len(asked.kinds))
    table |= all_kinds.means(outcomes["diverged"].to_numpy())  # these count as they are: the unedited model's outcomes
    if protocol == "teacher_forced":
        top10 = asked.means(outcomes["top10"].to_numpy(dtype=float), kept)
        table["locality_top10"] = across(list(top10.values())) if top10 else np.nan
    return pd.DataFrame(table, index=pd.Index(asked.edits, name="edit_id"))


def by_kind(outcomes: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """The first columns of `per_edit`: the probe kinds and averages over some of them."""
    asked = Asked.of(outcomes)
    return pd.DataFrame(of_kinds(asked.means(values(outcomes, protocol))), index=pd.Index(asked.edits, name="edit_id"))


def values(outcomes: pd.DataFrame, protocol: str) -> np.ndarray:
    """[probes]: the value of each routed outcome in a protocol."""
    reached, found = outcomes["kind"].isin(REACHED).to_numpy(), (outcomes[name].to_numpy() for name in ("target", "same", "tf"))
    return worth(reached, *found, protocol)


def worth(reached: np.ndarray, target: np.ndarray, same: np.ndarray, tf: np.ndarray, protocol: str) -> np.ndarray:
    """[..., probes]: the value of each outcome in a protocol; what must be `reached` is worth its target."""
    return np.where(reached, target, same).astype(float) if protocol == "strict" else tf


def of_kinds(means: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The metrics of each edit that come of means by kind: those of the kinds, sorted by name, and averages over some."""
    table = dict(sorted(("reliability" if kind == "edit" else kind, found) for kind, found in means.items()))
    nothing = np.full_like(next(iter(means.values())), np.nan)
    table["text_locality"] = table.get("text_only", nothing)
    for name, kinds in (("image_locality", IMAGE_LOCALITY), ("locality", LOCALITY), ("hard_locality", HARD_LOCALITY)):
        found = [table[kind] for kind in kinds if kind in table]
        table[name] = across(found) if found else nothing
    return table


def harmonic_mean(parts: np.ndarray) -> np.ndarray:
    """Along the last axis; 0 where a part is 0, NaN where one is NaN."""
    with np.errstate(divide="ignore", over="ignore"):
        return parts.shape[-1] / (1 / parts).sum(-1)


def hm_and_parts(table: pd.DataFrame) -> dict[str, float]:
    """The parts of HM, each the mean of a `per_edit` table, and `hm`: -1 where a part is missing, so that it is never best."""
    parts = {part: float(table[part].mean()) if part in table else float("nan") for part in HM_PARTS}
    return parts | {"hm": float(np.nan_to_num(harmonic_mean(np.array(list(parts.values()))), nan=-1.0))}


def judged(trace: pd.DataFrame, on: np.ndarray, protocol: str) -> dict[str, np.ndarray]:
    """metric → [..., edits]: scores of a trace's edits, of its probes alone, under each of many routings `on` [..., rows]."""
    target = np.where(on, trace["target_on"], trace["target_off"])
    same, tf = np.where(on, trace["same_on"], True), np.where(on, trace["tf_on"], trace["tf_off"])
    return of_kinds(Asked.of(trace).means(worth(trace["kind"].isin(REACHED).to_numpy(), target, same, tf, protocol)))


def hm_parts(trace: pd.DataFrame, on: np.ndarray) -> np.ndarray:
    """[..., edits, 3]: the parts of each edit's strict HM under each of many routings, `on` [..., rows]."""
    asked = ~trace["kind"].str.startswith("sample_").to_numpy(dtype=bool)
    table = judged(trace[asked], on[..., asked], "strict")
    nothing = np.full((*on.shape[:-1], trace["edit_id"].nunique()), np.nan)
    return np.stack([table.get(part, nothing) for part in HM_PARTS], -1)


def hm_of(parts: np.ndarray) -> np.ndarray:
    """[...]: HM of the means over edits of `hm_parts` [..., edits, 3]; -1 where a part is missing, so that it is never best."""
    return np.nan_to_num(harmonic_mean(nanmean(parts, axis=-2)), nan=-1.0)


def hms(trace: pd.DataFrame, on: np.ndarray) -> np.ndarray:
    """[...]: strict HM of a trace under each of many routings, `on` [..., rows]; -1 where a part is missing."""
    return hm_of(hm_parts(trace, on))


def tied(parts: np.ndarray, best: int) -> np.ndarray:
    """[settings] bool: whose HM is within one standard error of the best one's, from `hm_parts` [settings, edits, 3] of the same
    edits: the rule of Breiman et al. (Classification and Regression Trees, 1984, section 3.4.3) for equals.

    The standard error is that of the paired difference, by the delta method: HM's slope in a part m is HM² / 3m².
    """
    means, known = nanmean(parts, axis=-2), np.isfinite(parts)
    above = np.maximum(means, 1e-12)
    slope = (harmonic_mean(above)[..., None] / above) ** 2 / parts.shape[-1]
    share = np.where(known, parts - means[..., None, :], 0) / np.maximum(known.sum(-2), 1)[..., None, :]
    pull = (slope[..., None, :] * share).sum(-1)  # [settings, edits]: what each edit adds to HM's error
    error = np.nan_to_num(np.sqrt(((pull - pull[best]) ** 2).sum(-1)))  # a missing part has none
    found = hm_of(parts)
    return found >= found[best] - error - 1e-9


def resample(edits: int, resamples: int, seed: int) -> np.ndarray:
    """[resamples, edits]: how often each edit is drawn, with replacement; the same draws for every method, so that differences
    are paired.
    """
    return resample_groups(np.arange(edits), resamples, seed)


def resample_groups(groups: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """[resamples, edits]: how often each edit is drawn where whole groups of edits are, `groups` [edits] (Cameron and Miller, A
    Practitioner's Guide to Cluster-Robust Inference, 2015): edits of one relation ask one question, and are less than so many.
    """
    names, place = np.unique(groups, return_inverse=True)
    drawn = np.random.default_rng(seed).integers(len(names), size=(resamples, len(names)))
    places = drawn + len(names) * np.arange(resamples)[:, None]
    times = np.bincount(places.ravel(), minlength=resamples * len(names)).reshape(resamples, len(names))
    return times[:, place].astype(float)


def summarise(table: pd.DataFrame, draws: np.ndarray, level: float) -> pd.DataFrame:
    """mean, low, high and n of every metric of a `per_edit` table, HM included; n counts the edits that have the metric."""
    result = pd.DataFrame(summaries({name: table[name].to_numpy(dtype=float) for name in table}, draws, level))
    return result[result["n"] > 0].reset_index(drop=True)


def summaries(table: Mapping[str, np.ndarray], draws: np.ndarray, level: float) -> dict[str, Any]:
    """`metric`, and `mean`, `low`, `high` and `n` [..., metrics] of scores [..., edits] by metric, HM included."""
    values = np.moveaxis(np.stack(list(table.values()), -1), -2, 0)
    means, n = _with_hm(nanmean(values), table), np.isfinite(values).sum(0)
    n = np.concatenate([n, np.full((*n.shape[:-1], 1), len(values))], -1)
    low, high = interval(_with_hm(resampled(values, draws), table), level)
    return {"metric": [*table, "hm"], "mean": means, "low": low, "high": high, "n": n}


def resampled(values: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """[resamples, ...]: means over the edits of each draw, of values [edits, ...], that leave NaN out."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.tensordot(draws, np.where(known, values, 0), 1) / np.tensordot(draws, known.astype(float), 1)


def interval(values: np.ndarray, level: float) -> np.ndarray:
    """[2, ...]: the quantiles over the first axis that hold `level` of the values between them; NaN is left out."""
    at = [(1 - level) / 2, (1 + level) / 2]
    if not np.isnan(values).any():
        return np.quantile(values, at, axis=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice encountered")
        return np.nanquantile(values, at, axis=0)


def nanmean(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Mean over an axis that leaves NaN out, and is NaN where nothing is left."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis) / known.sum(axis)


def _with_hm(means: np.ndarray, metrics: Iterable[str]) -> np.ndarray:
    """`means` [..., metrics] with HM as a last column."""
    at = [list(metrics).index(part) for part in HM_PARTS]
    return np.concatenate([means, harmonic_mean(means[..., at])[..., None]], -1)
