"""BalancEdit (Guo et al., ICML 2025, section 4): a fine-tuned copy of one layer behind a key with a balanced radius.

The transformation is a copy of the edited linear map's weight, fine-tuned on the edit alone. Key, samples and radius do not
depend on it: they are distances in the trace (`stages.editing.trace`), turned into an influence scope by
`stages.scoring.routing`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from stages.backbone.vlm import Backbone
from stages.editing.edits import Edit, Request
from stages.editing.optimise import Batch, judge, leads_by, optimise
from stages.editing.transform import Layer, compress, whole
from stages.sections import Hyper, count, entry, number

SEQUENTIAL = True  # an edit can go on from another, as in the released code, which has one copy for all


@dataclass(frozen=True)
class Settings(Hyper):
    """Adam's learning rate, most steps, by how many logits each target token must lead, and the least rank that is kept of the
    copy's difference (0: the whole copy).
    """

    lr: float = entry(number(above=0), default=1e-3)
    steps: int = entry(count(1), default=50)
    margin: float = entry(number(0), default=0.1)
    rank: int = entry(count(0), default=0)


def edit(backbone: Backbone, request: Request, settings: Settings) -> Edit:
    """Fine-tune a copy of the layer with Adam until the target is exact by `margin` logits, at most `steps` steps
    (section 4.3).
    """
    return edit_batch(backbone, [request], [settings])[0]


def edit_batch(backbone: Backbone, requests: Sequence[Request], settings: Sequence[Settings]) -> list[Edit]:
    """The edits of several requests, each with a copy of its own."""
    start, one = backbone.weight, settings[0]
    begun = [[start if request.start is None else whole(request.start.output, start)] for request in requests]
    found = optimise(
        backbone, requests, lambda copies: Edit(Layer(copies[0], backbone.bias)), begun,
        lr=one.lr, steps=one.steps, stop=leads_by(one.margin),
    )  # fmt: skip
    if not one.rank:
        return found
    return [compressed(backbone, *pair, one.rank) for pair in zip(requests, found, strict=True)]


@torch.no_grad()
def compressed(backbone: Backbone, request: Request, edit: Edit, rank: int) -> Edit:
    """The edit with a low-rank difference in place of its copy: of `rank`, doubled until the target is exact; unchanged where no
    rank below the full one is enough.
    """
    batch, full = Batch.of([request], backbone.device), min(backbone.weight.shape)
    while not edit.diverged and rank < full:
        kept = replace(edit, output=compress(edit.output.weight, backbone.weight, rank))
        losses, leads = judge(backbone, batch, kept)
        if leads.item() > 0:
            return replace(kept, loss=losses.item())
        rank *= 2
    return edit
