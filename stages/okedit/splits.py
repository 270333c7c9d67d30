"""Which picture belongs to which split, so that no photo of a test edit is one of a dev or train edit."""

from collections.abc import Iterable, Mapping

import numpy as np

from stages.params import derive_seed


def split_of(names: Iterable[str], wanted: Mapping[str, int], seed: int) -> dict[str, str]:
    """Name → split, drawn by `seed` in proportion to the edits `wanted` of each split.

    A name's split depends on the names and numbers alone, not on which edits are rejected later.
    """
    listed = sorted(set(names))
    order = np.random.default_rng(derive_seed(seed, "split")).permutation(len(listed))
    bounds = np.cumsum([round(len(listed) * n / sum(wanted.values())) for n in wanted.values()])
    last = [split for split, n in wanted.items() if n][-1]
    drawn = {}
    for i, j in enumerate(order):
        place = int(np.searchsorted(bounds, i, side="right"))
        drawn[listed[j]] = list(wanted)[place] if place < len(bounds) else last
    return drawn
