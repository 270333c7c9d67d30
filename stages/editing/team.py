"""Processes that make the edits of one cell side by side.

The matrices of one edit are too small to keep two cores busy, two edits are not: `workers` processes share the `threads` of
params.yaml. Each opens the cell for itself when it is first asked something. What they do does not depend on how many they are,
but for the last digits of sums, which depend on the threads of each.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from stages.editing.cell import Asks, Cell, Chunk, Traced, fit_seed, is_learnt, learn, make_and_trace, read_trunk
from stages.editing.editors import module_of
from stages.editing.fitting import networks
from stages.editing.plan import Plan, Row, label
from stages.editing.probes import probes_of
from stages.editing.resume import Records
from stages.params import Params, UserError
from stages.settings import Embedded

Item, Found = TypeVar("Item"), TypeVar("Found")
Work = Callable[[Cell, Item], Found]
_opened: dict[str, Any] = {}  # of a worker: what opens its cell, and the cell


class Team:
    """Who makes the edits of a plan: `workers` processes, or this one where they are 1. Use it in a `with` statement.

    `opens` opens the cell, with `threads` for the numeric libraries; edits are made `batch` at a time.
    """

    def __init__(self, plan: Plan, opens: Callable[[], Cell], workers: int, threads: int, batch: int):
        self.plan, self.opens, self.workers, self.threads, self.batch = plan, opens, workers, threads, batch
        self._pool: ProcessPoolExecutor | None = None

    @classmethod
    def of(cls, params: Params, plan: Plan, ask: Asks = probes_of) -> "Team":
        """The team of params.yaml. A model that fills a GPU, or a real checkpoint, is opened once."""
        small = isinstance(params.backbone(plan.backbone_name), Embedded) and params.device == "cpu"
        workers = params.workers if small else 1
        opens = partial(Cell.open, params, replace(plan, editor=None), ask)  # a module does not travel
        return cls(plan, opens, workers, max(1, params.threads // workers), params.batch)

    @classmethod
    def alone(cls, cell: Cell) -> "Team":
        """This process, with a cell that is open."""
        return cls(cell, lambda: cell, 1, torch.get_num_threads(), cell.batch)

    def __enter__(self) -> "Team":
        return self

    def __exit__(self, kind: type | None, *_error: object) -> None:
        if self._pool is None:
            return
        if kind is not None:  # nobody waits for what they are at
            for process in multiprocessing.active_children():
                process.terminate()
        self._pool.shutdown(cancel_futures=True)

    @cached_property
    def cell(self) -> Cell:
        """The cell, opened in this process."""
        torch.set_num_threads(self.threads)
        return self.opens()

    def each(self, work: Work, items: Sequence[Item]) -> Iterator[Found]:
        """`work(cell, item)` of every item, in their order. `work` is a function of a module, so that it can travel."""
        if self.workers == 1:
            yield from (work(self.cell, item) for item in items)
            return
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.workers, spawn, _begin, (os.getpid(), self.opens, self.threads))
        try:
            yield from self._pool.map(partial(_work, work), items)
        except BrokenProcessPool:
            allowed = "fewer workers, a smaller batch or more memory"
            raise UserError(f"workers: {self.workers}: a process of {self.plan.name} was killed; allowed: {allowed}") from None

    def learn(self, grid: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> None:
        """Train the editor's networks under some settings, side by side, where the cache has them not."""
        editor = module_of(self.plan.method.editor)
        if not hasattr(editor, "fit"):
            return
        wanted = {}
        for settings in (hyper | {"seed": seed} for hyper in grid for seed in seeds):
            for part, some in networks(editor, settings).items():
                wanted[part, label(some)] = settings, part
        known = self.each(is_learnt, list(wanted.values()))
        missing = [one for one, there in zip(wanted.values(), known, strict=True) if not there]
        if missing:
            places = range(0, len(self.plan.learnt), self.batch)
            for _ in tqdm(self.each(read_trunk, places), total=len(places), desc=f"{self.plan.name}, train edits read"):
                pass
        for _ in self.each(learn, missing):
            pass

    def trace(self, hyper: Mapping[str, Any], rows: Sequence[Row], seeds: Sequence[int], records: Records) -> list[Traced]:
        """The trace's rows of some edits under the settings `hyper`, made where `records` does not have them, some at a time."""
        chunks = [Chunk(hyper, seed, rows[at : at + self.batch]) for seed in seeds for at in range(0, len(rows), self.batch)]
        missing = [chunk for chunk in chunks if not all(name in records for name in chunk.names)]
        if missing:
            self.learn([hyper], sorted({fit_seed(chunk.seed) for chunk in missing}))
        done = sum(len(chunk.rows) for chunk in chunks) - sum(len(chunk.rows) for chunk in missing)
        with tqdm(total=len(rows) * len(seeds), initial=done, desc=f"{self.plan.name}") as progress:
            for chunk, found in zip(missing, self.each(make_and_trace, missing), strict=True):
                for name, own in zip(chunk.names, found, strict=True):
                    records[name] = own
                progress.update(len(chunk.rows))
        return [row for chunk in chunks for name in chunk.names for row in records[name]]


def _begin(parent: int, opens: Callable[[], Cell], threads: int) -> None:
    """What a worker does first. It ends with its parent, however that ends; an interrupt is the parent's to handle. One that is
    told to end leaves nothing behind.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    torch.set_num_threads(threads)
    _opened["opens"] = opens

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(work: Work, item: Item) -> Found:
    """A worker's answer; it opens its cell when it is first asked."""
    if "cell" not in _opened:
        _opened["cell"] = _opened["opens"]()
    return work(_opened["cell"], item)
