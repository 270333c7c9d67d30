"""One cell of the study, a method on a backbone and a dataset: all that its edits need, loaded and checked before long work."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from stages import code
from stages.backbone.vlm import Backbone
from stages.editing.editors import module_of
from stages.editing.edits import DIVERGED, Edit, Request, attempt
from stages.editing.fitting import Example, fitted, training_probes
from stages.editing.plan import Plan, Row, label
from stages.editing.probes import Probe, probes_of
from stages.editing.resume import Records
from stages.editing.size import size_of, tensors_in
from stages.editing.trace import Trial, trace_edits
from stages.editing.trunk import States, request_of
from stages.editing.trunk_cache import TrunkCache
from stages.okedit.schema import decode, read_images
from stages.params import Params, UserError, derive_seed
from stages.settings import Embedded

CACHE, FITS = Path("data/.cache/trunk"), Path("data/.cache/fit")

Traced = dict[str, Any]
Makes = Callable[[Sequence[Request], Sequence[Mapping[str, Any]]], list[Edit]]
Asks = Callable[[Row, Sequence[Row], Mapping[str, int]], list[Probe]]


@dataclass(frozen=True)
class Cell(Plan):
    """A plan with all that making its edits needs."""

    backbone: Backbone
    queries: Mapping[str, Sequence[Probe]]
    examples: Sequence[Example]
    trunk: TrunkCache
    batch: int  # edits that are made side by side

    @classmethod
    def open(cls, params: Params, plan: Plan, ask: Asks = probes_of) -> "Cell":
        """Load a plan's backbone and pictures; a fault of theirs is a UserError. `ask(row, samples, counts)` gives the queries
        of an edit.
        """
        settings, counts = params.backbone(plan.backbone_name), params.edits.probes
        images = read_images(*(Path("data") / stage / plan.dataset / "images.parquet" for stage in ("okedit", "samples")))
        samples = {row["edit_id"]: [s for s in plan.samples if s["edit_id"] == row["edit_id"]] for row in plan.rows}
        queries = {row["edit_id"]: ask(row, samples[row["edit_id"]], counts) for row in plan.rows}
        training = {row["edit_id"]: training_probes(row) for row in plan.learnt}
        pictures = decode_shown(queries | training, images)
        opened = Backbone.open(Path("data/backbones") / settings.name, settings.layer)
        if isinstance(settings, Embedded):  # a real checkpoint has a device_map of its own
            place(opened.model, params.device)
        opened.add_pictures(pictures)
        digests = {image_id: hashlib.sha256(png).hexdigest() for image_id, png in images.items()}
        trunk = TrunkCache(opened, digests, CACHE / plan.backbone_name, int(params.cache * 2**30), params.batch)
        examples = [Example(row, training[row["edit_id"]], partial(trunk.states, row)) for row in plan.learnt]
        whole = vars(plan) | {"editor": module_of(plan.method.editor)}
        return cls(**whole, backbone=opened, queries=queries, examples=examples, trunk=trunk, batch=params.batch)

    def records(self, purpose: str = "", *more: object) -> Records:
        """Where finished edits are kept until the cell is whole; `more` is what they are made from besides."""
        made_from = [self.code, self.fingerprint, self.method.editor, self.grid, self.rows, self.samples]
        made_from += [self.trunk.pictures, self.seeds, self.learnt, *more]
        made_from += [[probe.kind for probe in self.queries[row["edit_id"]]] for row in self.rows]
        return Records(Path("data/.resume") / f"{purpose}{self.name}", json.dumps(made_from))

    def states(self, row: Row) -> States:
        """What the trunk says of an edit's probes, from the cache or computed."""
        return self.trunk.states(row, self.queries[row["edit_id"]])

    def asking(self, count: int) -> "Cell":
        """The same cell with the first `count` probes of each kind, and all samples."""
        return replace(self, queries={edit: few(probes, count) for edit, probes in self.queries.items()})

    def trace(self, hyper: Mapping[str, Any], rows: Sequence[Row], seeds: Sequence[int], records: Records) -> list[Traced]:
        """The trace's rows of some edits under the settings `hyper`, made where `records` does not have them, some at a time."""
        setting, traced = hashlib.sha256(label(hyper).encode()).hexdigest()[:8], []
        for seed in seeds:
            named = {row["edit_id"]: f"{setting}-{seed}-{len(self.queries[row['edit_id']])}-{row['edit_id']}" for row in rows}
            missing = [row for row in rows if named[row["edit_id"]] not in records]
            if missing:
                make, shared = self.prepared(hyper | {"seed": derive_seed(seed, "fit")})
            with tqdm(total=len(rows), initial=len(rows) - len(missing), desc=f"{self.name}, seed {seed}") as progress:
                for start in range(0, len(missing), self.batch):
                    some = missing[start : start + self.batch]
                    traced_now = self.traced(some, seed, self.made(make, hyper, some, seed), shared)
                    for row, found in zip(some, traced_now, strict=True):
                        records[named[row["edit_id"]]] = found
                    progress.update(len(some))
            for row in rows:
                traced += records[named[row["edit_id"]]]
        return traced

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
        settings = [{**hyper, "seed": derive_seed(seed, "edit", row["edit_id"])} for row in rows]
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
        more = {}
        if hasattr(self.editor, "fit"):
            if not self.examples:
                raise UserError(
                    f"{self.editor.__name__}: no train edits; allowed: a dataset and `edits` with `train` of at least 1"
                )
            learns = code.digest(code.module_name(self.method.editor), "stages.editing.fitting")
            made_from = json.dumps([learns, self.trunk.pictures])
            try:
                more["fitted"] = fitted(self.editor, self.backbone, self.examples, settings, made_from, FITS)
            except FloatingPointError as error:
                print(f"[edits] training diverged: {error}", file=sys.stderr)
                return lambda requests, _settings: [DIVERGED for _ in requests], []
        return partial(make_edits, self.editor, self.backbone, **more), tensors_in(more)


def make_edits(
    editor: ModuleType, backbone: Backbone, requests: Sequence[Request], settings: Sequence[Mapping[str, Any]], **more: Any
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
