"""Changed code may make the same sequences: some of a cell's are made again before what other code made is taken.

Two edits are made by themselves: their traces are compared, and behind a codebook what each does to the other's probes. Where
edits go on from each other, the first order is made up to its first point after several edits, and two of these are tested there.
"""

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd

from stages.editing import check
from stages.editing.cell import Cell, Makes, Row, fit_seed
from stages.editing.edits import Edit
from stages.editing.team import Team
from stages.editing.trace import distances_to_key
from stages.params import derive_seed
from stages.scoring.scopes import parts_of
from stages.sequences.orders import HELD_OUT, points
from stages.sequences.probes import KEPT, ProbeSet, outcomes
from stages.sequences.rollout import sequence
from stages.settings import Sequence as Settings

Tables = Mapping[str, pd.DataFrame]


def differs(team: Team, hyper: Mapping[str, Any], settings: Settings, kept: Tables, root: int) -> str:
    """In words, the first difference between a cell's tables and what is made again; "" where there is none."""
    team.learn([hyper], [fit_seed(team.plan.seeds[0])])
    return next(team.each(difference, [(hyper, settings, kept, root)]))


def difference(cell: Cell, item: tuple[Mapping[str, Any], Settings, Tables, int]) -> str:
    """The same, of an open cell."""
    hyper, settings, kept, root = item
    make, shared = cell.prepared(hyper | {"seed": fit_seed(cell.seeds[0])})
    made = [row for row in cell.rows if row["split"] != HELD_OUT]
    some = check.some(made, derive_seed(root, "check", cell.dataset, cell.backbone_name))
    edits = cell.made(make, hyper, some, cell.seeds[0])
    again = [one for rows in cell.traced(some, cell.seeds[0], edits, shared) for one in rows]
    found = check.difference(kept["trace"], pd.DataFrame(again))
    if not found and len(kept["interference"]):
        found = crossed(cell, some, edits, kept["interference"])
    if not found and len(kept["rollout"]):
        length, _ = settings.rollouts(cell.dataset, cell.backbone_name)
        found = rolled_out(cell, make, hyper, made[:length], settings, kept["rollout"], root)
    return found


def crossed(cell: Cell, rows: Sequence[Row], edits: Sequence[Edit], kept: pd.DataFrame) -> str:
    """The first difference in what edits do to each other's probes, as far as the table knows it, and in the distances."""
    keys = [part.key for part in parts_of(cell.method)]
    for (row, edit), (other, _) in permutations(zip(rows, edits, strict=True), 2):
        probes = ProbeSet.of(cell, other)
        apart = distances_to_key({key: probes.states.phi[key] for key in keys}, cell.states(row).key)
        again = pd.DataFrame(probes.labels()).assign(**{name: apart[name] for name in apart})
        there = kept[kept["entry"] == row["edit_id"]]
        met = there.set_index(check.QUERY).reindex(pd.MultiIndex.from_frame(again[check.QUERY]))[list(KEPT)].notna().to_numpy()
        again[list(KEPT)] = np.where(met, pd.DataFrame(outcomes(cell, edit, [probes]))[list(KEPT)], np.nan)
        if found := check.difference(there, again):
            return f"{found}, after {row['edit_id']}"
    return ""


def rolled_out(
    cell: Cell, make: Makes, hyper: Mapping[str, Any], made: Sequence[Row], settings: Settings, kept: pd.DataFrame, root: int
) -> str:
    """The first difference in what is left of two edits at the first order's first point after several."""
    at = next((point for point in points(settings, len(made)) if point > 1), 1)
    ((_, last),) = sequence(cell, make, hyper, made[:at], [at])
    tested = [ProbeSet.of(cell, row) for row in check.some(made[:at], derive_seed(root, "check", "rollout"))]
    again = pd.DataFrame(outcomes(cell, last, tested))
    found = check.difference(kept[(kept["order"] == 0) & (kept["made"] == at)], again)
    return found and f"{found}, after {at} edits"
