"""UltraEdit (Gu et al., 2025, arXiv 2505.14679): one closed-form step from the hidden states and gradients of an edit. Nothing is
trained, no subject is looked for, and no edit is stored.

At a position that predicts a token of the target, the input h of an edited linear map and the gradient v of the loss in the
map's output are one row [h; v]. Lifelong normalisation, the mean and the deviation of all rows so far, makes ĥ and v̂ of it. The
map's output at h shall move by −η·‖ĥ‖²·v̂, and the shift of the weight is the ridge regression of these moves on h, with λ = 1.
As in the released code, the edit's own rows are counted before they are normalised, and weights of one shape share their
statistics.

In a sequence an edit finds both the weights and the statistics in the one that it goes on from.

What differs from the paper:

- A turn is one edit here, and 100 in the paper. Alone, the two or three rows of an edit are normalised by their own mean, which
  takes out the direction that they have in common: the first edit would do next to nothing. So the statistics begin with the
  rows of the train edits, which the released code would have seen in a few turns. No more is learnt of them.
- Edited are the MLP's output maps of the last `layers` decoder layers, none below the edited layer, as the paper has it for
  Mistral (two). For other models it edits maps into the hidden layer too, of more and of lower layers.
- The picture's tokens are part of the prompt and have no rows of their own, as no prompt token has one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stages.backbone.vlm import Backbone
from stages.editing.editors.mend import Tap
from stages.editing.edits import DIVERGED, Difference, Edit, Request, differences, linear_maps, together, zero_difference
from stages.editing.fitting import Example
from stages.editing.optimise import NOISE, Batch, judge
from stages.editing.trunk import request_of
from stages.sections import Hyper, count, entry, number

SEQUENTIAL = True  # an edit can go on from what another left
PARTS = {"statistics": ("layers",)}  # what rows of the train edits are depends on the layers alone
OUTWARD = ("down_proj", "fc2")  # the MLP's map out of the hidden layer

Statistics = Mapping[str, "Normaliser"]  # of each shape of weight


@dataclass(frozen=True)
class Settings(Hyper):
    """How many last layers are edited, and the step size η."""

    layers: int = entry(count(1), default=2)
    lr: float = entry(number(above=0), default=1e-6)


@dataclass(frozen=True)
class Normaliser:
    """What is known of rows [h; v]: how many were `seen`, their mean [in + out] and their sum of squared deviations."""

    seen: float
    mean: torch.Tensor
    spread: torch.Tensor

    @classmethod
    def of(cls, rows: torch.Tensor) -> "Normaliser":
        """Of rows [T, in + out]."""
        return cls(float(len(rows)), rows.mean(0), (rows - rows.mean(0)).square().sum(0))

    def after(self, rows: torch.Tensor) -> "Normaliser":
        """With more rows [T, in + out] (Chan et al., 1979)."""
        new = Normaliser.of(rows)
        total, off = self.seen + new.seen, new.mean - self.mean
        spread = self.spread + new.spread + off.square() * self.seen * new.seen / total
        return Normaliser(total, self.mean + off * new.seen / total, spread)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows less the mean, in units of the deviation."""
        eps = torch.finfo(rows.dtype).eps
        return (rows - self.mean) / ((self.spread / max(self.seen - 1, 1)).sqrt() + eps)


@dataclass(frozen=True)
class Shifted(Difference):
    """A difference of a weight, and the statistics that the next edit goes on from."""

    seen: float
    mean: torch.Tensor
    spread: torch.Tensor


def edited_maps(backbone: Backbone, layers: int) -> list[nn.Linear]:
    """The MLPs' output maps of the last `layers` layers that are not below ℓ."""
    first = max(backbone.layer, len(backbone.decoder.layers) - layers)
    return [m for layer in backbone.decoder.layers[first:] for m in linear_maps(layer, *OUTWARD)]


def rows_of(
    backbone: Backbone, requests: Sequence[Request], maps: Sequence[nn.Linear]
) -> tuple[list[list[torch.Tensor]], list[float]]:
    """Of each request, each map's rows [A, in + out] of inputs h and output gradients v at the positions that predict the target;
    and the losses.
    """
    before = together([request.start or Edit() for request in requests], [1] * len(requests)).added
    taps, batch = {one: Tap(one.out_features, before.get(one)) for one in maps}, Batch.of(requests, backbone.device)
    losses, _ = judge(backbone, batch, Edit(added=taps))
    found: list[list[torch.Tensor]] = [[] for _ in requests]
    for tap, slopes in zip(taps.values(), torch.autograd.grad(losses.sum(), [tap.zero for tap in taps.values()]), strict=True):
        pair = [part.reshape(len(requests), -1, part.shape[-1])[:, -batch.real.shape[1] :] for part in (tap.inputs, slopes)]
        for own, rows, real in zip(found, torch.cat(pair, -1), batch.real, strict=True):
            own.append(rows[real])
    return found, losses.tolist()


def shape_of(one: nn.Linear) -> str:
    """The name of a weight's shape, whose rows are normalised together."""
    return f"{one.in_features}x{one.out_features}"


def watched(known: Statistics, maps: Sequence[nn.Linear], rows: Sequence[torch.Tensor]) -> Statistics:
    """The statistics with each map's rows."""
    found = dict(known)
    for one, some in zip(maps, rows, strict=True):
        name = shape_of(one)
        found[name] = found[name].after(some) if name in found else Normaliser.of(some)
    return found


def fit(
    backbone: Backbone, examples: Sequence[Example], settings: Settings, checkpoint: Path, part: str
) -> dict[str, dict[str, Any]]:
    """Nothing is trained: the statistics of the rows of all train edits, each of the unedited model."""
    maps, known = edited_maps(backbone, settings.layers), {}
    for example in examples:
        (rows,), _ = rows_of(backbone, [request_of(example.states, example.row)], maps)
        known = watched(known, maps, rows)
    return {name: vars(one) for name, one in known.items()}


def edit(backbone: Backbone, request: Request, settings: Settings, fitted: Mapping[str, Mapping[str, Any]]) -> Edit:
    """One step, from the weights and the statistics that an earlier edit left where there is one."""
    return edit_batch(backbone, [request], [settings], fitted)[0]


def edit_batch(
    backbone: Backbone,
    requests: Sequence[Request],
    settings: Sequence[Settings],
    fitted: Mapping[str, Mapping[str, Any]],
) -> list[Edit]:
    """The edits of several requests, whose gradients are taken in one pass."""
    lr, maps = settings[0].lr, edited_maps(backbone, settings[0].layers)
    begun = {name: Normaliser(**one) for name, one in fitted["statistics"].items()}
    rows, first = rows_of(backbone, requests, maps)
    with torch.no_grad():
        found = [shifted(maps, *pair, begun, lr) for pair in zip(requests, rows, strict=True)]
        whole = [torch.stack([own[i].delta for own in found]) for i in range(len(maps))]
        losses, leads = judge(backbone, Batch.of(requests, backbone.device), Edit(added=differences(maps, whole)))
    ended = zip(found, losses.tolist(), leads.tolist(), first, strict=True)
    return [
        Edit(added=dict(zip(maps, own, strict=True)), steps=1, loss=loss, reached=lead > 0)
        if math.isfinite(loss) and loss <= before * (1 + NOISE)
        else DIVERGED
        for own, loss, lead, before in ended
    ]


def shifted(
    maps: Sequence[nn.Linear], request: Request, rows: Sequence[torch.Tensor], begun: Statistics, lr: float
) -> list[Shifted]:
    """What an edit makes of each map, of its rows."""
    before = request.start.added if request.start else {}
    left = {shape_of(one): Normaliser(part.seen, part.mean, part.spread) for one, part in before.items()}
    known, found = watched(left or begun, maps, rows), []
    for one, some in zip(maps, rows, strict=True):
        delta = before[one].delta if before else zero_difference(one)
        normaliser = known[shape_of(one)]
        found.append(Shifted(delta + shift(some, normaliser, one.in_features, lr), **vars(normaliser)))
    return found


def shift(rows: torch.Tensor, normaliser: Normaliser, inner: int, lr: float) -> torch.Tensor:
    """The shift [out, in] of a weight, of its rows [A, in + out]: the ridge regression of the moves on the inputs, solved in the
    space of the A rows.
    """
    h = rows[:, :inner]
    hat, slopes = normaliser(rows).split([inner, rows.shape[1] - inner], -1)
    moves = -lr * hat.square().sum(-1, keepdim=True) * slopes
    return moves.T @ torch.linalg.solve(h @ h.T + torch.eye(len(h), device=h.device), h)
