"""Where all edits share one set of weights (fine-tuning, LoRA, MEND, WISE, and BalancEdit as its released code has it) or one
memory (SERAC), each goes on from the one before. Such sequences are rolled out: at some points, every edit made so far is tested.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from tqdm import tqdm

from stages.editing.cell import Cell
from stages.editing.edits import Edit
from stages.editing.resume import Records
from stages.params import derive_seed
from stages.sequences.probes import ProbeSet, Row, outcomes
from stages.settings import Sequence as Settings

T = TypeVar("T")


def orders(edits: Sequence[T], count: int, seed: int) -> list[list[T]]:
    """`count` orders of the edits, the first as they come."""
    drawn = [np.random.default_rng(derive_seed(seed, "order", str(i))).permutation(len(edits)) for i in range(1, count)]
    return [list(edits), *([edits[i] for i in order] for order in drawn)]


def points(settings: Settings, edits: int) -> list[int]:
    """The numbers of edits after which all is tested: those of params.yaml that there are edits for, and all edits."""
    return sorted({at for at in settings.at if at < edits} | {edits})


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
    cell: Cell, make: Callable[..., Edit], hyper: Mapping[str, Any], order: Sequence[Row], at: Sequence[int]
) -> Iterator[tuple[int, Edit]]:
    """Make the edits of `order`, each going on from the one before; gives the last after each number in `at`."""
    last = None
    for done, row in enumerate(order, 1):
        (edit,) = cell.made(make, hyper, [row], cell.seeds[0], start=last)
        last = last if edit.diverged else edit
        if done in at:
            yield done, last or Edit()
