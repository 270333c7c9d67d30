"""Edits a second by the number that is made side by side, on the device of params.yaml: reports/batches.csv.

    python -m stages.cost.batches okedit llava-smollm2                      # BalancEdit and FT, 1 to 128 at a time
    python -m stages.cost.batches okedit llava-smollm2 1,8 balancedit       # some sizes, some methods

The edits are made behind what the trunk says of them, without their traces. A size that memory has no room for is left out. There
are as many edits as the largest size asks for; the set repeats where it has fewer.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from stages.editing.cell import Cell
from stages.editing.plan import Plan
from stages.params import Params, UserError, load, run, write_atomically

REPORT = Path("reports/batches.csv")
COLUMNS = ["dataset", "backbone", "device", "method", "batch", "edits_per_second", "n"]
SIZES, METHODS, ROUNDS = (1, 8, 32, 128), ("balancedit", "ft"), 3
SETTINGS = {"balancedit": {"lr": 3e-3, "margin": 10.0}, "ft": {"lr": 1e-4, "loss": 1e-3}}  # many steps an edit


def main() -> None:
    if len(sys.argv) < 3:
        needed = "a dataset and a backbone, then sizes such as 1,8 and methods if not the usual ones"
        raise UserError(f"arguments: {' '.join(sys.argv[1:])!r}; needed: {needed}")
    params, place, more = load(), sys.argv[1:3], sys.argv[3:]
    torch.set_num_threads(params.threads)
    sizes = [int(word) for word in more[0].split(",")] if more else SIZES
    rows = [row for method in more[1:] or METHODS for row in measured(params, place, method, sizes)]
    table = pd.DataFrame(rows).assign(dataset=place[0], backbone=place[1], device=params.device)
    with write_atomically(REPORT) as temporary:
        table[COLUMNS].to_csv(temporary, index=False, float_format="%.4g", lineterminator="\n")
    print(table.to_string(index=False))
    print(f"[cost] {len(table)} rows -> {REPORT}")


def measured(params: Params, place: Sequence[str], method: str, sizes: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The best of some rounds for each size."""
    cell = Cell.open(params, Plan.of(params, *place, method))
    make, _ = cell.prepared({"seed": 0})
    settings = {**cell.grid[0], **SETTINGS.get(method, {})}
    rows = list(islice(cycle([row for row in cell.rows if row["split"] == "test"]), max(sizes)))
    for size in sizes:
        some = rows[:size]
        cell.made(make, settings, some[:1], 0)  # to warm up
        try:
            seconds = [timed(cell, make, settings, some) for _ in range(ROUNDS)]
        except torch.OutOfMemoryError:
            print(f"[cost] {method}: no memory for {size} edits at a time")
            continue
        yield {"method": method, "batch": size, "edits_per_second": size / min(seconds), "n": ROUNDS}


def timed(cell: Cell, make: Any, settings: dict[str, Any], rows: Sequence[Any]) -> float:
    """Seconds that a batch of edits takes."""
    begin = time.perf_counter()
    cell.made(make, settings, rows, 0)
    if cell.backbone.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


if __name__ == "__main__":
    run(main)
