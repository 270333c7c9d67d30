"""Where all edits share one set of weights (fine-tuning, LoRA, MEND, WISE, and BalancEdit as its released code has it) or one
memory (SERAC), each goes on from the one before. Such sequences are rolled out: at some points, every edit made so far is tested.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from tqdm import tqdm

from stages.editing.cell import Cell, Makes, fit_seed
from stages.editing.edits import Edit
from stages.editing.resume import Records
from stages.editing.team import Team
from stages.sequences.orders import orders
from stages.sequences.probes import Row, outcomes, probe_sets


@dataclass(frozen=True)
class Order:
    """Edits that follow on each other under the settings `hyper`, and after how many all is tested."""

    hyper: Mapping[str, Any]
    number: int
    rows: Sequence[Row]
    at: Sequence[int]


def rollout(
    team: Team, hyper: Mapping[str, Any], made: Sequence[Row], at: Sequence[int], count: int, seed: int, records: Records
) -> pd.DataFrame:
    """One row an order of `count`, a number of edits made, as many as `at` says, and a probe of an edit made so far or of one
    that is held out.
    """
    team.learn([hyper], [fit_seed(team.plan.seeds[0])])
    drawn = orders(made, count, seed)
    work = [Order(hyper, i, order, at) for i, order in enumerate(drawn) if f"rollout-{i}" not in records]
    for order, rows in zip(work, team.each(rolled_out, work), strict=True):
        records[f"rollout-{order.number}"] = rows
    return pd.concat([pd.DataFrame(records[f"rollout-{i}"]) for i in range(len(drawn))], ignore_index=True)


def rolled_out(cell: Cell, order: Order) -> list[dict[str, Any]]:
    """The rows of one order."""
    make, _ = cell.prepared(order.hyper | {"seed": fit_seed(cell.seeds[0])})
    by_id, rows = {one.row["edit_id"]: one for one in probe_sets(cell)}, []
    held_out = [one for one in by_id.values() if one.held_out]
    shown = tqdm(order.rows, desc=f"{cell.name}, order {order.number}", position=order.number)
    for done, last in sequence(cell, make, order.hyper, shown, order.at):
        tested = [*(by_id[row["edit_id"]] for row in order.rows[:done]), *held_out]
        rows += [{"order": order.number, "made": done} | one for one in outcomes(cell, last, tested)]
    return rows


def sequence(
    cell: Cell, make: Makes, hyper: Mapping[str, Any], order: Sequence[Row], at: Sequence[int]
) -> Iterator[tuple[int, Edit]]:
    """Make the edits of `order`, each going on from the one before; gives the last after each number in `at`."""
    last = None
    for done, row in enumerate(order, 1):
        (edit,) = cell.made(make, hyper, [row], cell.seeds[0], start=last)
        last = last if edit.diverged else edit
        if done in at:
            yield done, last or Edit()
