"""BalancEdit (Guo et al., ICML 2025, section 4): a fine-tuned copy of one layer behind a key with a balanced radius.

The transformation is a copy of the edited linear map's weight, fine-tuned on the edit alone. Key, samples and radius do not
depend on it: they are distances in the trace (`stages.editing.trace`), turned into an influence scope by
`stages.metrics.routing`.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from stages.backbone.vlm import Backbone
from stages.editing.editor import Edit, Request, exact_with_margin, optimise


def edit(backbone: Backbone, request: Request, settings: Mapping[str, Any]) -> Edit:
    """Fine-tune a copy of the layer with Adam until the target is exact by `margin` logits, at most `steps` steps
    (section 4.3).
    """
    weight = backbone.weight.clone().requires_grad_()
    bias = backbone.bias

    def output(inputs: torch.Tensor, _prompt: torch.Tensor) -> torch.Tensor:
        return F.linear(inputs, weight, bias)

    stop = exact_with_margin(request.target[0], settings["margin"])
    steps, loss, reached = optimise(backbone, request, weight, output, lr=settings["lr"], steps=settings["steps"], stop=stop)
    weight.requires_grad_(False)
    return Edit(output, steps, loss, reached)
