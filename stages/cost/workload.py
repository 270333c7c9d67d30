"""One workload, timed inside one checkout of the study: `stages.cost.throughput` runs this file with that checkout on the path.

It reads what is asked of it as JSON from the command line, and prints lists of seconds as JSON. Where a module is not there, it
takes the one of commit b90ef7e that did the same. All edits are asked all their probes, by as many processes and threads as
params.yaml of the checkout has.
"""

import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from stages.editing.cell import Cell
from stages.editing.plan import Plan
from stages.params import Params, load

FEW = 2  # probes of each kind that a setting was tried on
Asked = Mapping[str, Any]


def either(now: str, before: str) -> ModuleType:
    """A module under its name of now, or of before."""
    try:
        return importlib.import_module(f"stages.editing.{now}")
    except ModuleNotFoundError:
        return importlib.import_module(f"stages.editing.{before}")


def every_probe(row: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], _counts: object = None) -> list[Any]:
    """All that a set has for an edit."""
    return either("probes", "trace").probes_of(row, samples)


def few_probes(row: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], _counts: object = None) -> list[Any]:
    """The first ones of each kind."""
    return importlib.import_module("stages.editing.cell").few(every_probe(row, samples), FEW)


def timed(what: Callable[[], object]) -> float:
    """Seconds of a call."""
    begin = time.perf_counter()
    what()
    return time.perf_counter() - begin


def trunk(params: Params, plan: Plan, asked: Asked) -> dict[str, list[float]]:
    """What the frozen trunk says of an edit's probes, computed, a mean over some edits."""
    each, _ = side_by_side(params, plan, every_probe)
    list(each(opened, plan.rows))
    return {"trunk": [timed(lambda: list(each(read_trunk, plan.rows))) / len(plan.rows)]}


def opened(cell: Cell, row: object) -> None:
    """Open the cell, and read a first prompt."""
    either("trunk", "trace").run_trunk(cell.backbone, cell.rows[0], cell.queries[cell.rows[0]["edit_id"]][:1])


def read_trunk(cell: Cell, row: Mapping[str, Any]) -> None:
    """Run the trunk over an edit's probes."""
    either("trunk", "trace").run_trunk(cell.backbone, row, cell.queries[row["edit_id"]])


def fit(params: Params, plan: Plan, asked: Asked) -> dict[str, list[float]]:
    """One step of one training of a grid, a mean over some, with as many trainings beside it as there are workers."""
    each, workers = side_by_side(params, plan, every_probe)
    settings = [{**asked["settings"], "seed": seed, "steps": asked["steps"]} for seed in range(workers)]
    list(each(read_examples, settings))
    return {"step": [timed(lambda: list(each(train, settings))) / asked["steps"] / workers]}


def read_examples(cell: Cell, _settings: object) -> None:
    """What the trunk says of train edits is computed when it is first asked for."""
    for example in cell.examples:
        example.states  # noqa: B018


def train(cell: Cell, settings: Asked) -> None:
    """A training, to its last step."""
    more = {"part": "counterfactual"} if hasattr(cell.editor, "PARTS") else {}
    seeded = any(one.name == "seed" for one in fields(cell.editor.Settings))  # earlier editors take a dict
    given = cell.editor.Settings(**settings) if seeded else settings
    with tempfile.TemporaryDirectory() as folder:
        cell.editor.fit(cell.backbone, cell.examples, given, Path(folder) / "fit.pt", **more)


def side_by_side(params: Params, plan: Plan, ask: Callable[..., list[Any]]) -> tuple[Callable[..., Any], int]:
    """What asks each of some things of an open cell, and by how many processes at once."""
    try:
        team = importlib.import_module("stages.editing.team").Team.of(params, plan, ask)
    except ModuleNotFoundError:
        cell = Cell.open(params, plan, ask)
        return lambda work, items: (work(cell, item) for item in items), 1
    return team.each, team.workers


def edits(params: Params, plan: Plan, asked: Asked) -> dict[str, list[float]]:
    """One edit, made and traced behind what the trunk says of it, a mean over some: with all its probes, and with few."""
    records, found = either("resume", "partial"), {}
    opened = getattr(records, "Records", None) or records.Partial
    for name, ask in (("edit", every_probe), ("edit_few", few_probes)):
        trace = tracing(params, plan, ask, asked["settings"])
        for _turn in range(2):  # the first reads the trunk and learns what is learnt
            with tempfile.TemporaryDirectory() as folder, opened(Path(folder) / "cell", "") as kept:
                seconds = timed(lambda trace=trace, kept=kept: trace(kept))
        found[name] = [seconds / len(plan.rows)]
    return found


def tracing(params: Params, plan: Plan, ask: Callable[..., list[Any]], settings: Asked) -> Callable[[Any], object]:
    """What makes and traces the edits of a plan, and keeps them in some records."""
    try:
        team = importlib.import_module("stages.editing.team").Team.of(params, plan, ask)
    except ModuleNotFoundError:
        cell = Cell.open(params, plan, ask)
        return lambda kept: cell.trace(settings, cell.rows, cell.seeds[:1], kept)
    return lambda kept: team.trace(settings, plan.rows, plan.seeds[:1], kept)


def main() -> None:
    asked, params = json.loads(sys.argv[1]), load()
    torch.set_num_threads(params.threads)
    plan = Plan.of(params, asked["dataset"], asked["backbone"], asked["method"])
    rows = [row for row in plan.rows if row["split"] == "test"][: asked["edits"]]
    known = {one.name for one in fields(plan.editor.Settings)}
    asked["settings"] = {**plan.grid[0], **{name: value for name, value in asked["settings"].items() if name in known}}
    plan = replace(plan, rows=rows, learnt=plan.learnt[: asked["learnt"]])
    print(json.dumps({"trunk": trunk, "fit": fit, "edits": edits}[asked["case"]](params, plan, asked)), flush=True)


if __name__ == "__main__":
    main()
