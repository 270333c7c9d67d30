"""The codebook: keys, radii and transformations beside the frozen model, and which of them answers a query.

Routing is nearest-key lookup (Guo et al., ICML 2025, section 4.2; GRACE, Hartvigsen et al., NeurIPS 2023, section 3.2): a query
goes to its nearest key, and that entry answers it iff the query lies within the entry's radius. It is decided once per query, on
the prompt, and holds for every token of the answer.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from stages.backbone.vlm import Backbone, Prompts, mean_over
from stages.editing.conflicts import GONE, UNEDITED, Reach
from stages.editing.edits import Edit
from stages.editing.transform import pack, unpack
from stages.params import UserError, write_atomically


@dataclass(frozen=True)
class Entry:
    """One edit: `key` [D], `radius` in units of the codebook's distance, the answer it gives, and what gives it."""

    key: torch.Tensor
    radius: float
    target: str
    edit: Edit

    def __post_init__(self) -> None:
        if self.edit.added or self.edit.prefix:
            raise TypeError("a codebook's edits act on the edited linear map alone: no `added`, no `prefix`")


@dataclass
class Codebook:
    """Entries under one distance, `euclidean` or `cosine`.

    `faithful_code` keeps two faults of BalancEdit's released code, to measure them: all keys share one copy of the layer, which
    each edit goes on training, and each edit's radius overwrites every other.
    """

    distance: str = "euclidean"
    entries: list[Entry] = field(default_factory=list)
    faithful_code: bool = False
    rule: str = "shrink"  # for conflicts, of `stages.editing.conflicts.RULES`
    _keys: torch.Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def keys(self) -> torch.Tensor:
        """[entries, D], stacked once: `add` appends keys and never changes one."""
        if self._keys is None or len(self._keys) != len(self.entries):
            self._keys = torch.stack([entry.key for entry in self.entries])
        return self._keys

    def distances(self, phi: torch.Tensor) -> torch.Tensor:
        """[B, entries]: distance of each query's φ [B, D] to every key."""
        if self.distance == "cosine":
            return 1 - F.normalize(phi, dim=-1) @ F.normalize(self.keys, dim=-1).T
        # the fast mode rounds small distances away
        return torch.cdist(phi, self.keys, compute_mode="donot_use_mm_for_euclid_dist")

    def route(self, phi: torch.Tensor) -> torch.Tensor:
        """[B]: the index of the entry that answers each query, `UNEDITED` where none does."""
        if not self.entries:
            return torch.full((len(phi),), UNEDITED)
        reach = torch.tensor([entry.radius for entry in self.entries])
        nearest, index = self.distances(phi).masked_fill(reach == GONE, torch.inf).min(1)
        radius = reach[index]
        return torch.where(nearest <= radius, index, UNEDITED)

    def continues(self, key: torch.Tensor, target: str) -> int:
        """The entry whose transformation an edit at `key` [D] continues: it answers the key, with the same target already;
        `UNEDITED` where the edit starts anew. Under `faithful_code` it is whichever came last.
        """
        if self.faithful_code:
            return len(self.entries) - 1 if self.entries else UNEDITED
        return self._reach().continues(self._apart(key), target)

    def add(self, entry: Entry) -> int:
        """Put an edit in and return its index: radii become what `Reach` says, and an entry that takes the edit in takes over its
        transformation.
        """
        if self.faithful_code:
            kept = [replace(old, edit=entry.edit, radius=entry.radius) for old in self.entries]
            self.entries = [*kept, entry]
            return len(kept)
        reach = self._reach()
        index = reach.add(self._apart(entry.key), entry.radius, entry.target)
        if index == len(self.entries):
            self.entries.append(entry)
        self.entries[index] = replace(self.entries[index], edit=entry.edit)
        reach.resolve(index, self._apart(self.entries[index].key))
        self.entries = [replace(old, radius=radius) for old, radius in zip(self.entries, reach.radii, strict=True)]
        return index

    def _reach(self) -> Reach:
        return Reach([entry.radius for entry in self.entries], [entry.target for entry in self.entries], self.rule)

    def _apart(self, key: torch.Tensor) -> list[float]:
        """Distance of a key [D] to every other."""
        return self.distances(key[None])[0].tolist() if self.entries else []

    @contextlib.contextmanager
    def applied(self, backbone: Backbone, prompt: torch.Tensor, chosen: torch.Tensor) -> Iterator[None]:
        """While open, row b of a batch with prompt positions `prompt` [B, P] is answered by entry `chosen[b]` (see `route`)."""

        def output(inputs: torch.Tensor, unedited: torch.Tensor) -> torch.Tensor:
            return self.answer(inputs, unedited, prompt[:, backbone.unread :], chosen)

        with backbone.replaced(output, len(prompt)):
            yield

    @contextlib.contextmanager
    def answering(self, backbone: Backbone, prompts: Prompts, span: str) -> Iterator[None]:
        """While open, the model reads and answers this batch of prompts with its edits: it is routed in the pass that first reads
        it, by the key's `span`, and each row's answer stays with the entry that its prompt went to.
        """
        chosen = None

        def output(inputs: torch.Tensor, unedited: torch.Tensor) -> torch.Tensor:
            nonlocal chosen
            read = prompts.mask
            if chosen is None:
                chosen = self.route(mean_over(inputs[:, : read.shape[1]].cpu(), prompts.spans[span]))
            else:
                read = read[:, :0]
            return self.answer(inputs, unedited, read, chosen)

        with backbone.replaced(output, len(prompts.mask)):
            yield

    def answer(self, inputs: torch.Tensor, unedited: torch.Tensor, prompt: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """The edited linear map's outputs [B, T, out], each row's from the entry it goes to."""
        result = unedited.clone()
        for index in chosen[chosen != UNEDITED].unique().tolist():
            rows, transform = chosen == index, self.entries[index].edit.output
            if transform is not None:
                result[rows] = transform(inputs[rows], unedited[rows], prompt[rows])
        return result

    def save(self, path: Path, backbone: Backbone) -> None:
        """One safetensors file: keys [entries, D], radii, the transformations' tensors, and in its header all that is words,
        the backbone's fingerprint too. Raises TypeError for an edit that is not data (see `stages.editing.transform`).
        """
        words, tensors = [], {}
        for index, entry in enumerate(self.entries):
            word, parts = pack(entry.edit.output)
            words.append(word | {"target": entry.target})
            tensors |= {f"{index}.{name}": tensor.detach().clone().contiguous() for name, tensor in parts.items()}
        if self.entries:
            tensors["keys"] = torch.stack([entry.key for entry in self.entries])
        tensors["radii"] = torch.tensor([entry.radius for entry in self.entries], dtype=torch.float64)
        header = {
            "fingerprint": backbone.fingerprint,
            "distance": self.distance,
            "faithful_code": json.dumps(self.faithful_code),
            "rule": self.rule,
            "entries": json.dumps(words),
        }
        with write_atomically(path) as temporary:
            save_file(tensors, temporary, header)

    @classmethod
    def load(cls, path: Path, backbone: Backbone) -> "Codebook":
        """What `save` wrote. Raises UserError for a file that is none or was made with another backbone or layer."""
        try:
            with safe_open(path, "pt") as file:
                header, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: not a readable codebook ({error})") from None
        if header.get("fingerprint") != backbone.fingerprint:
            made = header.get("fingerprint")
            raise UserError(f"{path}: fingerprint: {made!r} is not allowed; allowed: {backbone.fingerprint!r}, the backbone's")
        entries = []
        for index, word in enumerate(json.loads(header["entries"])):
            own = {name.split(".", 1)[1]: tensor for name, tensor in tensors.items() if name.startswith(f"{index}.")}
            edit = Edit(unpack(word, own))
            entries.append(Entry(tensors["keys"][index], float(tensors["radii"][index]), word["target"], edit))
        return cls(header["distance"], entries, json.loads(header["faithful_code"]), header.get("rule", "shrink"))
