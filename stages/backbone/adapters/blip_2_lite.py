"""The embedded BLIP-2, whose tower takes pictures through PIL alone."""

from collections.abc import Sequence

from PIL import Image

from stages.backbone.adapters import blip_2
from stages.backbone.adapters.base import ImageFeatures
from stages.backbone.tower import preprocess


class Architecture(blip_2.Architecture):
    """32 query tokens a picture."""

    def show(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[ImageFeatures]:
        pixels = self.enter(preprocess(images, self.model.config.vision_config.image_size))
        return [ImageFeatures(features.cpu()) for features in self.model.get_image_features(pixels).pooler_output]
