"""Sequences of edits behind a codebook, by arithmetic on traces and interference: no edit is made again, whatever radius,
order or length is asked for.

Edits and queries are known by number; queries 0 to E − 1 are the E edits' own. An entry that takes in another edit of its target
answers with the newer transformation, which was fitted from the unedited layer and not from the older one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from stages.editing.conflicts import UNEDITED, Reach, nearest


@dataclass
class Replay:
    """The state of a sequence: `table` [queries, edits] holds distances; each entry has a key, an edit's, and answers with an
    edit's transformation.
    """

    table: np.ndarray
    reach: Reach = field(default_factory=Reach)
    keys: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    taken_in: int = 0
    shrunk: int = 0

    def add(self, edit: int, radius: float, target: str) -> None:
        """Make one more edit."""
        before = list(self.reach.radii)
        index = self.reach.add(self.table[edit, self.keys].tolist(), radius, target)
        if index == len(before):
            self.keys.append(edit)
        self.reach.resolve(index, self.table[self.keys[index], self.keys].tolist())
        self.taken_in += int(index < len(before))
        self.answers[index : index + 1] = [edit]
        self.shrunk += sum(new < old for new, old in zip(self.reach.radii, [*before, radius], strict=False))

    def answering(self) -> np.ndarray:
        """[queries]: the edit that answers each, `UNEDITED` where none does."""
        return np.array([*self.answers, UNEDITED])[nearest(self.table[:, self.keys], self.reach.radii)]


def replay(
    order: Sequence[int],
    table: np.ndarray,
    radii: Sequence[float],
    targets: Sequence[str],
    points: Sequence[int],
    rule: str,
    takes_in: bool = True,
) -> Iterator[tuple[int, Replay]]:
    """Make edits in `order` under a rule for conflicts; gives the state after each number of edits in `points`. `table` [queries,
    edits] is of distances. Unless an entry `takes_in` edits of its target, each has one of its own.
    """
    state = Replay(np.asarray(table, dtype=np.float32), Reach(rule=rule, takes_in=takes_in))
    for made, edit in enumerate(order, 1):
        state.add(edit, radii[edit], targets[edit])
        if made in points:
            yield made, state
