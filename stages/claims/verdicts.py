"""What the paper claims (Guo et al., ICML 2025), and how each claim is decided by what was measured (design §8 and §10).

All scores are strict. A claim that compares has two readings: *as published*, against the others with the values of their papers
or official code, and *even*, against the others tuned on the same dev edits by the same budget. A verdict follows from the
interval: where it covers the line that the claim draws, the claim is left open.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from stages.editing.conflicts import RULES
from stages.scoring import scores

HOLDS, FAILS, OPEN, UNKNOWN = "holds", "does not hold", "left open", "not measured"
PUBLISHED, EVEN = "as published", "even"
SUFFIX = "_published"  # of a method that stands at the values of its paper or official code
RATIO, GAIN = 1.7, 0.2  # C2: times GRACE's text generality. C3: least relative gain in locality.
FLOOR = 0.5  # C3: the least mean of text and image generality of a method that reaches something
LASTING = 0.05  # C4: what HM may lose
ENTRIES = 300  # L1: of the codebook that is served


@dataclass(frozen=True)
class Measured:
    """A number with its interval and the verdict; `reason` where one is needed. None where nothing was measured."""

    value: float | None
    low: float | None = None
    high: float | None = None
    verdict: str = UNKNOWN
    reason: str = ""

    def against(self, line: float, reason: str = "") -> "Measured":
        """The same with the verdict on a claim that it lies above a line."""
        if self.value is None:
            return self
        verdict = HOLDS if self.low > line else FAILS if self.high < line else OPEN
        return Measured(self.value, self.low, self.high, verdict, reason)


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
    costs: pd.DataFrame  # of reports/cost.csv
    dev: int  # edits that settings are chosen on
    constant: pd.DataFrame | None = None  # outcomes of BalancEdit's edits behind its key with one radius, chosen on dev edits

    def others(self, reading: str) -> list[str]:
        """Whom BalancEdit is compared with: the tuned methods, or each as published where it stands so."""
        if reading == EVEN:
            return [name for name in self.baselines if not name.endswith(SUFFIX)]
        return [name for name in self.baselines if name + SUFFIX not in self.baselines]

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

    def generality(self, method: str) -> float:
        """The mean of a method's text and image generality."""
        return float(np.mean([self.means(method, part)[0] for part in scores.HM_PARTS[:2]]))


def perfect(pair: Pair) -> Measured:
    """C1."""
    row = pair.summary(pair.ours[0]).loc["reliability"]
    return Measured(row["mean"], row["low"], row["high"], HOLDS if row["mean"] == 1 else FAILS)


def against_grace(reading: str) -> Callable[[Pair], Measured]:
    """C2: the ratio to GRACE's text generality."""

    def measure(pair: Pair) -> Measured:
        grace = "grace" + SUFFIX * (reading == PUBLISHED)
        if grace not in pair.tables:
            return Measured(None, reason=f"{grace} is not among the methods")
        ours, metric = pair.ours[0], "text_generality"
        found = pair.interval(lambda m: m[ours] / m[grace], metric, [ours, grace])
        if found.value is None:
            reached = pair.means(ours, metric)[0] > 0
            return Measured(None, verdict=HOLDS if reached else UNKNOWN, reason="GRACE's text generality is 0")
        return found.against(RATIO)

    return measure


def best_locality(reading: str, floor: float = 0.0) -> Callable[[Pair], Measured]:
    """C3: the relative gain on the best other method, of those with a generality of at least `floor`."""
    return _over_the_best(reading, "locality", lambda ours, best: ours / best - 1, GAIN, floor)


def best_hm(reading: str) -> Callable[[Pair], Measured]:
    """C7: the gain in HM on the best other method."""
    return _over_the_best(reading, "hm", lambda ours, best: ours - best, 0.0)


def _over_the_best(
    reading: str, metric: str, gain: Callable[[np.ndarray, np.ndarray], np.ndarray], least: float, floor: float = 0.0
) -> Callable[[Pair], Measured]:
    def measure(pair: Pair) -> Measured:
        others = [name for name in pair.others(reading) if pair.generality(name) >= floor]
        if not others:
            return Measured(None, reason="no other method edits" + f" with a generality of {floor:g}" * bool(floor))
        ours = pair.ours[0]
        best = max(others, key=lambda m: float(pair.means(m, metric)[0]))
        return pair.interval(lambda m: gain(m[ours], m[best]), metric, [ours, best]).against(least, f"best of the others: {best}")

    return measure


def no_training(pair: Pair) -> Measured:
    """C5, as published: the share of edits whose editor learnt from other edits first."""
    share = float(pair.outcomes[pair.outcomes["method"] == pair.ours[0]]["fitted"].mean())
    return Measured(share, verdict=FAILS if share else HOLDS)


def chosen_on(pair: Pair) -> Measured:
    """C5, even: how many other edits the method's learning rate, margin and α were chosen on."""
    tried = int(pair.outcomes[pair.outcomes["method"] == pair.ours[0]]["tried"].iloc[0])
    count = pair.dev if tried > 1 else 0
    return Measured(float(count), verdict=FAILS if count else HOLDS, reason=f"{tried} settings tried on dev edits" * bool(count))


def untouched(pair: Pair) -> Measured:
    """C6: the share of methods after whose edits all weights had the digest that they have after no edit."""
    after = pair.outcomes.groupby("method")["weights"].agg(["nunique", "first"])
    if "base" not in after.index:
        return Measured(None, reason="the unedited model is not among the methods")
    same = (after["nunique"] == 1) & (after["first"] == after.loc["base", "first"])
    return Measured(float(same.mean()), verdict=HOLDS if same.all() else FAILS)


def own_radius(pair: Pair) -> Measured:
    """C8: HM with a balanced radius an edit, less HM with one radius for all, both chosen on dev edits, behind the same key."""
    if pair.constant is None or pair.constant.empty:
        return Measured(None, reason="BalancEdit's radius is not balanced")
    ours, one = pair.ours[0], "one radius"
    both = pd.concat([pair.outcomes[pair.outcomes["method"] == ours], pair.constant.assign(method=one)])
    compared = Pair(pair.dataset, pair.backbone, both, pair.ours, [one], pair.draws, pair.level, pair.sequences, pair.costs, 0)
    return compared.interval(lambda m: m[ours] - m[one], "hm", [ours, one]).against(0.0)


def lasts(rule: str) -> Callable[[Pair], Measured]:
    """C4: strict HM of all edits after the last of a sequence, less that of each edit alone, on the same probes, where `rule`
    settles conflicts of radii.
    """
    return lambda pair: _lasts(pair, rule)


def _lasts(pair: Pair, rule: str) -> Measured:
    hm = pair.sequences[(pair.sequences["method"] == pair.ours[0]) & (pair.sequences["protocol"] == "strict")]
    hm = hm[(hm["metric"] == "hm") & (hm["chosen_on"] == "sequence")]
    after, alone = (hm[hm["memory"] == memory] for memory in (f"codebook, {rule}", "alone"))
    if after.empty or alone.empty:
        return Measured(None, reason="no sequence of BalancEdit's edits")
    lost = after[after["made"] == after["made"].max()]["value"] - alone["value"].iloc[0]
    found = Measured(float(lost.mean()), float(lost.min()), float(lost.max()))
    return found.against(-LASTING, f"after {after['made'].max()} edits; lowest and highest order")


def overhead(pair: Pair) -> Measured:
    """L1: the time of a query that no edit answers, behind a codebook, over that of the unedited model, in one run."""
    costs = pair.costs[(pair.costs["method"] == pair.ours[0]) & (pair.costs["cost"] == "routed_miss_per_unedited")]
    row = costs[costs["entries"] == ENTRIES]
    if row.empty:
        return Measured(None, reason="reports/cost.csv does not have it")
    value, low, high = row[["value", "low", "high"]].iloc[0]
    return Measured(float(value), float(low), float(high)).against(1.0, f"{ENTRIES} entries; reports/cost.csv")


def hops_lag(pair: Pair) -> Measured:
    """L2: text generality less the answers to hop 1, of the edits whose hop the unedited model knew before; the limit shows where
    the interval is above 0.
    """
    ours = pair.outcomes[pair.outcomes["method"] == pair.ours[0]]
    hops = ours[(ours["kind"] == "hop1") & ours["correct_off"]]
    known = sorted(set(hops["edit_id"]))
    if len(known) < 2:
        return Measured(None, reason=f"the unedited model knows the hop of {len(known)} edits")
    table = pair.tables[pair.ours[0]].loc[known]
    lag = (table["text_generality"] - table["hop1"]).to_numpy()
    drawn = scores.resampled(lag, scores.resample(len(lag), len(pair.draws), len(lag)))
    low, high = scores.interval(drawn, pair.level)
    return Measured(float(lag.mean()), float(low), float(high)).against(0.0, f"{len(known)} edits whose hop was known before")


@dataclass(frozen=True)
class Claim:
    """One claim, how it is read, the paper's words for it in short, the table that shows it in full, and what decides it."""

    id: str
    claim: str
    paper: str
    unit: str  # of what is measured
    table: str
    measure: Callable[[Pair], Measured]
    reading: str = ""  # where there are two

    def judge(self, pair: Pair) -> dict[str, Any]:
        """The claim's row of reports/claims.json, six decimals."""
        found = self.measure(pair) if pair.ours else Measured(None, reason="BalancEdit is not among the methods")
        numbers = {"measured": found.value, "low": found.low, "high": found.high}
        rounded = {name: None if v is None else round(float(v), 6) for name, v in numbers.items()}
        return {
            "id": self.id, "reading": self.reading, "claim": self.claim, "paper": self.paper, "dataset": pair.dataset,
            "backbone": pair.backbone, "unit": self.unit, **rounded, "verdict": found.verdict, "reason": found.reason,
            "table": self.table,
        }  # fmt: skip


READINGS = (PUBLISHED, EVEN)
CLAIMS = (
    Claim("C1", "Every edit succeeds", "reliability 100 %", "reliability", "main_strict", perfect),
    *(Claim("C2", "Text generality far above GRACE's", "at least 1.7 times", "ratio to GRACE", "main_strict", against_grace(r), r)
      for r in READINGS),
    *(Claim("C3", "Best locality", "20 to 80 % above the others", "relative gain on the best other", "main_strict",
            best_locality(r), r) for r in READINGS),
    Claim("C3", f"Best locality of methods with a generality of {FLOOR:g}", "20 to 80 % above the others",
          "relative gain on the best other", "main_strict", best_locality(EVEN, FLOOR), EVEN),
    *(Claim("C4", f"The scores hold under sequential edits (conflicts: {rule})", "stable", "HM after all edits less alone",
            "sequences_strict", lasts(rule)) for rule in RULES),
    Claim("C5", "No extra training data, no preparation", "none", "share of edits that needed some", "", no_training, PUBLISHED),
    Claim("C5", "No extra training data, no preparation", "none", "other edits to choose on", "settings", chosen_on, EVEN),
    Claim("C6", "The backbone's weights stay as they were", "bit-identical", "share of methods", "", untouched),
    *(Claim("C7", "Best harmonic mean", "best", "gain in HM on the best other", "main_strict", best_hm(r), r) for r in READINGS),
    Claim("C8", "A radius for each edit beats one for all", "dynamic balance", "gain in HM", "", own_radius, EVEN),
    Claim("L1", "Inference is slower (a limit)", "some overhead", "time per query, ratio", "routing", overhead),
    Claim("L2", "Hops are not learnt (a limit)", "hops fail", "T-Gen less hop 1", "probes_strict", hops_lag),
)  # fmt: skip
