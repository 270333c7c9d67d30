"""Make a cell's sequences, or check that what other code made may be taken."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd

from stages.editing import check as edits
from stages.editing.cell import Asks
from stages.editing.make import records
from stages.editing.plan import Plan
from stages.editing.team import Team
from stages.editing.trace_cache import Planned
from stages.editing.tried import Line
from stages.editing.tuning import as_lines
from stages.params import Params, write_atomically
from stages.sequences import cache, check, choices, tuning
from stages.sequences.chain import chain
from stages.sequences.planning import goes_on, known, made_from, settings_of
from stages.sequences.probes import queries_of

Settings = Mapping[str, Mapping[str, Any]]  # those chosen on a sequence and those of single edits, by these names


def make(params: Params, plan: Plan, planned: Planned) -> None:
    """A cell's tables, which Git does not have as they are planned."""
    stands = planned.fits(planned.settings)
    settings, lines = (planned.settings, []) if stands else chosen(params, plan, planned)
    with Team.of(params, plan, asking(plan)) as team:
        if planned.fits(settings):
            if planned.kept.code == planned.code:
                return cache.take(plan.name, replace(planned.kept, tried=lines))
            if not (found := differs(params, team, settings)):
                return cache.take(plan.name, planned.stamp(settings, lines, checked=edits.EDITS))
            print(f"[sequences] {plan.name}: the code has changed and with it {found}; made anew")
            if stands:
                settings, lines = chosen(params, plan, planned)
        tables = [made(params, team, planned, name, hyper) for name, hyper in distinct(settings).items()]
    for path in cache.files(cache.MADE / plan.name):
        with write_atomically(path) as temporary:
            whole = pd.concat([one[path.stem] for one in tables], ignore_index=True)
            whole.to_parquet(temporary, index=False, compression="zstd")
    planned.stamp(settings, lines).write(cache.STAMPS / f"{plan.name}.json")
    print(f"[sequences] {plan.name}: {len(plan.rows)} edits, held-out ones among them -> {cache.MADE / plan.name}")


def asking(plan: Plan) -> Asks:
    """What gives the queries of an edit in a sequence."""
    return partial(queries_of, count=plan.method.sequence.probes)


def chosen(params: Params, plan: Plan, planned: Planned) -> tuple[Settings, list[Line]]:
    """The settings that a cell's sequences use, and what was tried for that now: this code's choice stands."""
    choice = known(plan)
    if choice is not None and choice.code == planned.code:
        return settings_of(plan, choice), []
    with Team.of(params, replace(plan, rows=tuning.of_dev(plan.rows)), asking(plan)) as team:
        table = tuning.tried(team, planned, params.seed, made_from(plan))
    lines = as_lines(table)
    best = next(line for line in lines if line["chosen"] == "True")
    return settings_of(plan, choices.choice_of(best)), lines


def distinct(settings: Settings) -> Settings:
    """The settings without those of single edits where these are the same."""
    same = settings["edits"] == settings["sequence"]
    return {name: hyper for name, hyper in settings.items() if name == "sequence" or not same}


def made(params: Params, team: Team, planned: Planned, name: str, hyper: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """The tables under some settings, with a column that says what these were chosen on: those of single edits in the first
    order alone.
    """
    plan, size = team.plan, team.plan.method.sequence
    size = replace(size, orders=1, orders_elsewhere=1) if name == "edits" else size
    with records(plan, planned, f"sequence-{name}-", hyper) as kept:
        tables = chain(team, hyper, size, params.seed, goes_on(plan.method), kept)
    return {stem: table.assign(chosen_on=name) if len(table) else table for stem, table in tables.items()}


def differs(params: Params, team: Team, settings: Settings) -> str:
    """In words, the first difference between what Git has and some edits made again; "" where there is none."""
    there = {path.stem: pd.read_parquet(path) for path in cache.files(cache.KEPT / team.plan.name)}
    for name, hyper in distinct(settings).items():
        some = {stem: table[table["chosen_on"] == name] if len(table) else table for stem, table in there.items()}
        if found := check.differs(team, hyper, team.plan.method.sequence, some, params.seed):
            return found
    return ""
