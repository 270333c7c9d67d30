"""Which values of its hyper-parameters a method's edits use: what balances best on dev edits.

Where params.yaml lists several values, every combination makes the dev edits, and the one of the highest strict HM is taken; as
many combinations for each method are an equal budget. A codebook method's writer is judged under an oracle router, since its
radius is chosen later, from the traces. reports/tuning.csv keeps what was tried: a choice that stands there is not made again.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from stages.editing.cell import Cell, label
from stages.editing.plan import Plan
from stages.editing.resume import Records
from stages.params import write_atomically
from stages.scoring import routing, scores

TABLE = Path("reports/tuning.csv")
PROBES = 2  # of each kind, that a setting is judged on
AXES = ["dataset", "backbone", "method"]
COLUMNS = [*AXES, "setting", *scores.HM_PARTS, "hm", "edits", "chosen", "made_from"]


def chosen(cell: Cell, records: Records, path: Path = TABLE) -> Mapping[str, Any]:
    """The settings that a cell's edits use."""
    if (hyper := known(cell, path)) is not None:
        return hyper
    return _best(cell, tried(cell, records))


def known(plan: Plan, path: Path = TABLE) -> Mapping[str, Any] | None:
    """The settings that need no trying: the only ones, or what was chosen before; None where there are none."""
    if len(plan.grid) == 1:
        return plan.grid[0]
    table = read(path)
    table = table[(table[AXES] == _at(plan)).all(axis=1) & (table["made_from"] == made_from(plan)) & table["chosen"]]
    return _best(plan, table) if len(table) else None


def _best(plan: Plan, table: pd.DataFrame) -> Mapping[str, Any]:
    """The settings that a table marks as chosen."""
    best = table.loc[table["chosen"], "setting"].iloc[0]
    return next(hyper for hyper in plan.grid if label(hyper) == best)


def chosen_beside(cell: Cell) -> Mapping[str, Any]:
    """The same, for who measures a cell and leaves its own records as they are."""
    with tempfile.TemporaryDirectory() as folder, Records(Path(folder) / cell.name, "") as records:
        return chosen(cell, records)


def tried(cell: Cell, records: Records) -> pd.DataFrame:
    """Every setting of the grid with its scores on dev edits, of the first seed and on a few probes of each kind. The chosen one
    has the highest HM; of equals the highest mean of its parts, and then the first.
    """
    dev = [row for row in cell.rows if row["split"] == "dev"]
    router = "oracle" if cell.method.router == "codebook" else cell.method.router
    judged, asked, found = replace(cell.method, router=router), cell.asking(PROBES), []
    for hyper in cell.grid:
        trace = pd.DataFrame(asked.trace(hyper, dev, cell.seeds[:1], records))
        table = scores.per_edit(routing.route(trace, routing.routed_on(trace, judged)), "strict")
        found.append({"setting": label(hyper)} | scores.hm_and_parts(table))
    table = pd.DataFrame(found).assign(**dict(zip(AXES, _at(cell), strict=True)), edits=len(dev), made_from=made_from(cell))
    ranked = table.assign(mean=table[list(scores.HM_PARTS)].mean(axis=1))
    best = ranked.sort_values(["hm", "mean"], kind="stable", ascending=False)
    return table.assign(chosen=table.index == best.index[0])[COLUMNS]


def keep(table: pd.DataFrame, path: Path = TABLE) -> None:
    """Write what was tried in a cell in the place of what stood there."""
    known = read(path)
    others = known[(known[AXES] != table[AXES].iloc[0]).any(axis=1)]
    whole = pd.concat([others, table]) if len(others) else table
    whole = whole.sort_values(AXES, kind="stable")
    with write_atomically(path) as temporary:
        whole.to_csv(temporary, index=False, float_format="%.6f", lineterminator="\n")


def read(path: Path) -> pd.DataFrame:
    """The table of all that was tried so far."""
    if not path.exists():
        return pd.DataFrame(columns=COLUMNS).astype({"chosen": bool})
    return pd.read_csv(path, dtype={"made_from": str})


def made_from(plan: Plan) -> str:
    """A digest of what a choice depends on, but for the code."""
    dev, method = [row for row in plan.rows if row["split"] == "dev"], [plan.method.editor, plan.method.router, plan.grid]
    text = json.dumps([plan.fingerprint, *method, dev, plan.learnt, plan.seeds[:1]])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _at(plan: Plan) -> list[str]:
    return [plan.dataset, plan.backbone_name, plan.method.name]
