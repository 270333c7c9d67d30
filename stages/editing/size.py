"""How much an edit keeps beside the model."""

from collections.abc import Mapping, Sequence
from functools import partial
from types import FunctionType

import torch

from stages.editing.edits import Edit


def size_of(edit: Edit, shared: Sequence[torch.Tensor] = ()) -> int:
    """Bytes that an edit keeps beside the model, its prefix's tokens at eight each, without the tensors that all edits share."""
    parts, known = [edit.output, *edit.added.values()], {id(tensor) for tensor in shared}
    tensors = {id(tensor): tensor for part in parts for tensor in tensors_of(part) if id(tensor) not in known}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) + 8 * len(edit.prefix)


def tensors_of(part: object) -> list[torch.Tensor]:
    """The tensors that an output or an addition holds: in its fields, or, where it is a function, in what it closes over."""
    if isinstance(part, partial):
        held = [part.func, *part.args, *part.keywords.values()]
    elif isinstance(part, FunctionType):
        held = [cell.cell_contents for cell in part.__closure__ or ()] + list(part.__defaults__ or ())
    else:
        return [value for value in vars(part).values() if isinstance(value, torch.Tensor)] if part else []
    inside = [tensor for one in held if isinstance(one, FunctionType | partial) for tensor in tensors_of(one)]
    return [tensor for one in held for tensor in tensors_in(one)] + inside


def tensors_in(learnt: object) -> list[torch.Tensor]:
    """All tensors in nested dicts and lists."""
    if isinstance(learnt, torch.Tensor):
        return [learnt]
    inside = learnt.values() if isinstance(learnt, Mapping) else learnt if isinstance(learnt, list | tuple) else ()
    return [tensor for part in inside for tensor in tensors_in(part)]
