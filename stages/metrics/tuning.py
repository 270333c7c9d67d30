"""α by the dev edits: `radius.alpha: dev` takes what balances best there, and freezes it for the test edits (design §2)."""

from dataclasses import replace

import numpy as np
import pandas as pd

from stages.params import UserError
from stages.scoring import routing, scores
from stages.settings import DEV, WEIGHED, Method

ALPHAS = tuple(round(0.05 * i, 2) for i in range(21))


def settled(method: Method, trace: pd.DataFrame) -> Method:
    """The method with a number for α, NaN where its radius has no use for one. Where it says `dev`, that is the α of the highest
    strict HM on the trace's dev edits, the lowest of equals. UserError without dev edits.
    """
    if method.router == "codebook" and method.radius.strategy not in WEIGHED:
        return replace(method, radius=replace(method.radius, alpha=float("nan")))
    if method.router != "codebook" or method.radius.alpha != DEV:
        return method
    dev = trace[trace["split"] == "dev"]
    if dev.empty:
        raise UserError("radius.alpha: 'dev' is not allowed without dev edits; allowed: a number from 0 to 1")
    return replace(method, radius=replace(method.radius, alpha=ALPHAS[int(np.argmax(hms(dev, method)))]))


def hms(trace: pd.DataFrame, method: Method) -> np.ndarray:
    """[alphas]: strict HM of a trace's edits under each α."""
    found = routing.sample_distances(trace, method.key, method.radius)
    reach = routing.widths(found, method.radius, ALPHAS)
    return scores.hms(trace, routing.within(trace, reach, routing.distance_column(method.key, method.radius)))
