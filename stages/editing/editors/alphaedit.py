"""AlphaEdit (Fang et al., ICLR 2025, arXiv 2410.02355): a closed-form update of one weight, projected onto the null space of keys
whose values must stay as they are.

The weight is that of the MLP's output map, its input is a key and its output a value. First, as in the locate-then-edit methods
that it is built on, a value is sought that makes the model answer the target: a move r of the output, found by Adam, that stays
within a share of the residual stream's norm. Then, with K the edit's keys, R its moves, K_p the keys of earlier edits and P the
projector, the weight changes by R·Kᵀ·P·(K_p·K_pᵀ·P + K·Kᵀ·P + λ·I)⁻¹ (section 3, where λ is 1; the released code has 10). P is
U·Uᵀ, where U are the eigenvectors of the mean k₀·k₀ᵀ of preserved keys k₀ whose eigenvalues lie below a threshold (section 3;
2e-2 in code).

In a sequence K_p are the keys of all edits so far, which an edit finds in the one that it goes on from.

What differs from the paper:

- Preserved keys are those of train edits' queries under the unedited model, at every position of prompt and own answer: tokens
  of text and of pictures, what a query that no edit is about looks like here. The paper takes them from Wikipedia, where there
  is no picture.
- There is no subject, whose last token is the key in the paper: what is edited is about a picture. Keys are the positions that
  predict the target's tokens, each with a move of its own. So the divergence on "{subject} is a" is left out, and with it the
  random words that stand before the subject.
- One layer changes, the edited one, where the paper spreads moves over five: no layer below it can be edited here. The norm that
  bounds a move is that of the states which enter the layer, not of those which leave it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from stages.backbone.vlm import Backbone
from stages.editing.editors.wise import activations, value_map
from stages.editing.edits import DIVERGED, Added, Difference, Edit, Request, differences, zero_difference
from stages.editing.fitting import Example
from stages.editing.optimise import NOISE, Batch, judge, remembering
from stages.editing.trunk import States, answer_hidden
from stages.sections import Hyper, count, entry, number

SEQUENTIAL = True  # an edit can go on from what another left
PARTS = {"preserved": ()}  # the preserved keys depend on no setting
ENOUGH = 0.05  # a loss below which moves are not sought any further


@dataclass(frozen=True)
class Settings(Hyper):
    """The eigenvalue from which on a direction is preserved, λ, and how moves are sought: Adam's rate and most steps, the weight
    of their norm in the loss, and the share of the residual stream's norm that they stay within.
    """

    preserve: float = entry(number(above=0), default=2e-2)
    ridge: float = entry(number(above=0), default=10.0)
    lr: float = entry(number(above=0), default=0.1)
    steps: int = entry(count(1), default=25)
    decay: float = entry(number(0), default=0.5)
    clamp: float = entry(number(above=0), default=0.75)


@dataclass(frozen=True)
class Moved:
    """What is added to a map's outputs: `moves` [B, A, out] at the last A positions, and what an earlier edit adds."""

    moves: torch.Tensor
    before: Added | None

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        rows, places, _ = self.moves.shape
        positions = inputs.numel() // (rows * inputs.shape[-1])  # OPT flattens batch and positions
        moves = F.pad(self.moves, (0, 0, positions - places, 0)).reshape(*inputs.shape[:-1], -1)
        return moves if self.before is None else self.before(inputs) + moves


@dataclass(frozen=True)
class Projected(Difference):
    """A difference of a weight, and the keys [N, in] of the edits that it is made of."""

    keys: torch.Tensor


def fit(
    backbone: Backbone, examples: Sequence[Example], settings: Settings, checkpoint: Path, part: str
) -> dict[str, torch.Tensor]:
    """Nothing is trained: eigenvalues [in], ascending, and eigenvectors [in, in] of the mean k₀·k₀ᵀ of the preserved keys."""
    total, seen = 0.0, 0
    for example in examples:
        keys = preserved(backbone, example.states)
        total, seen = total + (keys.T @ keys).double(), seen + len(keys)
    values, vectors = torch.linalg.eigh(total / seen)
    return {"values": values.float(), "vectors": vectors.float()}


def preserved(backbone: Backbone, states: States) -> torch.Tensor:
    """The keys [T, in] of some queries at all positions of their prompts, and of the unedited model's answers."""
    rows = list(range(len(states.hidden)))
    answers = states.same.real[:, 1:]
    hidden = torch.cat([states.hidden, answer_hidden(states, states.same, rows)], 1)
    mask = torch.cat([states.mask, answers], 1)
    keys = activations(backbone, hidden, mask, states.positions)
    return keys[mask.to(keys.device)]


def edit(backbone: Backbone, request: Request, settings: Settings, fitted: Mapping[str, Any]) -> Edit:
    """Seek the moves, and write them into the weight that an earlier edit left, where there is one."""
    return edit_batch(backbone, [request], [settings], fitted)[0]


def edit_batch(
    backbone: Backbone, requests: Sequence[Request], settings: Sequence[Settings], fitted: Mapping[str, Any]
) -> list[Edit]:
    """The edits of several requests, whose moves are sought side by side."""
    one, value, batch = settings[0], value_map(backbone), Batch.of(requests, backbone.device)
    moves, steps, first = sought(backbone, batch, one)
    keys = activations(backbone, batch.hidden, batch.mask, batch.positions)[:, -batch.real.shape[1] :]
    null = fitted["preserved"]["vectors"][:, fitted["preserved"]["values"] < one.preserve]
    found = []
    for request, real, own, wanted in zip(requests, batch.real, keys, moves, strict=True):
        before = request.start.added[value] if request.start else Projected(zero_difference(value), own[:0])
        delta = before.delta + update(before.keys, own[real], wanted[real], null, one.ridge)
        found.append(Projected(delta, torch.cat([before.keys, own[real]])))
    with torch.no_grad():
        whole = differences([value], [torch.stack([part.delta for part in found])])
        losses, leads = judge(backbone, batch, Edit(added=whole))
    ended = zip(found, steps, losses.tolist(), leads.tolist(), first, strict=True)
    return [
        Edit(added={value: part}, steps=taken, loss=loss, reached=lead > 0)
        if math.isfinite(loss) and loss <= begun * (1 + NOISE)
        else DIVERGED
        for part, taken, loss, lead, begun in ended
    ]


def sought(backbone: Backbone, batch: Batch, settings: Settings) -> tuple[torch.Tensor, list[int], list[float]]:
    """Moves [B, A, out] of the map's outputs under which each row answers its target, how many steps that took, and the losses
    without any.
    """
    value, places = value_map(backbone), batch.real.shape[1]
    left = [request.start.added[value].delta if request.start else zero_difference(value) for request in batch.requests]
    before = Difference(torch.stack(left)) if any(request.start for request in batch.requests) else None
    real = batch.real[..., None]
    norms = batch.hidden[:, -places:].float().norm(dim=-1, keepdim=True).masked_fill(~real, 1)
    moves = torch.zeros(len(left), places, value.out_features, device=norms.device, requires_grad=True)
    ended, steps, first = torch.zeros_like(moves), [settings.steps] * len(left), []
    optimiser, edit = torch.optim.Adam([moves], lr=settings.lr), Edit(added={value: Moved(moves, before)})
    with remembering(backbone, edit):
        for step in range(settings.steps + 1):
            losses, _ = judge(backbone, batch, edit)
            first = first or losses.tolist()
            share = (moves.square().sum(-1, keepdim=True) + 1e-12).sqrt() / norms.square()  # its gradient at 0 is finite
            whole = losses + settings.decay * (share * real).sum((1, 2)) / real.sum((1, 2))
            for row, loss in enumerate(whole.tolist()):
                if steps[row] == settings.steps and (loss < ENOUGH or step == settings.steps):
                    steps[row], ended[row] = step, moves.detach()[row]
            if step == settings.steps or max(steps) < settings.steps:
                break
            (moves.grad,) = torch.autograd.grad(whole.sum(), [moves])
            optimiser.step()
            with torch.no_grad():
                moves *= (settings.clamp * norms / moves.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
    return ended, steps, first


def update(before: torch.Tensor, keys: torch.Tensor, moves: torch.Tensor, null: torch.Tensor, ridge: float) -> torch.Tensor:
    """The change [out, in] of a weight by `moves` [A, out] at `keys` [A, in], in the space that the columns of `null` [in, n]
    span, beside the keys `before` [N, in] of earlier edits. It is solved in the space of the N + A keys.
    """
    every = torch.cat([before, keys])
    inside = every @ null  # [N + A, n]
    wanted = torch.cat([moves.new_zeros(len(before), moves.shape[1]), moves])
    weights = torch.linalg.solve(inside @ inside.T + ridge * torch.eye(len(every), device=every.device), wanted)
    return weights.T @ inside @ null.T
