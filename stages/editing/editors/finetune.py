"""Fine-tuning on the edit alone, with no notion of scope: the constant companions of the editing literature.

`part` says what is tuned. `layer`: the edited linear map, which BalancEdit copies (FT). `last`: every linear map of the last
`layers` decoder layers (FT-L), and `connector`: every linear map between image features and language model (FT-V), as in MMEdit
(Cheng et al., EMNLP 2023, section 4.1: the last layer of the language model, or the vision block). Adam runs until the loss falls
below a threshold, as in EasyEdit. Nothing is written to the model: what is tuned is a difference added to each map's output.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stages.backbone.vlm import Backbone
from stages.editing.edits import Edit, Request, differences, linear_maps, zero_difference
from stages.editing.optimise import optimise
from stages.params import UserError
from stages.sections import count, entry, number, one_of

SEQUENTIAL = True  # an edit can go on from what another left


@dataclass(frozen=True)
class Settings:
    """What is tuned, Adam's learning rate, most steps, and the loss below which they end."""

    part: str = entry(one_of("layer", "last", "connector"), default="layer")
    layers: int = entry(count(1), default=1)
    lr: float = entry(number(above=0), default=1e-3)
    steps: int = entry(count(1), default=50)
    loss: float = entry(number(above=0), default=1e-2)


def edit(backbone: Backbone, request: Request, settings: Mapping[str, Any]) -> Edit:
    """Fine-tune with Adam until the loss is below `loss`, at most `steps` steps; the result is always on."""
    maps = tuned(backbone, settings)
    before = request.start.added if request.start else {}
    deltas = [(before[one].delta.clone() if one in before else zero_difference(one)).requires_grad_() for one in maps]
    added = differences(maps, deltas)

    def stop(_logits: torch.Tensor, loss: float) -> bool:
        return loss < settings["loss"]

    found = optimise(backbone, request, Edit(added=added), deltas, lr=settings["lr"], steps=settings["steps"], stop=stop)
    return Edit(added=added, **found)


def tuned(backbone: Backbone, settings: Mapping[str, Any]) -> list[nn.Linear]:
    """The linear maps that `part` names."""
    if settings["part"] == "layer":
        return [backbone.edited]
    if settings["part"] == "last":
        layers = backbone.decoder.layers
        if settings["layers"] > len(layers):
            raise UserError(f"layers: {settings['layers']} is not allowed; allowed: 1 to {len(layers)}, the decoder's layers")
        return linear_maps(layers[-settings["layers"] :])
    return linear_maps(next(m for name, m in backbone.model.named_modules() if name.endswith(backbone.adapter.connector)))
