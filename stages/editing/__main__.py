"""Make every dev and test edit of one cell and trace what it does: data/traces/<dataset>-<backbone>-<method>.parquet.

    python -m stages.editing okedit llava-smollm2 balancedit

Interrupted work resumes: each finished edit is kept under data/.partial until the trace is whole.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq
import torch
from PIL import Image
from tqdm import tqdm

from stages.backbone.vlm import Backbone
from stages.editing.editor import load_editor
from stages.editing.partial import Partial
from stages.editing.trace import Probe, cached_trunk, code_digest, probes_of, request_of, trace_edit
from stages.okedit.schema import decode, read_edits, read_images, write_table
from stages.params import UserError, derive_seed, load, run

CACHE = Path("data/.cache/trunk")


def main() -> None:
    if len(sys.argv) != 4:
        raise UserError(f"arguments: {' '.join(sys.argv[1:])!r}; needed: a dataset, a backbone and a method")
    params = load()
    torch.set_num_threads(params.threads)
    dataset, settings, method = params.dataset(sys.argv[1]), params.backbone(sys.argv[2]), params.method(sys.argv[3])
    cell = "-".join(sys.argv[1:])
    rows = read_edits(Path("data/okedit") / dataset.name, ("dev", "test"))
    folders = Path("data/okedit") / dataset.name, Path("data/samples") / dataset.name
    images = read_images(*(folder / "images.parquet" for folder in folders))
    samples = pq.read_table(folders[1] / "samples.parquet").to_pylist()
    queries = {row["edit_id"]: probes_of(row, [s for s in samples if s["edit_id"] == row["edit_id"]]) for row in rows}
    pictures = decode_shown(queries, images)
    backbone = Backbone.open(Path("data/backbones") / settings.name, settings.layer)
    editor = load_editor(method.editor)
    weights = fingerprint(backbone)

    digests = {image_id: hashlib.sha256(png).hexdigest() for image_id, png in images.items()}
    seeds = sorted(params.seeds.values())
    hyper = {k: v for k, v in asdict(method).items() if k not in ("key", "radius", "router")}  # routing comes after tracing
    code = code_digest("editor", method.editor)
    made_from = json.dumps([code, backbone.fingerprint, hyper, rows, samples, digests, seeds])
    with Partial(Path("data/.partial") / cell, made_from) as partial:
        for seed in seeds:
            for row in tqdm(rows, desc=f"{cell}, seed {seed}"):
                name = f"{seed}-{row['edit_id']}"
                if name in partial:
                    continue
                probes = queries[row["edit_id"]]
                backbone.add_pictures({p.image_id: pictures[p.image_id] for p in probes if p.image_id is not None})
                states = cached_trunk(backbone, row, probes, digests, CACHE)
                seeded = hyper | {"seed": derive_seed(seed, "edit", row["edit_id"])}
                edit = editor(backbone, request_of(states), seeded)
                partial[name] = [{"seed": seed} | r for r in trace_edit(backbone, row, probes, states, edit)]
        traced = [r for seed in seeds for row in rows for r in partial[f"{seed}-{row['edit_id']}"]]
        if fingerprint(backbone) != weights:
            raise RuntimeError(f"{cell}: the backbone's weights changed; editing must leave them bit-identical")
        path = Path("data/traces") / f"{cell}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(path, traced)
    print(f"[edits] {cell}: {len(rows)} edits x {len(seeds)} seeds, {len(traced)} rows -> {path}")


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
