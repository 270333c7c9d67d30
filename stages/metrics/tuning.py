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
    tried = [replace(method, radius=replace(method.radius, alpha=alpha)) for alpha in ALPHAS]
    return tried[int(np.argmax([hm(dev, one) for one in tried]))]


def hm(trace: pd.DataFrame, method: Method) -> float:
    """Strict HM of a trace's edits."""
    return scores.hm_and_parts(scores.per_edit(routing.route(trace, routing.routed_on(trace, method)), "strict"))["hm"]
