"""What is left of every edit after many, for every method whose edits can follow on each other: reports/sequences.csv.

    python -m stages.retention

`chosen_on` says what settings and scope were chosen on: at the end of a `sequence` of dev edits, or on single `edits`. Behind a
codebook both rules for conflicts stand there, and `headline` marks the one that was chosen.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from stages import beside
from stages.editing.conflicts import RULES
from stages.editing.declared import declared
from stages.editing.trace_cache import Stamp
from stages.metrics.files import read_table, read_trace, write_csv
from stages.params import Params, UserError, derive_seed, load, run
from stages.scoring import routing, scope
from stages.sequences import cache, choices, retention
from stages.sequences.orders import orders, points
from stages.settings import DEV, Method

AXES = ["dataset", "backbone", "method", "chosen_on", "memory", "headline"]
OUT = Path("reports/sequences.csv")
Place = tuple[str, str, str]


def open_tables(place: Place) -> dict[str, tuple[retention.Tables, int | None]]:
    """What `stages.sequences` wrote of a method on a dataset and a backbone, by what its settings were chosen on; and in how many
    orders, where it is not in all.
    """
    parts, name = {}, "-".join(place)
    for path in cache.files(cache.MADE / name):
        remedy = f"run `python -m stages.sequences {' '.join(place)}`"
        if not path.exists():
            raise UserError(f"sequences: {path} is missing; {remedy}")
        parts[path.stem] = read_table(path, remedy)
    found, settings = {}, Stamp.read(cache.STAMPS / f"{name}.json").settings
    for chosen_on, hyper in settings.items():
        made = "sequence" if hyper == settings["sequence"] else chosen_on
        own = {stem: table[table["chosen_on"] == made] if len(table) else table for stem, table in parts.items()}
        found[chosen_on] = retention.Tables.of(own), None if made == "sequence" else 1
    return found


def reaching(place: Place, method: Method) -> dict[str, tuple[Method, str]]:
    """The method with a number where its scope says `dev`, and the rule for conflicts that is its headline: as a sequence of dev
    edits chose them, and as single edits did, which know of no conflict.
    """
    single = scope.settled(method, read_trace(*place[:2], method.made_as))
    choice = choices.of_scope(place, method)
    if choice is None:  # the method reaches in another way than any that was tried
        rule = retention.rules_of(single)[0] if single.router == "codebook" else ""
        return {"sequence": (single, rule), "edits": (single, rule)}
    ours = scope.at(single, choice.scope) if method.number_value == DEV else single
    return {"sequence": (ours, choice.rule), "edits": (single, choice.rule)}


def sequences(params: Params, place: Place) -> pd.DataFrame:
    """Scores of a method on a dataset and backbone, at every point of every order, of each kind of memory that it can have."""
    found, chosen = [], reaching(place, params.method(place[2]))
    for chosen_on, (tables, count) in open_tables(place).items():
        method, rule = chosen[chosen_on]
        others = [f"codebook, {one}" for one in RULES if one != rule]
        for memory, reached in kinds(params, place, tables, method, count).items():
            at = {"chosen_on": chosen_on, "memory": memory, "headline": memory not in others}
            found += [at | row for point in reached for row in retention.scored(point, tables.edits)]
    return pd.DataFrame(found).assign(**dict(zip(("dataset", "backbone", "method"), place, strict=True)))


def kinds(
    params: Params, place: Place, tables: retention.Tables, method: Method, count: int | None
) -> dict[str, Iterable[retention.Point]]:
    """The points of each kind of memory, of the first `count` orders."""
    dataset, backbone, _ = place
    found, made = {}, tables.trace[tables.trace["edit_id"].isin(tables.edits)]
    few = replace(tables, edits=tables.edits[: method.sequence.rollouts(dataset, backbone)[0]])
    drawn = orders_of(params, dataset, few.edits)[:count]
    if method.router == "codebook":
        whole, at = orders_of(params, dataset, tables.edits)[:count], points(params.sequence, len(tables.edits))
        for rule in retention.rules_of(method):
            found[f"codebook, {rule}"] = retention.codebook(tables, whole, at, method, rule)
        if len(tables.rollout):
            reach, column = routing.radii(made, method.key, method.radius), routing.distance_column(method.key, method.radius)
            radii = reach.set_index("edit_id")["epsilon"].to_dict()
            found["released code"] = retention.shared(few, drawn, radii, column)
    else:
        threshold = method.threshold if method.router == "builtin" else None
        beside = getattr(declared(method.editor), "MEMORY_BASED", False)
        found["memory" if beside else "weights"] = retention.shared(few, drawn, None, "", beside, threshold)
    on = pd.Series(routing.routed_on(made, method), index=pd.MultiIndex.from_frame(made[retention.QUERY]))
    return found | {"alone": [retention.alone(tables, on)]}


def orders_of(params: Params, dataset: str, edits: Sequence[str]) -> list[list[int]]:
    """The orders in which the edits are made, as their numbers."""
    return orders(range(len(edits)), params.sequence.orders, derive_seed(params.seed, "sequence", dataset))


def main() -> None:
    params = load()
    places = list(product(params.sequence.datasets, params.sequence.backbones, params.sequence.methods))
    whole = pd.concat(beside.each(partial(sequences, params), places, "retention"))
    columns = [*AXES, "order", "made", "protocol", "metric", "value", "n"]
    write_csv(OUT, whole[columns].replace({"value": {np.nan: None}}))
    print(f"[retention] {whole[AXES].drop_duplicates().shape[0]} kinds of memory, {len(whole):,} rows -> {OUT}")


if __name__ == "__main__":
    run(main)
