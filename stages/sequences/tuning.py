"""Which settings, scope and rule for conflicts a method's sequences use: what is best at the end of a sequence of dev edits.

Every method has the budget that it has for single edits: the same settings, and as many values of its scope; behind a codebook
both rules. The dev edits follow on each other in the order of the set, and all of them are tested after the last. Each candidate
is judged by its strict HM there. Of those within noise of the best, the one with the fewest steps is taken, then the one nearest
to the published values, then the best (design §10, Tuning). reports/sequence_tuning.csv keeps what was tried.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from stages.editing.declared import declared
from stages.editing.make import records
from stages.editing.plan import Row, label
from stages.editing.team import Team
from stages.editing.trace_cache import Planned
from stages.editing.tried import AXES
from stages.editing.tuning import cheapest
from stages.scoring import scope, scores
from stages.sequences import retention
from stages.sequences.chain import chain
from stages.sequences.choices import reach
from stages.settings import DEV, Method
from stages.settings import Sequence as Settings

COLUMNS = [
    *AXES, "setting", "rule", "scope", *scores.HM_PARTS, "hm", "tied", "steps", "edits", "chosen", "reach", "made_from", "code",
]  # fmt: skip


@dataclass(frozen=True)
class End:
    """The end of a sequence under a rule for conflicts ("" without a codebook) and a value of the scope (NaN without one):
    the parts of each edit's HM [edits, 3].
    """

    rule: str
    scope: float
    parts: np.ndarray


def tried(team: Team, planned: Planned, root: int, made_from: str) -> pd.DataFrame:
    """Every setting and rule, at the value of the scope that is best for it, with its scores at the end; one line is `chosen`.
    `root` is the study's seed, `made_from` what the choice depends on (`choices.made_from`).
    """
    plan, found, parts = team.plan, [], []
    for hyper in plan.grid:
        name = hashlib.sha256(label(hyper).encode()).hexdigest()[:8]
        with records(plan, planned, f"tuning-{name}-", hyper) as kept:
            tables = chain(team, hyper, only_the_end(plan.method.sequence), root, plan.method.router != "codebook", kept)
        steps = float(tables["trace"].groupby("edit_id")["steps"].first().mean())
        for end in ends(plan.method, retention.Tables.of(tables)):
            parts.append(end.parts)
            one = {"setting": label(hyper), "rule": end.rule, "scope": end.scope, "steps": steps}
            found.append(one | scope.summed(end.parts))
    cell = dict(zip(AXES, (plan.dataset, plan.backbone_name, plan.method.name), strict=True))
    told = {"reach": reach(plan.method), "made_from": made_from, "code": planned.code}
    table = pd.DataFrame(found).assign(**cell, edits=len(plan.rows), **told)
    return cheapest(table, np.stack(parts), plan)[COLUMNS]


def only_the_end(settings: Settings) -> Settings:
    """One order of the edits, as they come, tested after the last."""
    return replace(settings, orders=1, orders_elsewhere=1, at=())


def of_dev(rows: Sequence[Row]) -> list[Row]:
    """Dev edits that are made; elsewhere in a sequence they are held out."""
    return [row | {"split": "made"} for row in rows if row["split"] == "dev"]


def ends(method: Method, tables: retention.Tables) -> Iterator[End]:
    """The end of a sequence under each rule for conflicts, at the value of the scope that is best for it."""
    order = [list(range(len(tables.edits)))]
    made = tables.trace[tables.trace["edit_id"].isin(tables.edits)]
    if method.router == "codebook":
        for rule in retention.rules_of(method):

            def end(one: Method, rule: str = rule) -> np.ndarray:
                (point,) = retention.codebook(tables, order, [len(tables.edits)], one, rule)
                return retention.hm_parts(point, tables.edits)

            yield at_its_best(rule, method, made, end)
        return
    beside = getattr(declared(method.editor), "MEMORY_BASED", False)

    def end(one: Method) -> np.ndarray:
        threshold = one.threshold if one.router == "builtin" else None
        *_, point = retention.shared(tables, order, None, "", beside, threshold)
        return retention.hm_parts(point, tables.edits)

    scored = tables.queries[["kind"]].assign(score=tables.last_scores) if method.router == "builtin" else made
    yield at_its_best("", method, scored, end)


def at_its_best(rule: str, method: Method, trace: pd.DataFrame, end: Callable[[Method], np.ndarray]) -> End:
    """The end at the value of the scope that dev edits choose: all values where it says `dev`, else the one there is."""
    if method.number is None or method.number_value != DEV:
        value = float("nan") if method.number is None else float(method.number_value)
        return End(rule, value, end(method))
    values = scope.points(trace, method)
    parts = np.stack([end(scope.at(method, float(value))) for value in values])
    place = scope.best(values, parts, method.published)
    return End(rule, float(values[place]), parts[place])
