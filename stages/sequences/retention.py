"""What is left of every edit after many: outcomes of all probes at some points of a sequence, and their scores (design §2)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from stages.editing.conflicts import RULES
from stages.params import UserError
from stages.scoring import routing, scores
from stages.scoring.scopes import parts_of
from stages.sequences.orders import HELD_OUT
from stages.sequences.replay import replay
from stages.settings import Method

QUERY = ["edit_id", "probe"]
OUTCOMES = {"target": "target_on", "same": "same_on", "tf": "tf_on"}
PARTS = ("reliability", *scores.HM_PARTS)


@dataclass(frozen=True)
class Point:
    """After `made` edits of an order: a trace with its outcomes, of the edits made and of held-out ones, and what is kept."""

    order: int
    made: int
    outcomes: pd.DataFrame
    counts: Mapping[str, int]


@dataclass(frozen=True)
class Tables:
    """What `stages.sequences` says of a method: its edits by themselves, what they do to each other's probes, and what is left
    where each goes on from another; `edits` are those that are made, as they come.
    """

    trace: pd.DataFrame
    interference: pd.DataFrame
    rollout: pd.DataFrame
    edits: Sequence[str]

    @classmethod
    def of(cls, tables: Mapping[str, pd.DataFrame]) -> "Tables":
        """Of trace, interference and rollout; the edits as the trace has them."""
        trace = tables["trace"]
        made = trace.loc[trace["split"] != HELD_OUT, "edit_id"].drop_duplicates().tolist()
        return cls(trace, tables["interference"], tables["rollout"], made)

    @cached_property
    def last_scores(self) -> np.ndarray:
        """[queries]: each one's score by the router left after the most edits of the first order, NaN where it has none."""
        first = self.rollout[self.rollout["order"] == 0]
        last = first[first["made"] == first["made"].max()]
        return last.set_index(QUERY)["score"].reindex(self.index).to_numpy(dtype=float)

    @cached_property
    def queries(self) -> pd.DataFrame:
        """What is asked of the edits and of those held out: the edits' own queries first, in the edits' order."""
        place = self.trace["edit_id"].map(self.numbers)
        asked = (place.notna() | (self.trace["split"] == HELD_OUT)) & ~self.trace["kind"].str.startswith("sample_")
        rows, place = self.trace[asked], place[asked]
        rows = rows.assign(_later=~((rows["kind"] == "edit") & place.notna()), _place=place)
        return rows.sort_values(["_later", "_place", *QUERY], kind="stable", ignore_index=True)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The place of each edit."""
        return {edit: i for i, edit in enumerate(self.edits)}

    @cached_property
    def index(self) -> pd.MultiIndex:
        return pd.MultiIndex.from_frame(self.queries[QUERY])

    def bytes_of(self, made: Sequence[str], answering: Sequence[str]) -> int:
        """Bytes kept beside the model: a key and a radius of each edit in `made`, where the method has them, and the tensors of
        those that are `answering`.
        """
        return int(self.kept.loc[list(answering), "bytes"].sum() + self.kept.loc[list(made), "key_bytes"].sum())

    @cached_property
    def kept(self) -> pd.DataFrame:
        """`bytes` of each edit's tensors and `key_bytes` of its key."""
        return self.trace.drop_duplicates("edit_id").set_index("edit_id")[["bytes", "key_bytes"]]

    @cached_property
    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """The query and the edit of each row of the interference, -1 where it is none of these."""
        query = self.index.get_indexer(pd.MultiIndex.from_frame(self.interference[QUERY]))
        return query, self.interference["entry"].map(self.numbers).fillna(-1).to_numpy(dtype=int)

    def matrix(self, column: str) -> np.ndarray:
        """[queries, edits]: a column of the interference."""
        (query, edit), found = self.places, np.full((len(self.queries), len(self.edits)), np.nan)
        known = (query >= 0) & (edit >= 0)
        found[query[known], edit[known]] = self.interference[column].to_numpy(dtype=float)[known]
        return found

    @cached_property
    def unedited(self) -> dict[str, np.ndarray]:
        """[queries] of each outcome under no edit: the answer is its own."""
        off = {name: self.queries[f"{name}_off"].to_numpy(dtype=float) for name in ("target", "tf")}
        return off | {"same": np.ones(len(self.queries))}

    @cached_property
    def edited(self) -> dict[str, np.ndarray]:
        """[queries, edits] of each outcome under each edit, NaN where the query cannot meet it."""
        owner = self.queries["edit_id"].map(self.numbers)
        own = np.flatnonzero(owner.notna())
        found = {}
        for name, column in OUTCOMES.items():
            found[name] = self.matrix(column)
            found[name][own, owner[own].astype(int)] = self.queries.loc[own, column].astype(float)
        return found

    def point(self, order: int, made: Sequence[str], found: Mapping[str, np.ndarray], counts: Mapping[str, int]) -> Point:
        """The point at which the edits `made` have been, with `found` outcomes [queries]."""
        ids = self.queries["edit_id"]
        table = self.queries[[*QUERY, "kind"]].assign(**found)[ids.isin(made) | ~ids.isin(self.edits)]
        if table[list(OUTCOMES)].isna().any(axis=None):
            raise UserError(
                "radius: an entry reaches farther than its edit's own samples, where no trace knows what it does; "
                "allowed here: a narrower radius"
            )
        return Point(order, len(made), table.assign(target=table["target"] > 0.5, same=table["same"] > 0.5), counts)


def alone(tables: Tables, on: pd.Series) -> Point:
    """Every edit by itself, on the probes that sequences ask; `on` says by (edit_id, probe) whether the edit answers."""
    answers = on.reindex(tables.index, fill_value=False).to_numpy(dtype=bool)
    own = {name: tables.queries[source].to_numpy(dtype=float) for name, source in OUTCOMES.items()}
    point = tables.point(0, tables.edits, {name: np.where(answers, own[name], tables.unedited[name]) for name in OUTCOMES}, {})
    return replace(point, outcomes=point.outcomes[point.outcomes["edit_id"].isin(tables.edits)])


def rules_of(method: Method) -> Sequence[str]:
    """The rules for conflicts that a method's scope can have: radii of one key can shrink."""
    return RULES if len(parts_of(method)) == 1 else ("nearest",)


def codebook(
    tables: Tables, orders: Sequence[Sequence[int]], points: Sequence[int], method: Method, rule: str
) -> Iterator[Point]:
    """Sequences of edits that stay apart, each behind the method's scope; `rule` says what becomes of scopes that conflict.

    With one key a query goes to the nearest one. With several it goes where it lies deepest: where its largest distance, as a
    share of how far the entry reaches, is least.
    """
    made = tables.trace[tables.trace["edit_id"].isin(tables.edits)]
    parts, radius = parts_of(method), method.radius
    columns = [tables.matrix(f"{radius.distance}_{part.key}") for part in parts]
    reach = [routing.reach(made, part, radius).loc[tables.edits].to_numpy() for part in parts]
    if len(parts) == 1:
        return behind(tables, orders, points, columns[0], reach[0], rule)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.max([column / far for column, far in zip(columns, reach, strict=True)], axis=0)
    return behind(tables, orders, points, share, np.ones(len(tables.edits)), rule, takes_in=False)


def behind(
    tables: Tables,
    orders: Sequence[Sequence[int]],
    points: Sequence[int],
    table: np.ndarray,
    radii: np.ndarray,
    rule: str,
    takes_in: bool = True,
) -> Iterator[Point]:
    """The same, of edits with `radii` [edits] and a `table` [queries, edits] of distances in the same units."""
    targets, rows = tables.queries["expected"].head(len(tables.edits)).tolist(), np.arange(len(tables.queries))
    for number, order in enumerate(orders):
        for made, state in replay(order, table, radii.tolist(), targets, points, rule, takes_in):
            answers = state.answering()
            found = {name: np.where(answers < 0, tables.unedited[name], tables.edited[name][rows, answers]) for name in OUTCOMES}
            kept = [tables.edits[i] for i in state.answers]
            counts = {"entries": len(state.keys), "taken_in": state.taken_in, "shrunk": state.shrunk}
            counts["bytes"] = tables.bytes_of(kept, kept)
            yield tables.point(number, [tables.edits[i] for i in order[:made]], found, counts)


def shared(
    tables: Tables,
    orders: Sequence[Sequence[int]],
    radii: Mapping[str, float] | None,
    column: str,
    beside: bool = False,
    threshold: float | None = None,
) -> Iterator[Point]:
    """Sequences in one set of weights. They answer all queries, or those whose score by the editor's own router is at least the
    `threshold`, or, as BalancEdit's released code has it, those within the last edit's radius of any key: `radii` by edit_id. All
    edits are kept where they stand `beside` each other, else what the last one left.
    """
    table = None if radii is None else tables.matrix(column)
    place = tables.index.get_indexer(pd.MultiIndex.from_frame(tables.rollout[QUERY]))
    for (number, made), rows in tables.rollout.assign(place=place)[place >= 0].groupby(["order", "made"]):
        done = [tables.edits[i] for i in orders[number][:made]]
        now = rows.set_index("place").reindex(range(len(tables.index)))
        on = np.ones(len(now), dtype=bool) if threshold is None else now["score"].to_numpy() >= threshold
        if table is not None:
            on = table[:, orders[number][:made]].min(axis=1) <= radii[done[-1]]
        found = {
            name: np.where(on, now[source].to_numpy(dtype=float), tables.unedited[name]) for name, source in OUTCOMES.items()
        }
        kept = done if beside else done[-1:]
        yield tables.point(int(number), done, found, {"entries": len(kept), "bytes": tables.bytes_of(done, kept)})


def hm_parts(point: Point, edits: Sequence[str]) -> np.ndarray:
    """[edits made, 3]: the parts of each edit's strict HM."""
    past = point.outcomes["edit_id"].isin(edits)
    return scores.by_kind(point.outcomes[past], "strict").reindex(columns=list(scores.HM_PARTS)).to_numpy(dtype=float)


def scored(point: Point, edits: Sequence[str]) -> list[dict[str, Any]]:
    """protocol, metric, value and n: every edit made so far, locality on held-out edits, and, of no protocol, what is kept."""
    past, kept = point.outcomes["edit_id"].isin(edits), point.outcomes["kind"].isin(scores.LOCALITY)
    at, found = {"order": point.order, "made": point.made}, []
    for protocol in scores.PROTOCOLS:
        table = scores.by_kind(point.outcomes[past], protocol)
        values = {part: table[part].mean() for part in PARTS if part in table} | {"hm": scores.hm_and_parts(table)["hm"]}
        if (~past & kept).any():
            values["held_out_locality"] = scores.by_kind(point.outcomes[~past & kept], protocol)["locality"].mean()
        found += [at | {"protocol": protocol, "metric": name, "value": value, "n": len(table)} for name, value in values.items()]
    return found + [
        at | {"protocol": "none", "metric": name, "value": value, "n": point.made} for name, value in point.counts.items()
    ]
