"""GRACE (Hartvigsen et al., NeurIPS 2023, section 3): a learnt value stands in for a layer's output inside a fixed radius of
a key.

The key is the edited linear map's input at the last prompt token and the radius a constant (`methods.grace.key`,
`methods.grace.radius`). The value starts at random and is trained with Adam, as in the authors' code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from stages.backbone.vlm import Backbone
from stages.editing.edits import Edit, Request
from stages.editing.optimise import exact_with_margin, optimise
from stages.editing.transform import Value
from stages.sections import count, entry, number, one_of

STOCHASTIC = True  # an edit depends on the seed


@dataclass(frozen=True)
class Settings:
    """Adam's learning rate, most steps, the margin that ends them, and at which positions the value stands."""

    lr: float = entry(number(above=0), default=1.0)
    steps: int = entry(count(1), default=100)
    margin: float = entry(number(0), default=0.1)
    replace: str = entry(one_of("last", "prompt", "all"), default="all")


def edit(backbone: Backbone, request: Request, settings: Mapping[str, Any]) -> Edit:
    """Learn one value [out] that makes the target exact by `margin` logits, in at most `steps` steps."""
    generator = torch.Generator().manual_seed(settings["seed"])
    drawn = torch.rand(backbone.edited.out_features, generator=generator)
    start = drawn if request.start is None else request.start.output.value.clone()
    value = start.to(backbone.edited.weight.device).requires_grad_()
    output = Value(value, settings["replace"])
    stop = exact_with_margin(request.target[0], settings["margin"])
    found = optimise(backbone, request, Edit(output), [value], lr=settings["lr"], steps=settings["steps"], stop=stop)
    return Edit(output, **found)
