"""What a cell's edits do beyond their own probes: all that sequences of edits need besides the traces.

Behind a codebook a query goes to its nearest key among the edits made so far, so it can meet another edit's transformation.
Every probe's distance to every key is kept, and its outcome under each edit that it can meet by some span and distance: one
whose key is nearer than that of the probe's own edit, and which reaches as far, or one of the same target, which may be taken in
by an earlier entry. Radii, orders and lengths of sequences are then arithmetic (`stages.sequence`).

Where all edits share one set of weights (FT, and BalancEdit as its released code has it), each goes on from the one before. Such
sequences are played: at some points, every edit made so far is tested.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from stages.editing.cell import Cell
from stages.editing.editor import Edit
from stages.editing.partial import Partial
from stages.editing.trace import Probe, States, distances_to_key, select, trace_edit
from stages.params import derive_seed
from stages.settings import Sequence as Settings

SPARE = 2.0  # an entry that can take in an edit of the same target may widen so many times
ASIDE = ("hop1", "hop2", "black_image")  # kinds that sequences do not ask
KEPT = ("target_on", "same_on", "tf_on")
Traced = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """Some probes of one edit, no samples, with what the trunk says of them."""

    row: Mapping[str, Any]
    numbers: Sequence[int]  # of the probes, as traces count them
    probes: Sequence[Probe]
    states: States

    def known(self) -> list[Traced]:
        """Which probes these are."""
        return [{"edit_id": self.row["edit_id"], "probe": number} for number in self.numbers]

    def some(self, places: Sequence[int]) -> "Asked":
        """Those at some places."""
        numbers, probes = ([listed[i] for i in places] for listed in (self.numbers, self.probes))
        return Asked(self.row, numbers, probes, select(self.states, places))


def few(row: Mapping[str, Any], probes: Sequence[Probe], states: States, count: int) -> Asked:
    """The first `count` probes of each kind."""
    kinds = [probe.kind for probe in probes]
    asked = [not probe.is_sample and probe.kind not in ASIDE for probe in probes]
    kept = [i for i, probe in enumerate(probes) if asked[i] and kinds[:i].count(probe.kind) < count]
    return Asked(row, list(range(len(probes))), probes, states).some(kept)


def asked_of(cell: Cell, count: int) -> list[Asked]:
    """Of every edit of the cell, test edits first."""
    rows = sorted(cell.rows, key=lambda row: row["split"] != "test")
    return [few(row, cell.queries[row["edit_id"]], cell.states(row), count) for row in rows]


# -- behind a codebook --------------------------------------------------------------------------------------------------------


def crossings(cell: Cell, hyper: Mapping[str, Any], asked: Sequence[Asked], records: Partial) -> list[Traced]:
    """One row a test edit, called `entry`, and a probe of any edit."""
    (make, _), found = cell.prepared(hyper | {"seed": derive_seed(cell.seeds[0], "fit")}), []
    test = [one.row for one in asked if one.row["split"] == "test"]
    shared = Counter(row["target"] for row in test)
    for row in tqdm(test, desc=f"{cell.name}, crossings"):
        name = f"crossed-{row['edit_id']}"
        if name not in records:
            states = cell.states(row)
            edit = cell.made(make, hyper, row, cell.seeds[0])
            far = reach(cell.queries[row["edit_id"]], states, SPARE if shared[row["target"]] > 1 else 1.0)
            records[name] = [{"entry": row["edit_id"]} | one for a in asked for one in crossed(cell, edit, row, states, far, a)]
        found += records[name]
    return found


def reach(probes: Sequence[Probe], states: States, spare: float) -> dict[str, float]:
    """How far an edit can answer, by distance and span: `spare` times as far as its farthest sample; -inf without the span."""
    samples = [i for i, probe in enumerate(probes) if probe.is_sample]
    found = distances_to_key({span: vectors[samples] for span, vectors in states.phi.items()}, states.key)
    return {name: spare * float(np.nan_to_num(values, nan=-np.inf).max(initial=-np.inf)) for name, values in found.items()}


def crossed(
    cell: Cell, edit: Edit, row: Mapping[str, Any], states: States, far: Mapping[str, float], asked: Asked
) -> list[Traced]:
    """One row a probe of an edit: its distances to the key of `row`'s edit, and its outcomes, NaN where it cannot meet it."""
    apart, own = (distances_to_key(asked.states.phi, key) for key in (states.key, asked.states.key))
    held_out = asked.row["split"] != "test"
    nearer = [(apart[name] <= far[name]) & (held_out | (apart[name] <= own[name])) for name in apart]
    met = np.flatnonzero(np.any(nearer, axis=0) | (not held_out and asked.row["target"] == row["target"])).tolist()
    rows = [
        known | {name: float(values[i]) for name, values in apart.items()} | dict.fromkeys(KEPT, float("nan"))
        for i, known in enumerate(asked.known())
    ]
    if met:
        for i, outcome in zip(met, outcomes(cell, edit, asked.some(met)), strict=True):
            rows[i] |= outcome
    return rows


def outcomes(cell: Cell, edit: Edit, asked: Asked) -> list[Traced]:
    """What an edit does to some probes, as numbers."""
    traced = trace_edit(cell.backbone, asked.row, asked.probes, asked.states, edit)
    return [{name: float(one[name]) for name in KEPT} for one in traced]


# -- in shared weights --------------------------------------------------------------------------------------------------------


def orders(rows: Sequence[Mapping[str, Any]], count: int, seed: int) -> list[list[Mapping[str, Any]]]:
    """`count` orders of the edits, the first as they come."""
    drawn = [np.random.default_rng(derive_seed(seed, "order", str(i))).permutation(len(rows)) for i in range(1, count)]
    return [list(rows), *([rows[i] for i in order] for order in drawn)]


def points(settings: Settings, edits: int) -> list[int]:
    """The numbers of edits after which all is tested: those of params.yaml that there are edits for, and all edits."""
    return sorted({at for at in settings.at if at < edits} | {edits})


def played(
    cell: Cell, hyper: Mapping[str, Any], asked: Sequence[Asked], settings: Settings, seed: int, records: Partial
) -> list[Traced]:
    """One row an order, a number of edits made, and a probe of an edit made so far or of one that never is."""
    test, held_out = ([one for one in asked if (one.row["split"] == "test") == is_test] for is_test in (True, False))
    by_id, at, found = {one.row["edit_id"]: one for one in test}, points(settings, len(test)), []
    for number, order in enumerate(orders([one.row for one in test], settings.orders, seed)):
        name = f"played-{number}"
        if name not in records:
            rows = []
            for made, last in sequence(cell, hyper, tqdm(order, desc=f"{cell.name}, order {number}"), at):
                for one in [*(by_id[row["edit_id"]] for row in order[:made]), *held_out]:
                    told = zip(one.known(), outcomes(cell, last, one), strict=True)
                    rows += [{"order": number, "made": made} | known | outcome for known, outcome in told]
            records[name] = rows
        found += records[name]
    return found


def sequence(
    cell: Cell, hyper: Mapping[str, Any], order: Sequence[Mapping[str, Any]], at: Sequence[int]
) -> Iterator[tuple[int, Edit]]:
    """Make the edits of `order`, each from the weights that the one before left; gives the last after each number in `at`."""
    last = None
    for made, row in enumerate(order, 1):
        edit = cell.made(cell.editor.edit, hyper, row, cell.seeds[0], start=last)
        last = last if edit.diverged else edit
        if made in at:
            yield made, last or Edit()
