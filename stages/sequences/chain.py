"""The tables of a cell's sequences, made."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from stages import code
from stages.editing.cell import Cell
from stages.params import derive_seed
from stages.sequences.interference import each
from stages.sequences.orders import orders, points
from stages.sequences.probes import ProbeSet
from stages.sequences.rollout import rollout
from stages.settings import Sequence as Settings


def chain(cell: Cell, hyper: Mapping[str, Any], settings: Settings, root: int, goes_on: bool) -> dict[str, pd.DataFrame]:
    """trace, interference and, where each edit `goes_on` from the one before, rollout; `root` is the study's seed."""
    seed, by = derive_seed(root, "sequence", cell.dataset), code.of_editor(cell.method.editor, __name__)
    with cell.records("chain-", hyper, cell.method.key.span, settings.at, settings.orders, settings.probes, by) as records:
        probes = [ProbeSet.of(cell, row) for row in cell.rows]
        made, left = [one.row for one in probes if not one.held_out], pd.DataFrame()
        drawn = orders(range(len(made)), settings.orders, seed)
        trace, interference = each(cell, hyper, made, probes, drawn, points(settings, len(made)), records)
        if goes_on:
            left = rollout(cell, hyper, made[: settings.shared], probes, settings, seed, records)
    return {"trace": trace, "interference": interference, "rollout": left}
