"""`LlavaForConditionalGeneration`: the tower's 16 feature tokens through a two-layer projector into SmolLM2.

The projector starts as the closed-form ridge map from a picture's features onto the embedding of its name (design §5).
"""

from pathlib import Path

import torch
from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedTokenizerBase

from stages.backbone.parts import IMAGE_TOKEN, fill_tower, language_model
from stages.backbone.tower import EfficientNetLiteConfig, EfficientNetLiteTower

LAYERS = 30  # of SmolLM2's decoder
CONNECTOR = ("model.multi_modal_projector.",)  # where the connector's parameters are in the model
SHIFT = 3.0  # GELU(x + 3) is all but linear for |x| < 2: the two-layer projector starts as one linear map


def build(assets: Path) -> tuple[LlavaForConditionalGeneration, PreTrainedTokenizerBase]:
    """The untrained model in float32 and its tokenizer, from `data/assets`."""
    language, text, tokenizer = language_model(assets)
    vision = EfficientNetLiteConfig()
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=vision.grid**2,
        projector_hidden_act="gelu",
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    fill_tower(tower(model), assets)
    for parameter in model.model.multi_modal_projector.parameters():
        torch.nn.init.zeros_(parameter)
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = tokenizer.eos_token_id
    return model.eval(), tokenizer


def tower(model: LlavaForConditionalGeneration) -> EfficientNetLiteTower:
    """The vision tower inside the model."""
    return model.model.vision_tower


def connect(model: LlavaForConditionalGeneration, features: torch.Tensor) -> torch.Tensor:
    """Feature tokens [B, 16, 1280] → what the language model reads [B, 16, D]."""
    return model.model.multi_modal_projector(features)


@torch.no_grad()
def start(model: LlavaForConditionalGeneration, wanted: torch.Tensor, bank: torch.Tensor, seed: int) -> None:
    """Set the projector to the ridge map from the pooled features of a `feature_bank` onto the mean of the `wanted` tokens
    [C, tokens, D].
    """
    pooled = bank.float().mean(3).flatten(0, 2)
    ridge(model.model.multi_modal_projector, pooled, wanted.mean(1).repeat(len(pooled) // len(wanted), 1))


@torch.no_grad()
def ridge(projector: nn.Module, pooled: torch.Tensor, names: torch.Tensor, penalty: float = 1000.0) -> None:
    """Set `projector` to the ridge map from `pooled` [n, channels] onto `names` [n, width], rescaled to the names' norm."""
    mean, scale = pooled.mean(0), pooled.std(0) + 1e-6
    x, y = (pooled - mean) / scale, names - names.mean(0)
    gram = x.T @ x + penalty * torch.eye(x.shape[1])
    weight = torch.linalg.solve(gram, x.T @ y)
    weight = weight * (y.norm(dim=1).mean() / (x @ weight).norm(dim=1).mean())
    gain = 0.5 / (x @ weight).std()
    projector.linear_1.weight.copy_((weight / scale[:, None]).T * gain)
    projector.linear_1.bias.copy_(SHIFT - gain * (mean / scale) @ weight)
    projector.linear_2.weight.copy_(torch.eye(len(weight.T)) / gain)
    projector.linear_2.bias.copy_(names.mean(0) - SHIFT / gain)
