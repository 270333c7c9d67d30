"""Make every dev and test edit of one cell and trace what it does: data/traces/<dataset>-<backbone>-<method>.parquet.

    python -m stages.editing plan                                 # data/plans/edits: what every cell is made from
    python -m stages.editing okedit llava-smollm2 balancedit      # a dataset, a backbone and a method: plan it and make it
    python -m stages.editing planned okedit llava-smollm2 ft      # make it as data/plans/edits has it
    python -m stages.editing tune                                 # reports/tuning.csv: each method's settings, by its dev edits
    python -m stages.editing tune okedit llava-smollm2 ft         # of one cell
    python -m stages.editing keep                                 # put what was made into reports/traces, which Git keeps

What stands in reports/traces is not made again where it was made from the same and by the same code; where the code alone has
changed, a few edits are made again first, and compared. Interrupted work resumes: each finished edit is kept under data/.resume
until the trace is whole.
"""

import sys
from collections.abc import Sequence
from itertools import product

from stages.editing import trace_cache
from stages.editing.trace_cache import Planned
from stages.params import Params, UserError, load, run

DOES = ("plan", "planned", "tune", "keep")
ALL = ("plan", "tune", "keep")  # that may be of all cells


def main() -> None:
    does, names = (sys.argv[1], sys.argv[2:]) if sys.argv[1:2] and sys.argv[1] in DOES else ("", sys.argv[1:])
    if len(names) != 3 and (names or does not in ALL):
        allowed = f"[{' | '.join(DOES)}] and a dataset, a backbone and a method"
        raise UserError(f"arguments: {' '.join(sys.argv[1:])!r}; needed: {allowed}")
    params = load()
    cells = [names] if names else list(product(params.datasets, params.edited, params.methods))
    if does == "planned":
        cell(params, names)
    elif does == "keep":
        keep(cells)
    else:
        planning(params, cells, does)


def cell(params: Params, names: Sequence[str]) -> None:
    """A cell's trace as it is planned, taken from Git where it stands there."""
    name = "-".join(names)
    planned = Planned.read(trace_cache.PLANS / f"{name}.json")
    if planned.stands:
        trace_cache.take(name, planned.kept)
        return
    from stages.editing import make, planning  # only who makes edits waits for the model libraries

    plan, now = planning.plan(params, *names)
    if now != planned:
        raise UserError(f"{trace_cache.PLANS / name}.json is out of date; run the `plan_edits` stage first")
    make.make(params, plan, planned)


def planning(params: Params, cells: Sequence[Sequence[str]], does: str) -> None:
    """What is done to cells that begins with a plan."""
    from stages.editing import planning

    if does == "tune":
        from stages.editing import make

        for names in cells:
            make.tune(params, *planning.plan(params, *names))
        return
    planning.write(params, cells)
    if not does:
        cell(params, cells[0])


def keep(cells: Sequence[Sequence[str]]) -> None:
    """Put the traces of cells where Git keeps them, and what was tried for them, or the code that a choice stands under, into
    reports/tuning.csv.
    """
    from stages.editing import tried

    lines = tried.read()
    for names in cells:
        stamp, planned = trace_cache.keep("-".join(names)), Planned.read(trace_cache.PLANS / f"{'-'.join(names)}.json")
        stand = planned.chosen_by is not None and planned.settings == stamp.settings
        found = stamp.tried or [line | {"code": stamp.code} for line in lines if stand and tried.cell_of(line) == tuple(names)]
        if found:
            tried.keep(found)
    print(f"[edits] {len(cells)} traces -> {trace_cache.KEPT}")


if __name__ == "__main__":
    run(main)
