"""LoRA (Hu et al., ICLR 2022, section 4.1), fitted to the edit alone as EasyEdit does: a low-rank update of the query and value
projections of every decoder layer, always on.

Per map W₀ [out, in] the update is (α/r)·B·A with A random (Kaiming uniform) and B zero. It is added by hooks; the peft package
would swap modules inside the model, which an error in between could leave swapped.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from stages.backbone.vlm import Backbone
from stages.editing.edits import Edit, Request, linear, linear_maps
from stages.editing.optimise import leads_by, optimise
from stages.sections import Hyper, count, entry, number

STOCHASTIC = True  # an edit depends on the seed
SEQUENTIAL = True  # an edit can go on from what another left
PROJECTIONS = ("q_proj", "v_proj")


@dataclass(frozen=True)
class Settings(Hyper):
    """Rank r and scale α of the update, Adam's learning rate, most steps and the margin that ends them."""

    rank: int = entry(count(1), default=8)
    scale: float = entry(number(above=0), default=32.0)
    lr: float = entry(number(above=0), default=5e-3)
    steps: int = entry(count(1), default=70)
    margin: float = entry(number(0), default=0.1)


@dataclass(frozen=True)
class LowRank:
    """What is added to a linear map's outputs: `scale`·B·A·x, with `a` [r, in] and `b` [out, r], or one of each a row."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        return linear(linear(inputs, self.a), self.b) * self.scale


def untrained(maps: Sequence[nn.Linear], rank: int, seed: int) -> list[torch.Tensor]:
    """A [rank, in] and B [out, rank] of each map in turn, which change nothing yet: float32, where the map sits."""
    generator, made = torch.Generator().manual_seed(seed), []
    for one in maps:
        bound = 1 / math.sqrt(one.in_features)  # Kaiming uniform with a = √5, as in the authors' code
        a = (torch.rand(rank, one.in_features, generator=generator) * 2 - 1) * bound
        made += [a.to(one.weight.device), torch.zeros(one.out_features, rank, device=one.weight.device)]
    return made


def updates(maps: Sequence[nn.Linear], tensors: Sequence[torch.Tensor], scale: float) -> dict[nn.Module, LowRank]:
    """The update of each map, of its A and B in `tensors`."""
    return {one: LowRank(a, b, scale) for one, a, b in zip(maps, tensors[::2], tensors[1::2], strict=True)}


def edit(backbone: Backbone, request: Request, settings: Settings) -> Edit:
    """Fit all updates together with Adam until the target is exact by `margin` logits, at most `steps` steps."""
    return edit_batch(backbone, [request], [settings])[0]


def edit_batch(backbone: Backbone, requests: Sequence[Request], settings: Sequence[Settings]) -> list[Edit]:
    """The edits of several requests, each with updates of its own."""
    one, maps = settings[0], linear_maps(backbone.decoder, *PROJECTIONS)
    begun = [
        [tensor for part in request.start.added.values() for tensor in (part.a, part.b)]
        if request.start
        else untrained(maps, own.rank, own.seed)
        for request, own in zip(requests, settings, strict=True)
    ]
    return optimise(
        backbone, requests, lambda tensors: Edit(added=updates(maps, tensors, one.scale / one.rank)), begun,
        lr=one.lr, steps=one.steps, stop=leads_by(one.margin),
    )  # fmt: skip
