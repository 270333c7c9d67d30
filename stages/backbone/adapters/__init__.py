"""One module per architecture, named as Hugging Face's `model_type` (with _ for -); each defines one class, `Architecture`."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from stages.backbone.adapters.base import Adapter
from stages.params import UserError


def adapt(model: nn.Module, tokenizer: Any, process: Any = None, prompt: Mapping[str, Any] | None = None) -> Adapter:
    """The adapter of a loaded model; UserError names the architectures there are."""
    kind = model.config.model_type.replace("-", "_")
    known = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in ("__init__", "base"))
    if kind not in known:
        raise UserError(f"architecture: {kind!r} has no adapter; allowed: {', '.join(known)}")
    return importlib.import_module(f"stages.backbone.adapters.{kind}").Architecture(model, tokenizer, process, prompt)
