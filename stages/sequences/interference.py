"""Every edit by itself, and behind a codebook what it does to the probes of the others.

There a query goes to its nearest key among the edits made so far, within its radius or not, so it can meet another edit's
transformation. Which key is nearest at some point of some order is known before any edit is made. Every probe's distance to every
key is kept, and its outcome under each edit that may answer it then: radii are arithmetic (`stages.retention`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from stages.editing.cell import Cell
from stages.editing.edits import Edit
from stages.editing.resume import Records
from stages.editing.trace import distances_to_key
from stages.params import derive_seed
from stages.sequences.probes import KEPT, ProbeSet, Row, outcomes

SPARE = 2.0  # an entry may widen so many times its farthest sample as it takes in edits of its target
Orders = Sequence[Sequence[int]]
Table = np.ndarray  # [queries, edits]: a row each probe of all that is asked, a column each edit that is made


def each(
    cell: Cell,
    hyper: Mapping[str, Any],
    made: Sequence[Row],
    probes: Sequence[ProbeSet],
    drawn: Orders,
    at: Sequence[int],
    records: Records,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The trace of the edits `made` and of what is held out, and, behind a codebook, one row a made edit, called `entry`, and a
    probe of any edit. `drawn` are the orders of the edits, by number, and all is tested after so many as `at` says.
    """
    make, shared = cell.prepared(hyper | {"seed": derive_seed(cell.seeds[0], "fit")})
    tables = distances(cell, made, probes) if cell.method.router == "codebook" else {}
    wanted = may_answer(tables, cell, made, probes, drawn, at) if tables else None
    names = [f"each-{row['edit_id']}" for row in made]
    missing = [column for column, name in enumerate(names) if name not in records]
    for start in tqdm(range(0, len(missing), cell.batch), desc=f"{cell.name}, each, {cell.batch} at a time"):
        columns = missing[start : start + cell.batch]
        rows = [made[column] for column in columns]
        edits = cell.made(make, hyper, rows, cell.seeds[0])
        traced = cell.traced(rows, cell.seeds[0], edits, shared)
        for column, edit, own in zip(columns, edits, traced, strict=True):
            met = [] if wanted is None else outcomes(cell, edit, chosen(probes, wanted[:, column]))
            records[names[column]] = [{"own": own, "met": met}]
    own, met = [], []
    for row, name in zip(made, names, strict=True):
        (found,) = records[name]
        own.append(pd.DataFrame(found["own"]))
        met += [{"entry": row["edit_id"]} | one for one in found["met"]]
    aside = [one.row for one in probes if one.held_out]
    for rows in cell.traced(aside, cell.seeds[0], [Edit()] * len(aside), shared):
        own.append(pd.DataFrame(rows))
    return pd.concat(own, ignore_index=True), long(tables, made, probes, met) if tables else pd.DataFrame()


def chosen(probes: Sequence[ProbeSet], wanted: np.ndarray) -> list[ProbeSet]:
    """The probes that are `wanted` [queries]."""
    ends = np.cumsum([len(one.probes) for one in probes])
    parts = zip(probes, np.split(wanted, ends[:-1]), strict=True)
    return [one.some(np.flatnonzero(places).tolist()) for one, places in parts if places.any()]


def distances(cell: Cell, made: Sequence[Row], probes: Sequence[ProbeSet]) -> dict[str, Table]:
    """Of every probe to every key by the method's span, by distance; NaN where a query has no such span."""
    span = cell.method.key.span
    phi = {span: torch.cat([one.states.phi[span] for one in probes])}
    found = [distances_to_key(phi, cell.states(row).key) for row in made]
    return {name: np.stack([one[name] for one in found], 1) for name in found[0]}


def may_answer(
    tables: Mapping[str, Table], cell: Cell, made: Sequence[Row], probes: Sequence[ProbeSet], drawn: Orders, at: Sequence[int]
) -> np.ndarray:
    """[queries, edits] bool: by some distance, the edit may answer the query at some point of some order; not the query's own."""
    numbers = {row["edit_id"]: i for i, row in enumerate(made)}
    owner = np.array([numbers.get(one.row["edit_id"], -1) for one in probes for _ in one.probes])
    reaches, targets, wanted = [reach(cell, row) for row in made], [row["target"] for row in made], []
    for name, table in tables.items():
        keys = table[[int(np.argmax(owner == i)) for i in range(len(made))]]  # an edit's own query is its first
        taken = may_take_in(keys, [far[name] for far in reaches], targets, drawn)
        found = nearest(table, owner, taken.any(0), [order[:points] for order in drawn for points in at])
        found |= found @ taken  # an entry answers with the newest edit that it has taken in
        wanted.append(found & np.isfinite(table))
    answers = np.any(wanted, axis=0)
    answers[np.arange(len(owner)), owner] &= owner < 0
    return answers


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
    tables: Mapping[str, Table], made: Sequence[Row], probes: Sequence[ProbeSet], met: Sequence[Mapping[str, Any]]
) -> pd.DataFrame:
    """One row a made edit and a probe: the distances, and the outcomes where there are any, else NaN."""
    known = pd.DataFrame([key for one in probes for key in one.labels()])
    index = pd.MultiIndex.from_arrays(
        [np.repeat([row["edit_id"] for row in made], len(known)), *(np.tile(known[name], len(made)) for name in known)],
        names=["entry", *known],
    )
    apart = pd.DataFrame({name: table.T.ravel() for name, table in tables.items()}, index=index)
    told = pd.DataFrame(met, columns=[*index.names, *KEPT]).set_index(index.names)
    return apart.join(told.astype(float)).reset_index()
