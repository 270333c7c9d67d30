"""The same work on several things beside each other, a process a core: what comes of it is the same, however many there are."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from tqdm import tqdm

T, R = TypeVar("T"), TypeVar("R")


def each(work: Callable[[T], R], things: Sequence[T], desc: str) -> list[R]:
    """What the work gives for each thing, in their order; it and they can be pickled. The first error is raised."""
    with ProcessPoolExecutor(min(len(things), os.cpu_count() or 1)) as pool:
        return list(tqdm(pool.map(work, things), total=len(things), desc=desc))
