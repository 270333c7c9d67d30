"""The tables of a cell's sequences, made."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from stages.editing.resume import Records
from stages.editing.team import Team
from stages.params import derive_seed
from stages.sequences.interference import each
from stages.sequences.orders import HELD_OUT, orders, points
from stages.sequences.rollout import rollout
from stages.settings import Sequence as Settings


def chain(
    team: Team, hyper: Mapping[str, Any], settings: Settings, root: int, goes_on: bool, records: Records
) -> dict[str, pd.DataFrame]:
    """trace, interference and, where each edit `goes_on` from the one before, rollout; `root` is the study's seed."""
    seed, left = derive_seed(root, "sequence", team.plan.dataset), pd.DataFrame()
    made = [row for row in team.plan.rows if row["split"] != HELD_OUT]
    drawn = orders(range(len(made)), settings.orders, seed)
    trace, interference = each(team, hyper, made, drawn, points(settings, len(made)), records)
    if goes_on:
        length, count = settings.rollouts(team.plan.dataset, team.plan.backbone_name)
        some = made[:length]
        left = rollout(team, hyper, some, points(settings, len(some)), count, seed, records)
    return {"trace": trace, "interference": interference, "rollout": left}
