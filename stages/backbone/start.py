"""Where a training starts: what the language model is to read of each concept's picture, and an adapter to go on from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

LAYERS = "layers."  # an adapter's tensor is the same in every backbone from here on in its name


@torch.no_grad()
def name_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, names: Sequence[str]) -> torch.Tensor:
    """One token a concept [C, 1, D]: the mean embedding of its name's tokens, as long as an embedding is on average."""
    table = model.get_input_embeddings().weight
    means = torch.stack([table[tokenizer(name).input_ids].mean(0) for name in names])
    return (F.normalize(means, dim=1) * table.norm(dim=1).mean())[:, None]


@torch.no_grad()
def picture_tokens(family: ModuleType, model: PreTrainedModel, weights: Path, bank: torch.Tensor) -> torch.Tensor:
    """What a trained backbone makes of each concept's picture [C, tokens, D], the mean over artists; `model` is its untrained
    model, which takes over the connector in `weights`.
    """
    model.load_state_dict(tensors_of(weights, "connector."), strict=False)
    return torch.stack([family.connect(model, pictures.float()) for pictures in bank[:, 0]]).mean(0)


def deviation(bank: torch.Tensor) -> torch.Tensor:
    """[channels]: the standard deviation of a `feature_bank`'s pictures as they come, which noise on features is relative to."""
    return bank[:, 0].float().std(dim=(0, 1, 2))


def tensors_of(weights: Path, prefix: str) -> dict[str, torch.Tensor]:
    """The trained tensors whose name begins with `prefix`, without it, in float32."""
    return {name.removeprefix(prefix): tensor.float() for name, tensor in load_file(weights).items() if name.startswith(prefix)}


def go_on(peft: PeftModel, own: Mapping[str, torch.Tensor], adapter: Mapping[str, torch.Tensor]) -> None:
    """Give `peft`, whose adapter's tensors are called as in `own`, the values of another backbone's `adapter`."""
    values = {name[name.index(LAYERS) :]: tensor for name, tensor in adapter.items()}
    set_peft_model_state_dict(peft, {name: values[name[name.index(LAYERS) :]] for name in own})
