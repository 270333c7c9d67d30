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
from stages.okedit.schema import IMAGES, in_sequence, made, read_edits, read_images, write_table
from stages.params import UserError, load, run
from stages.samples.generate import noise_picture, plain_pictures, samples_of
from stages.samples.pools import Drawings, Photos, Pool, other_question, shown_elsewhere
from stages.samples.views import views_of

DRAWN = ("embedded", "evqa")  # sources whose pictures are the drawings of data/assets


def main() -> None:
    if len(sys.argv) != 2:
        raise UserError(f"arguments: {' '.join(sys.argv[1:])!r}; needed: a dataset's name")
    params = load()
    torch.set_num_threads(params.threads)
    dataset = params.dataset(sys.argv[1])
    built = Path("data/okedit") / dataset.name
    edits, facts = read_edits(built), knowledge.load()
    first, after = made(edits, params.edits), in_sequence(edits, params.edits, params.sequence.edits)
    rows = list({row["edit_id"]: row for row in [*first, *after]}.values())
    shown = read_images(built / "images.parquet")
    pool: Pool
    if dataset.source in DRAWN:
        pool = Drawings(facts, Path("data/assets"))
    else:
        name, settings = next(iter(params.edited.items()))
        backbone = Backbone.open(Path("data/backbones") / name, settings.layer)
        pool = Photos(rows, shown, backbone)
    elsewhere = shown_elsewhere(edits)
    samples, pictures = [], {p.image_id: p for p in plain_pictures()}
    for row in tqdm(rows, desc=f"samples {dataset.name}"):
        others = pool.others(row, elsewhere[row["split"]])
        own = [*views_of(row["edit_id"], row["image_id"], shown[row["image_id"]]), noise_picture(row["edit_id"], params.seed)]
        pictures |= {picture.image_id: picture for picture in own}
        views, nearest = [view.image_id for view in own[:-1]], pool.nearest(row, others)
        found = samples_of(row, views, others, nearest, other_question(row, facts), params.seed)
        samples += found
        for image_id in {s.image_id for s in found} - pictures.keys():
            if picture := pool.picture(image_id):
                pictures[image_id] = picture
    folder = Path("data/samples") / dataset.name
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "samples.parquet", [asdict(s) for s in samples])
    write_table(folder / "images.parquet", [asdict(pictures[i]) for i in sorted(pictures)], IMAGES)
    print(f"[samples] read {len(rows)} edits -> {len(samples)} samples, {len(pictures)} pictures in {folder}")


if __name__ == "__main__":
    run(main)
