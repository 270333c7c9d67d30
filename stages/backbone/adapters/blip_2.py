"""BLIP-2 (Li et al., 2023) over OPT or a LLaMA-like language model: 32 query tokens of the Q-Former a picture."""

from torch import nn

from stages.backbone.adapters.base import Adapter


class Architecture(Adapter):
    """The language model is a causal one inside `language_model`; encoder-decoder models are not edited here. The prompt is
    the one that the authors' code (LAVIS) evaluates VQA with.
    """

    template = "{image}{bos}Question: {question} Short answer:"
    image_delimiters = ("", "")
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
        """The last linear map of OPT's MLP, the up-projection of a gated one (design §2)."""
        return "fc2" if self._over_opt else "mlp.up_proj"

    @property
    def answer_prefix(self) -> str:
        return " " if self._over_opt else ""

    @property
    def _over_opt(self) -> bool:
        return self.model.config.text_config.model_type == "opt"
