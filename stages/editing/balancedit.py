"""BalancEdit (Guo et al., ICML 2025, section 4): a fine-tuned copy of one layer behind a key with a balanced radius.

The transformation is a copy of the edited linear map's weight, fine-tuned on the edit alone. Key, samples and radius do not
depend on it: they are distances in the trace (`stages.editing.trace`), turned into an influence scope by
`stages.scoring.routing`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.backbone.vlm import Backbone
from stages.editing.editor import Edit, Request, exact_with_margin, optimise
from stages.editing.transform import Layer
from stages.params import count, entry, number


@dataclass(frozen=True)
class Settings:
    """Adam's learning rate, most steps, and by how many logits each target token must lead."""

    lr: float = entry(number(above=0), default=1e-3)
    steps: int = entry(count(1), default=50)
    margin: float = entry(number(0), default=0.1)


def edit(backbone: Backbone, request: Request, settings: Mapping[str, Any]) -> Edit:
    """Fine-tune a copy of the layer with Adam until the target is exact by `margin` logits, at most `steps` steps
    (section 4.3).
    """
    weight = backbone.weight.clone().requires_grad_()
    layer = Layer(weight, backbone.bias)
    stop = exact_with_margin(request.target[0], settings["margin"])
    found = optimise(backbone, request, Edit(layer), [weight], lr=settings["lr"], steps=settings["steps"], stop=stop)
    return Edit(layer, **found)
