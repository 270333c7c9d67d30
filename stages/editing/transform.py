"""What can stand in a codebook behind a key: transformations of the edited linear map that are data, so that they can be saved.

Each is called with the map's inputs [B, T, D], its unedited outputs [B, T, out] and the prompt's real positions [B, P]; it
gives the edited outputs [B, T, out].
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from stages.editing.edits import linear


@dataclass(frozen=True)
class Layer:
    """An edited copy of the whole map: `weight` [out, D], or [B, out, D] with one a row, and `bias` [out] or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None

    def __call__(self, inputs: torch.Tensor, unedited: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        outputs = linear(inputs, self.weight)
        return outputs if self.bias is None else outputs + self.bias


@dataclass(frozen=True)
class LowRank:
    """The unedited map and a difference b·a beside it: `a` [r, D], `b` [out, r]."""

    a: torch.Tensor
    b: torch.Tensor

    def __call__(self, inputs: torch.Tensor, unedited: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        return unedited + F.linear(F.linear(inputs, self.a), self.b)


def whole(transform: Layer | LowRank, unedited: torch.Tensor) -> torch.Tensor:
    """The weight [out, D] that a transformation of the `unedited` one stands for."""
    return transform.weight if isinstance(transform, Layer) else unedited + transform.b @ transform.a


def compress(weight: torch.Tensor, unedited: torch.Tensor, rank: int) -> LowRank:
    """The copy `weight` [out, D] as `unedited` and the nearest difference of that rank (Eckart and Young, 1936)."""
    difference = weight - unedited
    basis = torch.linalg.eigh(difference @ difference.T).eigenvectors[:, -rank:]  # eigenvalues ascend
    return LowRank(basis.T @ difference, basis.contiguous())


@dataclass(frozen=True)
class Value:
    """One vector [out], or one a row [B, out], in place of the map's output at the `last` prompt token, the whole `prompt`, or
    `all` positions.
    """

    value: torch.Tensor
    where: str = "all"

    def __call__(self, inputs: torch.Tensor, unedited: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        return torch.where(replaced(inputs, prompt, self.where)[..., None], self.value[..., None, :], unedited)


def replaced(inputs: torch.Tensor, prompt: torch.Tensor, where: str) -> torch.Tensor:
    """[B, T] bool: the positions of `inputs` [B, T, D] at which a value stands; prompts are left-padded, answers follow them.

    A `prompt` of no positions has been read before.
    """
    spread = torch.zeros(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
    width = prompt.shape[1]
    if where == "last":
        spread[:, width - 1 : width] = True
    elif where == "prompt":
        spread[:, :width] = prompt
    else:
        spread[:] = True
    return spread


def pack(transform: Layer | LowRank | Value | None) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """A transformation as words and tensors. Raises TypeError for what is none of the kinds above."""
    if transform is None:
        return {"kind": "none"}, {}
    if isinstance(transform, Layer):
        tensors = {"weight": transform.weight, "bias": transform.bias}
        return {"kind": "layer"}, {name: tensor for name, tensor in tensors.items() if tensor is not None}
    if isinstance(transform, LowRank):
        return {"kind": "low-rank"}, {"a": transform.a, "b": transform.b}
    if isinstance(transform, Value):
        return {"kind": "value", "where": transform.where}, {"value": transform.value}
    raise TypeError(f"{type(transform).__name__} is no transformation of a codebook: Layer, LowRank, Value or None")


def unpack(words: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> Layer | LowRank | Value | None:
    """What `pack` took apart."""
    if words["kind"] == "none":
        return None
    if words["kind"] == "layer":
        return Layer(tensors["weight"], tensors.get("bias"))
    if words["kind"] == "low-rank":
        return LowRank(tensors["a"], tensors["b"])
    return Value(tensors["value"], words["where"])
