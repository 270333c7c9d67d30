"""BalancEdit (Guo et al., ICML 2025, section 4): a fine-tuned copy of one layer behind a key with a balanced radius.

The transformation is a copy of the edited linear map's weight, fine-tuned on the edit alone. Key, samples and radius do not
depend on it: they are distances in the trace (`stages.editing.trace`), turned into an influence scope by
`stages.scoring.routing`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from stages.backbone.vlm import Backbone
from stages.editing.edits import Edit, Request
from stages.editing.optimise import exact_with_margin, optimise, request_loss
from stages.editing.transform import Layer, compress, whole
from stages.sections import count, entry, number

SEQUENTIAL = True  # an edit can go on from another, as in the released code, which has one copy for all


@dataclass(frozen=True)
class Settings:
    """Adam's learning rate, most steps, by how many logits each target token must lead, and the least rank that is kept of the
    copy's difference (0: the whole copy).
    """

    lr: float = entry(number(above=0), default=1e-3)
    steps: int = entry(count(1), default=50)
    margin: float = entry(number(0), default=0.1)
    rank: int = entry(count(0), default=0)


def edit(backbone: Backbone, request: Request, settings: Mapping[str, Any]) -> Edit:
    """Fine-tune a copy of the layer with Adam until the target is exact by `margin` logits, at most `steps` steps
    (section 4.3).
    """
    weight = (backbone.weight if request.start is None else whole(request.start.output, backbone.weight)).clone().requires_grad_()
    layer = Layer(weight, backbone.bias)
    stop = exact_with_margin(request.target[0], settings["margin"])
    found = optimise(backbone, request, Edit(layer), [weight], lr=settings["lr"], steps=settings["steps"], stop=stop)
    edit = Edit(layer, **found)
    return compressed(backbone, request, edit, settings["rank"]) if settings["rank"] else edit


@torch.no_grad()
def compressed(backbone: Backbone, request: Request, edit: Edit, rank: int) -> Edit:
    """The edit with a low-rank difference in place of its copy: of `rank`, doubled until the target is exact; unchanged where no
    rank below the full one is enough.
    """
    target, full = request.target[0], min(backbone.weight.shape)
    while rank < full:
        kept = replace(edit, output=compress(edit.output.weight, backbone.weight, rank))
        loss, logits = request_loss(backbone, request, kept)
        if (logits.argmax(-1) == target).all():
            return replace(kept, loss=loss.item())
        rank *= 2
    return edit
