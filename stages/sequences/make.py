"""Make a cell's sequences, or check that what other code made may be taken."""

from functools import partial

import pandas as pd

from stages.editing import check as edits
from stages.editing.make import records
from stages.editing.plan import Plan
from stages.editing.team import Team
from stages.editing.trace_cache import Planned
from stages.params import Params, write_atomically
from stages.sequences import cache, check
from stages.sequences.chain import chain
from stages.sequences.planning import goes_on
from stages.sequences.probes import queries_of


def make(params: Params, plan: Plan, planned: Planned) -> None:
    """A cell's tables, which Git does not have as they are planned."""
    settings, name = plan.method.sequence, plan.name
    with Team.of(params, plan, partial(queries_of, count=settings.probes)) as team:
        if planned.fits(planned.settings):
            there = {path.stem: pd.read_parquet(path) for path in cache.files(cache.KEPT / name)}
            found = check.differs(team, planned.settings, settings, there, params.seed)
            if not found:
                return cache.take(name, planned.stamp(planned.settings, checked=edits.EDITS))
            print(f"[sequences] {name}: the code has changed and with it {found}; made anew")
        with records(plan, planned, "sequence-", planned.settings) as kept:
            tables = chain(team, planned.settings, settings, params.seed, goes_on(plan.method), kept)
        for path in cache.files(cache.MADE / name):
            with write_atomically(path) as temporary:
                tables[path.stem].to_parquet(temporary, index=False, compression="zstd")
    planned.stamp(planned.settings).write(cache.STAMPS / f"{name}.json")
    print(f"[sequences] {name}: {len(plan.rows)} edits, held-out ones among them -> {cache.MADE / name}")
