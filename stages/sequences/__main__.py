"""Make the edits of long sequences and trace what they do to each other: data/sequences/<dataset>-<backbone>-<method>/.

    python -m stages.sequences plan                                 # data/plans/sequences: what every cell is made from
    python -m stages.sequences okedit llava-smollm2 balancedit      # a dataset, a backbone and a method: plan it and make it
    python -m stages.sequences planned okedit llava-smollm2 ft      # make it as data/plans/sequences has it
    python -m stages.sequences keep                                 # put what was made into reports/sequences, which Git keeps

trace.parquet has every edit by itself, interference.parquet what it does to the others' probes behind a codebook, and
rollout.parquet what is left where each edit goes on from the one before. Tables have no rows where a method has no such sequence.
Settings, scope and the rule for conflicts are chosen on a sequence of dev edits (reports/sequence_tuning.csv). Where single edits
have other settings, sequences are made with these too, in one order. What stands in reports/sequences is not made again where it
was made from the same and by the same code; where the code alone has changed, a few edits are made again first, and compared.
Interrupted work resumes: each finished edit or order is kept under data/.resume.
"""

import sys
from collections.abc import Sequence

from stages.editing import tried
from stages.editing.trace_cache import Planned
from stages.params import Params, UserError, load, run
from stages.sequences import cache, choices

DOES = ("plan", "planned", "keep")


def main() -> None:
    does, names = (sys.argv[1], sys.argv[2:]) if sys.argv[1:2] and sys.argv[1] in DOES else ("", sys.argv[1:])
    if len(names) != (0 if does in ("plan", "keep") else 3):
        allowed = "plan, keep, or [planned] and a dataset, a backbone and a method"
        raise UserError(f"arguments: {' '.join(sys.argv[1:])!r}; needed: {allowed}")
    params = load()
    if does == "planned":
        cell(params, names)
        return
    from stages.sequences import planning

    if does == "plan":
        planning.write(params)
    elif does == "keep":
        if found := cache.keep(["-".join(one) for one in planning.cells(params)]):
            tried.keep(found, choices.TABLE)
    else:
        planning.plan(params, *names)[1].write(cache.PLANS / f"{'-'.join(names)}.json")
        cell(params, names)


def cell(params: Params, names: Sequence[str]) -> None:
    """A cell's tables as they are planned, taken from Git where they stand there."""
    name = "-".join(names)
    planned = Planned.read(cache.PLANS / f"{name}.json")
    if planned.stands:
        cache.take(name, planned.kept)
        return
    from stages.sequences import make, planning  # only who makes edits waits for the model libraries

    plan, now = planning.plan(params, *names)
    if now != planned:
        raise UserError(f"{cache.PLANS / name}.json is out of date; run the `plan_sequences` stage first")
    make.make(params, plan, planned)


if __name__ == "__main__":
    run(main)
