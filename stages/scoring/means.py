"""Means over the probes of each edit, kind by kind: one pass over arrays, for one set of outcomes or for many."""

from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Asked:
    """Which probes are asked: the `edits` and `kinds` there are, sorted, and each probe's place in a table [edits, kinds]."""

    edits: np.ndarray
    kinds: list[str]
    place: np.ndarray

    @classmethod
    def of(cls, probes: pd.DataFrame) -> "Asked":
        """The probes of a table with edit_id and kind."""
        edit, edits = pd.factorize(probes["edit_id"], sort=True)
        kind, kinds = pd.factorize(probes["kind"], sort=True)
        return cls(np.asarray(edits), list(kinds), edit * len(kinds) + kind)

    def means(self, values: np.ndarray, chosen: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """kind → [..., edits]: means of `values` [..., probes], of the `chosen` probes [probes] alone where that is given. NaN is
        left out; it stands where nothing is left. Only kinds that are chosen come up.
        """
        rows = np.arange(len(self.place)) if chosen is None else np.flatnonzero(chosen)
        rows = rows[np.argsort(self.place[rows], kind="stable")]
        places, starts = np.unique(self.place[rows], return_index=True)
        if not len(rows):
            return {}
        values = values[..., rows].astype(float)
        known = ~np.isnan(values)
        sums = np.add.reduceat(np.where(known, values, 0), starts, axis=-1)
        with np.errstate(invalid="ignore"):
            means = sums / np.add.reduceat(known, starts, axis=-1, dtype=float)
        table = np.full((*values.shape[:-1], len(self.kinds), len(self.edits)), np.nan)
        table[..., places % len(self.kinds), places // len(self.kinds)] = means
        return {self.kinds[i]: table[..., i, :] for i in np.unique(places % len(self.kinds))}


def across(columns: list[np.ndarray]) -> np.ndarray:
    """[..., edits]: the mean of some columns that leaves NaN out, NaN where nothing is left."""
    values = np.stack(columns)
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(0) / known.sum(0)
