"""Make every dev and test edit of one cell and trace what it does: data/traces/<dataset>-<backbone>-<method>.parquet.

    python -m stages.editing okedit llava-smollm2 balancedit

Interrupted work resumes: each finished edit is kept under data/.partial until the trace is whole.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import torch
from PIL import Image
from tqdm import tqdm

from stages.backbone.vlm import Backbone
from stages.editing.editor import Edit, attempt, module_of
from stages.editing.fitting import Example, fitted, training_probes
from stages.editing.partial import Partial
from stages.editing.trace import Probe, States, cached_trunk, code_digest, probes_of, request_of, trace_edit
from stages.okedit.schema import decode, read_edits, read_images, read_made, write_table
from stages.params import UserError, derive_seed, load, run

CACHE, FITS = Path("data/.cache/trunk"), Path("data/.cache/fit")
SHARED = ("editor", "transform", "full", "fitting", "sentences")  # modules that editors share


def main() -> None:
    if len(sys.argv) != 4:
        raise UserError(f"arguments: {' '.join(sys.argv[1:])!r}; needed: a dataset, a backbone and a method")
    params = load()
    torch.set_num_threads(params.threads)
    dataset, settings, method = params.dataset(sys.argv[1]), params.backbone(sys.argv[2]), params.method(sys.argv[3])
    cell, editor = "-".join(sys.argv[1:]), module_of(method.editor)
    hyper = asdict(method.settings(editor.Settings))  # routing comes after tracing
    rows = read_made(Path("data/okedit") / dataset.name, params.edits)
    folders = Path("data/okedit") / dataset.name, Path("data/samples") / dataset.name
    images = read_images(*(folder / "images.parquet" for folder in folders))
    samples = pq.read_table(folders[1] / "samples.parquet").to_pylist()
    queries = {row["edit_id"]: probes_of(row, [s for s in samples if s["edit_id"] == row["edit_id"]]) for row in rows}
    learnt = read_edits(folders[0], ("train",)) if hasattr(editor, "fit") else []
    training = {row["edit_id"]: training_probes(row) for row in learnt}
    pictures = decode_shown(queries | training, images)
    backbone = Backbone.open(Path("data/backbones") / settings.name, settings.layer)
    backbone.add_pictures(pictures)
    weights = fingerprint(backbone)

    digests = {image_id: hashlib.sha256(png).hexdigest() for image_id, png in images.items()}
    seeds = sorted(params.seeds.values())

    def states_of(row: Mapping[str, Any], probes: Sequence[Probe]) -> States:
        return cached_trunk(backbone, row, probes, digests, CACHE)

    code = code_digest(*SHARED, method.editor)
    examples = [Example(row, training[row["edit_id"]], partial(states_of, row)) for row in learnt]
    made_from = json.dumps([code, backbone.fingerprint, method.editor, hyper, rows, samples, digests, seeds, learnt])
    with Partial(Path("data/.partial") / cell, made_from) as records:
        for seed in seeds:
            make = prepared(editor, backbone, examples, hyper | {"seed": derive_seed(seed, "fit")}, json.dumps([code, digests]))
            for row in tqdm(rows, desc=f"{cell}, seed {seed}"):
                name = f"{seed}-{row['edit_id']}"
                if name in records:
                    continue
                probes = queries[row["edit_id"]]
                states = states_of(row, probes)
                seeded = hyper | {"seed": derive_seed(seed, "edit", row["edit_id"])}
                edit = attempt(partial(make, backbone, request_of(states, row), seeded))
                records[name] = [{"seed": seed} | r for r in trace_edit(backbone, row, probes, states, edit)]
        traced = [r for seed in seeds for row in rows for r in records[f"{seed}-{row['edit_id']}"]]
        after = fingerprint(backbone)
        if after != weights:
            raise RuntimeError(f"{cell}: the backbone's weights changed; editing must leave them bit-identical")
        said = {"fitted": hasattr(editor, "fit"), "weights": after[:16]}
        path = Path("data/traces") / f"{cell}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(path, [row | said for row in traced])
    diverged = {(r["seed"], r["edit_id"]) for r in traced if r["diverged"]}
    failed = f", {len(diverged)} diverged" if diverged else ""
    print(f"[edits] {cell}: {len(rows)} edits x {len(seeds)} seeds{failed}, {len(traced)} rows -> {path}")


def prepared(
    editor: ModuleType, backbone: Backbone, examples: Sequence[Example], settings: Mapping[str, Any], made_from: str
) -> Callable[..., Edit]:
    """The editor's `edit`, which knows what was learnt of the train split; where that diverged, so does every edit."""
    if not hasattr(editor, "fit"):
        return editor.edit
    if not examples:
        raise UserError(f"{editor.__name__}: no train edits; allowed: a dataset with `train` of at least 1")
    try:
        return partial(editor.edit, fitted=fitted(editor, backbone, examples, settings, made_from, FITS))
    except FloatingPointError as error:
        print(f"[edits] training diverged: {error}", file=sys.stderr)
        return lambda *_: Edit(loss=float("nan"), diverged=True)


def decode_shown(queries: Mapping[str, Sequence[Probe]], images: Mapping[str, bytes]) -> dict[str, Image.Image]:
    """Every picture that some edit's probes show; UserError names the first that is missing or cannot be read."""
    pictures = {}
    for edit_id, probes in queries.items():
        for image_id in sorted({p.image_id for p in probes if p.image_id is not None} - pictures.keys()):
            if image_id not in images:
                raise UserError(f"{edit_id}: image {image_id!r} is missing; allowed: the {len(images)} ids of the image tables")
            pictures[image_id] = decode(image_id, images[image_id])
    return pictures


def fingerprint(backbone: Backbone) -> str:
    """A digest of every weight of the model, bit for bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


if __name__ == "__main__":
    run(main)
