"""The same model seen with another edited layer."""

import copy

from stages.backbone.vlm import Backbone
from stages.params import UserError


def seen_from(backbone: Backbone, layer: int, edited: int | None = None) -> Backbone:
    """The same model with the decoder layer `layer` edited, or with `edited` behind a trunk that ends where `layer` begins.

    Raises UserError for a layer that the decoder does not have.
    """
    for one in (layer, layer if edited is None else edited):
        if not 0 <= one < len(backbone.decoder.layers):
            raise UserError(f"layer: {one} is not a decoder layer; allowed: 0..{len(backbone.decoder.layers) - 1}")
    view = copy.copy(backbone)
    view.layer = layer
    view.edited = view.decoder.layers[layer if edited is None else edited].get_submodule(view.adapter.linear)
    view.fingerprint = f"{backbone.fingerprint.rpartition('-')[0]}-{layer}"
    return view
