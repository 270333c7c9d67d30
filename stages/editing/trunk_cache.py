"""The trunk's cache: what the frozen trunk says of edits' queries, by content, within a limit of the user's (`cache`).

It is safe to delete at any time. States that were used least recently go first; those of earlier weights go at once.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from stages import code
from stages.backbone.vlm import Backbone
from stages.editing.probes import Probe
from stages.editing.trunk import Candidates, States, run_trunk
from stages.params import write_atomically
from stages.settings import Place


@dataclass
class TrunkCache:
    """What the trunk of one backbone says. `pictures` maps the id of a picture to a digest of it; `limit` is in bytes, 0: nothing
    is written; the last `recent` states are also kept in memory. `keys` are those read beside the edited layer's.
    """

    backbone: Backbone
    pictures: Mapping[str, str]
    folder: Path  # of this backbone, whatever its weights
    limit: int
    recent: int = 8
    keys: Mapping[str, Place] = field(default_factory=dict)
    _held: OrderedDict[str, States] = field(default_factory=OrderedDict, init=False, repr=False)

    def states(self, row: Mapping[str, Any], probes: Sequence[Probe]) -> States:
        """`run_trunk` over an edit's queries, computed where neither memory nor the cache has it."""
        key = self._key(row, probes)
        if key not in self._held:
            self._held[key] = self._read(key) or self._computed(key, row, probes)
        self._held.move_to_end(key)
        while len(self._held) > self.recent:
            self._held.popitem(last=False)
        return self._held[key]

    @property
    def _place(self) -> Path:
        return self.folder / self.backbone.fingerprint

    def _key(self, row: Mapping[str, Any], probes: Sequence[Probe]) -> str:
        shown = {p.image_id: self.pictures[p.image_id] for p in probes if p.image_id is not None}
        keys = {name: asdict(key) for name, key in self.keys.items()}
        made_from = [self.backbone.fingerprint, row["target"], [asdict(p) for p in probes], shown, keys]
        text = json.dumps(made_from, sort_keys=True)
        by = code.digest("stages.editing.trunk", type(self.backbone.adapter).__module__)
        return hashlib.sha256((by + text).encode()).hexdigest()[:24]

    def _read(self, key: str) -> States | None:
        path = self._place / f"{key}.pt"
        try:
            with torch.serialization.safe_globals([States, Candidates]):
                states = torch.load(path, weights_only=True)
            os.utime(path)  # used just now
        except FileNotFoundError:
            return None
        return unpacked(states)

    def _computed(self, key: str, row: Mapping[str, Any], probes: Sequence[Probe]) -> States:
        states = run_trunk(self.backbone, row, probes, self.keys)
        if self.limit:
            self._place.mkdir(parents=True, exist_ok=True)
            with write_atomically(self._place / f"{key}.pt") as temporary:
                torch.save(packed(states), temporary)
            self.clean()
        return states

    def clean(self) -> None:
        """Remove states of earlier weights, and then, from all backbones, the least recently used beyond the limit."""
        for old in self.folder.iterdir() if self.folder.exists() else ():
            if old != self._place:
                shutil.rmtree(old, ignore_errors=True)
        files = []
        for path in self.folder.parent.rglob("*.pt"):
            with contextlib.suppress(FileNotFoundError):  # another process may clean too
                if not path.name.startswith("."):  # nor is what another one is writing there yet
                    files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        files.sort()
        spare = sum(size for _, size, _ in files) - self.limit
        for _, size, path in files:
            if spare <= 0:
                return
            path.unlink(missing_ok=True)
            spare -= size


def packed(states: States) -> States:
    """The states without what only pads them."""
    real = states.branches > 0
    return replace(states, hidden=states.hidden[states.mask].clone(), fed=states.fed[real].clone())


def unpacked(states: States) -> States:
    """What `packed` made smaller."""
    hidden = states.hidden.new_zeros(*states.mask.shape, states.hidden.shape[-1])
    fed = states.fed.new_zeros(*states.branches.shape, states.fed.shape[-1])
    hidden[states.mask], fed[states.branches > 0] = states.hidden, states.fed
    return replace(states, hidden=hidden, fed=fed)
