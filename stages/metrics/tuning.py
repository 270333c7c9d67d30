"""α by the dev edits: `radius.alpha: dev` takes what balances best there, and freezes it for the test edits (design §2)."""

from dataclasses import replace

import numpy as np
import pandas as pd

from stages.metrics import routing, scores
from stages.params import DEV, Method, UserError

ALPHAS = tuple(round(0.05 * i, 2) for i in range(21))


def settled(method: Method, trace: pd.DataFrame) -> Method:
    """The method with a number for α. Where it says `dev`, the α of the highest strict HM on the trace's dev edits, the lowest of
    equals. UserError without dev edits.
    """
    if method.router != "codebook" or method.radius.alpha != DEV:
        return method
    dev = trace[trace["split"] == "dev"]
    if dev.empty:
        raise UserError("radius.alpha: 'dev' is not allowed without dev edits; allowed: a number from 0 to 1")
    tried = [replace(method, radius=replace(method.radius, alpha=alpha)) for alpha in ALPHAS]
    return tried[int(np.argmax([hm(dev, one) for one in tried]))]


def hm(trace: pd.DataFrame, method: Method) -> float:
    """Strict HM of the means over a trace's edits; -1 where one of its parts is missing, so that it is never the highest."""
    table = scores.per_edit(routing.route(trace, routing.routed_on(trace, method)), "strict")
    parts = [table[part].mean() if part in table else np.nan for part in scores.BALANCE]
    return float(np.nan_to_num(scores.harmonic_mean(np.array(parts)), nan=-1.0))
