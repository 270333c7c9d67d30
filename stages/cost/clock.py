"""Times of things that are compared, measured in turns: a machine that slows down slows all of them."""

import time
from collections.abc import Callable, Mapping

import numpy as np


def measure(things: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds [rounds] of each thing. A first round that does not count warms up; each further one runs all of them, starting
    with another one.
    """
    names, taken = list(things), {name: [] for name in things}
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            begin = time.perf_counter()
            things[name]()
            taken[name].append(time.perf_counter() - begin)
    return {name: np.array(seconds[1:]) for name, seconds in taken.items()}


def middle(values: np.ndarray) -> dict[str, float]:
    """Median and quartiles of what was measured, and how often it was."""
    low, value, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"value": float(value), "low": float(low), "high": float(high), "n": len(values)}
