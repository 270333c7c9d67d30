"""SmolVLM (Marafioti et al., 2025): Idefics3 at a smaller scale, over SmolLM2."""

from stages.backbone.adapters import idefics3


class Architecture(idefics3.Architecture):
    """The prompt begins with SmolLM2's own token."""

    template = "<|im_start|>User:{image}{question}<end_of_utterance>\nAssistant:"
