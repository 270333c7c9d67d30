"""What the frozen trunk saves: the same optimisation through the whole model, and a trace beside one forward over its probes."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from stages.backbone.depth import seen_from
from stages.backbone.vlm import Backbone, Query
from stages.cost.clock import measure
from stages.editing.cell import Cell
from stages.editing.edits import Edit, Request
from stages.editing.probes import Probe
from stages.editing.trace import outcomes
from stages.editing.trunk import States, forced, padded


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
        edits[name] = cell.editor.edit(views[name], requests[name], {**hyper, "seed": 0})

    seconds = measure({name: partial(make, name) for name in views}, 1)
    return {name: float(taken[0]) for name, taken in seconds.items()} | {f"{n}_loss": edit.loss for n, edit in edits.items()}


def tracing(backbone: Backbone, probes: Sequence[Probe], states: States, edit: Edit, rounds: int) -> np.ndarray:
    """[rounds] seconds of the edited model's outcomes on all probes, over those of one whole forward over the same tokens."""
    asked = [p for p in probes if not p.is_sample]
    answers = [[c.ids[i, c.real[i]].tolist() for i in range(len(asked))] for c in (states.target, states.same, states.truth)]
    candidates = [padded(one, backbone.end) for one in answers]

    def forward() -> None:
        trunk = backbone.prefill(backbone.prompts([p.query for p in asked]))
        forced(backbone, trunk, candidates)

    taken = measure({"trace": partial(outcomes, backbone, probes, states, edit), "forward": forward}, rounds)
    return taken["trace"] / taken["forward"]
