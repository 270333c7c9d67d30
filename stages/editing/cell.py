"""One cell of the study, a method on a backbone and a dataset: all that its edits need, loaded and checked before long work."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from stages.backbone.vlm import Backbone
from stages.editing import code
from stages.editing.editors import module_of
from stages.editing.edits import Edit, attempt
from stages.editing.fitting import Example, fitted, training_probes
from stages.editing.plan import Plan, Row, label
from stages.editing.probes import Probe, probes_of
from stages.editing.resume import Records
from stages.editing.size import size_of, tensors_in
from stages.editing.trace import trace_edit
from stages.editing.trunk import States, cached_trunk, request_of
from stages.okedit.schema import decode, read_images
from stages.params import Params, UserError, derive_seed
from stages.settings import Embedded

CACHE, FITS = Path("data/.cache/trunk"), Path("data/.cache/fit")

Traced = dict[str, Any]
Asks = Callable[[Row, Sequence[Row]], list[Probe]]


@dataclass(frozen=True)
class Cell(Plan):
    """A plan with all that making its edits needs."""

    backbone: Backbone
    queries: Mapping[str, Sequence[Probe]]
    examples: Sequence[Example]
    digests: Mapping[str, str]  # image id → of its bytes

    @classmethod
    def open(cls, params: Params, plan: Plan, ask: Asks = probes_of) -> "Cell":
        """Load a plan's backbone and pictures; a fault of theirs is a UserError. `ask(row, samples)` gives an edit's queries."""
        settings = params.backbone(plan.backbone_name)
        images = read_images(*(Path("data") / stage / plan.dataset / "images.parquet" for stage in ("okedit", "samples")))
        queries = {row["edit_id"]: ask(row, [s for s in plan.samples if s["edit_id"] == row["edit_id"]]) for row in plan.rows}
        training = {row["edit_id"]: training_probes(row) for row in plan.learnt}
        pictures = decode_shown(queries | training, images)
        opened = Backbone.open(Path("data/backbones") / settings.name, settings.layer)
        if isinstance(settings, Embedded):  # a real checkpoint has a device_map of its own
            place(opened.model, params.device)
        opened.add_pictures(pictures)
        digests = {image_id: hashlib.sha256(png).hexdigest() for image_id, png in images.items()}
        run = partial(_states, opened, digests)
        examples = [Example(row, training[row["edit_id"]], partial(run, row)) for row in plan.learnt]
        whole = vars(plan) | {"editor": module_of(plan.method.editor)}
        return cls(**whole, backbone=opened, queries=queries, examples=examples, digests=digests)

    def records(self, purpose: str = "", *more: object) -> Records:
        """Where finished edits are kept until the cell is whole; `more` is what they are made from besides."""
        made_from = [self.code, self.fingerprint, self.method.editor, self.grid, self.rows, self.samples]
        made_from += [self.digests, self.seeds, self.learnt, *more]
        return Records(Path("data/.resume") / f"{purpose}{self.name}", json.dumps(made_from))

    def states(self, row: Row) -> States:
        """What the trunk says of an edit's probes, from the cache or computed."""
        return _states(self.backbone, self.digests, row, self.queries[row["edit_id"]])

    def asking(self, count: int) -> "Cell":
        """The same cell with the first `count` probes of each kind, and all samples."""
        return replace(self, queries={edit: few(probes, count) for edit, probes in self.queries.items()})

    def trace(self, hyper: Mapping[str, Any], rows: Sequence[Row], seeds: Sequence[int], records: Records) -> list[Traced]:
        """The trace's rows of some edits under the settings `hyper`, made where `records` does not have them."""
        setting, traced = hashlib.sha256(label(hyper).encode()).hexdigest()[:8], []
        for seed in seeds:
            named = [(f"{setting}-{seed}-{len(self.queries[row['edit_id']])}-{row['edit_id']}", row) for row in rows]
            make = shared = None
            for name, row in tqdm(named, desc=f"{self.name}, seed {seed}"):
                if name not in records:
                    if make is None:
                        make, shared = self.prepared(hyper | {"seed": derive_seed(seed, "fit")})
                    records[name] = self.traced(row, seed, self.made(make, hyper, row, seed), shared)
                traced += records[name]
        return traced

    def traced(self, row: Row, seed: int, edit: Edit, shared: Sequence[torch.Tensor]) -> list[Traced]:
        """The trace's rows of one edit, which keeps the tensors `shared` not for itself."""
        kept = {"seed": seed, "bytes": size_of(edit, shared), "key_bytes": self.key_bytes(row)}
        probes = self.queries[row["edit_id"]]
        return [kept | one for one in trace_edit(self.backbone, row, probes, self.states(row), edit)]

    def made(self, make: Callable[..., Edit], hyper: Mapping[str, Any], row: Row, seed: int, start: Edit | None = None) -> Edit:
        """One edit, which goes on from `start` where there is one."""
        request = replace(request_of(self.states(row), row), start=start)
        return attempt(partial(make, self.backbone, request, {**hyper, "seed": derive_seed(seed, "edit", row["edit_id"])}))

    def key_bytes(self, row: Row) -> int:
        """Bytes of the key and the radius that an edit keeps, 0 where it has no codebook."""
        if self.method.router != "codebook":
            return 0
        key = self.states(row).key[self.method.key.span]
        return (key.numel() + 1) * key.element_size()

    def prepared(self, settings: Mapping[str, Any]) -> tuple[Callable[..., Edit], Sequence[torch.Tensor]]:
        """The editor's `edit`, which knows what was learnt of the train split, and all tensors of that; where learning diverged,
        every edit does.
        """
        if not hasattr(self.editor, "fit"):
            return self.editor.edit, []
        if not self.examples:
            raise UserError(f"{self.editor.__name__}: no train edits; allowed: a dataset and `edits` with `train` of at least 1")
        learns = code.digest(code.module_name(self.method.editor), "stages.editing.fitting")
        made_from = json.dumps([learns, self.digests])
        try:
            state = fitted(self.editor, self.backbone, self.examples, settings, made_from, FITS)
        except FloatingPointError as error:
            print(f"[edits] training diverged: {error}", file=sys.stderr)
            return lambda *_: Edit(loss=float("nan"), diverged=True), []
        return partial(self.editor.edit, fitted=state), tensors_in(state)


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


def _states(backbone: Backbone, digests: Mapping[str, str], row: Row, probes: Sequence[Probe]) -> States:
    return cached_trunk(backbone, row, probes, digests, CACHE)


def decode_shown(queries: Mapping[str, Sequence[Probe]], images: Mapping[str, bytes]) -> dict[str, Image.Image]:
    """Every picture that some edit's probes show; UserError names the first that is missing or cannot be read."""
    pictures = {}
    for edit_id, probes in queries.items():
        for image_id in sorted({p.image_id for p in probes if p.image_id is not None} - pictures.keys()):
            if image_id not in images:
                raise UserError(f"{edit_id}: image {image_id!r} is missing; allowed: the {len(images)} ids of the image tables")
            pictures[image_id] = decode(image_id, images[image_id])
    return pictures
