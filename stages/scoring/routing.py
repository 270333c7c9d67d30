"""Which of an edit's two outcomes counts: radii and routing, by arithmetic on traces (Guo et al., section 4.2; design §2).

A trace holds every query's distance to its edit's key and its outcome with the edit on and off. A radius turns that into one
outcome, so that no strategy, α, distance or key span needs an edit to be made again.
"""

import numpy as np
import pandas as pd

from stages.params import UserError
from stages.settings import Key, Method, Radius

EDIT = ["seed", "edit_id"]
REACHED = ("edit", "text_generality", "image_generality", "joint_generality", "hop1", "hop2")  # kinds that the edit must change


def distance_column(key: Key, radius: Radius) -> str:
    """The trace's column that holds the distances a radius is compared with."""
    return f"{radius.distance}_{key.span}"


def sample_distances(trace: pd.DataFrame, key: Key, radius: Radius) -> pd.DataFrame:
    """Per (seed, edit): its `split`, and `d_plus` and `d_minus`, in units of the chosen distance.

    d⁺ is the mean distance of the first `positives` positive samples, d⁻ that of the negative ones. UserError where some edit has
    none.
    """
    column, edits = distance_column(key, radius), trace.groupby(EDIT)["split"].first()
    positive = trace[trace["kind"] == "sample_positive"].sort_values("probe", kind="stable").groupby(EDIT).head(radius.positives)
    negative = trace[trace["kind"].isin([f"sample_{name}" for name in radius.negative])]
    far = {name: samples.groupby(EDIT)[column].mean() for name, samples in (("d_plus", positive), ("d_minus", negative))}
    found = pd.DataFrame({"split": edits} | far)
    if found[["d_plus", "d_minus"]].isna().any(axis=None):
        raise UserError(f"key.span: {key.span!r} has no distance for the samples of some edit; allowed: a span they all have")
    return found.reset_index()


def radii(trace: pd.DataFrame, key: Key, radius: Radius) -> pd.DataFrame:
    """The samples' distances with the radius `epsilon` of each edit, and `inverted` where d⁺ > d⁻.

    Balanced: ε = α·d⁺ + (1 − α)·d⁻. `mean`: the mean over edits of the balanced radius, one constant as wide as a balanced radius
    is on average.
    """
    found = sample_distances(trace, key, radius)
    alpha = {"positive": 1.0, "negative": 0.0}.get(radius.strategy, radius.alpha)
    between = alpha * found["d_plus"] + (1 - alpha) * found["d_minus"]
    found["epsilon"] = {"constant": radius.epsilon, "mean": between.mean()}.get(radius.strategy, between)
    found["inverted"] = found["d_plus"] > found["d_minus"]
    return found


def routed_on(trace: pd.DataFrame, method: Method) -> np.ndarray:
    """[rows] bool: the edit answers this query.

    `codebook`: inside the radius; a query without the key's span (no picture, say) never is. `builtin`: the editor's own router.
    `oracle`: exactly the queries that the edit must reach. `always` and `never` force it on and off.
    """
    if method.router == "builtin":
        return trace["fires"].to_numpy(dtype=bool)
    if method.router == "oracle":
        return trace["kind"].isin(REACHED).to_numpy()
    if method.router != "codebook":
        return np.full(len(trace), method.router == "always")
    epsilon = trace[EDIT].merge(radii(trace, method.key, method.radius), on=EDIT, how="left")["epsilon"]
    return trace[distance_column(method.key, method.radius)].to_numpy() <= epsilon.to_numpy()


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
