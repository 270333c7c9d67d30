"""What becomes of a codebook's radii when an edit is added (design §2, Sequence, and §10): distances between keys are enough.

Two entries with other targets conflict where one covers the other's key. `shrink`, after GRACE, halves the distance between them.
`nearest` leaves both as they are, and a query goes to the nearer key. Under either rule a fact that is edited again gets its
newest answer: the entry that stood at the same key is gone. Importing this loads no model library.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

UNEDITED = -1
RULES = ("shrink", "nearest")
SAME = 1e-4  # keys that are nearer to each other are of one query, read twice
GONE = -1.0  # the radius of an entry that answers no more


@dataclass
class Reach:
    """The radius and the target of each entry, the rule for conflicts, and whether an entry `takes_in` edits of its target."""

    radii: list[float] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    rule: str = "shrink"
    takes_in: bool = True

    def continues(self, apart: Sequence[float], target: str) -> int:
        """The entry that answers a key, `apart` from each entry's, with `target` already; `UNEDITED` where there is none."""
        if not self.radii or not self.takes_in:
            return UNEDITED
        (index,) = nearest(np.array([apart], dtype=np.float32), self.radii)
        return int(index) if index != UNEDITED and self.targets[index] == target else UNEDITED

    def add(self, apart: Sequence[float], radius: float, target: str) -> int:
        """Put an edit in whose key is `apart` from each entry's, and return its index.

        Where an entry gives the same answer at the new key already, it widens until it covers what the new one would have.
        Otherwise the edit gets an entry of its own.
        """
        index = self.continues(apart, target)
        if index == UNEDITED:
            index = len(self.radii)
            self.radii.append(radius)
            self.targets.append(target)
        else:
            self.radii[index] = max(self.radii[index], apart[index] + radius)
        return index

    def resolve(self, index: int, apart: Sequence[float]) -> None:
        """Settle the conflicts of an entry whose key is `apart` from each entry's with those that have other targets."""
        for other, between in enumerate(apart):
            if self.targets[other] == self.targets[index] or self.radii[other] == GONE:
                continue
            if between <= SAME:
                self.radii[other] = GONE
            elif self.rule == "shrink" and between <= max(self.radii[other], self.radii[index]):
                for i in (other, index):
                    self.radii[i] = min(self.radii[i], between / 2)


def nearest(distances: np.ndarray, radii: Sequence[float]) -> np.ndarray:
    """[queries]: the nearest entry that is not gone by distances [queries, entries], `UNEDITED` where the query lies outside its
    radius.
    """
    reach = np.array(radii, dtype=distances.dtype)
    distances = np.where(reach == GONE, np.inf, distances)
    index = distances.argmin(1)
    within = np.take_along_axis(distances, index[:, None], 1)[:, 0] <= reach[index]
    return np.where(within, index, UNEDITED)
