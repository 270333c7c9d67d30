"""What sequences ask of their edits: some probes of each, with what the trunk says of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stages.backbone.vlm import Backbone
from stages.editing.cell import Cell, few
from stages.editing.edits import Edit
from stages.editing.probes import Probe, probes_of
from stages.editing.trace import trace_edit
from stages.editing.trunk import States, select
from stages.okedit.schema import LOCALITY_KINDS
from stages.sequences.orders import HELD_OUT

ASIDE = ("hop1", "hop2", "black_image")  # kinds that sequences do not ask
KEPT = ("target_on", "same_on", "tf_on", "fires")
NONE, LEFT_ALONE = Edit(), Edit(fires=lambda queries, *_: torch.zeros(len(queries), dtype=torch.bool))
Row = Mapping[str, Any]


def queries_of(row: Row, samples: Sequence[Row], count: int) -> list[Probe]:
    """The first `count` probes of each kind and all samples of an edit; of one held out, the probes for locality alone."""
    probes = [probe for probe in probes_of(row, samples) if probe.kind not in ASIDE]
    if row["split"] == HELD_OUT:
        probes = [probe for probe in probes if probe.kind in LOCALITY_KINDS]
    return few(probes, count)


@dataclass(frozen=True)
class Asked:
    """Some probes of one edit, no samples, with what the trunk says of them; `numbers` are their places in the edit's trace."""

    row: Row
    numbers: Sequence[int]
    probes: Sequence[Probe]
    states: States

    @classmethod
    def of(cls, cell: Cell, row: Row) -> "Asked":
        """All of an edit's probes."""
        probes = [probe for probe in cell.queries[row["edit_id"]] if not probe.is_sample]
        numbers = range(len(probes))
        return cls(row, numbers, probes, select(cell.states(row), numbers))

    @property
    def held_out(self) -> bool:
        return self.row["split"] == HELD_OUT

    def known(self) -> list[dict[str, Any]]:
        """Which probes these are."""
        return [{"edit_id": self.row["edit_id"], "probe": number} for number in self.numbers]

    def some(self, places: Sequence[int]) -> "Asked":
        """Those at some places."""
        numbers, probes = ([listed[i] for i in places] for listed in (self.numbers, self.probes))
        return Asked(self.row, numbers, probes, select(self.states, places))

    def outcomes(self, cell: Cell, edit: Edit) -> list[dict[str, float]]:
        """What an edit, this one or another, does to the probes, as numbers."""
        answering = [self.answering(cell, edit, place) for place in range(len(self.probes))]
        if all(one is edit for one in answering):
            traced = trace_edit(cell.backbone, self.row, self.probes, self.states, edit)
            return [{name: float(one[name]) for name in KEPT} for one in traced]
        found = {}
        for one in {id(other): other for other in answering}.values():
            places = [i for i, other in enumerate(answering) if other is one]
            found |= zip(places, self.some(places).outcomes(cell, one), strict=True)
        return [found[i] for i in range(len(answering))]

    def answering(self, cell: Cell, edit: Edit, place: int) -> Edit:
        """The edit that a probe's outcome is of. Where an edit recalls others it is the one recalled, or none where the router of
        that one leaves the probe alone. An edit of pictures' tokens that meets no picture is none.
        """
        query = self.probes[place].query
        if edit.recall is None:
            return NONE if query.image_id is None and edits_image_features(edit, cell.backbone) else edit
        one, asked = edit.recall(query), self.states
        rows = slice(place, place + 1)
        if one.fires is None or one.fires([query], asked.hidden[rows], asked.mask[rows], asked.positions[..., rows, :]).all():
            return one
        return LEFT_ALONE


def edits_image_features(edit: Edit, backbone: Backbone) -> bool:
    """Whether an edit changes pictures' tokens and nothing else."""
    decoder = set(backbone.decoder.modules())
    return edit.output is None and not edit.prefix and bool(edit.added) and decoder.isdisjoint(edit.added)
