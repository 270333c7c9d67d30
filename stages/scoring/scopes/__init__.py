"""How far an edit reaches: one module a scope, found by its name in params.yaml (`scope:` of a method).

A scope is made of parts. Each is a key, and the edit's samples between whose distances the reach lies by that key: d⁺ is the mean
over positive ones, d⁻ over negative ones, and ε = α·d⁺ + (1 − α)·d⁻. A query lies inside where it is within the reach of all
parts. `parts(method)` is all that a module must have: everything else is arithmetic on traces (`stages.scoring.routing`).
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

from stages.settings import Method


@dataclass(frozen=True)
class Part:
    """A key, by the name of its span or of an entry of `keys`; the kind of its positive samples, how many of them count, and the
    kinds of its negative ones.
    """

    key: str
    positive: str
    count: int
    negative: Sequence[str]


def parts_of(method: Method) -> Sequence[Part]:
    """The parts of a method's scope."""
    return importlib.import_module(f"stages.scoring.scopes.{method.scope}").parts(method)
