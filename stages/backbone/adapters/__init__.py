"""One module per architecture, named as Hugging Face's `model_type` (with _ for -); each defines one class, `Architecture`."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from stages.backbone.adapters.base import Adapter
from stages.params import UserError


def adapt(model: nn.Module, tokenizer: Any, process: Any = None, prompt: Mapping[str, Any] | None = None) -> Adapter:
    """The adapter of a loaded model; UserError names the architectures there are."""
    return architecture(model.config)(model, tokenizer, process, prompt)


def architecture(config: PretrainedConfig) -> type[Adapter]:
    """The adapter's class of a model with this configuration; UserError where there is none."""
    kind = config.model_type.replace("-", "_")
    known = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in ("__init__", "base"))
    if kind not in known:
        raise UserError(f"architecture: {kind!r} has no adapter; allowed: {', '.join(known)}")
    if config.text_config.is_encoder_decoder:
        raise UserError(f"architecture: {kind!r} over an encoder-decoder language model has no adapter; allowed: a decoder alone")
    found = importlib.import_module(f"stages.backbone.adapters.{kind}").Architecture
    tower = getattr(getattr(config, "vision_config", None), "model_type", None)
    if found.towers and tower not in found.towers:
        raise UserError(
            f"architecture: {kind!r} over the vision tower {tower!r} has no adapter; allowed: {', '.join(found.towers)}"
        )
    return found
