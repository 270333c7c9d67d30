"""One cell of the study, a method on a backbone and a dataset: all that its edits need, loaded and checked before long work."""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from PIL import Image
from torch import nn

from stages import code
from stages.backbone.vlm import Backbone
from stages.editing.editors import module_of
from stages.editing.edits import DIVERGED, Edit, Request, attempt
from stages.editing.fitting import Example, fitted, learnt_part, training_probes
from stages.editing.plan import Plan, Row, label
from stages.editing.probes import Probe, probes_of
from stages.editing.size import size_of, tensors_in
from stages.editing.trace import Trial, trace_edits
from stages.editing.trunk import States, request_of
from stages.editing.trunk_cache import TrunkCache
from stages.okedit.schema import decode, read_images
from stages.params import Params, UserError, derive_seed
from stages.sections import Hyper
from stages.settings import Embedded

CACHE, FITS = Path("data/.cache/trunk"), Path("data/.cache/fit")

Traced = dict[str, Any]
Makes = Callable[[Sequence[Request], Sequence[Hyper]], list[Edit]]
Asks = Callable[[Row, Sequence[Row]], list[Probe]]


@dataclass(frozen=True)
class Cell(Plan):
    """A plan with all that making its edits needs."""

    backbone: Backbone
    queries: Mapping[str, Sequence[Probe]]
    examples: Sequence[Example]
    trunk: TrunkCache
    batch: int  # edits that are made side by side
    memo: dict[str, Any] = field(default_factory=dict, init=False, repr=False)  # what work on the cell need not do twice

    @classmethod
    def open(cls, params: Params, plan: Plan, ask: Asks = probes_of) -> "Cell":
        """Load a plan's backbone and pictures; a fault of theirs is a UserError. `ask(row, samples, counts)` gives the
        queries of an edit.
        """
        settings = params.backbone(plan.backbone_name)
        images = read_images(*(Path("data") / stage / plan.dataset / "images.parquet" for stage in ("okedit", "samples")))
        samples = {row["edit_id"]: [s for s in plan.samples if s["edit_id"] == row["edit_id"]] for row in plan.rows}
        queries = {row["edit_id"]: ask(row, samples[row["edit_id"]], plan.asked) for row in plan.rows}
        training = {row["edit_id"]: training_probes(row) for row in plan.learnt}
        pictures = decode_shown(queries | training, images)
        opened = Backbone.open(Path("data/backbones") / settings.name, settings.layer)
        if isinstance(settings, Embedded):  # a real checkpoint has a device_map of its own
            place(opened.model, params.device)
        opened.add_pictures(pictures)
        digests = {image_id: hashlib.sha256(png).hexdigest() for image_id, png in images.items()}
        trunk = TrunkCache(opened, digests, CACHE / plan.backbone_name, int(params.cache * 2**30), params.batch, params.keys)
        examples = [Example(row, training[row["edit_id"]], partial(trunk.states, row)) for row in plan.learnt]
        whole = vars(plan) | {"editor": module_of(plan.method.editor)}
        return cls(**whole, backbone=opened, queries=queries, examples=examples, trunk=trunk, batch=params.batch)

    def states(self, row: Row) -> States:
        """What the trunk says of an edit's probes, from the cache or computed."""
        return self.trunk.states(row, self.queries[row["edit_id"]])

    def asking(self, count: int) -> "Cell":
        """The same cell with the first `count` probes of each kind, and all samples."""
        return replace(self, queries={edit: few(probes, count) for edit, probes in self.queries.items()})

    def traced(self, rows: Sequence[Row], seed: int, edits: Sequence[Edit], shared: Sequence[torch.Tensor]) -> list[list[Traced]]:
        """The trace's rows of each of some edits, which keep the tensors `shared` not for themselves."""
        trials = [Trial(row, self.queries[row["edit_id"]], self.states(row), edit) for row, edit in zip(rows, edits, strict=True)]
        found = []
        for one, own in zip(trials, trace_edits(self.backbone, trials), strict=True):
            key_bytes = self.key_bytes(one.states)
            kept = {"seed": seed, "bytes": size_of(one.edit, shared), "key_bytes": key_bytes}
            found.append([kept | probe for probe in own])
        return found

    def made(
        self, make: Makes, hyper: Mapping[str, Any], rows: Sequence[Row], seed: int, start: Edit | None = None
    ) -> list[Edit]:
        """Some edits, which go on from `start` where there is one: side by side where the editor can."""
        requests = [replace(request_of(self.states(row), row), start=start) for row in rows]
        settings = [self.editor.Settings(**hyper, seed=derive_seed(seed, "edit", row["edit_id"])) for row in rows]
        return make(requests, settings)

    def key_bytes(self, states: States) -> int:
        """Bytes of the key and the radius that an edit keeps, 0 where it has no codebook."""
        if self.method.router != "codebook":
            return 0
        key = states.key[self.method.key.span]
        return (key.numel() + 1) * key.element_size()

    def prepared(self, settings: Mapping[str, Any]) -> tuple[Makes, Sequence[torch.Tensor]]:
        """What makes the editor's edits of requests and settings, and all tensors that were learnt of the train split; where
        learning diverged, every edit does.
        """
        if self.memo.get("prepared", ("",))[0] != label(settings):
            self.memo["prepared"] = label(settings), self._prepared(settings)  # of the last settings: networks are large
        return self.memo["prepared"][1]

    def _prepared(self, settings: Mapping[str, Any]) -> tuple[Makes, Sequence[torch.Tensor]]:
        more = {}
        if hasattr(self.editor, "fit"):
            if not self.examples:
                raise UserError(
                    f"{self.editor.__name__}: no train edits; allowed: a dataset and `edits` with `train` of at least 1"
                )
            try:
                more["fitted"] = fitted(self.editor, self.backbone, self.examples, settings, self.learns, FITS)
            except FloatingPointError as error:
                print(f"[edits] training diverged: {error}", file=sys.stderr)
                return lambda requests, _settings: [DIVERGED for _ in requests], []
        return partial(make_edits, self.editor, self.backbone, **more), tensors_in(more)

    @cached_property
    def learns(self) -> str:
        """What a training depends on beside settings, backbone and train edits: code and pictures."""
        by = code.digest(code.module_name(self.method.editor), "stages.editing.fitting", *self.adapters)
        return json.dumps([by, self.trunk.pictures])

    @cached_property
    def weights(self) -> str:
        """A digest of every weight of the model, bit for bit, as it was when this was first asked."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.backbone.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


@dataclass(frozen=True)
class Chunk:
    """Some edits that are made side by side, under the settings `hyper` and a seed."""

    hyper: Mapping[str, Any]
    seed: int
    rows: Sequence[Row]

    @property
    def names(self) -> list[str]:
        """What the records of its edits are called."""
        setting = hashlib.sha256(label(self.hyper).encode()).hexdigest()[:8]
        return [f"{setting}-{self.seed}-{row['edit_id']}" for row in self.rows]


def fit_seed(seed: int) -> int:
    """The seed of what is learnt before edits of a seed."""
    return derive_seed(seed, "fit")


def make_and_trace(cell: Cell, chunk: Chunk) -> list[list[Traced]]:
    """The trace's rows of each edit of a chunk. The backbone's weights must be what they were."""
    cell.weights  # noqa: B018  (a digest of all of them, before the first edit)
    before = sums(cell.backbone)
    make, shared = cell.prepared(chunk.hyper | {"seed": fit_seed(chunk.seed)})
    found = cell.traced(chunk.rows, chunk.seed, cell.made(make, chunk.hyper, chunk.rows, chunk.seed), shared)
    if sums(cell.backbone) != before:
        raise RuntimeError(f"{cell.name}: the backbone's weights changed; editing must leave them bit-identical")
    return [[row | {"weights": cell.weights[:16]} for row in rows] for rows in found]


def sums(backbone: Backbone) -> list[int]:
    """A sum over the bits of every weight, as whole numbers: it changes with any of them."""
    found = []
    for _, tensor in sorted(backbone.model.state_dict().items()):
        flat = tensor.contiguous().reshape(-1).view(torch.uint8)
        even = len(flat) // 8 * 8
        found.append(int(flat[:even].view(torch.int64).sum()) + int(flat[even:].sum()))
    return found


Network = tuple[Mapping[str, Any], str]  # settings with a seed, and the part that is trained under them


def is_learnt(cell: Cell, network: Network) -> bool:
    """Whether the cache has what is learnt."""
    return learnt_part(cell.editor, cell.backbone, cell.examples, *network, cell.learns, FITS, train=False) is not None


def read_trunk(cell: Cell, at: int) -> None:
    """Put into the cache what the trunk says of some train edits, those from place `at` on."""
    for example in cell.examples[at : at + cell.batch]:
        cell.trunk.states(example.row, example.probes)


def learn(cell: Cell, network: Network) -> None:
    """Train a network and leave it in the cache; one that diverges leaves none, and says so when it is used."""
    with contextlib.suppress(FloatingPointError):
        learnt_part(cell.editor, cell.backbone, cell.examples, *network, cell.learns, FITS)


def make_edits(
    editor: ModuleType, backbone: Backbone, requests: Sequence[Request], settings: Sequence[Hyper], **more: Any
) -> list[Edit]:
    """An editor's edits of some requests, side by side where it can, else one by one. One that diverges changes nothing."""
    if hasattr(editor, "edit_batch"):
        return editor.edit_batch(backbone, requests, settings, **more)
    return [attempt(partial(editor.edit, backbone, *pair, **more)) for pair in zip(requests, settings, strict=True)]


def place(model: nn.Module, device: str) -> None:
    """Move a model to `device`, where sums have full precision and one order; UserError where PyTorch sees no such device."""
    if device == "cuda":
        if not torch.cuda.is_available():
            raise UserError("device: 'cuda' is not allowed: PyTorch sees no GPU here; allowed: cpu")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS sums in no fixed order
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.enable_mem_efficient_sdp(False)  # its gradients have no fixed order
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False
    model.to(device)


def few(probes: Sequence[Probe], count: int) -> list[Probe]:
    """The first `count` probes of each kind, and all samples, which locate radii."""
    kinds = [probe.kind for probe in probes]
    return [probe for i, probe in enumerate(probes) if probe.is_sample or kinds[:i].count(probe.kind) < count]


def decode_shown(queries: Mapping[str, Sequence[Probe]], images: Mapping[str, bytes]) -> dict[str, Image.Image]:
    """Every picture that some edit's probes show; UserError names the first that is missing or cannot be read."""
    pictures = {}
    for edit_id, probes in queries.items():
        for image_id in sorted({p.image_id for p in probes if p.image_id is not None} - pictures.keys()):
            if image_id not in images:
                raise UserError(f"{edit_id}: image {image_id!r} is missing; allowed: the {len(images)} ids of the image tables")
            pictures[image_id] = decode(image_id, images[image_id])
    return pictures
