"""One table per question about the radius. Every function routes the same trace in another way and scores it (design §6)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from stages.scoring import routing, scores
from stages.scoring.scope import settled
from stages.settings import DISTANCES, NEGATIVES, POSITIVES, SPANS, Key, Method, Radius

ALPHAS = tuple(round(0.05 * i, 2) for i in range(21))
QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)  # of the samples' distances: where constant radii are tried
FORCED = ("oracle", "always", "never")
GRACE_KEY, GRACE_RADII = Key("last"), (1.0, 5.0)  # Hartvigsen et al., NeurIPS 2023
TRADE_OFF = (*scores.GENERALITY, *scores.LOCALITY, "locality", "hm")


@dataclass(frozen=True)
class Sweep:
    """One method's trace, and how its scores are summarised on each split. Its α may be left to the dev edits: every variant
    then has its own, as an experiment of that variant would.
    """

    trace: pd.DataFrame
    method: Method
    draws: dict[str, np.ndarray]  # split → [resamples, edits]
    level: float

    @cached_property
    def few(self) -> pd.DataFrame:
        """The trace's columns that routing and scoring read, names as categories: every variant selects rows of it."""
        distances = [column for column in self.trace if column.startswith(DISTANCES)]
        return self.trace[[*routing.READ, *distances]].astype(dict.fromkeys(("split", "edit_id", "kind"), "category"))

    def scored(self, **changes: Key | Radius | str) -> pd.DataFrame:
        """alpha, split, protocol, metric, mean, low, high, n under another `key`, `radius` or `router`."""
        return self.variants([(changes, {})])

    def variants(self, tried: Iterable[tuple[Mapping[str, Key | Radius | str], Mapping[str, Any]]]) -> pd.DataFrame:
        """The same of several changes, one below the other, each with columns that say which it is."""
        changes, said = zip(*tried, strict=True)
        methods = [settled(replace(self.method, **one), self.few) for one in changes]
        on = np.stack([routing.routed_on(self.few, method) for method in methods])
        asked, found = ~self.few["kind"].str.startswith("sample_").to_numpy(dtype=bool), []
        for split, draws in self.draws.items():
            rows = asked & (self.few["split"] == split).to_numpy()
            for protocol in scores.PROTOCOLS:
                table = scores.judged(self.few[rows], on[:, rows], protocol)
                summary = scores.summaries({name: table[name] for name in table if name in TRADE_OFF}, draws, self.level)
                metrics = summary.pop("metric")
                values = {name: value.ravel() for name, value in summary.items()} | {"split": split, "protocol": protocol}
                place = np.repeat(np.arange(len(methods)), len(metrics))
                found.append(pd.DataFrame({"place": place, "metric": metrics * len(methods), **values}))
        which = pd.DataFrame([one | {"alpha": method.radius.alpha} for one, method in zip(said, methods, strict=True)])
        whole = pd.concat(found).sort_values("place", kind="stable").join(which, on="place")
        return whole[whole["n"] > 0].drop(columns="place")


def alpha_sweep(sweep: Sweep) -> pd.DataFrame:
    """α from 0 to 1 under `balanced`, for both distances, with the configured span."""
    balanced, span = replace(sweep.method.radius, strategy="balanced"), sweep.method.key.span
    tried = [replace(balanced, alpha=alpha, distance=distance) for distance in DISTANCES for alpha in ALPHAS]
    return sweep.variants(({"radius": r}, {"distance": r.distance, "span": span}) for r in tried)


def strategies(sweep: Sweep) -> pd.DataFrame:
    """balanced, positive, negative, and constant radii at quantiles of the samples' distances."""
    radius = sweep.method.radius
    found = routing.sample_distances(sweep.trace, sweep.method.key, radius)
    quantiles = np.quantile(found[["d_plus", "d_minus"]].to_numpy(), QUANTILES)
    spread = sorted({float(f"{epsilon:.3g}") for epsilon in quantiles})  # as reports name them: no two of one name
    tried = [(replace(radius, strategy=s), np.nan) for s in ("balanced", "positive", "negative")]
    tried += [(replace(radius, strategy="constant", epsilon=e), e) for e in spread if e > 0]
    return sweep.variants(({"radius": r}, {"strategy": r.strategy, "epsilon": e}) for r, e in tried)


def negative_samples(sweep: Sweep) -> pd.DataFrame:
    """Each negative sample in turn."""
    return sweep.variants(({"radius": replace(sweep.method.radius, negative=(n,))}, {"negative": n}) for n in NEGATIVES)


def sample_counts(sweep: Sweep) -> pd.DataFrame:
    """More positive samples, and more negative ones, beginning with the black picture: `samples` has how many of each."""
    tried = [(n, 1) for n in range(1, POSITIVES + 1)] + [(1, n) for n in range(2, len(NEGATIVES) + 1)]
    radii = {f"{p}+{n}": replace(sweep.method.radius, positives=p, negative=NEGATIVES[:n]) for p, n in tried}
    return sweep.variants(({"radius": radius}, {"samples": name}) for name, radius in radii.items())


def spans(sweep: Sweep) -> pd.DataFrame:
    """Each key span in turn; `teacher_forced` is the leak of the authors' released code."""
    return sweep.variants(({"key": Key(span)}, {"span": span}) for span in keys_of(sweep.trace))


def keys_of(trace: pd.DataFrame) -> list[str]:
    """The keys that a trace has distances to: the spans of the edited layer, then those that are read elsewhere."""
    found = [column.removeprefix("euclidean_") for column in trace if column.startswith("euclidean_")]
    return sorted(found, key=lambda key: (SPANS.index(key) if key in SPANS else len(SPANS), key))


def routers(sweep: Sweep, ours: Method) -> pd.DataFrame:
    """Router and writer apart: the same edits as they are (`configured`), forced on (`always`) and off (`never`), and answering
    exactly where they should (`oracle`). A codebook method's also behind `ours`, BalancEdit's key and radius with α chosen anew,
    behind its key with one radius for all, as wide on average (`matched`), and behind GRACE's key with the same
    (`grace_matched`) or with its constants (`grace_<ε>`).
    """
    tried = {"configured": {}, **{router: {"router": router} for router in FORCED}}
    if sweep.method.router == "codebook":
        behind = {"balanced": (ours.key, ours.radius), "matched": (ours.key, replace(ours.radius, strategy="mean"))}
        behind["grace_matched"] = (GRACE_KEY, replace(ours.radius, strategy="mean"))
        behind |= {f"grace_{e:g}": (GRACE_KEY, replace(ours.radius, strategy="constant", epsilon=e)) for e in GRACE_RADII}
        tried |= {name: {"key": key, "radius": radius} for name, (key, radius) in behind.items()}
    return sweep.variants((changes, {"router": name}) for name, changes in tried.items())


def areas(sweep: Sweep) -> pd.DataFrame:
    """AUC of the distance: how well it tells generality probes from each locality kind, on test edits."""
    trace = sweep.trace[sweep.trace["split"] == "test"]
    reached = trace[trace["kind"].isin(scores.GENERALITY)]
    others = {kind: trace[trace["kind"] == kind] for kind in scores.LOCALITY}
    rows = []
    for distance, span in ((d, s) for d in DISTANCES for s in keys_of(trace)):
        near = reached[f"{distance}_{span}"].to_numpy()
        for kind, other in others.items():
            if len(other) and len(near):
                rows.append((distance, span, kind, area(near, other[f"{distance}_{span}"].to_numpy()), len(near) + len(other)))
    return pd.DataFrame(rows, columns=["distance", "span", "kind", "auc", "n"])


def area(near: np.ndarray, far: np.ndarray) -> float:
    """The share of pairs of which `near` has the smaller number; equal ones count half. NaN, a query without the span, is never
    inside a radius: the farthest.
    """
    near, far = (np.nan_to_num(values, nan=np.inf) for values in (near, far))
    return float(((near[:, None] < far).mean() + (near[:, None] <= far).mean()) / 2)


def best_alpha(alphas: pd.DataFrame, radius: Radius) -> dict[str, float]:
    """The α of the highest strict HM on dev edits, and the test edits' HM there (NaN without dev edits) and at the configured α,
    if there is one.
    """
    chosen = alphas[(alphas["metric"] == "hm") & (alphas["protocol"] == "strict") & (alphas["distance"] == radius.distance)]
    by = {split: part.set_index("alpha")["mean"] for split, part in chosen.groupby("split")}
    best = float(by["dev"].idxmax()) if "dev" in by else float("nan")
    found = {"best_alpha_on_dev": best, "test_hm_at_best_alpha": round(float(by["test"].get(best, float("nan"))), 6)}
    if not np.isnan(radius.alpha):
        nearest = float(min(ALPHAS, key=lambda a: abs(a - radius.alpha)))
        found |= {"configured_alpha": radius.alpha, "test_hm_at_nearest_swept_alpha": round(float(by["test"][nearest]), 6)}
    return found
