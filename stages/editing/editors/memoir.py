"""MEMOIR (Wang et al., 2025, arXiv 2506.07899): a residual memory beside one MLP output map, of which each edit has its own
columns.

The memory is a weight that is zero at first, and its outputs are added to the map's. TopHash gives every prompt a mask: the
inputs of the map, a mean over the prompt less what it is on average, are ranked by size, and a fixed random permutation sends
the `share` that is largest to the inputs that the memory may read. An edit trains the memory through its own mask, so that it
changes no other column. A query's mask is compared with the edits': the nearest one, by the share of columns they have in
common, is the one that the memory reads through, and from a threshold on that share on it is added at all (the released code:
0.4).

The training is the released code's: plain gradient steps on the edit's loss, the gradient within a norm of 1.

In a sequence all edits train one memory, each from what the one before left of it, and the permutation stays the same.

What differs from the paper:

- It trains on ten copies of the edit behind random words as well. Here the edit alone is asked, as of all other editors that
  have no such copies. Its early stop and its weight decay of 1e-5, which would wear off earlier edits' columns too, are left
  out.
- What a prompt is on average is taken from the train edits' own queries where it takes 100 irrelevant ones: here every prompt
  has a picture, and the mean over a prompt is mostly the picture's.
- The mask is a share of the inputs, because the map has another width: 4,096 of 14,336 in the paper.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from stages.backbone.vlm import Backbone, Query, mean_over
from stages.editing.editors.wise import activations, value_map
from stages.editing.edits import DIVERGED, Edit, Request, linear, zero_difference
from stages.editing.fitting import Example
from stages.editing.optimise import NOISE, Batch, judge, remembering
from stages.editing.trunk import request_of
from stages.sections import Hyper, count, entry, number

STOCHASTIC = True  # the permutation depends on the seed
SEQUENTIAL = True  # an edit can go on from what another left
ROUTES = True  # its edits have `scores`
PARTS = {"hash": ()}  # what is known before the first edit depends on the seed alone
CLIP = 1.0  # norm of an edit's gradient


@dataclass(frozen=True)
class Settings(Hyper):
    """The share of the inputs that a mask keeps, and gradient descent's rate and steps."""

    share: float = entry(number(above=0, high=1), default=2 / 7)
    lr: float = entry(number(above=0), default=1.0)
    steps: int = entry(count(1), default=30)


@dataclass(frozen=True)
class Sparse:
    """What the memory adds to the map's outputs: its weight `delta` [out, in] times the inputs that `kept` [in] has, or one of
    each a row.
    """

    delta: torch.Tensor
    kept: torch.Tensor

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.kept.dim() == 1:
            return linear(inputs * self.kept, self.delta)
        rows = inputs.reshape(len(self.kept), -1, inputs.shape[-1]) * self.kept[:, None]
        return linear(rows.reshape(inputs.shape), self.delta)


@dataclass(frozen=True)
class Router:
    """TopHash, and the masks `kept` [N, in] of the edits that were made so far."""

    backbone: Backbone
    average: torch.Tensor  # [in]
    permutation: torch.Tensor  # [in]
    kept: torch.Tensor

    def masks(self, hidden: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """[B, in]: the masks of prompts, from the states [B, P, D] that enter layer ℓ; each keeps as many as an edit's."""
        size = int(self.kept[0].sum())
        return top_hash(prompts_of(self.backbone, hidden, mask, positions) - self.average, self.permutation, size)

    def shares(self, masks: torch.Tensor) -> torch.Tensor:
        """[B, N]: how much of its columns a mask [B, in] has in common with those of each edit."""
        return masks.float() @ self.kept.float().T / self.kept[0].sum()

    def __call__(
        self, _queries: Sequence[Query], hidden: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """[B]: the share that each query has in common with the nearest edit."""
        return self.shares(self.masks(hidden, mask, positions)).amax(1).cpu()


@dataclass(frozen=True)
class Memory:
    """The edit as each edit that is in it has it: with that edit's mask. What is asked twice is read once in a sequence."""

    edit: Edit
    asked: dict[Query, torch.Tensor] = field(default_factory=dict)  # masks of queries
    each: dict[int, Edit] = field(default_factory=dict)

    def __call__(self, query: Query) -> Edit:
        """The edit whose mask is nearest, the latest of equal ones."""
        router: Router = self.edit.scores
        if query not in self.asked:
            trunk = router.backbone.prefill(router.backbone.prompts([query]))
            self.asked[query] = router.masks(trunk.hidden, trunk.prompts.mask, trunk.prompts.positions)
        shares = router.shares(self.asked[query])[0]
        number = int((shares == shares.max()).nonzero()[-1])
        if number not in self.each:
            ((value, whole),) = self.edit.added.items()
            self.each[number] = replace(self.edit, added={value: Sparse(whole.delta, router.kept[number])})
        return self.each[number]


def prompts_of(backbone: Backbone, hidden: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """[B, in]: the map's inputs, a mean over each prompt."""
    inputs = activations(backbone, hidden, mask, positions)
    return mean_over(inputs, mask.to(inputs.device))


def top_hash(features: torch.Tensor, permutation: torch.Tensor, size: int) -> torch.Tensor:
    """[B, in] bool: where the permutation [in] sends the `size` features [B, in] that are largest in absolute value."""
    places = permutation[features.abs().topk(size).indices]
    return torch.zeros_like(features, dtype=torch.bool).scatter_(-1, places, True)


def fit(
    backbone: Backbone, examples: Sequence[Example], settings: Settings, checkpoint: Path, part: str
) -> dict[str, torch.Tensor]:
    """Nothing is trained: what the train edits' own prompts are on average, and the permutation, both [in]."""
    found = []
    for example in examples:
        request = request_of(example.states, example.row)
        hidden = request.hidden[:, : request.prompt.shape[1]]
        found.append(prompts_of(backbone, hidden, request.prompt, request.positions)[0])
    average, generator = torch.stack(found).mean(0), torch.Generator().manual_seed(settings.seed)
    return {"average": average, "permutation": torch.randperm(len(average), generator=generator).to(average.device)}


def edit(backbone: Backbone, request: Request, settings: Settings, fitted: Mapping[str, Any]) -> Edit:
    """Train the columns of the edit's mask, in a new memory or in the one that an earlier edit left."""
    return edit_batch(backbone, [request], [settings], fitted)[0]


def edit_batch(
    backbone: Backbone, requests: Sequence[Request], settings: Sequence[Settings], fitted: Mapping[str, Any]
) -> list[Edit]:
    """The edits of several requests, each with a memory and a mask of its own."""
    one, value, batch = settings[0], value_map(backbone), Batch.of(requests, backbone.device)
    known = fitted["hash"]
    features = prompts_of(backbone, batch.hidden[:, : batch.prompt.shape[1]], batch.prompt, batch.positions)
    size = max(1, round(one.share * value.in_features))
    kept = top_hash(features - known["average"], known["permutation"], size)
    begun = [request.start.added[value].delta if request.start else zero_difference(value) for request in requests]
    deltas, first = torch.stack(begun).requires_grad_(), None
    memory = Edit(added={value: Sparse(deltas, kept)})
    with remembering(backbone, memory):
        for step in range(one.steps + 1):
            losses, leads = judge(backbone, batch, memory)
            first = losses.tolist() if first is None else first
            if step == one.steps:
                break
            (gradient,) = torch.autograd.grad(losses.sum(), [deltas])
            norms = gradient.flatten(1).norm(dim=1).clamp(min=CLIP) / CLIP
            with torch.no_grad():
                deltas -= one.lr * gradient / norms[:, None, None]
    found = []
    for i, (loss, lead, before) in enumerate(zip(losses.tolist(), leads.tolist(), first, strict=True)):
        start = requests[i].start
        masks = torch.cat([start.scores.kept, kept[i : i + 1]]) if start else kept[i : i + 1]
        router = Router(backbone, known["average"], known["permutation"], masks)
        added = {value: Sparse(deltas[i].detach().clone(), masks[-1])}
        made = Edit(added=added, scores=router, steps=step, loss=loss, reached=lead > 0)
        made = replace(made, recall=Memory(made, start.recall.asked if start else {}))
        found.append(made if math.isfinite(loss) and loss <= before * (1 + NOISE) else DIVERGED)
    return found
