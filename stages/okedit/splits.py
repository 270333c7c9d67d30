"""What belongs to which split, so that nothing that is asked of a test edit is asked of a dev or train edit."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

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


def dealt(groups: Mapping[str, Collection[str]], wanted: Mapping[str, int], each: int, seed: int) -> dict[str, str]:
    """Name → split, drawn by `seed` group by group, the smallest first; a name may be in several.

    Of every group each split gets `each` names, as far as they go, and of the others a share in proportion to the edits `wanted`.
    """
    rng, drawn = np.random.default_rng(derive_seed(seed, "split")), {}
    for group in sorted(groups, key=lambda group: (len(groups[group]), group)):
        has = Counter(drawn[name] for name in groups[group] if name in drawn)
        free = sorted(set(groups[group]) - drawn.keys())
        for i in rng.permutation(len(free)):
            short = [s for s, n in wanted.items() if n and has[s] < each]
            if short:
                split = min(short, key=lambda s: has[s])
            else:
                split = min((s for s, n in wanted.items() if n), key=lambda s: has[s] / wanted[s])
            drawn[free[i]] = split
            has[split] += 1
    return drawn
