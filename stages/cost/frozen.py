"""What the frozen trunk saves: the same optimisation through the whole model, and a trace beside one forward over its probes."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from stages.backbone.depth import seen_from
from stages.backbone.vlm import Backbone, Query
from stages.cost.clock import measure
from stages.editing import full_forward
from stages.editing.cell import Cell
from stages.editing.edits import Edit, Request
from stages.editing.probes import Probe
from stages.editing.trace import Trial, outcomes
from stages.editing.trunk import States


@torch.no_grad()
def request_at(view: Backbone, row: Mapping[str, Any]) -> Request:
    """The edit of an OKEDIT row as the trunk of `view` sees it."""
    query = Query(row["question"], row["image_id"])
    prompts, target = view.prompts([query]), torch.tensor([view.answer_ids(row["target"])])
    trunk = view.prefill(prompts)
    after, _, _ = view.extend(trunk, target[:, :-1])
    mask = torch.cat([prompts.mask, torch.ones_like(target[:, :-1], dtype=torch.bool)], 1)
    hidden = torch.cat([trunk.hidden, after], 1)
    return Request(hidden, mask, prompts.mask, prompts.positions, target, query, row["target"])


def optimisation(cell: Cell, hyper: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, float]:
    """Seconds (`trunk`, `full`) of one edit of the last layer behind its frozen trunk and through the whole model, and the losses
    that they end at.
    """
    last, edits = len(cell.backbone.decoder.layers) - 1, {}
    views = {"trunk": seen_from(cell.backbone, last), "full": seen_from(cell.backbone, 0, edited=last)}
    requests = {name: request_at(view, row) for name, view in views.items()}

    def make(name: str) -> None:
        edits[name] = cell.editor.edit(views[name], requests[name], cell.editor.Settings(**hyper))

    seconds = measure({name: partial(make, name) for name in views}, 1)
    return {name: float(taken[0]) for name, taken in seconds.items()} | {f"{n}_loss": edit.loss for n, edit in edits.items()}


def tracing(
    backbone: Backbone, row: Mapping[str, Any], probes: Sequence[Probe], states: States, edit: Edit, rounds: int
) -> np.ndarray:
    """[rounds] seconds of the edited model's outcomes on all probes, over those of one whole forward over the same tokens."""
    queries, trial = [probe.query for probe in probes if not probe.is_sample], Trial(row, probes, states, edit)

    def forward() -> None:
        full_forward.finals(backbone, Edit(), queries, states.tokens, states.branches)

    taken = measure({"trace": partial(outcomes, backbone, [trial]), "forward": forward}, rounds)
    return taken["trace"] / taken["forward"]
