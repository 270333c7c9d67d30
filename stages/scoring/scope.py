"""The one number of a method's scope, and its choice on dev edits: the same rule and as many points for every method.

BalancEdit's is α, a constant radius is ε itself, and an editor with a router of its own has a threshold on the router's score.
`dev` in params.yaml takes the value of the highest strict HM on dev edits. Values to choose from lie where dev edits' queries
come into the scope, at quantiles; the published value is one of them, and is taken where dev edits cannot tell it from the best.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from stages.params import UserError
from stages.scoring import routing, scores
from stages.scoring.scopes import parts_of
from stages.settings import DEV, Method

POINTS = 21  # values of a scope that every method has to choose from
ENDS = {"alpha": (0.0, 1.0), "epsilon": (0.0, np.inf), "threshold": (-np.inf, np.inf)}  # what a number may be
PLACE = {"alpha": "radius.alpha", "epsilon": "radius.epsilon", "threshold": "threshold"}  # where params.yaml has it


@dataclass(frozen=True)
class Chosen:
    """A method with a number for its scope, what stood to choose from with the strict HM of dev edits under each, and the parts
    of HM [dev edits, 3] under the chosen one.
    """

    method: Method
    values: np.ndarray
    hms: np.ndarray
    parts: np.ndarray

    @property
    def line(self) -> dict[str, float]:
        """The number (NaN without one) as `scope`, and `summed` of the parts."""
        number = self.method.number_value if self.method.number else float("nan")
        return {"scope": float(number)} | summed(self.parts)


def summed(parts: np.ndarray) -> dict[str, float]:
    """The means over edits of the parts of HM [edits, 3], by name, and `hm`."""
    return dict(zip(scores.HM_PARTS, scores.nanmean(parts), strict=True)) | {"hm": float(scores.hm_of(parts))}


def at(method: Method, chosen: float) -> Method:
    """The method with that number."""
    if method.number == "threshold":
        return replace(method, threshold=chosen)
    return replace(method, radius=replace(method.radius, **{method.number: chosen}))


def entering(trace: pd.DataFrame, method: Method) -> np.ndarray:
    """[rows]: the value of the number at which each query just comes into its edit's scope; NaN where none is."""
    if method.number == "threshold":
        return trace["score"].to_numpy(dtype=float)
    rows, distance, entered = routing.edits_of(trace)[1], method.radius.distance, []
    for part in parts_of(method):
        far = routing.column_of(trace, distance, part.key)
        if method.number == "epsilon":
            entered.append(-far)  # a larger ε lets more in, a larger α less
            continue
        found = routing.part_distances(trace, part, distance)
        plus, minus = found["d_plus"].to_numpy(), found["d_minus"].to_numpy()
        if method.radius.strategy == "mean":
            plus, minus = (np.full_like(one, one.mean()) for one in (plus, minus))
        with np.errstate(divide="ignore", invalid="ignore"):
            entered.append(((minus[rows] - far) / (minus - plus)[rows]).astype(float))
    last = np.min(entered, axis=0)
    return -last if method.number == "epsilon" else last


def points(trace: pd.DataFrame, method: Method, count: int = POINTS) -> np.ndarray:
    """Values to choose from, ascending: quantiles of those at which the queries of a trace come into the scope, both ends of α,
    and the published value: `count` of them, fewer where queries come in together.
    """
    low, high = ENDS[method.number]
    asked = ~trace["kind"].str.startswith("sample_").to_numpy(dtype=bool)
    found = entering(trace, method)[asked]
    found = found[np.isfinite(found) & (found > low) & (found < high)]
    fixed = {one for one in (low, high, method.published) if one is not None and np.isfinite(one)}
    fixed -= {0.0} if method.number == "epsilon" else set()
    spread = np.quantile(found, np.linspace(0, 1, count - len(fixed))) if len(found) else []
    return np.unique([*fixed, *spread])


def choose(trace: pd.DataFrame, method: Method) -> Chosen:
    """The method as the edits of `trace` have it: the published value where it is within noise of the best (`scores.tied`), else
    the best, the middle one of equals. One without a number stays as it is.
    """
    if method.number is None:
        parts = scores.hm_parts(trace, routing.routed_on(trace, method)[None])
        return Chosen(method, np.array([np.nan]), scores.hm_of(parts), parts[0])
    values = points(trace, method)
    parts = scores.hm_parts(trace, np.stack([routing.routed_on(trace, at(method, one)) for one in values]))
    place = best(values, parts, method.published)
    return Chosen(at(method, float(values[place])), values, scores.hm_of(parts), parts[place])


def best(values: np.ndarray, parts: np.ndarray, published: float | None) -> int:
    """The place of the value to take, from the parts of HM [values, edits, 3] under each: of the published one where it is within
    noise of the best, else of the best, the middle one of equals.
    """
    found = scores.hm_of(parts)
    highest = np.flatnonzero(found == found.max())
    place = int(highest[(len(highest) - 1) // 2])
    known = np.flatnonzero(values == published)
    return int(known[0]) if len(known) and scores.tied(parts, place)[known[0]] else place


def settled(method: Method, trace: pd.DataFrame) -> Method:
    """The method with a number where it says `dev`, chosen on the trace's dev edits of the first seed; UserError without any.
    α is NaN where the radius has no use for it.
    """
    if method.router == "codebook" and method.number != "alpha":
        method = replace(method, radius=replace(method.radius, alpha=float("nan")))
    if method.number_value != DEV:
        return method
    dev = trace[trace["split"] == "dev"]
    if dev.empty:
        raise UserError(f"{PLACE[method.number]}: 'dev' is not allowed without dev edits; allowed: a number")
    return choose(dev[dev["seed"] == dev["seed"].min()], method).method
