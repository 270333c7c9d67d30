"""Which values of its hyper-parameters a method's edits use: what balances best on dev edits.

Where params.yaml lists several values, every combination makes the dev edits, and the one of the highest strict HM is taken; as
many combinations for each method are an equal budget. A codebook method's writer is judged under an oracle router, since its
radius is chosen later, from the traces. What was tried and chosen is kept (`stages.editing.choices`).
"""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from stages.editing import choices
from stages.editing.cell import Cell
from stages.editing.choices import TABLE, Line
from stages.editing.plan import label
from stages.editing.resume import Records
from stages.okedit.schema import of_split
from stages.scoring import routing, scores

PROBES = 2  # of each kind, that a setting is judged on
COLUMNS = [*choices.AXES, "setting", *scores.HM_PARTS, "hm", "steps", "edits", "chosen", "made_from", "code"]


def chosen(cell: Cell, records: Records, path: Path = TABLE) -> tuple[Mapping[str, Any], list[Line]]:
    """The settings that a cell's edits use, those that its code chose before or chooses now, and what was tried for that now."""
    hyper, by = choices.known(cell, path)
    if hyper is not None and by in (None, cell.code):
        return hyper, []
    table = tried(cell, records)
    best = table.loc[table["chosen"], "setting"].iloc[0]
    return next(hyper for hyper in cell.grid if label(hyper) == best), lines(table)


def chosen_beside(cell: Cell) -> Mapping[str, Any]:
    """The same, for who measures a cell and leaves its own records as they are; a choice stands here whatever code made it."""
    hyper, _ = choices.known(cell)
    with tempfile.TemporaryDirectory() as folder, Records(Path(folder) / cell.name, "") as records:
        return chosen(cell, records)[0] if hyper is None else hyper


def tried(cell: Cell, records: Records) -> pd.DataFrame:
    """Every setting of the grid with its scores on dev edits, of the first seed and on a few probes of each kind. The chosen one
    has the highest HM; of equals the fewest steps an edit, then the highest mean of the parts of HM, then the first place.
    """
    dev = of_split(cell.rows, "dev")
    router = "oracle" if cell.method.router == "codebook" else cell.method.router
    judged, asked, found = replace(cell.method, router=router), cell.asking(PROBES), []
    for hyper in cell.grid:
        trace = pd.DataFrame(asked.trace(hyper, dev, cell.seeds[:1], records))
        table = scores.per_edit(routing.route(trace, routing.routed_on(trace, judged)), "strict")
        steps = float(trace.groupby("edit_id")["steps"].first().mean())
        found.append({"setting": label(hyper)} | scores.hm_and_parts(table) | {"steps": steps})
    at = dict(zip(choices.AXES, (cell.dataset, cell.backbone_name, cell.method.name), strict=True))
    table = pd.DataFrame(found).assign(**at, edits=len(dev), made_from=choices.made_from(cell), code=cell.code)
    ranked = table.assign(mean=-table[list(scores.HM_PARTS)].mean(axis=1), score=-table["hm"].round(6))
    best = ranked.sort_values(["score", "steps", "mean"], kind="stable")
    return table.assign(chosen=table.index == best.index[0])[COLUMNS]


def lines(table: pd.DataFrame) -> list[Line]:
    """What `tried` found as reports/tuning.csv has it: numbers with six decimals."""
    return [
        {name: f"{value:.6f}" if isinstance(value, float) else str(value) for name, value in row.items()}
        for row in table.to_dict("records")
    ]
