"""PaliGemma (Beyer et al., 2024): a prefix language model, the prompt sees all of itself; positions count from 1."""

from collections.abc import Sequence

import torch

from stages.backbone.adapters.base import Adapter


class Architecture(Adapter):
    """The prompt attends in both directions, the answer causally. PaliGemma 2 bends its logits."""

    template = "{image}<bos>answer en {question}\n"
    image_delimiters = ("", "")
    end = "<eos>"

    @property
    def softcap(self) -> float | None:
        return getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)

    def positions(self, ids: torch.Tensor, mask: torch.Tensor, grids: Sequence[torch.Tensor | None]) -> torch.Tensor:
        return super().positions(ids, mask, grids) + 1

    def order(self, length: int, prompt: int, device: torch.device) -> torch.Tensor:
        return super().order(length, prompt, device) | (torch.arange(length, device=device) < prompt)[None, :]
