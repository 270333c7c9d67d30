"""Sequences of edits behind a codebook, by arithmetic on traces and interference: no edit is made again, whatever radius,
order or length is asked for.

Edits and queries are known by number; queries 0 to E − 1 are the E edits' own. An entry that takes in another edit of its target
answers with the newer transformation, which was fitted from the unedited layer and not from the older one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from stages.editing.codebook import UNEDITED, Codebook, Entry
from stages.editing.edits import Edit


@dataclass
class Numbered(Codebook):
    """A codebook whose keys and queries are numbers [1]; `table` [queries, edits] holds their distances."""

    table: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0))

    def distances(self, phi: torch.Tensor) -> torch.Tensor:
        return self.table[phi[:, 0].long()][:, self.keys[:, 0].long()]


@dataclass
class Replay:
    """The state of a sequence: the codebook, and which edit's transformation each entry answers with."""

    book: Numbered
    answers: list[int] = field(default_factory=list)
    taken_in: int = 0
    shrunk: int = 0

    def add(self, edit: int, radius: float, target: str) -> None:
        """Make one more edit."""
        before = [entry.radius for entry in self.book.entries]
        index = self.book.add(Entry(torch.tensor([float(edit)]), radius, target, Edit()))
        self.taken_in += int(index < len(before))
        self.answers[index : index + 1] = [edit]
        after = [entry.radius for entry in self.book.entries]
        self.shrunk += sum(new < old for new, old in zip(after, [*before, radius], strict=False))

    def answering(self, queries: Sequence[int]) -> np.ndarray:
        """[queries]: the edit that answers each, `UNEDITED` where none does."""
        entries = self.book.route(torch.tensor(queries, dtype=torch.float32)[:, None]).numpy()
        return np.where(entries == UNEDITED, UNEDITED, np.array([*self.answers, UNEDITED])[entries])


def replay(
    order: Sequence[int], table: np.ndarray, radii: Sequence[float], targets: Sequence[str], points: Sequence[int]
) -> Iterator[tuple[int, Replay]]:
    """Make edits in `order`; gives the state after each number of edits in `points`. `table` [queries, edits] is of distances."""
    state = Replay(Numbered(table=torch.from_numpy(np.asarray(table, dtype=np.float32))))
    for made, edit in enumerate(order, 1):
        state.add(edit, radii[edit], targets[edit])
        if made in points:
            yield made, state
