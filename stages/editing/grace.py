"""GRACE (Hartvigsen et al., NeurIPS 2023, section 3): a learnt value stands in for a layer's output inside a fixed radius of
a key.

The key is the edited linear map's input at the last prompt token and the radius a constant (`methods.grace.key`,
`methods.grace.radius`). The value starts at random and is trained with Adam, as in the authors' code. `replace` says at which
positions it stands: the `last` prompt token, the whole `prompt`, or `all` positions, answer included.
"""

from collections.abc import Mapping
from typing import Any

import torch

from stages.backbone.vlm import Backbone
from stages.editing.editor import Edit, Request, exact_with_margin, optimise


def edit(backbone: Backbone, request: Request, settings: Mapping[str, Any]) -> Edit:
    """Learn one value [out] that makes the target exact by `margin` logits, in at most `steps` steps."""
    generator = torch.Generator().manual_seed(settings["seed"])
    weight, bias = backbone.weight, backbone.bias
    value = torch.rand(backbone.edited.out_features, generator=generator).to(weight.device).requires_grad_()

    def output(inputs: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        kept = torch.nn.functional.linear(inputs, weight, bias)
        return torch.where(replaced(inputs, prompt, settings["replace"])[..., None], value, kept)

    stop = exact_with_margin(request.target[0], settings["margin"])
    steps, loss, reached = optimise(backbone, request, value, output, lr=settings["lr"], steps=settings["steps"], stop=stop)
    value.requires_grad_(False)
    return Edit(output, steps, loss, reached)


def replaced(inputs: torch.Tensor, prompt: torch.Tensor, where: str) -> torch.Tensor:
    """[B, T] bool: the positions of `inputs` [B, T, D] at which the value stands; prompts are left-padded, answers
    follow them.
    """
    spread = torch.zeros(inputs.shape[:2], dtype=torch.bool)
    width = prompt.shape[1]
    if where == "last":
        spread[:, width - 1] = True
    elif where == "prompt":
        spread[:, :width] = prompt
    else:
        spread[:] = True
    return spread.to(inputs.device)
