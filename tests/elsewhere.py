"""A stand-in for an accelerator: tensors that compute on the CPU and refuse to meet the CPU's.

PyTorch has a `meta` device on every machine. A tensor `Elsewhere` claims to be there and carries its values with it; an operation
that mixes it with a tensor of the CPU fails as it would on a GPU. What PyTorch allows stays allowed: copies, scalars, and indices
that are on the CPU.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
INDEXED = {torch.ops.aten.index.Tensor: 1, torch.ops.aten.index_put_.default: 1, torch.ops.aten._index_put_impl_.default: 1}


class Elsewhere(torch.Tensor):
    """A tensor on the pretended device."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "Elsewhere":
        kept = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, **kept, device=DEVICE)
        made.inner = inner
        return made

    def __repr__(self) -> str:
        return f"Elsewhere({self.inner})"

    def tolist(self) -> list:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(function, args, kwargs or {})


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(function, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """`torch.tensor` puts no values on the meta device, so they are put elsewhere afterwards."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.tensor and torch.device(kwargs.get("device") or "cpu").type == DEVICE.type:
            return function(*args, **kwargs | {"device": "cpu"}).to(DEVICE)
        return function(*args, **kwargs)


@contextlib.contextmanager
def accelerator() -> Iterator[None]:
    """While open, tensors can be made on the pretended device."""
    with _Operations(), _Literals():
        yield


def _run(function: Any, args: tuple, kwargs: dict) -> Any:
    checked = [a for i, a in enumerate(args) if i != INDEXED.get(function)]
    tensors = [t for t in tree_flatten((checked, kwargs))[0] if isinstance(t, torch.Tensor)]
    there = [isinstance(t, Elsewhere) for t in tensors]
    if function not in COPIES and any(there) and not all(far or t.ndim == 0 for far, t in zip(there, tensors, strict=True)):
        raise RuntimeError(f"{function}: tensors on the CPU and elsewhere")
    asked = kwargs.get("device")
    goes = any(there) if asked is None else torch.device(asked).type == DEVICE.type
    if function is torch.ops.aten.copy_.default:
        goes = isinstance(args[0], Elsewhere)
    known = {id(t.inner): t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Elsewhere)}
    plain_args, plain_kwargs = tree_map(lambda t: t.inner if isinstance(t, Elsewhere) else t, (args, kwargs))
    if asked is not None:
        plain_kwargs["device"] = torch.device("cpu")

    def wrapped(out: Any) -> Any:
        if not goes or not isinstance(out, torch.Tensor):
            return out
        return known[id(out)] if id(out) in known else Elsewhere(out)

    return tree_map(wrapped, function(*plain_args, **plain_kwargs))


def move(model: nn.Module) -> nn.Module:
    """Put every parameter and buffer of `model` on the pretended device; tied weights stay tied."""
    moved: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fresh = moved.setdefault(id(parameter), nn.Parameter(Elsewhere(parameter.detach()), requires_grad=False))
                module._parameters[name] = fresh
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = Elsewhere(buffer)
    return model
