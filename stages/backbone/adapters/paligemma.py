"""PaliGemma (Beyer et al., 2024): a prefix language model, the prompt sees all of itself; positions count from 1."""

from collections.abc import Sequence

import torch

from stages.backbone.adapters.base import Adapter


class Architecture(Adapter):
    """The prompt attends in both directions, the answer causally."""

    template = "{image}<bos>answer en {question}\n"
    marks = ("", "")
    end = "<eos>"

    def positions(self, ids: torch.Tensor, mask: torch.Tensor, grids: Sequence[torch.Tensor | None]) -> torch.Tensor:
        return super().positions(ids, mask, grids) + 1

    def attention(self, mask: torch.Tensor, prompt: int) -> torch.Tensor:
        length = mask.shape[1]
        column = torch.arange(length, device=mask.device)
        seen = (column[None, :] <= column[:, None]) | (column < prompt)[None, :]
        seen = seen[None] & mask[:, None, :] | torch.eye(length, dtype=torch.bool, device=mask.device)
        dtype = self.model.dtype
        return torch.zeros(seen.shape, dtype=dtype, device=mask.device).masked_fill(~seen, torch.finfo(dtype).min)[:, None]
