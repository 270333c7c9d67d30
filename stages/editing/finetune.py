"""FT, the constant companion of the editing literature: fine-tune the same layer in place, with no notion of scope.

As in MMEdit and EasyEdit: Adam on the edit alone until its loss falls below a threshold (Cheng et al., EMNLP 2023, section 4.1).
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from stages.backbone.vlm import Backbone
from stages.editing.editor import Edit, Request, optimise


def edit(backbone: Backbone, request: Request, settings: Mapping[str, Any]) -> Edit:
    """Fine-tune the layer with Adam until the loss is below `loss`, at most `steps` steps; the result is always on."""
    weight = backbone.weight.clone().requires_grad_()
    bias = backbone.bias

    def output(inputs: torch.Tensor, _prompt: torch.Tensor) -> torch.Tensor:
        return F.linear(inputs, weight, bias)

    steps, loss, reached = optimise(
        backbone,
        request,
        weight,
        output,
        lr=settings["lr"],
        steps=settings["steps"],
        stop=lambda _logits, loss: loss < settings["loss"],
    )
    weight.requires_grad_(False)
    return Edit(output, steps, loss, reached)
