"""What sequences ask of their edits: some probes of each, with what the trunk says of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.editing.cell import Cell, few
from stages.editing.editor import Edit
from stages.editing.trace import Probe, States, probes_of, select, trace_edit
from stages.okedit.schema import LOCALITY_KINDS

ASIDE = ("hop1", "hop2", "black_image")  # kinds that sequences do not ask
KEPT = ("target_on", "same_on", "tf_on", "fires")
HELD_OUT = "dev"  # the split whose edits are never made
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
        """What an edit, this one or another, does to the probes, as numbers. Where it recalls others, each probe has its own."""
        if edit.recall is not None:
            return self.recalled(cell, [edit.recall(probe.query) for probe in self.probes])
        traced = trace_edit(cell.backbone, self.row, self.probes, self.states, edit)
        return [{name: float(one[name]) for name in KEPT} for one in traced]

    def recalled(self, cell: Cell, edits: Sequence[Edit]) -> list[dict[str, float]]:
        """The same of one edit a probe."""
        found = {}
        for one in {id(edit): edit for edit in edits}.values():
            places = [i for i, edit in enumerate(edits) if edit is one]
            found |= zip(places, self.some(places).outcomes(cell, one), strict=True)
        return [found[i] for i in range(len(edits))]
