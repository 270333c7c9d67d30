"""Make a cell's edits and trace them, or check that what other code made may be taken."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from stages.editing import check, trace_cache, tried, tuning
from stages.editing.plan import Plan, label
from stages.editing.resume import Records
from stages.editing.team import Team
from stages.editing.trace_cache import Planned
from stages.params import Params


def make(params: Params, plan: Plan, planned: Planned) -> None:
    """A cell's trace, which Git does not have as it is planned."""
    with Team.of(params, plan) as team:
        edit(params, team, planned)


def edit(params: Params, team: Team, planned: Planned) -> None:
    """Make and trace a cell's edits. Where Git has what other code made from the same, that is taken if a few edits made again
    are the same. Settings that other code chose stand as long as its edits do.
    """
    plan = team.plan
    with records(plan, planned) as kept:
        known = planned.fits(planned.settings)
        settings, lines = (planned.settings, []) if known else tuning.chosen(team, kept)
        if planned.fits(settings):
            if planned.kept.code == planned.code:
                return trace_cache.take(plan.name, replace(planned.kept, tried=lines))
            some, there = check.drawn(plan, params.seed), trace_cache.read(plan.name)
            if not (found := check.differs(team, settings, some, there, kept)):
                return trace_cache.take(plan.name, planned.stamp(settings, lines, len(some)))
            print(f"[edits] {plan.name}: the code has changed and with it {found}; made anew")
            if known:
                settings, lines = tuning.chosen(team, kept)
        whole = traced(team, settings, kept)
        trace_cache.write(trace_cache.MADE / f"{plan.name}.parquet", trace_cache.in_order(pd.DataFrame(whole)))
        planned.stamp(settings, lines).write(trace_cache.STAMPS / f"{plan.name}.json")
    diverged = {(r["seed"], r["edit_id"]) for r in whole if r["diverged"]}
    failed = f", {len(diverged)} diverged" if diverged else ""
    size = f"{len(plan.to_trace)} edits x {len(plan.seeds)} seeds{failed}, {len(whole)} rows"
    print(f"[edits] {plan.name}: {size} -> {trace_cache.MADE}")


def records(plan: Plan, planned: Planned, purpose: str = "", *more: object) -> Records:
    """Where a cell's finished edits are kept until it is whole; `more` is what they are made from besides."""
    made_from = [planned.code, planned.made_from, planned.device, plan.grid, *more]
    return Records(Path("data/.resume") / f"{purpose}{plan.name}", json.dumps(made_from))


def traced(team: Team, settings: Mapping[str, Any], kept: Records) -> list[dict[str, Any]]:
    """The rows of a cell's trace, all made, with what is said of the cell as a whole."""
    plan = team.plan
    said = {"fitted": hasattr(plan.editor, "fit"), "settings": label(settings), "tried": len(plan.grid)}
    return [row | said for row in team.trace(settings, plan.to_trace, plan.seeds, kept)]


def tune(params: Params, plan: Plan, planned: Planned) -> None:
    """Choose the settings of a cell whose method has several to choose from."""
    if len(plan.grid) == 1:
        print(f"[tune] {plan.name}: one value each, nothing to choose")
        return
    with Team.of(params, plan) as team, records(plan, planned) as kept:
        table = tuning.tried(team, kept)
        tried.keep(tuning.as_lines(table))
    best = table[table["chosen"]].iloc[0]
    print(f"[tune] {plan.name}: of {len(table)} settings {best['setting']}, HM {best['hm']:.3f} -> {tried.TABLE}")
