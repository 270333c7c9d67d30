"""Which of an edit's two outcomes counts: radii and routing, by arithmetic on traces (Guo et al., section 4.2; design §2).

A trace holds every query's distance to its edit's key and its outcome with the edit on and off. A radius turns that into one
outcome, so that no strategy, α, distance or key span needs an edit to be made again.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from stages.params import UserError
from stages.scoring.scopes import Part, parts_of
from stages.settings import Key, Method, Radius

EDIT = ["seed", "edit_id"]
READ = (
    *EDIT, "split", "kind", "probe", "target_off", "target_on", "same_on", "tf_off", "tf_on", "top10_on", "correct_off", "score",
    "diverged",
)  # fmt: skip  # columns of a trace, beside distances, that routing and scoring read
ENDS = {"positive": 1.0, "negative": 0.0}  # strategies that are the balance's ends
REACHED = ("edit", "text_generality", "image_generality", "joint_generality", "hop1", "hop2")  # kinds that the edit must change


def distance_column(key: Key, radius: Radius) -> str:
    """The trace's column that holds the distances a radius is compared with."""
    return f"{radius.distance}_{key.span}"


def edits_of(trace: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """The edits of a trace, by seed and name, with their `split`, and which of them each row belongs to."""
    (edit, ids), (seed, _) = (pd.factorize(trace[name], sort=True) for name in ("edit_id", "seed"))
    _, first, rows = np.unique(seed * len(ids) + edit, return_index=True, return_inverse=True)
    return trace[[*EDIT, "split"]].iloc[first].reset_index(drop=True), rows


def sample_distances(trace: pd.DataFrame, key: Key, radius: Radius) -> pd.DataFrame:
    """`part_distances` of the paper's scope, a ball around one key."""
    return part_distances(trace, Part(key.span, "positive", radius.positives, radius.negative), radius.distance)


def part_distances(trace: pd.DataFrame, part: Part, distance: str) -> pd.DataFrame:
    """Per (seed, edit): its `split`, and `d_plus` and `d_minus` by a part of a scope, in units of the chosen distance.

    d⁺ is the mean distance of the first positive samples, as many as count, d⁻ that of the negative ones. UserError where some
    edit has none.
    """
    (found, rows), kind = edits_of(trace), trace["kind"]
    far, order = column_of(trace, distance, part.key), np.lexsort((trace["probe"].to_numpy(), rows))
    positive = order[kind.eq(f"sample_{part.positive}").to_numpy()[order]]
    place = pd.Series(rows[positive]).groupby(rows[positive]).cumcount().to_numpy()
    negative = np.flatnonzero(kind.isin([f"sample_{name}" for name in part.negative]))
    for name, samples in (("d_plus", positive[place < part.count]), ("d_minus", negative)):
        samples = samples[~np.isnan(far[samples])]
        sums, counts = (np.bincount(rows[samples], values, len(found)) for values in (far[samples], None))
        found[name] = np.divide(sums, counts, out=np.full(len(found), np.nan), where=counts > 0)
    if found[["d_plus", "d_minus"]].isna().any(axis=None):
        raise UserError(f"key.span: {part.key!r} has no distance for the samples of some edit; allowed: a span they all have")
    return found


def column_of(trace: pd.DataFrame, distance: str, key: str) -> np.ndarray:
    """[rows]: the distances to a key; UserError where the trace has none."""
    if (name := f"{distance}_{key}") not in trace:
        raise UserError(f"keys: {key!r} is missing; needed: an entry of that name, for a scope that asks for it")
    return trace[name].to_numpy(dtype=float)


def radii(trace: pd.DataFrame, key: Key, radius: Radius) -> pd.DataFrame:
    """The samples' distances with the radius `epsilon` of each edit, and `inverted` where d⁺ > d⁻.

    Balanced: ε = α·d⁺ + (1 − α)·d⁻. `mean`: the mean over edits of the balanced radius, one constant as wide as a balanced radius
    is on average.
    """
    found = sample_distances(trace, key, radius)
    found["epsilon"] = widths(found, radius, [radius.alpha])[0]
    found["inverted"] = found["d_plus"] > found["d_minus"]
    return found


def widths(found: pd.DataFrame, radius: Radius, alphas: Sequence[float]) -> np.ndarray:
    """[alphas, edits]: the radii of edits whose samples lie as far as `found` says, under each α."""
    plus, minus = found["d_plus"].to_numpy(), found["d_minus"].to_numpy()
    if radius.strategy == "constant":
        return np.full((len(alphas), len(plus)), radius.epsilon)
    if radius.strategy in ENDS:
        alphas = [ENDS[radius.strategy]] * len(alphas)
    between = np.stack([alpha * plus + (1 - alpha) * minus for alpha in alphas])
    if radius.strategy == "mean":
        return np.repeat(between.mean(axis=1, keepdims=True), len(plus), axis=1)
    return between


def within(trace: pd.DataFrame, reach: np.ndarray, column: str) -> np.ndarray:
    """[..., rows] bool: the query lies within the radius of its edit; `reach` [..., edits] are radii of `edits_of` the trace."""
    return trace[column].to_numpy() <= reach[..., edits_of(trace)[1]]


def inside(trace: pd.DataFrame, method: Method) -> np.ndarray:
    """[rows] bool: the query lies within the reach of its edit by every part of the method's scope."""
    rows, found, radius = edits_of(trace)[1], np.ones(len(trace), dtype=bool), method.radius
    for part in parts_of(method):
        found &= column_of(trace, radius.distance, part.key) <= reach(trace, part, radius).to_numpy()[rows]
    return found


def depths(trace: pd.DataFrame, method: Method) -> dict[str, np.ndarray]:
    """By the key of each part of the method's scope, [rows]: the query's distance as a share of how far its edit reaches. It lies
    inside where all of them are at most 1.
    """
    rows, radius = edits_of(trace)[1], method.radius
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            part.key: column_of(trace, radius.distance, part.key) / reach(trace, part, radius).to_numpy()[rows]
            for part in parts_of(method)
        }


def reach(trace: pd.DataFrame, part: Part, radius: Radius) -> pd.Series:
    """How far each edit of `edits_of` a trace reaches by a part of its scope, by its name."""
    found = part_distances(trace, part, radius.distance)
    return pd.Series(widths(found, radius, [radius.alpha])[0], index=found["edit_id"])


def routed_on(trace: pd.DataFrame, method: Method) -> np.ndarray:
    """[rows] bool: the edit answers this query.

    `codebook`: inside the method's scope; a query without a key's span (no picture, say) never is. `builtin`: the score of the
    editor's own router is at least the threshold. `oracle`: exactly the queries that the edit must reach. `always` and `never`
    force it on and off.
    """
    if method.router == "builtin":
        return trace["score"].to_numpy(dtype=float) >= method.threshold
    if method.router == "oracle":
        return trace["kind"].isin(REACHED).to_numpy()
    if method.router != "codebook":
        return np.full(len(trace), method.router == "always")
    return inside(trace, method)


def route(trace: pd.DataFrame, on: np.ndarray) -> pd.DataFrame:
    """The outcome rows of a trace with the routed result: `on`, `target`, `same`, `tf`, `top10` and `outcome` in words."""
    outcomes = trace.assign(
        on=on,
        target=np.where(on, trace["target_on"], trace["target_off"]),
        same=np.where(on, trace["same_on"], True),
        tf=np.where(on, trace["tf_on"], trace["tf_off"]),
        top10=np.where(on, trace["top10_on"], np.where(trace["top10_on"].isna(), np.nan, 1.0)),
    )
    kept = outcomes["same"] & ~outcomes["kind"].isin(REACHED)  # an unedited answer that happens to be the target has not leaked
    outcomes["outcome"] = np.select([kept, outcomes["target"], outcomes["same"]], ["unchanged", "target", "unchanged"], "other")
    return outcomes[~outcomes["kind"].str.startswith("sample_")]
