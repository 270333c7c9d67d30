"""LLaVA-OneVision (Li et al., 2024) over Qwen2: a base view and tiles of the picture at its own aspect ratio."""

from stages.backbone.adapters.base import SHORTLY, Adapter


class Architecture(Adapter):
    """As many features as the tiling of the picture gives."""

    template = "<|im_start|>user {image}{question}" + SHORTLY + "<|im_end|><|im_start|>assistant\n"
    end = "<|im_end|>"
