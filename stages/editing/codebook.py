"""The codebook: keys, radii and transformations beside the frozen model, and which of them answers a query.

Routing is nearest-key lookup (Guo et al., ICML 2025, section 4.2; GRACE, Hartvigsen et al., NeurIPS 2023, section 3.2): a query
goes to its nearest key, and that entry answers it iff the query lies within the entry's radius. It is decided once per query, on
the prompt, and holds for every token of the answer.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F

from stages.backbone.vlm import Backbone
from stages.editing.editor import Edit

UNEDITED = -1


@dataclass(frozen=True)
class Entry:
    """One edit: `key` [D], `radius` in units of the codebook's distance, the answer it gives, and what gives it."""

    key: torch.Tensor
    radius: float
    target: str
    edit: Edit


@dataclass
class Codebook:
    """Entries under one distance, `euclidean` or `cosine`."""

    distance: str = "euclidean"
    entries: list[Entry] = field(default_factory=list)

    def distances(self, phi: torch.Tensor) -> torch.Tensor:
        """[B, entries]: distance of each query's φ [B, D] to every key."""
        keys = torch.stack([entry.key for entry in self.entries])
        if self.distance == "cosine":
            return 1 - F.normalize(phi, dim=-1) @ F.normalize(keys, dim=-1).T
        return torch.cdist(phi, keys, compute_mode="donot_use_mm_for_euclid_dist")  # the fast mode rounds small distances away

    def route(self, phi: torch.Tensor) -> torch.Tensor:
        """[B]: the index of the entry that answers each query, `UNEDITED` where none does."""
        if not self.entries:
            return torch.full((len(phi),), UNEDITED)
        nearest, index = self.distances(phi).min(1)
        radius = torch.tensor([entry.radius for entry in self.entries])[index]
        return torch.where(nearest <= radius, index, UNEDITED)

    def continues(self, key: torch.Tensor, target: str) -> int:
        """The entry whose transformation an edit at `key` [D] continues: it answers the key, with the same target already;
        `UNEDITED` where the edit starts anew.
        """
        index = int(self.route(key[None])[0])
        return index if index != UNEDITED and self.entries[index].target == target else UNEDITED

    def add(self, entry: Entry) -> int:
        """Put an edit in and return its index (design §2, Sequence).

        Where an entry already gives the same answer at the new key, that entry takes over the new transformation and widens until
        it covers what the new one would have covered. Otherwise the edit gets an entry of its own. Entries with other targets and
        the new one shrink to half the distance between their keys wherever one of them covered the other's key.
        """
        index = self.continues(entry.key, entry.target)
        if index == UNEDITED:
            self.entries.append(entry)
            index = len(self.entries) - 1
        else:
            old = self.entries[index]
            apart = float(self.distances(entry.key[None])[0, index])
            self.entries[index] = replace(old, edit=entry.edit, radius=max(old.radius, apart + entry.radius))
        self._resolve_conflicts(index)
        return index

    def _resolve_conflicts(self, index: int) -> None:
        """Shrink the entry and those with other targets until none covers another's key."""
        new = self.entries[index]
        for other, apart in enumerate(self.distances(new.key[None])[0].tolist()):
            old = self.entries[other]
            if old.target != new.target and apart <= max(old.radius, self.entries[index].radius):
                for i in (other, index):
                    self.entries[i] = replace(self.entries[i], radius=min(self.entries[i].radius, apart / 2))

    @contextlib.contextmanager
    def applied(self, backbone: Backbone, prompt: torch.Tensor, chosen: torch.Tensor) -> Iterator[None]:
        """While open, row b of a batch with prompt positions `prompt` [B, P] is answered by entry `chosen[b]` (see `route`)."""

        def output(inputs: torch.Tensor, unedited: torch.Tensor) -> torch.Tensor:
            result = unedited.clone()
            for index in chosen[chosen != UNEDITED].unique().tolist():
                rows, transform = chosen == index, self.entries[index].edit.output
                result[rows] = transform(inputs[rows], prompt[rows])
            return result

        with backbone.replaced(output, len(prompt)):
            yield
