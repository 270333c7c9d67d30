"""MEND (Mitchell et al., ICLR 2022): a network, trained on train edits, turns an edit's gradient into a better one.

The gradient of a linear map's weight is a sum over positions of δ·uᵀ, the gradient of its output times its input (section 3).
One residual low-rank network for each shape of weight, with an offset and a scale for each weight, maps normalised (u, δ) to
pseudo-inputs (ũ, δ̃) (section 3.1, equation 3: it starts as the identity), and the edit is W − α·Σ δ̃·ũᵀ with a learnt α for
each weight. Training (section 3.2) minimises the loss of the edited model in scope and its divergence from the unedited one out
of it, weighted as MMEdit (Cheng et al., EMNLP 2023, section 4.1) weights text and picture: c_edit·(text + picture) +
c_loc·(text + picture). The weights of the least such loss on held-out train edits are kept. Edited are the MLP's linear maps
into and out of the hidden layer, in the last `layers` decoder layers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from stages.backbone.vlm import Backbone
from stages.editing.edits import DIVERGED, Added, Edit, Request, differences, linear_maps, together
from stages.editing.fitting import Example, learn
from stages.editing.optimise import Batch, judge
from stages.editing.trace import tail_logits
from stages.editing.trunk import request_of
from stages.okedit.schema import LOCALITY_KINDS
from stages.sections import Hyper, count, entry, number

STOCHASTIC = True  # an edit depends on the seed
SEQUENTIAL = True  # an edit can go on from what another left
MLP = ("up_proj", "down_proj", "fc1", "fc2")
HELD = 2**30  # bytes of gradients that are kept in memory while the network learns
HELD_OUT = 0.2  # share of the train edits that only choose among the weights of a training, the last ones


@dataclass(frozen=True)
class Settings(Hyper):
    """The edited layers, the network's rank, the first α, training's learning rates (network; α), its weights and steps."""

    layers: int = entry(count(1), default=3)
    rank: int = entry(count(1), default=1920)
    edit_lr: float = entry(number(above=0), default=1e-4)
    lr: float = entry(number(above=0), default=1e-6)
    lr_lr: float = entry(number(above=0), default=1e-4)
    c_edit: float = entry(number(0), default=0.1)
    c_loc: float = entry(number(0), default=1.0)
    steps: int = entry(count(0), default=50000)


class Transform(nn.Module):
    """g of equation 3 for `maps` weights of one shape [outer, inner]: two residual low-rank layers over [u; δ]."""

    def __init__(self, inner: int, outer: int, maps: int, rank: int, generator: torch.Generator):
        super().__init__()
        size, rank = inner + outer, min(rank, inner + outer)
        self.split = (inner, outer)
        self.u = nn.Parameter(torch.zeros(2, size, rank))
        self.v = nn.Parameter(torch.randn(2, rank, size, generator=generator))
        self.bias = nn.Parameter(torch.zeros(2, size))
        self.scale = nn.Parameter(torch.ones(2, maps, size))
        self.offset = nn.Parameter(torch.zeros(2, maps, size))
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("spread", torch.zeros(size))  # sum of squared deviations

    def watch(self, factors: torch.Tensor) -> None:
        """Take rows [T, inner + outer] into the running mean and variance (Chan et al., 1979)."""
        new, off = len(factors), factors.mean(0) - self.mean
        total = self.seen + new
        self.spread += factors.var(0, correction=0) * new + off**2 * self.seen * new / total
        self.mean += off * new / total
        self.seen.copy_(total)

    def forward(self, factors: torch.Tensor, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(ũ [T, inner], δ̃ [T, outer]) of rows [u; δ] of the weight `index`; not normalised before anything was watched."""
        h = factors
        if self.seen > 1:
            h = (factors - self.mean) / ((self.spread / (self.seen - 1)).sqrt() + 1e-7)
        for k in range(2):
            low = F.linear(F.linear(h, self.v[k]), self.u[k], self.bias[k])
            h = h + (low * self.scale[k, index] + self.offset[k, index]).clamp(min=0)  # not relu: its gradient at 0 is 0
        return h.split(self.split, -1)


class Mend(nn.Module):
    """The transforms of all edited weights, one a shape, and their step sizes α."""

    def __init__(self, maps: Sequence[nn.Linear], settings: Settings):
        super().__init__()
        shapes = [(m.in_features, m.out_features) for m in maps]
        generator = torch.Generator().manual_seed(settings.seed)
        self.places = [(_name(s), shapes[:i].count(s)) for i, s in enumerate(shapes)]
        self.transforms = nn.ModuleDict(
            {_name(s): Transform(*s, shapes.count(s), settings.rank, generator) for s in dict.fromkeys(shapes)}
        )
        self.alpha = nn.Parameter(torch.full((len(maps),), settings.edit_lr))

    def watch(self, factors: Sequence[torch.Tensor]) -> None:
        for (shape, _), rows in zip(self.places, factors, strict=True):
            self.transforms[shape].watch(rows)

    def forward(self, maps: Sequence[nn.Linear], factors: Sequence[torch.Tensor]) -> dict[nn.Module, Added]:
        """What the edit adds to each map, from its rows [u; δ]."""
        pseudo = [self.transforms[shape](rows, index) for (shape, index), rows in zip(self.places, factors, strict=True)]
        return differences(maps, [-alpha * delta.T @ u for alpha, (u, delta) in zip(self.alpha, pseudo, strict=True)])


def _name(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"


class Tap:
    """Adds zero to a linear map's outputs, or what an earlier edit adds: so it records its inputs and lets their gradient be
    taken.
    """

    def __init__(self, outer: int, before: Added | None):
        self.outer, self.before = outer, before

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        self.inputs = inputs.detach()
        self.zero = inputs.new_zeros(*inputs.shape[:-1], self.outer).requires_grad_()
        return self.zero if self.before is None else self.before(inputs) + self.zero


def edited_maps(backbone: Backbone, layers: int) -> list[nn.Linear]:
    """The MLPs' linear maps into and out of the hidden layer, in the last `layers` layers that are not below ℓ."""
    first = max(backbone.layer, len(backbone.decoder.layers) - layers)
    return [m for layer in backbone.decoder.layers[first:] for m in linear_maps(layer, *MLP)]


def factors_of(
    backbone: Backbone, requests: Sequence[Request], maps: Sequence[nn.Linear]
) -> tuple[list[list[torch.Tensor]], list[float]]:
    """Of each request, each map's rows [T, inner + outer] of inputs u and output gradients δ of its loss, where δ is not zero;
    and the losses.
    """
    before = together([request.start or Edit() for request in requests], [1] * len(requests)).added
    taps = {one: Tap(one.out_features, before.get(one)) for one in maps}
    losses, _ = judge(backbone, Batch.of(requests, backbone.device), Edit(added=taps))
    found: list[list[torch.Tensor]] = [[] for _ in requests]
    for tap, delta in zip(taps.values(), torch.autograd.grad(losses.sum(), [tap.zero for tap in taps.values()]), strict=True):
        inputs = tap.inputs.reshape(len(requests), -1, tap.inputs.shape[-1])
        for own, u, slope in zip(found, inputs, delta.reshape(*inputs.shape[:2], -1), strict=True):
            own.append(torch.cat([u, slope], -1)[(slope != 0).any(-1)])
    return found, losses.tolist()


def fit(backbone: Backbone, examples: Sequence[Example], settings: Settings, checkpoint: Path) -> dict[str, Any]:
    """Train the network, `steps` train edits one after the other in a drawn order; returns its weights."""
    maps, seed = edited_maps(backbone, settings.layers), settings.seed
    learnt = len(examples) - int(HELD_OUT * len(examples))
    mend = Mend(maps, settings).to(backbone.model.device)

    held: dict[int, list[torch.Tensor]] = {}  # the unedited model's gradients do not change while the network learns

    def factors_in(number: int) -> list[torch.Tensor]:
        if number in held:
            return held[number]
        example = examples[number]
        found = factors_of(backbone, [request_of(example.states, example.row)], maps)[0][0]
        if len(examples) * sum(part.numel() * part.element_size() for part in found) <= HELD:
            held[number] = found
        return found

    def loss_of(step: int) -> torch.Tensor:
        epoch, place = divmod(step, learnt)
        number = int(np.random.default_rng([seed, epoch]).permutation(learnt)[place])
        mend.watch(factors := factors_in(number))
        return outer_loss(
            backbone, examples[number], Edit(added=mend(maps, factors)), settings, np.random.default_rng([seed, step, 1])
        )

    def held_out() -> float:
        losses = []
        for place, example in enumerate(examples[learnt:]):
            factors = factors_in(learnt + place)
            with torch.no_grad():
                edit, rng = Edit(added=mend(maps, factors)), np.random.default_rng([seed, place, 2])
                losses.append(outer_loss(backbone, example, edit, settings, rng).item())
        return float(np.mean(losses))

    network = [p for name, p in mend.named_parameters() if name != "alpha"]
    groups = [{"params": network, "lr": settings.lr}, {"params": [mend.alpha], "lr": settings.lr_lr}]
    learn(mend, groups, loss_of, settings.steps, checkpoint, held_out if learnt < len(examples) else None)
    return dict(mend.state_dict())


def outer_loss(backbone: Backbone, example: Example, edit: Edit, settings: Settings, rng: np.random.Generator) -> torch.Tensor:
    """c_edit · (NLL of a rephrased question + of another picture) + c_loc · (KL on a text-only query + on one with a picture)."""
    states = example.states
    pictured = [kind for kind in LOCALITY_KINDS if kind not in ("text_only", "no_image")]
    draws = [
        [int(rng.choice(found)) for kinds in pair if (found := example.of(*kinds))]
        for pair in ((["text_generality"], ["image_generality"]), (["text_only"], pictured))
    ]
    reach, keep = draws
    logits = tail_logits(backbone, states, edit, states.target, reach)
    real, ids = (part[reach, : logits.shape[1]].to(logits.device) for part in (states.target.real, states.target.ids))
    nll = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view_as(real)
    edited = tail_logits(backbone, states, edit, states.same, keep).log_softmax(-1)
    with torch.no_grad():
        unedited = tail_logits(backbone, states, Edit(), states.same, keep).log_softmax(-1)
    apart = F.kl_div(edited, unedited, reduction="none", log_target=True).sum(-1)
    kept = states.same.real[keep, : apart.shape[1]].to(apart.device)
    return settings.c_edit * _per_query(nll, real) + settings.c_loc * _per_query(apart, kept)


def _per_query(values: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Sum over queries of the mean over their real positions, of values [B, A]."""
    return ((values * real).sum(1) / real.sum(1)).sum()


def edit(backbone: Backbone, request: Request, settings: Settings, fitted: Mapping[str, Any]) -> Edit:
    """One step along the network's gradient, from the weights that an earlier edit left where there is one."""
    return edit_batch(backbone, [request], [settings], fitted)[0]


def edit_batch(
    backbone: Backbone, requests: Sequence[Request], settings: Sequence[Settings], fitted: Mapping[str, Any]
) -> list[Edit]:
    """The edits of several requests, whose gradients are taken in one pass."""
    maps = edited_maps(backbone, settings[0].layers)
    mend = Mend(maps, settings[0]).to(backbone.model.device)
    mend.load_state_dict(fitted)
    factors, _ = factors_of(backbone, requests, maps)
    with torch.no_grad():
        found = []
        for request, own in zip(requests, factors, strict=True):
            before = request.start.added if request.start else {}
            added = mend(maps, own)
            found.append([added[one].delta + (before[one].delta if before else 0) for one in maps])
        whole = differences(maps, [torch.stack(parts) for parts in zip(*found, strict=True)])
        losses, leads = judge(backbone, Batch.of(requests, backbone.device), Edit(added=whole))
    return [
        Edit(added=differences(maps, deltas), steps=1, loss=loss, reached=lead > 0) if math.isfinite(loss) else DIVERGED
        for deltas, loss, lead in zip(found, losses.tolist(), leads.tolist(), strict=True)
    ]
