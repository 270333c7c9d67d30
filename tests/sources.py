"""What the tests of dataset sources share: an entry of params.yaml, and a picture."""

import io
from typing import Any

import numpy as np
from PIL import Image

from stages.sections import read_section
from stages.settings import STAGES, Dataset


def dataset(**entries: Any) -> Dataset:
    return read_section(Dataset, "datasets.x", {"test": 2, "dev": 1, "train": 1} | entries, STAGES, name="x")


def png(seed: int, size: int = 64) -> bytes:
    """A picture of noise."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
