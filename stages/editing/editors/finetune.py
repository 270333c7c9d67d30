"""Fine-tuning on the edit alone, with no notion of scope: the constant companions of the editing literature.

`part` says what is tuned. `layer`: the edited linear map, which BalancEdit copies (FT). `last`: every linear map of the last
`layers` decoder layers (FT-L), and `connector`: every linear map between image features and language model (FT-V), as in MMEdit
(Cheng et al., EMNLP 2023, section 4.1: the last layer of the language model, or the vision block). Adam runs until the loss falls
below a threshold, as in EasyEdit. Nothing is written to the model: what is tuned is a difference added to each map's output.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from stages.backbone.vlm import Backbone
from stages.editing.edits import Edit, Request, differences, linear_maps, zero_difference
from stages.editing.optimise import optimise
from stages.params import UserError
from stages.sections import Hyper, count, entry, number, one_of

SEQUENTIAL = True  # an edit can go on from what another left


@dataclass(frozen=True)
class Settings(Hyper):
    """What is tuned, Adam's learning rate, most steps, and the loss below which they end."""

    part: str = entry(one_of("layer", "last", "connector"), default="layer")
    layers: int = entry(count(1), default=1)
    lr: float = entry(number(above=0), default=1e-3)
    steps: int = entry(count(1), default=50)
    loss: float = entry(number(above=0), default=1e-2)


def edit(backbone: Backbone, request: Request, settings: Settings) -> Edit:
    """Fine-tune with Adam until the loss is below `loss`, at most `steps` steps; the result is always on."""
    return edit_batch(backbone, [request], [settings])[0]


def edit_batch(backbone: Backbone, requests: Sequence[Request], settings: Sequence[Settings]) -> list[Edit]:
    """The edits of several requests, each with differences of its own. Those of the connector are made one after another: it is
    given pictures, of which a request may have none.
    """
    if settings[0].part == "connector" and len(requests) > 1:
        return [edit(backbone, *pair) for pair in zip(requests, settings, strict=True)]
    one, maps = settings[0], tuned(backbone, settings[0])
    before = [request.start.added if request.start else {} for request in requests]
    begun = [[added[part].delta if part in added else zero_difference(part) for part in maps] for added in before]
    return optimise(
        backbone, requests, lambda deltas: Edit(added=differences(maps, deltas)), begun,
        lr=one.lr, steps=one.steps, stop=lambda _lead, loss: loss < one.loss,
    )  # fmt: skip


def tuned(backbone: Backbone, settings: Settings) -> list[nn.Linear]:
    """The linear maps that `part` names."""
    if settings.part == "layer":
        return [backbone.edited]
    if settings.part == "last":
        layers = backbone.decoder.layers
        if settings.layers > len(layers):
            raise UserError(f"layers: {settings.layers} is not allowed; allowed: 1 to {len(layers)}, the decoder's layers")
        return linear_maps(layers[-settings.layers :])
    return linear_maps(next(m for name, m in backbone.model.named_modules() if name.endswith(backbone.adapter.connector)))
