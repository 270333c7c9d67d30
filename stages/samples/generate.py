"""Samples of an edit (Guo et al., section 4.2): what it must reach and what it must not, made without extra training data.

Positive: the same picture with a rephrased question, and beyond the paper the same question about views of the picture. Negative:
a picture that shows nothing of the edit (all black in the paper) with the original question. The alternatives are for the
ablation over negative samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from stages.okedit.images import SIZE
from stages.okedit.schema import Picture, encode
from stages.params import derive_seed

PLAIN = {"black": (0, 0, 0), "white": (255, 255, 255)}


@dataclass(frozen=True)
class Sample:
    """One sample query of an edit."""

    edit_id: str
    kind: str
    question: str
    image_id: str


def plain_pictures() -> list[Picture]:
    """The black and the white picture, which all edits share."""
    return [Picture(name, "", "", encode(Image.new("RGB", (SIZE, SIZE), colour))) for name, colour in PLAIN.items()]


def noise_picture(edit_id: str, seed: int) -> Picture:
    """Uniform noise, drawn for one edit."""
    rng = np.random.default_rng(derive_seed(seed, "noise", edit_id))
    pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return Picture(f"noise/{edit_id}", "", "", encode(Image.fromarray(pixels)))


def samples_of(
    row: Mapping[str, Any], views: Sequence[str], others: Sequence[str], nearest: str, another_question: str, seed: int
) -> list[Sample]:
    """All samples of one edit.

    `views` are ids of views of its picture, `others` of pictures of other things, which no probe asks the edit's question about;
    `nearest` is the most alike of them.
    """
    rng = np.random.default_rng(derive_seed(seed, "samples", row["edit_id"]))
    negatives = {
        "black": "black",
        "white": "white",
        "noise": f"noise/{row['edit_id']}",
        "random": others[rng.integers(len(others))],
        "nearest": nearest,
    }
    samples = [Sample(row["edit_id"], "sample_positive", q, row["image_id"]) for q in row["rephrasings_train"]]
    samples += [Sample(row["edit_id"], "sample_view", row["question"], image) for image in views]
    samples += [Sample(row["edit_id"], f"sample_{k}", row["question"], image) for k, image in negatives.items()]
    return [*samples, Sample(row["edit_id"], "sample_other_question", another_question, row["image_id"])]
