"""What the tests of dataset sources share: an entry of params.yaml, a relation and its facts, and a picture."""

import io
from typing import Any

import numpy as np
from PIL import Image

from stages.assets.knowledge import Hop, Relation
from stages.sections import read_section
from stages.settings import STAGES, Dataset


def dataset(**entries: Any) -> Dataset:
    return read_section(Dataset, "datasets.x", {"test": 2, "dev": 1, "train": 1} | entries, STAGES, name="x")


def relation_of(name: str, facts: dict[str, str], hops: tuple[Hop, ...] = ()) -> Relation:
    asked = [f"{name} phrasing {i}?" for i in range(14)]
    return Relation(name, "type", asked[0], tuple(asked[1:4]), tuple(asked[4:]), facts, hops)


def png(seed: int, size: int = 64) -> bytes:
    """A picture of noise."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
