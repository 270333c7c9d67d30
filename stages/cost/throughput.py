"""Compare this checkout's speed with another one's, in turns: reports/throughput.csv.

    python -m stages.cost.throughput ../before okedit llava-smollm2      # a folder with the other checkout and its data/
    python -m stages.cost.throughput ../before okedit llava-smollm2 balancedit ft     # some methods anew

Each workload runs in a process of its own, first there and then here, in every round. Settings are those of the traces in Git, so
that both make the same edits. `pair-from-nothing` is computed, not run, and only of all methods: what one dataset on one backbone
takes without anything in Git is the sum of its parts. Methods are those that have something to tune.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.editing import tried
from stages.editing.editors import module_of
from stages.editing.plan import Plan
from stages.params import Params, UserError, load, run, write_atomically

REPORT, WORKLOAD = Path("reports/throughput.csv"), Path(__file__).resolve().with_name("workload.py")
COLUMNS = ["case", "before_s", "after_s", "ratio", "n"]
ROUNDS, EDITS, SLOW, STEPS, LEARNT = 1, 16, 4, 10, 3  # more rounds tell small ratios apart; each takes some ten minutes
TEST, DEV, TRAIN = 25, 10, 100  # edits of a pair made from nothing
OWN = "balancedit"  # the method whose queries time the trunk
TRAINED = ("mend", "serac")  # editors with a network of their own
WHOLE = ("lora", "ike", "serac", "finetune connector")  # whose edits run through the whole model: of these, `SLOW` edits


def main() -> None:
    if len(sys.argv) < 4:
        raise UserError(
            f"arguments: {' '.join(sys.argv[1:])!r}; needed: a folder, a dataset and a backbone, then methods if not all"
        )
    before, place, params = Path(sys.argv[1]).resolve(), sys.argv[2:4], load()
    if not (before / "stages").is_dir():
        raise UserError(f"{before}: no checkout of the study; allowed: a folder with stages/ and data/")
    methods = sys.argv[4:] or measured(params)
    seconds: dict[str, dict[str, list[float]]] = {}
    for turn in range(ROUNDS):
        for case, asked in workloads(params, place, methods):
            for side, folder in (("before", before), ("after", Path.cwd())):
                for name, values in ask(folder, asked).items():
                    seconds.setdefault(f"{case}:{name}", {}).setdefault(side, []).extend(values)
            print(f"[throughput] round {turn + 1} of {ROUNDS}: {case}", flush=True)
    table = rows_of(seconds, params, place, methods)
    with write_atomically(REPORT) as temporary:
        table.to_csv(temporary, index=False, float_format="%.4g", lineterminator="\n")
    print(table.to_string(index=False))
    print(f"[throughput] {len(table)} cases -> {REPORT}")


def measured(params: Params) -> list[str]:
    """The methods that edit, without those that stand beside them as published."""
    return [name for name, one in params.methods.items() if one.router != "never" and not name.endswith("_published")]


def workloads(params: Params, place: Sequence[str], methods: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and requests of all workloads."""
    asked = {"dataset": place[0], "backbone": place[1], "edits": EDITS, "learnt": LEARNT, "steps": STEPS}
    yield "trunk", asked | {"case": "trunk", "method": OWN, "settings": {}, "edits": 4}
    for method in methods:
        own = asked | {"method": method, "settings": settings_of(*place, method)}
        part = own["settings"].get("part", "")
        if f"{params.method(method).editor} {part}".strip() in WHOLE:
            own["edits"] = SLOW
        if params.method(method).editor in TRAINED:
            yield f"fit-{method}", own | {"case": "fit"}
            own["settings"] = {**own["settings"], "steps": 1}  # what an edit takes does not depend on what was learnt
        elif params.method(method).editor != "wise":
            own["learnt"] = TRAIN
        yield f"edits-{method}", own | {"case": "edits"}


def settings_of(dataset: str, backbone: str, method: str) -> Mapping[str, Any]:
    """The settings that dev edits chose, as Git keeps them; those of params.yaml where there was no choice."""
    lines = (line for line in tried.read() if tried.cell_of(line) == (dataset, backbone, method))
    return next((json.loads(line["setting"]) for line in lines if line["chosen"] == "True"), {})


def ask(folder: Path, asked: Mapping[str, Any]) -> dict[str, list[float]]:
    """The seconds of one workload, run in a checkout."""
    words, there = [sys.executable, str(WORKLOAD), json.dumps(dict(asked))], {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(words, cwd=folder, env=there, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{folder}: {asked['case']} of {asked['method']} failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.splitlines()[-1])


def rows_of(
    seconds: Mapping[str, Mapping[str, Sequence[float]]], params: Params, place: Sequence[str], methods: Sequence[str]
) -> pd.DataFrame:
    """Medians before and after of each case, their ratio, and how often it was measured."""
    middle = {case: {side: float(np.median(values)) for side, values in sides.items()} for case, sides in seconds.items()}
    rows = []
    for case, sides in middle.items():
        name, kind = case.split(":")
        label = name if kind in ("trunk", "step", "edit") else f"{name}, few probes"
        rows.append((label, sides["before"], sides["after"], len(seconds[case]["after"])))
    if set(methods) >= set(measured(params)):
        whole = {side: sum(parts(middle, params, place, methods, side)) for side in ("before", "after")}
        rows.append(("pair-from-nothing", whole["before"], whole["after"], ROUNDS))
    table = pd.DataFrame(rows, columns=["case", "before_s", "after_s", "n"])
    return table.assign(ratio=table["before_s"] / table["after_s"])[COLUMNS]


def parts(
    middle: Mapping[str, Mapping[str, float]], params: Params, place: Sequence[str], methods: Sequence[str], side: str
) -> Iterator[float]:
    """What the edits of one dataset on one backbone take without anything in Git, part by part: the trunk once for each edit that
    is made or learnt from (a quarter of the probes), then of each method every setting of its grid on the dev edits, with few
    probes, and the chosen one on the test edits; trainings that are the same run once after, and once a setting before.
    """
    yield middle["trunk:trunk"][side] * (TEST + DEV + TRAIN / 4)
    for method in methods:
        plan, name = Plan.of(params, *place, method), f"edits-{method}"
        tried = len(plan.grid) * DEV if len(plan.grid) > 1 else 0
        yield tried * middle[f"{name}:edit_few"][side] + TEST * middle[f"{name}:edit"][side]
        if f"fit-{method}:step" in middle:
            apart = getattr(module_of(params.method(method).editor), "PARTS", {}).get("counterfactual")
            keys = apart if apart and side == "after" else plan.grid[0]
            networks = {json.dumps([one[key] for key in keys]) for one in plan.grid}
            yield len(networks) * plan.grid[0]["steps"] * middle[f"fit-{method}:step"][side]


if __name__ == "__main__":
    run(main)
