"""LLaVA 1.5 (Liu et al., 2023) and the embedded LLaVAs, whose tower takes pictures through PIL alone."""

from collections.abc import Sequence

from PIL import Image

from stages.backbone.adapters.base import SHORTLY, Adapter, ImageFeatures
from stages.backbone.tower import EfficientNetLiteConfig, preprocess


class Architecture(Adapter):
    """One feature a patch. The prompt is the one that the paper evaluates short answers with."""

    towers = ("clip_vision_model", "siglip_vision_model", EfficientNetLiteConfig.model_type)  # Pixtral's breaks rows
    template = "{bos}USER: {image}{question}" + SHORTLY + " ASSISTANT:"

    def show(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[ImageFeatures]:
        vision = self.model.config.vision_config
        if not isinstance(vision, EfficientNetLiteConfig):
            return super().show(images, questions)
        pixels = self.enter(preprocess(images, vision.image_size))
        return [ImageFeatures(features.cpu()) for features in self.model.get_image_features(pixels).pooler_output]
