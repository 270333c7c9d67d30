"""WISE (Wang et al., NeurIPS 2024, section 2.3): a side memory, a copy of one layer's value matrix, answers what activates it.

The value matrix W is the MLP's output map of layer ℓ and A(x) its input. The side memory W′ is fitted to the edit with a margin
loss on its activation Δ(x) = ‖A(x)·(W′ − W)‖ (section 2.3.1): below α on irrelevant queries, above β on the edit, γ between the
two. Only a random share of W′'s entries is trained, by plain gradient steps, each entry within `bound` of W's, as in EasyEdit. A
query goes to the side memory where its activation reaches a share `ratio` of the edit's own; both are means over the prompt. Each
edit has one irrelevant query, as in the paper: a train edit's own.

In a sequence (section 2.3.2) `SHARD` edits train one share of the entries, the next ones another, from W again. What answers is
one side memory, merged of all shards by TIES (Yadav et al., NeurIPS 2023, section 4.2), and the least activation of any edit
routes to it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from stages.backbone.vlm import Backbone, Query, mean_over
from stages.editing.edits import Edit, Request, differences, linear_maps, zero_difference
from stages.editing.fitting import Example
from stages.editing.optimise import request_loss
from stages.editing.trunk import request_of
from stages.sections import count, entry, number

STOCHASTIC = True  # an edit depends on the seed
SEQUENTIAL = True  # an edit can go on from what another left
SHARD = 150  # edits that train the same entries: two shards for a sequence of 300, as the paper has two of 500 for 1,000
DENSITY = 0.53  # share of each shard's entries that TIES keeps, EasyEdit's


@dataclass(frozen=True)
class Settings:
    """Margins α, β, γ, the share of trained entries, the share of the edit's activation that routes, and gradient descent's."""

    alpha: float = entry(number(0), default=5.0)
    beta: float = entry(number(0), default=20.0)
    gamma: float = entry(number(0), default=10.0)
    mask: float = entry(number(0, 1), default=0.2)
    ratio: float = entry(number(0), default=0.88)
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
    ratio: float

    @cached_property
    def merged(self) -> torch.Tensor:
        """The difference that answers."""
        return ties(self.shards, DENSITY) if len(self.shards) > 1 else self.shards[0]

    def __call__(
        self, _queries: Sequence[Query], hidden: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        return score(activations(self.backbone, hidden, mask, positions), self.merged, mask) >= self.ratio * self.least


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


class Reader:
    """Adds nothing to a linear map's outputs and keeps its inputs."""

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        self.inputs = inputs
        return inputs.new_zeros(())


@torch.no_grad()
def activations(backbone: Backbone, hidden: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """A(x) [B, P, in] of prompts, from the states [B, P, D] that enter layer ℓ."""
    reader = Reader()
    with Edit(added={value_map(backbone): reader}).applied(backbone):
        backbone.tail(hidden, mask, positions, 1)
    return reader.inputs.reshape(*hidden.shape[:2], -1)


def score(inputs: torch.Tensor, delta: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Δ [B]: the norm of A(x)·(W′ − W), a mean over the prompt, of inputs [B, P, in] and the difference [out, in]."""
    return mean_over(F.linear(inputs, delta).norm(dim=-1, keepdim=True).cpu(), mask)[:, 0]


def margins(edit: torch.Tensor, irrelevant: torch.Tensor, settings: Mapping[str, Any]) -> torch.Tensor:
    """The margin loss of section 2.3.1, of two activations []."""
    over = F.relu(irrelevant - settings["alpha"]) + F.relu(settings["beta"] - edit)
    return over + F.relu(settings["gamma"] - (edit - irrelevant))


def fit(backbone: Backbone, examples: Sequence[Example], settings: Mapping[str, Any], checkpoint: Path) -> list[dict[str, Any]]:
    """Nothing is trained: the activations [1, P, in] and masks of the train edits' own queries, irrelevant to any other edit."""
    found = []
    for example in examples:
        request = request_of(example.states, example.row)
        hidden = request.hidden[:, : request.prompt.shape[1]]
        found.append({"inputs": activations(backbone, hidden, request.prompt, request.positions), "mask": request.prompt})
    return found


def edit(backbone: Backbone, request: Request, settings: Mapping[str, Any], fitted: Sequence[Mapping[str, Any]]) -> Edit:
    """Fit the side memory, or go on with its last shard, against one irrelevant query."""
    rng, value = np.random.default_rng(settings["seed"]), value_map(backbone)
    before = request.start.fires if request.start else None
    if before is None or before.edits % SHARD == 0:
        trained = torch.as_tensor(rng.random(value.weight.shape) < settings["mask"], device=value.weight.device)
        delta, finished = zero_difference(value), before.shards if before else ()
    else:
        trained, delta, finished = before.trained, before.shards[-1].clone(), before.shards[:-1]
    target, first, delta = request.target[0], None, delta.requires_grad_()
    irrelevant = fitted[rng.integers(len(fitted))]
    own = activations(backbone, request.hidden[:, : request.prompt.shape[1]], request.prompt, request.positions)
    memory = Edit(added=differences([value], [delta]))
    for step in range(settings["steps"] + 1):
        loss, logits = request_loss(backbone, request, memory)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} after {step} steps")
        first = loss.item() if first is None else first
        if step == settings["steps"]:
            break
        apart = margins(score(own, delta, request.prompt)[0], score(irrelevant["inputs"], delta, irrelevant["mask"])[0], settings)
        (gradient,) = torch.autograd.grad(loss + apart, [delta])
        with torch.no_grad():
            delta -= settings["lr"] * gradient * trained
            delta.clamp_(-settings["bound"], settings["bound"])
    if loss.item() > first:
        raise FloatingPointError(f"the loss rose from {first} to {loss.item()} in {step} steps")
    active = score(own, delta.requires_grad_(False), request.prompt)[0]
    least, edits = (active.minimum(before.least), before.edits + 1) if before else (active, 1)
    side = SideMemory(backbone, (*finished, delta), trained, edits, least, settings["ratio"])
    reached = bool((logits.argmax(-1) == target).all())
    return Edit(added=differences([value], [side.merged]), fires=side, steps=step, loss=loss.item(), reached=reached)
