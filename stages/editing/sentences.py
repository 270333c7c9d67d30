"""Sentence embeddings by all-MiniLM-L6-v2 (Reimers & Gurevych, EMNLP 2019; Wang et al., NeurIPS 2020): mean pooling."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoTokenizer

from stages.params import UserError

MINILM = Path("data/assets/minilm")
LONGEST = 256  # tokens, as the encoder was trained


@cache
def _opened(folder: Path) -> tuple[Any, Any]:
    if not (folder / "config.json").exists():
        raise UserError(f"sentence encoder: {folder} holds none; run the `assets` stage first")
    return AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()


@torch.no_grad()
def embed(texts: Sequence[str], folder: Path = MINILM, batch: int = 64) -> torch.Tensor:
    """Unit vectors [N, 384] of sentences."""
    tokenizer, model = _opened(folder)
    parts = []
    for start in range(0, len(texts), batch):
        inputs = tokenizer(
            list(texts[start : start + batch]), padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
        )
        states, real = model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
        parts.append(F.normalize((states * real).sum(1) / real.sum(1), dim=-1))
    return torch.cat(parts)
