"""Changed code may make the same edits: a few of a cell's are made again before what other code made is taken.

What an edit does to its probes must be the same, answer for answer; shares and distances, whose last digits depend on the
machine, up to 1e-4. Two tokens that all but tie for the tenth place of a list may change it: of an answer's top tens, one place
may differ. Steps and losses are no outcomes: they are not compared.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stages.editing.plan import Plan, Row
from stages.editing.resume import Records
from stages.editing.team import Team
from stages.params import derive_seed

EDITS = 2  # of a cell, that are made again
CLOSE = 1e-4  # how far numbers may differ, absolutely and relatively
PLACE = {"top10_on": 0.051}  # one of ten places, of an answer of two tokens
QUERY = ["edit_id", "probe"]
BESIDE = ("steps", "loss", "fitted", "weights", "settings", "tried", "device", "made_from")  # columns that are no outcomes


def drawn(plan: Plan, root: int) -> list[Row]:
    """The test edits of a cell that are made again: of all methods the same, so that the trunk reads their probes once."""
    rows = [row for row in plan.rows if row["split"] == "test"]
    return some(rows, derive_seed(root, "check", plan.dataset, plan.backbone_name))


def some(rows: Sequence[Row], seed: int) -> list[Row]:
    """A few of the edits, in their order."""
    places = np.random.default_rng(seed).choice(len(rows), min(EDITS, len(rows)), replace=False)
    return [rows[i] for i in sorted(places)]


def differs(team: Team, hyper: Mapping[str, Any], rows: Sequence[Row], kept: pd.DataFrame, records: Records) -> str:
    """In words, the first difference between a cell's trace and some edits made again with its first seed; "" where there is
    none.
    """
    seed = team.plan.seeds[0]
    again = pd.DataFrame(team.trace(hyper, rows, [seed], records))
    return difference(kept[kept["seed"] == seed], again)


def difference(kept: pd.DataFrame, again: pd.DataFrame) -> str:
    """In words, the first difference between what is kept and rows `again` of it, by (edit_id, probe); "" where there is none."""
    wanted = kept.set_index(QUERY).reindex(pd.MultiIndex.from_frame(again[QUERY]))
    for column in (c for c in again.columns if c in wanted and c not in BESIDE):
        old, new = wanted[column].to_numpy(), again[column].to_numpy()
        if again[column].dtype.kind == "f":
            same = np.isclose(old.astype(float), new, rtol=CLOSE, atol=PLACE.get(column, CLOSE), equal_nan=True)
        else:
            same = (old == new) | (pd.isna(old) & pd.isna(new))
        if not same.all():
            first = int(np.argmin(same))
            edit, probe = wanted.index[first]
            return f"{column} of {edit}, probe {probe}: {new[first]} and not {old[first]}"
    return ""
