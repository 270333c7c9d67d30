"""What stands in for decoder layers and caches where less than the whole of them has to run."""

import contextlib
import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache


def branch_off(cache: DynamicCache, rows: torch.Tensor | None = None) -> DynamicCache:
    """The keys and values of some rows, of all without `rows`: what is added to them is not added to `cache`."""
    part = copy.copy(cache)
    part.layers = [copy.copy(layer) for layer in cache.layers]  # an update makes new tensors and leaves old ones as they are
    if rows is not None:
        part.batch_select_indices(rows.to(part.layers[-1].device))
    return part


class Enough(Exception):
    """All that was wanted is known: the rest need not run."""


class _KeysAndValues:
    """Stands for a cache while one layer runs twice: the first run ends when it has left its keys and values here."""

    def __init__(self, behind: DynamicCache | None):
        self.behind, self.kept = behind, None

    def update(self, keys: torch.Tensor, values: torch.Tensor, *where: object, **more: object) -> tuple[torch.Tensor, ...]:
        first, self.kept = self.kept is None, self.kept or (keys, values)
        if self.behind is not None:
            whole = self.behind.update(keys, values, *where, **more)
        else:
            whole = (keys, values) if first else [torch.cat(pair, -2) for pair in zip(self.kept, (keys, values), strict=True)]
        if first:
            raise Enough
        return whole


class LastPositions(nn.Module):
    """Stands for the last decoder layer where only its outputs at the last `count` positions are read: at the others it computes
    keys and values alone.
    """

    def __init__(self, layer: nn.Module, count: int):
        super().__init__()
        self.layer, self.count = layer, count

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        before = hidden_states.shape[1] - self.count
        if before <= 0 or args:
            return self.layer(hidden_states, *args, **kwargs)
        kwargs["past_key_values"] = _KeysAndValues(kwargs.get("past_key_values"))
        with contextlib.suppress(Enough):
            self.layer(hidden_states[:, :before], **self._at(kwargs, slice(before)))
        return self.layer(hidden_states[:, before:], **self._at(kwargs, slice(before, None)))

    @staticmethod
    def _at(kwargs: Mapping[str, Any], where: slice) -> dict[str, Any]:
        """The layer's other arguments at some of its positions."""
        cut = dict(kwargs)
        if cut.get("attention_mask") is not None:
            cut["attention_mask"] = cut["attention_mask"][:, :, where]
        if cut.get("position_ids") is not None:
            cut["position_ids"] = cut["position_ids"][..., where]
        if cut.get("position_embeddings") is not None:
            cut["position_embeddings"] = tuple(part[..., where, :] for part in cut["position_embeddings"])
        return cut


class PassThrough(nn.Module):
    """Stands for a frozen layer whose output is already known."""

    def forward(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        return hidden_states
