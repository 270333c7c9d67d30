"""What a model holds after several edits: a codebook of them, or weights that all have changed (design §2, Sequence)."""

from dataclasses import dataclass, field
from typing import Protocol

import torch

from stages.editing.codebook import UNEDITED, Codebook, Entry
from stages.editing.editor import Edit


class Memory(Protocol):
    """Takes edits one by one and answers queries with all of them."""

    def start(self, key: torch.Tensor, target: str) -> Edit | None:
        """The edit that one at `key` [D] with this target goes on from."""

    def add(self, key: torch.Tensor, radius: float, target: str, edit: Edit) -> None:
        """Take an edit in."""

    def answering(self, phi: torch.Tensor) -> Edit:
        """What answers a batch of queries φ [B, D], as one edit."""

    @property
    def entries(self) -> int:
        """How many edits are kept apart."""


@dataclass
class Weights:
    """Each edit goes on from the weights that the one before it left; they answer every query."""

    last: Edit = field(default_factory=Edit)

    def start(self, key: torch.Tensor, target: str) -> Edit | None:
        return None if self.last.changes_nothing else self.last

    def add(self, key: torch.Tensor, radius: float, target: str, edit: Edit) -> None:
        if not edit.diverged:
            self.last = edit

    def answering(self, phi: torch.Tensor) -> Edit:
        return self.last

    @property
    def entries(self) -> int:
        return int(not self.last.changes_nothing)


@dataclass
class Routed:
    """Edits stay apart in a codebook, and a query goes to the nearest key or to none."""

    book: Codebook

    def start(self, key: torch.Tensor, target: str) -> Edit | None:
        index = self.book.continues(key, target)
        return None if index == UNEDITED else self.book.entries[index].edit

    def add(self, key: torch.Tensor, radius: float, target: str, edit: Edit) -> None:
        if not edit.diverged:
            self.book.add(Entry(key, radius, target, edit))

    def answering(self, phi: torch.Tensor) -> Edit:
        chosen = self.book.route(phi)
        if (chosen == UNEDITED).all():
            return Edit()
        return Edit(lambda inputs, unedited, prompt: self.book.answer(inputs, unedited, prompt, chosen))

    @property
    def entries(self) -> int:
        return len(self.book.entries)
