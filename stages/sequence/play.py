"""Play a sequence: make the edits in an order, and at some points test every edit made so far, and locality on held-out edits."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from stages.editing.cell import Cell
from stages.editing.codebook import Codebook
from stages.editing.editor import attempt
from stages.editing.trace import Probe, States, request_of, select, trace_edit
from stages.params import UserError, derive_seed
from stages.scoring.scores import LOCALITY
from stages.sequence.memory import Memory, Routed, Weights
from stages.settings import Method

Row = Mapping[str, Any]


def memory_of(cell: Cell, faithful_code: bool) -> Memory:
    """An empty memory of the kind that the cell's method has; UserError for a method that cannot go on from its own edits."""
    if not playable(cell.method):
        raise UserError(f"methods.{cell.method.name}: no sequence; allowed: methods behind a codebook, or FT of a layer")
    if cell.method.router == "codebook":
        return Routed(Codebook(cell.method.radius.distance, faithful_code=faithful_code))
    return Weights()


def playable(method: Method) -> bool:
    """Whether edits of the method can follow on each other here: behind a codebook, or by fine-tuning from layer ℓ on."""
    tuned = method.editor == "finetune" and method.hyper.get("part", "layer") != "connector"
    return method.router == "codebook" or (tuned and method.router == "always")


def orders(rows: Sequence[Row], count: int, seed: int) -> list[list[Row]]:
    """`count` orders of the edits, the first as they come."""
    drawn = [np.random.default_rng(derive_seed(seed, "order", str(i))).permutation(len(rows)) for i in range(1, count)]
    return [list(rows), *([rows[i] for i in order] for order in drawn)]


def play(
    cell: Cell, hyper: Mapping[str, Any], order: Sequence[Row], radii: Mapping[str, float], memory: Memory, points: Sequence[int]
) -> Iterator[tuple[int, Memory]]:
    """Make the edits in their order; gives the memory after each number of edits in `points`. `radii` are by edit_id."""
    for made, row in enumerate(order, 1):
        states = cell.states(row)
        key = states.phi[cell.method.key.span][0]
        begun = memory.start(key, row["target"])
        settings = {**hyper, "seed": derive_seed(cell.seeds[0], "edit", row["edit_id"])}
        request = replace(request_of(states, row), start=begun)
        edit = attempt(partial(cell.editor.edit, cell.backbone, request, settings))
        memory.add(key, radii.get(row["edit_id"], 0.0), row["target"], edit)
        if made in points:
            yield made, memory


def tested(cell: Cell, rows: Sequence[Row], memory: Memory, probes_a_kind: int) -> pd.DataFrame:
    """A trace of some edits' probes, the first few of each kind, under all that `memory` holds."""
    traced = []
    for row in rows:
        probes, states = few(cell.queries[row["edit_id"]], cell.states(row), probes_a_kind)
        edit = memory.answering(states.phi[cell.method.key.span])
        traced += [{"seed": 0} | found for found in trace_edit(cell.backbone, row, probes, states, edit)]
    return pd.DataFrame(traced)


def few(probes: Sequence[Probe], states: States, count: int) -> tuple[list[Probe], States]:
    """The first `count` probes of each kind, no samples, and what the trunk says of them."""
    kinds = [probe.kind for probe in probes]
    kept = [i for i, probe in enumerate(probes) if not probe.is_sample and kinds[:i].count(probe.kind) < count]
    return [probes[i] for i in kept], select(states, kept)


def held_out(traced: pd.DataFrame) -> pd.DataFrame:
    """Of a trace of edits that were not made, what must stay as it is: the edits' own queries too."""
    return traced[traced["kind"].isin(["edit", *LOCALITY])]
