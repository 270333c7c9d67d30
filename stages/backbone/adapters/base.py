"""What an architecture of Hugging Face's image-text models must say of itself to be edited.

The defaults fit most: a decoder with `layers`, a gated MLP whose `up_proj` is edited, image features that replace placeholder
tokens one for one, causal attention and one position a token. An architecture overrides what differs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor, PretrainedConfig

from stages.backbone.tower import flatten
from stages.params import UserError

PROMPT = ("template", "image_delimiters", "answer_prefix", "end")  # what a checkpoint's prompt.json may say
FORMERLY = {"marks": "image_delimiters", "lead": "answer_prefix"}  # names that it may have from earlier versions
SHORTLY = "\nAnswer the question using a single word or phrase."  # of LLaVA 1.5 (Liu et al., 2023, table 7), as others ask too


@dataclass(frozen=True)
class ImageFeatures:
    """A picture as the language model receives it: `features` [tokens, D], and its patch grid where positions need one."""

    features: torch.Tensor
    grid: torch.Tensor | None = None


class Adapter:
    """One loaded model seen through its architecture.

    `template` holds `{image}` and `{question}`, and `{bos}` where the tokenizer's first token stands. `image_delimiters` stand
    before and after a picture's placeholder tokens, and only where there is one. `answer_prefix` stands before an answer: a space
    where the tokenizer makes none. `end` is the token that ends an answer. `linear` is the path of the edited linear map in a
    decoder layer: the last layer where none is asked for. `connector` is how the name of the part that maps image features to the
    language model's embeddings ends. `reads_question` says whether image features depend on the question.
    """

    template = "{bos}USER: {image}{question} ASSISTANT:"
    image_delimiters = ("", "\n")
    answer_prefix = ""
    end: str | None = None
    linear = "mlp.up_proj"
    connector = "multi_modal_projector"
    reads_question = False
    towers: tuple[str, ...] = ()  # the `model_type` of vision towers that it knows, any where none is named

    def __init__(self, model: nn.Module, tokenizer: Any, process: Any = None, prompt: Mapping[str, Any] | None = None):
        """`process` makes pixel inputs of a picture; `prompt` overrides `template`, `image_delimiters`, `answer_prefix` or
        `end`.
        """
        self.model, self.tokenizer, self.process = model, tokenizer, process
        for name, value in (prompt or {}).items():
            setattr(self, FORMERLY.get(name, name), value)
        self.template = self.template.replace("{bos}", tokenizer.bos_token or "")
        self.end = self.end or self._ends() or tokenizer.eos_token
        self.image_token = tokenizer.convert_ids_to_tokens(self.image_id)

    def _ends(self) -> str | None:
        """The first token that the model's own generation ends at: BLIP-2 over OPT ends at a line break."""
        told = self.model.generation_config.eos_token_id if self.model.generation_config else None
        first = told[0] if isinstance(told, list) else told
        return None if first is None else self.tokenizer.convert_ids_to_tokens(first)

    def fits(self, positions: int) -> None:
        """UserError where so many positions are more than a layer with a sliding window attends to."""
        config = self.decoder.config
        sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ())
        if sliding and positions > config.sliding_window:
            raise UserError(f"prompt: {positions} positions; allowed: {config.sliding_window}, the model's sliding window")

    @property
    def softcap(self) -> float | None:
        """Logits are bent to lie within this number of 0, None where they stay as they are."""
        return None

    @property
    def image_id(self) -> int:
        """The placeholder token of one image feature."""
        return self.model.config.image_token_id

    @property
    def decoder(self) -> nn.Module:
        """The stack of decoder layers, with its final norm."""
        return self.model.get_decoder()

    @property
    def head(self) -> nn.Module:
        """Hidden states to logits."""
        return self.model.get_output_embeddings()

    @property
    def embed(self) -> nn.Module:
        """Token ids to embeddings."""
        return self.decoder.get_input_embeddings()

    @staticmethod
    def last_layer(config: PretrainedConfig) -> int:
        """The decoder layer that is edited where none is asked for: the last (design §2)."""
        return config.get_text_config().num_hidden_layers - 1

    @staticmethod
    def processor(folder: Path) -> Any:
        """What makes pixel inputs of a picture, from a checkpoint's folder; by PIL, so that nothing depends on torchvision."""
        return AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)

    def inputs(self, image: Image.Image, question: str) -> Mapping[str, Any]:
        """What `get_image_features` takes for one picture; what is transparent is white, as the embedded towers see it."""
        return self.process(images=flatten(image), return_tensors="pt")

    def enter(self, value: torch.Tensor) -> torch.Tensor:
        """An input of the image tower where the tower sits, and in its type."""
        return value.to(self.model.device, self.model.dtype if value.is_floating_point() else None)

    def show(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[ImageFeatures]:
        """Image features of each picture (asked each question, where that matters), ready to replace placeholder tokens, on the
        CPU.
        """
        shown = []
        for image, question in zip(images, questions, strict=True):
            inputs = self.inputs(image, question)
            features = self.model.get_image_features(**{k: self.enter(v) for k, v in inputs.items()}).pooler_output
            shown.append(ImageFeatures(features[0].flatten(0, -2).cpu(), inputs.get("image_grid_thw")))
        return shown

    def positions(self, ids: torch.Tensor, mask: torch.Tensor, grids: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """Position ids [B, P], or [axes, B, P], of left-padded prompts: real tokens count from 0."""
        return (mask.long().cumsum(1) - 1).clamp(min=0)

    def order(self, length: int, prompt: int, device: torch.device) -> torch.Tensor:
        """[T, T] bool: which columns each of T = `length` positions may see, the first `prompt` being the prompt: causal."""
        return torch.ones(length, length, dtype=torch.bool, device=device).tril()

    def attention(self, mask: torch.Tensor, prompt: int, branches: torch.Tensor | None = None) -> torch.Tensor:
        """The additive attention mask [B, 1, T, T] of prompts of `prompt` positions and what follows them.

        `mask` [B, T] marks real positions. `branches` [B, T - prompt] number what follows the prompt: positions of different
        branches do not see each other. Without it, all is one branch.
        """
        length, device = mask.shape[1], mask.device
        seen = self.order(length, prompt, device) & mask[:, None, :]
        if branches is not None:
            branch = F.pad(branches, (prompt, 0))
            seen = seen & ((branch[:, None, :] == branch[:, :, None]) | (branch[:, None, :] == 0))
        # a padded position sees itself, or its softmax would be over nothing
        seen = seen | torch.eye(length, dtype=torch.bool, device=device)
        dtype = self.embed.weight.dtype
        return torch.zeros(seen.shape, dtype=dtype, device=mask.device).masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def capped(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Logits bent to lie within `cap` of 0, as they are where it is None."""
    return logits if cap is None else cap * torch.tanh(logits / cap)
