"""Qwen2-VL (Wang et al., 2024): features at the picture's own resolution, positions in time, height and width."""

from collections.abc import Sequence

import torch

from stages.backbone.adapters.base import SHORTLY, Adapter


class Architecture(Adapter):
    """Three position axes; they agree on text."""

    template = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{image}{question}"
        + SHORTLY
        + "<|im_end|>\n<|im_start|>assistant\n"
    )
    image_delimiters = ("<|vision_start|>", "<|vision_end|>")
    end = "<|im_end|>"
    connector = "visual.merger"

    def positions(self, ids: torch.Tensor, mask: torch.Tensor, grids: Sequence[torch.Tensor | None]) -> torch.Tensor:
        given = [grid for grid in grids if grid is not None]
        kinds = (ids == self.image_id).int() * mask
        grid = torch.cat(given) if given else None
        return self.model.model.get_rope_index(ids, kinds, image_grid_thw=grid, attention_mask=mask.long())[0]
