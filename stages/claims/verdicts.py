"""What the paper claims (Guo et al., ICML 2025), and how each claim is decided by what was measured (design §8).

All scores are strict. A verdict follows from the mean; the interval beside it says how sure that is. A claim about what this
study does not measure has no verdict, and says so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from stages.scoring import scores

RATIO, GAIN = 1.7, 0.2  # C2: times GRACE's text generality. C3: least relative gain in locality.
LASTING = 0.05  # C4: what HM may lose


@dataclass(frozen=True)
class Measured:
    """A number with its interval and the verdict; `reason` where one is needed. None where nothing was measured."""

    value: float | None
    low: float | None = None
    high: float | None = None
    holds: bool | None = None
    reason: str = ""


@dataclass(frozen=True)
class Pair:
    """A dataset and a backbone, and their routed outcomes: a row a (method, seed, test edit, probe)."""

    dataset: str
    backbone: str
    outcomes: pd.DataFrame
    ours: Sequence[str]  # BalancEdit's name, or nothing
    baselines: Sequence[str]  # the other methods that edit
    draws: np.ndarray  # [resamples, edits]
    level: float
    sequences: pd.DataFrame  # of reports/sequences.csv

    @cached_property
    def tables(self) -> dict[str, pd.DataFrame]:
        """Method → `scores.per_edit`."""
        return {method: scores.per_edit(part, "strict") for method, part in self.outcomes.groupby("method")}

    def summary(self, method: str) -> pd.DataFrame:
        """Means and intervals of a method, indexed by metric."""
        return scores.summarise(self.tables[method], self.draws, self.level).set_index("metric")

    def interval(self, statistic: Callable[[dict[str, np.ndarray]], np.ndarray], metric: str, methods: Sequence[str]) -> Measured:
        """`statistic` of the methods' means of a metric, with a paired bootstrap interval over edits."""
        values = {m: self.means(m, metric) for m in methods}
        with np.errstate(divide="ignore", invalid="ignore"):
            value = statistic({m: means for m, (means, _) in values.items()})
            resampled = statistic({m: drawn for m, (_, drawn) in values.items()})
        resampled = resampled[np.isfinite(resampled)]
        if not np.isfinite(value) or not len(resampled):
            return Measured(None, reason="a mean that it is relative to is 0")
        low, high = np.quantile(resampled, [(1 - self.level) / 2, (1 + self.level) / 2])
        return Measured(float(value), float(low), float(high))

    def means(self, method: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """A metric's mean over edits, and over each resample of them."""
        parts = list(scores.HM_PARTS) if metric == "hm" else [metric]
        values = self.tables[method][parts].to_numpy(dtype=float)
        both = scores.nanmean(values), scores.resampled(values, self.draws)
        return tuple(scores.harmonic_mean(m) if metric == "hm" else m[..., 0] for m in both)


def perfect(pair: Pair) -> Measured:
    """C1."""
    row = pair.summary(pair.ours[0]).loc["reliability"]
    return Measured(row["mean"], row["low"], row["high"], bool(row["mean"] == 1))


def against_grace(pair: Pair) -> Measured:
    """C2: the ratio to GRACE as published, with its constant radius."""
    if "grace" not in pair.tables:
        return Measured(None, reason="GRACE is not among the methods")
    ours, metric = pair.ours[0], "text_generality"
    found = pair.interval(lambda m: m[ours] / m["grace"], metric, [ours, "grace"])
    if found.value is None:
        return Measured(None, holds=bool(pair.means(ours, metric)[0] > 0), reason="GRACE's text generality is 0")
    return Measured(found.value, found.low, found.high, bool(found.value >= RATIO))


def best_locality(pair: Pair) -> Measured:
    """C3: the relative gain on the best other method."""
    return _over_the_best(pair, "locality", lambda ours, best: ours / best - 1, GAIN)


def best_hm(pair: Pair) -> Measured:
    """C7: the gain in HM on the best other method."""
    return _over_the_best(pair, "hm", lambda ours, best: ours - best, 0.0)


def _over_the_best(pair: Pair, metric: str, gain: Callable[[np.ndarray, np.ndarray], np.ndarray], least: float) -> Measured:
    if not pair.baselines:
        return Measured(None, reason="no other method edits")
    ours = pair.ours[0]
    best = max(pair.baselines, key=lambda m: float(pair.means(m, metric)[0]))
    found = pair.interval(lambda m: gain(m[ours], m[best]), metric, [ours, best])
    if found.value is None:
        return found
    doubt = "; the interval leaves it open" if found.low <= least <= found.high else ""
    return Measured(found.value, found.low, found.high, bool(found.value > least), f"best of the others: {best}{doubt}")


def no_training(pair: Pair) -> Measured:
    """C5: the share of edits whose editor learnt from other edits first."""
    share = float(pair.outcomes[pair.outcomes["method"] == pair.ours[0]]["fitted"].mean())
    return Measured(share, holds=share == 0)


def untouched(pair: Pair) -> Measured:
    """C6: the share of methods after whose edits all weights had the digest that they have after no edit."""
    after = pair.outcomes.groupby("method")["weights"].agg(["nunique", "first"])
    if "base" not in after.index:
        return Measured(None, reason="the unedited model is not among the methods")
    same = (after["nunique"] == 1) & (after["first"] == after.loc["base", "first"])
    return Measured(float(same.mean()), holds=bool(same.all()))


def hops_lag(pair: Pair) -> Measured:
    """L2: text generality less the answers to hop 1; the limit shows where the interval is above 0."""
    table = pair.tables[pair.ours[0]]
    if "hop1" not in table or not table["hop1"].notna().any():
        return Measured(None, reason="no edit has hops")
    ours = pair.ours[0]
    hops, drawn = pair.means(ours, "hop1")
    text, drawn_text = pair.means(ours, "text_generality")
    low, high = np.nanquantile(drawn_text - drawn, [(1 - pair.level) / 2, (1 + pair.level) / 2])
    return Measured(float(text - hops), float(low), float(high), bool(low > 0), f"hop 1: {100 * hops:.1f} %")


def lasts(pair: Pair) -> Measured:
    """C4: strict HM of all edits after the last of a sequence, less that of each edit alone, on the same probes."""
    hm = pair.sequences[(pair.sequences["method"] == pair.ours[0]) & (pair.sequences["protocol"] == "strict")]
    hm = hm[hm["metric"] == "hm"]
    after, alone = (hm[hm["memory"] == memory] for memory in ("codebook", "alone"))
    if after.empty or alone.empty:
        return Measured(None, reason="no sequence of BalancEdit's edits")
    lost = after[after["made"] == after["made"].max()]["value"] - alone["value"].iloc[0]
    return Measured(
        float(lost.mean()), float(lost.min()), float(lost.max()), bool(lost.min() >= -LASTING), "lowest and highest order"
    )


def not_measured(reason: str) -> Callable[[Pair], Measured]:
    """A claim about what this study does not do yet."""
    return lambda pair: Measured(None, reason=reason)


@dataclass(frozen=True)
class Claim:
    """One claim, the paper's words for it in short, the table that shows it in full, and what decides it."""

    id: str
    claim: str
    paper: str
    unit: str  # of what is measured
    table: str
    measure: Callable[[Pair], Measured]

    def judge(self, pair: Pair) -> dict[str, Any]:
        """The claim's row of reports/claims.json, six decimals."""
        found = self.measure(pair) if pair.ours else Measured(None, reason="BalancEdit is not among the methods")
        numbers = {name: None if v is None else round(float(v), 6) for name, v in _numbers(found).items()}
        return {
            "id": self.id, "claim": self.claim, "paper": self.paper, "dataset": pair.dataset, "backbone": pair.backbone,
            "unit": self.unit, **numbers, "holds": found.holds, "reason": found.reason, "table": self.table,
        }  # fmt: skip


def _numbers(found: Measured) -> dict[str, float | None]:
    return {"measured": found.value, "low": found.low, "high": found.high}


CLAIMS = (
    Claim("C1", "Every edit succeeds", "reliability 100 %", "reliability", "main_strict", perfect),
    Claim("C2", "Text generality far above GRACE's", "at least 1.7 times", "ratio to GRACE", "main_strict", against_grace),
    Claim("C3", "Best locality", "20 to 80 % above the others", "relative gain on the best other", "main_strict", best_locality),
    Claim("C4", "The scores hold under sequential edits", "stable", "HM after all edits less alone", "sequences_strict", lasts),
    Claim("C5", "No extra training data, no preparation", "none", "share of edits that needed some", "", no_training),
    Claim("C6", "The backbone's weights stay as they were", "bit-identical", "share of methods", "", untouched),
    Claim("C7", "Best harmonic mean", "best", "gain in HM on the best other", "main_strict", best_hm),
    Claim("L1", "Inference is slower (a limit)", "some overhead", "", "", not_measured("times are in reports/cost.csv")),
    Claim("L2", "Hops are not learnt (a limit)", "hops fail", "T-Gen less hop 1", "probes_strict",
          hops_lag),
)  # fmt: skip
