"""What becomes of a codebook's radii when an edit is added (design §2, Sequence): distances between keys are all it takes.

Importing this loads no model library.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

UNEDITED = -1


@dataclass
class Reach:
    """The radius and the target of each entry."""

    radii: list[float] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)

    def continues(self, apart: Sequence[float], target: str) -> int:
        """The entry that answers a key, `apart` from each entry's, with `target` already; `UNEDITED` where there is none."""
        if not self.radii:
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
        """Shrink an entry whose key is `apart` from each entry's, and those with other targets, to half the distance between
        their keys wherever one of them covers the other's key.
        """
        for other, between in enumerate(apart):
            if self.targets[other] != self.targets[index] and between <= max(self.radii[other], self.radii[index]):
                for i in (other, index):
                    self.radii[i] = min(self.radii[i], between / 2)


def nearest(distances: np.ndarray, radii: Sequence[float]) -> np.ndarray:
    """[queries]: the nearest entry by distances [queries, entries], `UNEDITED` where the query lies outside its radius."""
    index = distances.argmin(1)
    within = np.take_along_axis(distances, index[:, None], 1)[:, 0] <= np.array(radii, dtype=distances.dtype)[index]
    return np.where(within, index, UNEDITED)
