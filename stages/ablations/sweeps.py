"""One table per question about the radius. Every function routes the same trace in another way and scores it (design §6)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from stages.metrics.tuning import ALPHAS, settled
from stages.scoring import routing, scores
from stages.settings import DISTANCES, NEGATIVES, POSITIVES, SPANS, Key, Method, Radius

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

    def scored(self, **changes: Key | Radius | str) -> pd.DataFrame:
        """alpha, split, protocol, metric, mean, low, high, n under another `key`, `radius` or `router`."""
        method = settled(replace(self.method, **changes), self.trace)
        routed = routing.route(self.trace, routing.routed_on(self.trace, method))
        tables = []
        for split, draws in self.draws.items():
            for protocol in scores.PROTOCOLS:
                table = scores.per_edit(routed[routed["split"] == split], protocol)
                wanted = [c for c in table.columns if c in TRADE_OFF]
                tables.append(scores.summarise(table[wanted], draws, self.level).assign(split=split, protocol=protocol))
        return pd.concat(tables).assign(alpha=method.radius.alpha)


def alpha_sweep(sweep: Sweep) -> pd.DataFrame:
    """α from 0 to 1 under `balanced`, for both distances, with the configured span."""
    span = sweep.method.key.span
    return pd.concat(
        sweep.scored(radius=replace(sweep.method.radius, strategy="balanced", alpha=alpha, distance=distance)).assign(
            distance=distance, span=span, alpha=alpha
        )
        for distance in DISTANCES
        for alpha in ALPHAS
    )


def strategies(sweep: Sweep) -> pd.DataFrame:
    """balanced, positive, negative, and constant radii at quantiles of the samples' distances."""
    radius = sweep.method.radius
    found = routing.sample_distances(sweep.trace, sweep.method.key, radius)
    quantiles = np.quantile(found[["d_plus", "d_minus"]].to_numpy(), QUANTILES)
    spread = sorted({float(f"{epsilon:.3g}") for epsilon in quantiles})  # as reports name them: no two of one name
    tried = [(replace(radius, strategy=s), np.nan) for s in ("balanced", "positive", "negative")]
    tried += [(replace(radius, strategy="constant", epsilon=e), e) for e in spread if e > 0]
    return pd.concat(sweep.scored(radius=r).assign(strategy=r.strategy, epsilon=e) for r, e in tried)


def negative_samples(sweep: Sweep) -> pd.DataFrame:
    """Each negative sample in turn."""
    radius = sweep.method.radius
    return pd.concat(sweep.scored(radius=replace(radius, negative=(n,))).assign(negative=n) for n in NEGATIVES)


def sample_counts(sweep: Sweep) -> pd.DataFrame:
    """More positive samples, and more negative ones, beginning with the black picture: `samples` has how many of each."""
    radius = sweep.method.radius
    tried = [(n, 1) for n in range(1, POSITIVES + 1)] + [(1, n) for n in range(2, len(NEGATIVES) + 1)]
    return pd.concat(
        sweep.scored(radius=replace(radius, positives=p, negative=NEGATIVES[:n])).assign(samples=f"{p}+{n}") for p, n in tried
    )


def spans(sweep: Sweep) -> pd.DataFrame:
    """Each key span in turn; `teacher_forced` is the leak of the authors' released code."""
    return pd.concat(sweep.scored(key=Key(span)).assign(span=span) for span in SPANS)


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
    return pd.concat(sweep.scored(**changes).assign(router=name) for name, changes in tried.items())


def areas(sweep: Sweep) -> pd.DataFrame:
    """AUC of the distance: how well it tells generality probes from each locality kind, on test edits."""
    trace = sweep.trace[sweep.trace["split"] == "test"]
    reached = trace[trace["kind"].isin(scores.GENERALITY)]
    rows = []
    for distance, span in ((d, s) for d in DISTANCES for s in SPANS):
        column = f"{distance}_{span}"
        for kind in scores.LOCALITY:
            other = trace[trace["kind"] == kind]
            label = np.r_[np.ones(len(reached)), np.zeros(len(other))]
            far = np.r_[reached[column], other[column]]
            if len(other) and len(reached):
                far = np.where(np.isnan(far), np.nanmax(far) + 1, far)  # a query without the span is never inside a radius
                rows.append((distance, span, kind, roc_auc_score(label, -far), len(far)))
    return pd.DataFrame(rows, columns=["distance", "span", "kind", "auc", "n"])


def frontier(points: Iterable[tuple[str, float | None, pd.DataFrame]]) -> pd.DataFrame:
    """(method, α or None, scores) → generality (mean of text and image) against locality, per protocol, on test edits."""

    def rows() -> Iterator[tuple]:
        for method, alpha, table in points:
            for protocol, part in table.groupby("protocol"):
                mean = part.set_index("metric")["mean"]
                generality = (mean["text_generality"] + mean["image_generality"]) / 2
                yield method, alpha, protocol, generality, mean["locality"]

    return pd.DataFrame(rows(), columns=["method", "alpha", "protocol", "generality", "locality"])


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
