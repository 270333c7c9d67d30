"""One workload, timed inside one checkout of the study: `stages.cost.throughput` feeds this file to a Python that runs there.

It reads what is asked of it as JSON from the command line, and prints lists of seconds as JSON. Where a module is not there, it
takes the one of commit b90ef7e that did the same.
"""

import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from stages.editing.cell import Cell
from stages.editing.plan import Plan
from stages.params import load

FEW = 2  # probes of each kind that a setting is tried on


def either(now: str, before: str) -> ModuleType:
    """A module under its name of now, or of before."""
    try:
        return importlib.import_module(f"stages.editing.{now}")
    except ModuleNotFoundError:
        return importlib.import_module(f"stages.editing.{before}")


def timed(what: Callable[[], object]) -> float:
    """Seconds of a call."""
    begin = time.perf_counter()
    what()
    return time.perf_counter() - begin


def trunk(cell: Cell, asked: dict[str, Any]) -> dict[str, list[float]]:
    """What the frozen trunk says of an edit's probes, computed."""
    run = either("trunk", "trace").run_trunk
    rows = [(row, cell.queries[row["edit_id"]]) for row in cell.rows]
    return {"trunk": [timed(lambda row=row, probes=probes: run(cell.backbone, row, probes)) for row, probes in rows]}


def fit(cell: Cell, asked: dict[str, Any]) -> dict[str, list[float]]:
    """One step of a training, a mean over some."""
    settings = {**asked["settings"], "seed": 0, "steps": asked["steps"]}
    more = {"part": "counterfactual"} if hasattr(cell.editor, "PARTS") else {}
    for example in cell.examples:
        example.states  # noqa: B018  (what the trunk says is computed when it is first asked for)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fit.pt"
        seconds = timed(lambda: cell.editor.fit(cell.backbone, cell.examples, settings, path, **more))
    return {"step": [seconds / asked["steps"]]}


def edits(cell: Cell, asked: dict[str, Any]) -> dict[str, list[float]]:
    """One edit, made and traced behind what the trunk says of it, a mean over some: with all its probes, and with few."""
    records, found = either("resume", "partial"), {}
    opened = getattr(records, "Records", None) or records.Partial
    for name, some in (("edit", cell), ("edit_few", cell.asking(FEW))):
        for row in cell.rows:
            some.states(row)
        some.prepared({**asked["settings"], "seed": 0})
        with tempfile.TemporaryDirectory() as folder, opened(Path(folder) / "cell", "") as kept:
            seconds = timed(lambda some=some, kept=kept: some.trace(asked["settings"], cell.rows, cell.seeds[:1], kept))
        found[name] = [seconds / len(cell.rows)]
    return found


def main() -> None:
    asked, params = json.loads(sys.argv[1]), load()
    torch.set_num_threads(params.threads)
    plan = Plan.of(params, asked["dataset"], asked["backbone"], asked["method"])
    rows = [row for row in plan.rows if row["split"] == "test"][: asked["edits"]]
    cell = Cell.open(params, replace(plan, rows=rows, learnt=plan.learnt[: asked["learnt"]]))
    print(json.dumps({"trunk": trunk, "fit": fit, "edits": edits}[asked["case"]](cell, asked)))


main()
