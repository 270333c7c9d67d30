"""GRACE (Hartvigsen et al., NeurIPS 2023, section 3): a learnt value stands in for a layer's output inside a fixed radius of
a key.

The key is the edited linear map's input at the last prompt token and the radius a constant (`methods.grace.key`,
`methods.grace.radius`). The value starts at random and is trained with Adam, as in the authors' code.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stages.backbone.vlm import Backbone
from stages.editing.edits import Edit, Request
from stages.editing.optimise import leads_by, optimise
from stages.editing.transform import Value
from stages.sections import Hyper, count, entry, number, one_of

STOCHASTIC = True  # an edit depends on the seed


@dataclass(frozen=True)
class Settings(Hyper):
    """Adam's learning rate, most steps, the margin that ends them, and at which positions the value stands."""

    lr: float = entry(number(above=0), default=1.0)
    steps: int = entry(count(1), default=100)
    margin: float = entry(number(0), default=0.1)
    replace: str = entry(one_of("last", "prompt", "all"), default="prompt")


def edit(backbone: Backbone, request: Request, settings: Settings) -> Edit:
    """Learn one value [out] that makes the target exact by `margin` logits, in at most `steps` steps."""
    return edit_batch(backbone, [request], [settings])[0]


def edit_batch(backbone: Backbone, requests: Sequence[Request], settings: Sequence[Settings]) -> list[Edit]:
    """The edits of several requests, each with a value of its own."""
    one, begun = settings[0], [[start(backbone, *pair)] for pair in zip(requests, settings, strict=True)]
    return optimise(
        backbone, requests, lambda values: Edit(Value(values[0], one.replace)), begun,
        lr=one.lr, steps=one.steps, stop=leads_by(one.margin),
    )  # fmt: skip


def start(backbone: Backbone, request: Request, settings: Settings) -> torch.Tensor:
    """The value [out] that training starts from: that of an earlier edit, or a random one."""
    if request.start is not None:
        return request.start.output.value
    generator = torch.Generator().manual_seed(settings.seed)
    return torch.rand(backbone.edited.out_features, generator=generator).to(backbone.edited.weight.device)
