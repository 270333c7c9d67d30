"""WISE (Wang et al., NeurIPS 2024, section 2.3): a side memory, a copy of one layer's value matrix, answers what activates it.

The value matrix W is the MLP's output map of layer ℓ and A(x) its input. The side memory W′ is fitted to the edit with a margin
loss on its activation Δ(x) = ‖A(x)·(W′ − W)‖ (section 2.3.1): below α on irrelevant queries, above β on the edit, γ between the
two. Only a random share of W′'s entries is trained, by plain gradient steps, each entry within `bound` of W's, as in EasyEdit. A
query goes to the side memory where its activation, as a share of the edit's own, reaches the method's threshold (EasyEdit: 0.88);
both are means over the prompt. Each edit has one irrelevant query, as in the paper: a train edit's own.

In a sequence (section 2.3.2) `SHARD` edits train one share of the entries, the next ones another, from W again. What answers is
one side memory, merged of all shards by TIES (Yadav et al., NeurIPS 2023, section 4.2), and the least activation of any edit
routes to it.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from stages.backbone.stand_ins import Enough
from stages.backbone.vlm import Backbone, Query, mean_over
from stages.editing.edits import DIVERGED, Edit, Request, differences, linear, linear_maps, zero_difference
from stages.editing.fitting import Example
from stages.editing.optimise import NOISE, Batch, judge, remembering
from stages.editing.trunk import request_of
from stages.sections import Hyper, count, entry, number

STOCHASTIC = True  # an edit depends on the seed
SEQUENTIAL = True  # an edit can go on from what another left
ROUTES = True  # its edits have `scores`
SHARD = 150  # edits that train the same entries: two shards for a sequence of 300, as the paper has two of 500 for 1,000
DENSITY = 0.53  # share of each shard's entries that TIES keeps, EasyEdit's


@dataclass(frozen=True)
class Settings(Hyper):
    """Margins α, β, γ, the share of trained entries, how far an entry may go, and gradient descent's rate and steps."""

    alpha: float = entry(number(0), default=5.0)
    beta: float = entry(number(0), default=20.0)
    gamma: float = entry(number(0), default=10.0)
    mask: float = entry(number(0, 1), default=0.2)
    bound: float = entry(number(above=0), default=1.0)
    lr: float = entry(number(above=0), default=1.0)
    steps: int = entry(count(1), default=70)


@dataclass(frozen=True)
class SideMemory:
    """What a sequence of edits has learnt, and its router: the shards' differences W′ − W [out, in], which entries of the last
    one are trained, how many edits there are, and the least activation [] that one of them ended at.
    """

    backbone: Backbone
    shards: tuple[torch.Tensor, ...]
    trained: torch.Tensor
    edits: int
    least: torch.Tensor

    @cached_property
    def merged(self) -> torch.Tensor:
        """The difference that answers."""
        return ties(self.shards, DENSITY) if len(self.shards) > 1 else self.shards[0]

    def __call__(
        self, _queries: Sequence[Query], hidden: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """[B]: the activation of each query as a share of the least."""
        return (score(activations(self.backbone, hidden, mask, positions), self.merged, mask) / self.least).cpu()


def ties(differences: Sequence[torch.Tensor], density: float) -> torch.Tensor:
    """Differences of one shape merged: of each its largest entries are kept, and of these, the mean of those that have the sign
    of their sum.
    """
    kept = torch.stack([torch.where(one.abs() >= _least_kept(one, density), one, 0.0) for one in differences])
    agree = (kept != 0) & (kept.sign() == kept.sum(0).sign())
    return (kept * agree).sum(0) / agree.sum(0).clamp(min=1)


def _least_kept(difference: torch.Tensor, density: float) -> torch.Tensor:
    """The size from which on entries are among the `density` largest."""
    count = max(1, int(density * difference.numel()))
    return difference.abs().flatten().kthvalue(difference.numel() - count + 1).values


def value_map(backbone: Backbone) -> nn.Linear:
    """The MLP's output map of layer ℓ."""
    return linear_maps(backbone.decoder.layers[backbone.layer], "down_proj", "fc2")[0]


@torch.no_grad()
def activations(backbone: Backbone, hidden: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """A(x) [B, P, in] of prompts, from the states [B, P, D] that enter layer ℓ; nothing behind it runs."""
    seen = []

    def stop(_part: nn.Module, args: tuple[torch.Tensor]) -> None:
        seen.append(args[0])
        raise Enough

    hook = value_map(backbone).register_forward_pre_hook(stop)
    try:
        with contextlib.suppress(Enough):
            backbone.tail(hidden, mask, positions, hidden.shape[1])
    finally:
        hook.remove()
    return seen[0].float().reshape(*hidden.shape[:2], -1)


def score(inputs: torch.Tensor, delta: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Δ [B]: the norm of A(x)·(W′ − W), a mean over the prompt, of inputs [B, P, in] and a difference [out, in], or one a row."""
    return mean_over(linear(inputs, delta).norm(dim=-1, keepdim=True), mask.to(inputs.device))[:, 0]


def margins(edit: torch.Tensor, irrelevant: torch.Tensor, settings: Settings) -> torch.Tensor:
    """The margin loss [B] of section 2.3.1, of two activations [B]."""
    over = F.relu(irrelevant - settings.alpha) + F.relu(settings.beta - edit)
    return over + F.relu(settings.gamma - (edit - irrelevant))


def fit(backbone: Backbone, examples: Sequence[Example], settings: Settings, checkpoint: Path) -> list[dict[str, Any]]:
    """Nothing is trained: the activations [1, P, in] and masks of the train edits' own queries, irrelevant to any other edit."""
    found = []
    for example in examples:
        request = request_of(example.states, example.row)
        hidden = request.hidden[:, : request.prompt.shape[1]]
        found.append({"inputs": activations(backbone, hidden, request.prompt, request.positions), "mask": request.prompt})
    return found


def edit(backbone: Backbone, request: Request, settings: Settings, fitted: Sequence[Mapping[str, Any]]) -> Edit:
    """Fit the side memory, or go on with its last shard, against one irrelevant query."""
    return edit_batch(backbone, [request], [settings], fitted)[0]


def edit_batch(
    backbone: Backbone, requests: Sequence[Request], settings: Sequence[Settings], fitted: Sequence[Mapping[str, Any]]
) -> list[Edit]:
    """The edits of several requests, each with a side memory and an irrelevant query of its own."""
    one, value, batch = settings[0], value_map(backbone), Batch.of(requests, backbone.device)
    shards, irrelevant = [], []
    for request, own in zip(requests, settings, strict=True):
        rng = np.random.default_rng(own.seed)
        shards.append(begin(value, request, own, rng))
        irrelevant.append(fitted[rng.integers(len(fitted))])
    finished, trained, deltas = zip(*shards, strict=True)
    masks, deltas = torch.stack(trained), torch.stack(deltas).requires_grad_()
    own = activations(backbone, batch.hidden[:, : batch.prompt.shape[1]], batch.prompt, batch.positions)
    other, where = beside(irrelevant)
    memory, first = Edit(added=differences([value], [deltas])), None
    with remembering(backbone, memory):
        for step in range(one.steps + 1):
            losses, leads = judge(backbone, batch, memory)
            first = losses.tolist() if first is None else first
            if step == one.steps:
                break
            apart = margins(score(own, deltas, batch.prompt), score(other, deltas, where), one)
            (gradient,) = torch.autograd.grad((losses + apart).sum(), [deltas])
            with torch.no_grad():
                deltas -= one.lr * gradient * masks
                deltas.clamp_(-one.bound, one.bound)
    found, active = [], score(own, deltas.requires_grad_(False), batch.prompt)
    for i, (loss, lead, begun) in enumerate(zip(losses.tolist(), leads.tolist(), first, strict=True)):
        before, least = requests[i].start.scores if requests[i].start else None, active[i].clone()
        least, edits = (least.minimum(before.least), before.edits + 1) if before else (least, 1)
        side = SideMemory(backbone, (*finished[i], deltas[i].clone()), trained[i], edits, least)
        made = Edit(added=differences([value], [side.merged]), scores=side, steps=step, loss=loss, reached=lead > 0)
        found.append(made if math.isfinite(loss) and loss <= begun * (1 + NOISE) else DIVERGED)
    return found


def begin(
    value: nn.Linear, request: Request, settings: Settings, rng: np.random.Generator
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor, torch.Tensor]:
    """What an edit goes on from: the shards that are finished, which entries [out, in] of the next are trained, and its
    difference so far.
    """
    before = request.start.scores if request.start else None
    if before is not None and before.edits % SHARD:
        return before.shards[:-1], before.trained, before.shards[-1]
    trained = torch.as_tensor(rng.random(value.weight.shape) < settings.mask, device=value.weight.device)
    return before.shards if before else (), trained, zero_difference(value)


def beside(queries: Sequence[Mapping[str, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The activations [B, P, in] and masks [B, P] of several queries, padded on the left."""
    width = max(query["mask"].shape[1] for query in queries)
    pads = [width - query["mask"].shape[1] for query in queries]
    inputs = torch.cat([F.pad(query["inputs"], (0, 0, pad, 0)) for query, pad in zip(queries, pads, strict=True)])
    return inputs, torch.cat([F.pad(query["mask"], (pad, 0)) for query, pad in zip(queries, pads, strict=True)])
