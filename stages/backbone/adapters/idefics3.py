"""Idefics3 (Laurençon et al., 2024): one global view of the picture, between its delimiters."""

from collections.abc import Mapping
from typing import Any

from PIL import Image

from stages.backbone.adapters.base import Adapter
from stages.backbone.tower import flatten


class Architecture(Adapter):
    """Tiling is off: the global view alone, so that every picture has as many tokens."""

    template = "<|begin_of_text|>User:{image}{question}<end_of_utterance>\nAssistant:"
    image_delimiters = ("<fake_token_around_image><global-img>", "<fake_token_around_image>")
    answer_prefix = " "
    end = "<end_of_utterance>"
    connector = "connector"

    def inputs(self, image: Image.Image, question: str) -> Mapping[str, Any]:
        return self.process(images=flatten(image), return_tensors="pt", do_image_splitting=False)
