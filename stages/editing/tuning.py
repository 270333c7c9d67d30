"""Which values of its hyper-parameters a method's edits use: what balances best on dev edits (design §10, Tuning).

Where params.yaml lists several values, every combination makes the dev edits; as many combinations for each method are an equal
budget. Each is judged under the method's own router, by its strict HM at the best value of its scope (`stages.scoring.scope`). Of
those that dev edits cannot tell from the best, the one with the fewest steps is taken, then the one nearest to the published
values, which are the editor's defaults. What was tried and chosen is kept (`stages.editing.tried`).
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.editing import choices
from stages.editing.cell import fit_seed
from stages.editing.editors import module_of
from stages.editing.plan import Plan, label
from stages.editing.resume import Records
from stages.editing.team import Team
from stages.editing.tried import AXES, TABLE, Line
from stages.okedit.schema import of_split
from stages.scoring import scope, scores

COLUMNS = [
    *AXES, "setting", "scope", *scores.HM_PARTS, "hm", "tied", "steps", "edits", "chosen", "made_from", "code",
]  # fmt: skip


def chosen(team: Team, records: Records, path: Path = TABLE) -> tuple[Mapping[str, Any], list[Line]]:
    """The settings that a cell's edits use, those that its code chose before or chooses now, and what was tried for that now."""
    plan = team.plan
    hyper, by = choices.known(plan, path)
    if hyper is not None and by in (None, plan.code):
        return hyper, []
    table = tried(team, records)
    best = table.loc[table["chosen"], "setting"].iloc[0]
    return next(hyper for hyper in plan.grid if label(hyper) == best), as_lines(table)


def chosen_beside(team: Team) -> Mapping[str, Any]:
    """The same, for who measures a cell and leaves its own records as they are; a choice stands here whatever code made it."""
    hyper, _ = choices.known(team.plan)
    with tempfile.TemporaryDirectory() as folder, Records(Path(folder) / team.plan.name, "") as records:
        return chosen(team, records)[0] if hyper is None else hyper


def tried(team: Team, records: Records) -> pd.DataFrame:
    """Every setting of the grid with its scores on dev edits, of the first seed, at the value of its scope that is best for it.
    `tied` are those that dev edits cannot tell from the best (`scores.tied`); one of them is `chosen`.
    """
    plan, found, parts = team.plan, [], []
    dev = of_split(plan.rows, "dev")
    team.learn(plan.grid, [fit_seed(plan.seeds[0])])
    for hyper in plan.grid:
        trace = pd.DataFrame(team.trace(hyper, dev, plan.seeds[:1], records))
        at = scope.choose(trace, plan.method)
        parts.append(at.parts)
        steps = float(trace.groupby("edit_id")["steps"].first().mean())
        found.append({"setting": label(hyper), "steps": steps} | at.line)
    cell = dict(zip(AXES, (plan.dataset, plan.backbone_name, plan.method.name), strict=True))
    table = pd.DataFrame(found).assign(**cell, edits=len(dev), made_from=choices.made_from(plan), code=plan.code)
    return cheapest(table, np.stack(parts), plan)[COLUMNS]


def cheapest(table: pd.DataFrame, parts: np.ndarray, plan: Plan) -> pd.DataFrame:
    """What was tried with `tied`, what dev edits cannot tell from the best by the parts of HM [lines, edits, 3], and `chosen`: of
    these the line with the fewest steps, then the one nearest to the published values, which are the editor's defaults.
    """
    table = table.assign(tied=scores.tied(parts, int(table["hm"].argmax())))
    published = asdict(module_of(plan.method.editor).Settings())
    far = table["setting"].map(lambda text: sum(value != published[name] for name, value in json.loads(text).items()))
    ranked = table.assign(far=far, worse=-table["hm"])[table["tied"]]
    best = ranked.sort_values(["steps", "far", "worse"], kind="stable").index[0]
    return table.assign(chosen=table.index == best)


def as_lines(table: pd.DataFrame) -> list[Line]:
    """What was tried as a table in Git has it: numbers with six decimals."""
    return [
        {name: f"{value:.6f}" if isinstance(value, float) else str(value) for name, value in row.items()}
        for row in table.to_dict("records")
    ]
