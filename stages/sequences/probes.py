"""What sequences ask of their edits: some probes of each, with what the trunk says of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.backbone.vlm import Backbone
from stages.editing.cell import Cell, few
from stages.editing.edits import Edit
from stages.editing.probes import Probe, probes_of
from stages.editing.trace import Trial, trace_edits
from stages.editing.trunk import States, select
from stages.okedit.schema import LOCALITY_KINDS
from stages.sequences.orders import HELD_OUT

ASIDE = ("hop1", "hop2", "black_image")  # kinds that sequences do not ask
KEPT = ("target_on", "same_on", "tf_on", "score")
NONE = Edit()
Row = Mapping[str, Any]


def queries_of(row: Row, samples: Sequence[Row], counts: Mapping[str, int], count: int) -> list[Probe]:
    """The first `count` probes of each kind, of those that a study asks (`counts`), and all samples of an edit; of one held out,
    the probes for locality alone.
    """
    probes = [probe for probe in probes_of(row, samples, counts) if probe.kind not in ASIDE]
    if row["split"] == HELD_OUT:
        probes = [probe for probe in probes if probe.kind in LOCALITY_KINDS]
    return few(probes, count)


@dataclass(frozen=True)
class ProbeSet:
    """Some probes of one edit, no samples, with what the trunk says of them; `numbers` are their places in the edit's trace."""

    row: Row
    numbers: Sequence[int]
    probes: Sequence[Probe]
    states: States

    @classmethod
    def of(cls, cell: Cell, row: Row) -> "ProbeSet":
        """All of an edit's probes."""
        probes = [probe for probe in cell.queries[row["edit_id"]] if not probe.is_sample]
        numbers = range(len(probes))
        return cls(row, numbers, probes, select(cell.states(row), numbers))

    @property
    def held_out(self) -> bool:
        return self.row["split"] == HELD_OUT

    def labels(self) -> list[dict[str, Any]]:
        """Which probes these are."""
        return [{"edit_id": self.row["edit_id"], "probe": number} for number in self.numbers]

    def some(self, places: Sequence[int]) -> "ProbeSet":
        """Those at some places."""
        numbers, probes = ([listed[i] for i in places] for listed in (self.numbers, self.probes))
        return ProbeSet(self.row, numbers, probes, select(self.states, places))

    def answering(self, cell: Cell, edit: Edit, place: int) -> Edit:
        """The edit that a probe's outcome is of: the one recalled where an edit recalls others. An edit of pictures' tokens that
        meets no picture is none.
        """
        query = self.probes[place].query
        if edit.recall is not None:
            return edit.recall(query)
        return NONE if query.image_id is None and edits_image_features(edit, cell.backbone) else edit


def probe_sets(cell: Cell) -> list[ProbeSet]:
    """What is asked of all edits of a cell, read once."""
    if "probes" not in cell.memo:
        cell.memo["probes"] = [ProbeSet.of(cell, row) for row in cell.rows]
    return cell.memo["probes"]


def outcomes(cell: Cell, edit: Edit, sets: Sequence[ProbeSet]) -> list[dict[str, Any]]:
    """What an edit does to probes, its own or of others, as numbers beside their keys: set by set, probe by probe."""
    trials, places = [], []
    for number, one in enumerate(sets):
        answers: dict[int, tuple[Edit, list[int]]] = {}
        for place in range(len(one.probes)):
            answer = one.answering(cell, edit, place)
            answers.setdefault(id(answer), (answer, []))[1].append(place)
        for answer, asked in answers.values():
            part = one if len(asked) == len(one.probes) else one.some(asked)
            trials.append(Trial(one.row, part.probes, part.states, answer))
            places += [(number, place) for place in asked]
    traced = [row for rows in trace_edits(cell.backbone, trials) for row in rows]
    numbers = {at: {name: float(row[name]) for name in KEPT} for at, row in zip(places, traced, strict=True)}
    return [key | numbers[number, place] for number, one in enumerate(sets) for place, key in enumerate(one.labels())]


def edits_image_features(edit: Edit, backbone: Backbone) -> bool:
    """Whether an edit changes pictures' tokens and nothing else."""
    decoder = set(backbone.decoder.modules())
    return edit.output is None and not edit.prefix and bool(edit.added) and decoder.isdisjoint(edit.added)
