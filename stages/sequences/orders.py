"""In which orders edits follow on each other, and after how many all is tested."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from stages.params import derive_seed
from stages.settings import Sequence as Settings

HELD_OUT = "dev"  # the split whose edits are never made
T = TypeVar("T")


def orders(edits: Sequence[T], count: int, seed: int) -> list[list[T]]:
    """`count` orders of the edits, the first as they come."""
    drawn = [np.random.default_rng(derive_seed(seed, "order", str(i))).permutation(len(edits)) for i in range(1, count)]
    return [list(edits), *([edits[i] for i in order] for order in drawn)]


def points(settings: Settings, edits: int) -> list[int]:
    """The numbers of edits after which all is tested: those of params.yaml that there are edits for, and all edits."""
    return sorted({at for at in settings.at if at < edits} | {edits})
