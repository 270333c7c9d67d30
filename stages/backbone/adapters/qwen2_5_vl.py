"""Qwen2.5-VL (Bai et al., 2025): Qwen2-VL with another vision tower."""

from stages.backbone.adapters import qwen2_vl


class Architecture(qwen2_vl.Architecture):
    """Prompts and positions are Qwen2-VL's."""
