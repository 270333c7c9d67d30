"""Every edit by itself, and behind a codebook what it does to the probes of the others.

There a query goes to its nearest key among the edits made so far, within its radius or not, so it can meet another edit's
transformation. Which key is nearest at some point of some order is known before any edit is made. Every probe's distance to every
key is kept, and its outcome under each edit that may answer it then: radii are arithmetic (`stages.retention`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from stages.editing.cell import Cell, fit_seed
from stages.editing.conflicts import SAME
from stages.editing.edits import Edit
from stages.editing.resume import Records
from stages.editing.team import Team
from stages.editing.trace import distances_to_key
from stages.scoring import routing
from stages.scoring.scopes import parts_of
from stages.sequences.orders import HELD_OUT
from stages.sequences.probes import KEPT, ProbeSet, Row, outcomes, probe_sets

SPARE = 2.0  # an entry may widen so many times its farthest sample as it takes in edits of its target
Orders = Sequence[Sequence[int]]
Table = np.ndarray  # [queries, edits]: a row each probe of all that is asked, a column each edit that is made


@dataclass(frozen=True)
class Meeting:
    """Some edits, made under the settings `hyper`, and which of all probes each may answer: `wanted` [edits, queries], None
    without a codebook.
    """

    hyper: Mapping[str, Any]
    rows: Sequence[Row]
    wanted: np.ndarray | None


def each(
    team: Team, hyper: Mapping[str, Any], made: Sequence[Row], drawn: Orders, at: Sequence[int], records: Records
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The trace of the edits `made` and of what is held out, and, behind a codebook, one row a made edit, called `entry`, and a
    probe of any edit. `drawn` are the orders of the edits, by number, and all is tested after so many as `at` says.
    """
    plan = team.plan
    team.learn([hyper], [fit_seed(plan.seeds[0])])
    asked, tables, wanted = next(team.each(meetings, [(made, drawn, at)]))
    names = [f"each-{row['edit_id']}" for row in made]
    parts = [range(start, min(start + team.batch, len(made))) for start in range(0, len(made), team.batch)]
    parts = [part for part in parts if not all(names[column] in records for column in part)]
    work = [Meeting(hyper, [made[c] for c in part], None if wanted is None else wanted[:, list(part)].T) for part in parts]
    with tqdm(total=len(made), initial=len(made) - sum(map(len, parts)), desc=f"{plan.name}, each") as progress:
        for part, found in zip(parts, team.each(meet, work), strict=True):
            for column, one in zip(part, found, strict=True):
                records[names[column]] = [one]
            progress.update(len(part))
    own, met = [], []
    for row, name in zip(made, names, strict=True):
        (found,) = records[name]
        own.append(pd.DataFrame(found["own"]))
        met += [{"entry": row["edit_id"]} | one for one in found["met"]]
    aside = [row for row in plan.rows if row["split"] == HELD_OUT]
    for rows in team.each(left_alone, [aside[i : i + team.batch] for i in range(0, len(aside), team.batch)]):
        own += [pd.DataFrame(one) for one in rows]
    return pd.concat(own, ignore_index=True), long(tables, made, asked, met) if tables else pd.DataFrame()


def meetings(
    cell: Cell, item: tuple[Sequence[Row], Orders, Sequence[int]]
) -> tuple[list[dict[str, Any]], dict[str, Table], np.ndarray | None]:
    """All that is asked, its distances to every key, and which edit may answer it: none of both without a codebook."""
    made, drawn, at = item
    probes = probe_sets(cell)
    asked = [key for one in probes for key in one.labels()]
    if cell.method.router != "codebook":
        return asked, {}, None
    tables = distances(cell, made, probes)
    return asked, tables, may_answer(tables, cell, made, probes, drawn, at)


def meet(cell: Cell, item: Meeting) -> list[dict[str, Any]]:
    """Of each edit the rows of its own trace, and what it does to the probes of others that it may answer."""
    make, shared = cell.prepared(item.hyper | {"seed": fit_seed(cell.seeds[0])})
    edits, probes = cell.made(make, item.hyper, item.rows, cell.seeds[0]), probe_sets(cell)
    traced = cell.traced(item.rows, cell.seeds[0], edits, shared)
    wanted = [None] * len(edits) if item.wanted is None else item.wanted
    met = [[] if one is None else outcomes(cell, edit, chosen(probes, one)) for edit, one in zip(edits, wanted, strict=True)]
    return [{"own": own, "met": one} for own, one in zip(traced, met, strict=True)]


def left_alone(cell: Cell, rows: Sequence[Row]) -> list[list[dict[str, Any]]]:
    """The traces of edits that are not made."""
    return cell.traced(rows, cell.seeds[0], [Edit()] * len(rows), [])


def chosen(probes: Sequence[ProbeSet], wanted: np.ndarray) -> list[ProbeSet]:
    """The probes that are `wanted` [queries]."""
    ends = np.cumsum([len(one.probes) for one in probes])
    parts = zip(probes, np.split(wanted, ends[:-1]), strict=True)
    return [one.some(np.flatnonzero(places).tolist()) for one, places in parts if places.any()]


def distances(cell: Cell, made: Sequence[Row], probes: Sequence[ProbeSet]) -> dict[str, Table]:
    """Of every probe to every edit by the keys of the method's scope, by distance; NaN where a query has no such key."""
    phi = {part.key: torch.cat([one.states.phi[part.key] for one in probes]) for part in parts_of(cell.method)}
    found = [distances_to_key(phi, cell.states(row).key) for row in made]
    return {name: np.stack([one[name] for one in found], 1) for name in found[0]}


def may_answer(
    tables: Mapping[str, Table], cell: Cell, made: Sequence[Row], probes: Sequence[ProbeSet], drawn: Orders, at: Sequence[int]
) -> np.ndarray:
    """[queries, edits] bool: by some distance, the edit may answer the query at some point of some order; not the query's own."""
    numbers = {row["edit_id"]: i for i, row in enumerate(made)}
    owner = np.array([numbers.get(one.row["edit_id"], -1) for one in probes for _ in one.probes])
    if len(parts_of(cell.method)) > 1:
        return may_hold(tables, cell, made) & (owner[:, None] != np.arange(len(made)))
    targets, wanted, subsets = [row["target"] for row in made], [], [order[:points] for order in drawn for points in at]
    firsts = [int(np.argmax(owner == i)) for i in range(len(made))]  # an edit's own query is its first
    reaches = [reach(cell, row) for row in made]
    for name, table in tables.items():
        keys = table[firsts]
        taken = may_take_in(keys, [far[name] for far in reaches], targets, drawn)
        again = (keys <= SAME) & (np.array(targets)[:, None] != np.array(targets))  # an edit of the same fact takes the place
        found = nearest(table, owner, taken.any(0) | again.any(0), subsets)
        found |= found @ taken  # an entry answers with the newest edit that it has taken in
        wanted.append(found & np.isfinite(table))
    answers = np.any(wanted, axis=0)
    answers[np.arange(len(owner)), owner] &= owner < 0
    return answers


def may_hold(tables: Mapping[str, Table], cell: Cell, made: Sequence[Row]) -> Table:
    """[queries, edits] bool: under some weight α the query lies in the edit's scope of several keys, by the method's distance:
    within the farther end of its reach by each.
    """
    radius, listed = cell.method.radius, []
    for row in made:
        probes, states = cell.queries[row["edit_id"]], cell.states(row)
        apart = distances_to_key({part.key: states.phi[part.key] for part in parts_of(cell.method)}, states.key)
        kinds = {"probe": range(len(probes)), "kind": [probe.kind for probe in probes]}
        listed.append(pd.DataFrame(kinds | apart).assign(seed=0, edit_id=row["edit_id"], split=row["split"]))
    samples, held = pd.concat(listed, ignore_index=True), True
    for part in parts_of(cell.method):
        found = routing.part_distances(samples, part, radius.distance)
        farthest = pd.Series(routing.widths(found, radius, [0.0, 1.0]).max(0), found["edit_id"])
        held &= tables[f"{radius.distance}_{part.key}"] <= farthest.loc[[row["edit_id"] for row in made]].to_numpy()
    return held


def reach(cell: Cell, row: Row) -> dict[str, float]:
    """How far an entry may widen at most, by distance: `SPARE` times as far as its farthest sample; -inf without the span."""
    span, states = cell.method.key.span, cell.states(row)
    samples = [i for i, probe in enumerate(cell.queries[row["edit_id"]]) if probe.is_sample]
    found = distances_to_key({span: states.phi[span][samples]}, states.key)
    return {name: SPARE * float(np.nan_to_num(values, nan=-np.inf).max(initial=-np.inf)) for name, values in found.items()}


def may_take_in(apart: np.ndarray, far: Sequence[float], targets: Sequence[str], drawn: Orders) -> np.ndarray:
    """[edits, edits] bool: the first may take in the second, which comes later in some order, has the same target and lies within
    its reach `far`, with no key in between but of edits that may have been taken in themselves; `apart` are the keys' distances.
    """
    found = np.zeros(apart.shape, dtype=bool)
    for order in drawn:
        absent = set()
        for place, new in enumerate(order):
            for old in sorted(order[:place], key=apart[new].__getitem__):
                if targets[old] == targets[new] and apart[new, old] <= far[old]:
                    found[old, new] = True
                    absent.add(new)
                if old not in absent:
                    break
    return found


def nearest(table: Table, owner: np.ndarray, absent: np.ndarray, subsets: Sequence[Sequence[int]]) -> np.ndarray:
    """[queries, edits] bool: the key is the nearest of some subset, of the queries of its edits and of those held out (`owner`
    -1); behind one that may be `absent` [edits], because another took it in, the next nearest too.
    """
    found = np.zeros(table.shape, dtype=bool)
    for subset in map(np.array, subsets):
        queries = np.flatnonzero(np.isin(owner, subset) | (owner < 0))
        ranked = subset[np.argsort(table[np.ix_(queries, subset)], axis=1, kind="stable")]
        for depth in range(len(subset)):
            found[queries, ranked[:, depth]] = True
            behind = absent[ranked[:, depth]]
            queries, ranked = queries[behind], ranked[behind]
    return found


def long(
    tables: Mapping[str, Table], made: Sequence[Row], asked: Sequence[Mapping[str, Any]], met: Sequence[Mapping[str, Any]]
) -> pd.DataFrame:
    """One row a made edit and a probe: the distances, and the outcomes where there are any, else NaN."""
    known = pd.DataFrame(asked)
    index = pd.MultiIndex.from_arrays(
        [np.repeat([row["edit_id"] for row in made], len(known)), *(np.tile(known[name], len(made)) for name in known)],
        names=["entry", *known],
    )
    apart = pd.DataFrame({name: table.T.ravel() for name, table in tables.items()}, index=index)
    told = pd.DataFrame(met, columns=[*index.names, *KEPT]).set_index(index.names)
    return apart.join(told.astype(float)).reset_index()
