"""Where all edits share one set of weights (fine-tuning, LoRA, MEND, WISE, and BalancEdit as its released code has it) or one
memory (SERAC), each goes on from the one before. Such sequences are rolled out: at some points, every edit made so far is tested.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from tqdm import tqdm

from stages.editing.cell import Cell, Makes
from stages.editing.edits import Edit
from stages.editing.resume import Records
from stages.params import derive_seed
from stages.sequences.orders import orders, points
from stages.sequences.probes import ProbeSet, Row, outcomes
from stages.settings import Sequence as Settings


def rollout(
    cell: Cell,
    hyper: Mapping[str, Any],
    made: Sequence[Row],
    probes: Sequence[ProbeSet],
    settings: Settings,
    seed: int,
    records: Records,
) -> pd.DataFrame:
    """One row an order, a number of edits made, and a probe of an edit made so far or of one that is held out."""
    make, _ = cell.prepared(hyper | {"seed": derive_seed(cell.seeds[0], "fit")})
    by_id, at, found = {one.row["edit_id"]: one for one in probes}, points(settings, len(made)), []
    held_out = [one for one in probes if one.held_out]
    for number, order in enumerate(orders(made, settings.orders, seed)):
        name = f"rollout-{number}"
        if name not in records:
            rows = []
            for done, last in sequence(cell, make, hyper, tqdm(order, desc=f"{cell.name}, order {number}"), at):
                tested = [*(by_id[row["edit_id"]] for row in order[:done]), *held_out]
                rows += [{"order": number, "made": done} | one for one in outcomes(cell, last, tested)]
            records[name] = rows
        found.append(pd.DataFrame(records[name]))
    return pd.concat(found, ignore_index=True)


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
