"""Generate the samples of every edit of a dataset: data/samples/<dataset>/samples.parquet and images.parquet.

python -m stages.samples okedit
"""

import sys
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from stages.assets import knowledge
from stages.backbone.vlm import Backbone
from stages.okedit.images import Neighbours
from stages.okedit.schema import IMAGES, Picture, read_edits, write_table
from stages.params import UserError, load, run
from stages.samples.generate import noise_picture, plain_pictures, samples_of


def main() -> None:
    if len(sys.argv) != 2:
        raise UserError(f"arguments: {' '.join(sys.argv[1:])!r}; needed: a dataset's name")
    params = load()
    torch.set_num_threads(params.threads)
    dataset = params.dataset(sys.argv[1])
    rows = read_edits(Path("data/okedit") / dataset.name, ("dev", "test"))
    facts = knowledge.load()
    concepts = facts.concepts
    index = {c.concept: i for i, c in enumerate(concepts)}
    name, settings = next(iter(params.backbones.items()))
    backbone = Backbone.open(Path("data/backbones") / name, settings.layer)
    emoji = Path("data/assets/emoji")
    codes = [c.code_point for c in concepts]
    neighbours = Neighbours(backbone.model.model.vision_tower, emoji, codes)
    samples, pictures = [], {p.image_id: p for p in plain_pictures()}
    for row in tqdm(rows, desc=f"samples {dataset.name}"):
        vendor = row["image_id"].split("/")[0]
        shown = {p["image_id"].split("/")[1] for p in row["locality"] if p["image_id"]}
        own = concepts[index[row["concept"]]]
        others = [
            index[c] for c in facts.relations[row["relation"]].facts
            if concepts[index[c]].name != own.name and concepts[index[c]].code_point not in shown
        ]  # fmt: skip
        found = samples_of(
            row, vendor, others, index[row["concept"]], neighbours, [f"{vendor}/{code}" for code in codes],
            facts.relations["name"].rephrasings_train[0], params.seed,
        )  # fmt: skip
        samples += found
        noise = noise_picture(row["edit_id"], params.seed)
        pictures[noise.image_id] = noise
        for sample in found:
            if sample.image_id not in pictures and "/" in sample.image_id:
                brand, code = sample.image_id.split("/")[:2]
                png = (emoji / brand / f"{code}.png").read_bytes()
                pictures[sample.image_id] = Picture(sample.image_id, brand, "", png)
    folder = Path("data/samples") / dataset.name
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "samples.parquet", [asdict(s) for s in samples])
    write_table(folder / "images.parquet", [asdict(pictures[i]) for i in sorted(pictures)], IMAGES)
    print(f"[samples] read {len(rows)} edits -> {len(samples)} samples, {len(pictures)} pictures in {folder}")


if __name__ == "__main__":
    run(main)
