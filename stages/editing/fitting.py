"""Learning from the train split before any edit is made: what an editor's `fit` is given, its loop, and its cache.

`fit(backbone, examples, settings, checkpoint)` returns tensors, numbers and text in dicts and lists. They are cached by the
content of all that they were made from. What is learnt in parts that know nothing of each other is cached part by part: `PARTS`
has the settings that each depends on, and `fit` is told the `part`.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from stages.backbone.vlm import Backbone
from stages.editing.probes import GENERALITY, Probe, probes_of
from stages.editing.trunk import States
from stages.params import write_atomically

PICTURES = 2  # other pictures of a training edit
EVERY = 50  # steps between two checkpoints, and two looks at what is held out
CLIP = 100.0  # norm of the gradient, as in MEND's and SERAC's own settings


@dataclass(frozen=True)
class Example:
    """One edit of the train split; what the frozen trunk says of its probes is computed when it is first asked for."""

    row: Mapping[str, Any]
    probes: Sequence[Probe]
    run: Callable[[Sequence[Probe]], States]

    @cached_property
    def states(self) -> States:
        return self.run(self.probes)

    @property
    def in_scope(self) -> list[int]:
        """The probes that the edit must reach, itself first."""
        return [i for i, p in enumerate(self.probes) if p.kind in GENERALITY]

    def of(self, *kinds: str) -> list[int]:
        """The probes of these kinds."""
        return [i for i, p in enumerate(self.probes) if p.kind in kinds]


def training_probes(row: Mapping[str, Any]) -> list[Probe]:
    """A train edit's queries, none of which an edit of another split is asked: its rephrasings are the ones for training, and its
    question without a picture, which it shares with all of its relation, is left out.
    """
    kept = list({p["kind"]: p for p in reversed(row["locality"]) if p["kind"] != "no_image"}.values())  # the first of each kind
    own = {"rephrasings": row["rephrasings_train"], "generality_image_ids": row["generality_image_ids"][:PICTURES], "hops": []}
    own["locality"] = kept[::-1]
    positive = {"kind": "sample_positive", "question": row["rephrasings_train"][0], "image_id": row["image_id"]}
    return probes_of({**row, **own}, [positive])


def networks(editor: ModuleType, settings: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The parts that an editor learns apart (one, called "", where it does not), and the settings that each depends on."""
    if not hasattr(editor, "PARTS"):
        return {"": settings}
    seed = {"seed": settings["seed"]}
    return {part: {name: settings[name] for name in names} | seed for part, names in editor.PARTS.items()}


def fitted(
    editor: ModuleType, backbone: Backbone, examples: Sequence[Example], settings: Mapping[str, Any], made_from: str, cache: Path
) -> Any:
    """The editor's `fit`, part by part; from the cache where the same backbone, settings, rows and `made_from` (code, pictures)
    have been.
    """
    parts = networks(editor, settings)
    found = {part: learnt_part(editor, backbone, examples, settings, part, made_from, cache) for part in parts}
    return found if hasattr(editor, "PARTS") else found[""]


def learnt_part(
    editor: ModuleType,
    backbone: Backbone,
    examples: Sequence[Example],
    settings: Mapping[str, Any],
    part: str,
    made_from: str,
    cache: Path,
    train: bool = True,
) -> Any:
    """One part of what an editor learns under `settings`: from the cache, or trained; None where it is neither."""
    some, rows = networks(editor, settings)[part], [example.row for example in examples]
    text = json.dumps([backbone.fingerprint, part, dict(some), made_from, rows], sort_keys=True)
    path = cache / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    if not train:
        return None
    cache.mkdir(parents=True, exist_ok=True)
    checkpoint, more = path.with_suffix(".part.pt"), {"part": part} if part else {}
    state = editor.fit(backbone, examples, editor.Settings(**some), checkpoint, **more)
    with write_atomically(path) as temporary:
        torch.save(state, temporary)
    checkpoint.unlink(missing_ok=True)
    return state


def learn(
    module: nn.Module,
    groups: Sequence[Mapping[str, Any]],
    loss_of: Callable[[int], torch.Tensor],
    steps: int,
    checkpoint: Path,
    held_out: Callable[[], float] | None = None,
) -> None:
    """Train `module` in place: Adam over parameter `groups` on `loss_of(step)`, which must depend on nothing else that changes.
    `held_out` gives the loss on what is not learnt from: of the states it is asked for, the one of the least is left.

    A checkpoint every few steps makes an interrupted training go on where it was. Raises FloatingPointError when the loss is not
    finite.
    """
    optimiser, start, least, best = torch.optim.Adam(groups), 0, float("inf"), None
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        module.load_state_dict(saved["module"])
        optimiser.load_state_dict(saved["optimiser"])
        start, least, best = saved["step"], saved["least"], saved["best"]
    for step in tqdm(range(start, steps), initial=start, total=steps, desc="fit"):
        loss = loss_of(step)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} after {step} steps of training")
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), CLIP)
        optimiser.step()
        if (done := step + 1) % EVERY and done < steps:
            continue
        if held_out is not None and (found := held_out()) < least:
            least, best = found, copy.deepcopy(module.state_dict())
        saved = {"module": module.state_dict(), "optimiser": optimiser.state_dict(), "step": done, "least": least, "best": best}
        with write_atomically(checkpoint) as temporary:
            torch.save(saved, temporary)
    if best is not None:
        module.load_state_dict(best)
