"""BLIP-2 (Li et al., 2023) over OPT or a LLaMA-like language model: 32 query tokens of the Q-Former a picture."""

from torch import nn

from stages.backbone.adapters.base import Adapter


class Architecture(Adapter):
    """The language model is a causal one inside `language_model`; encoder-decoder models are not edited here."""

    template = "{image}Question: {question} Answer:"
    marks = ("", "")
    connector = "language_projection"

    @property
    def decoder(self) -> nn.Module:
        inner = self.model.language_model.model
        return getattr(inner, "decoder", inner)

    @property
    def head(self) -> nn.Module:
        return self.model.language_model.lm_head

    @property
    def linear(self) -> str:
        return "fc2" if self.model.config.text_config.model_type == "opt" else "mlp.up_proj"
