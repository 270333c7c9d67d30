"""Plan cells: data/plans/edits/<cell>.json says what each is made from and by, and what Git keeps of it.

A cell of the graph depends on its own plan alone. What changes no plan (another editor's code, a radius, prose) makes no edit
again, and DVC has one small file to compare where there were thirty.
"""

from collections.abc import Sequence

from stages.editing import choices, trace_cache
from stages.editing.plan import Plan, Source
from stages.editing.trace_cache import Planned
from stages.params import Params


def write(params: Params, cells: Sequence[Sequence[str]]) -> None:
    """The plans of some cells."""
    source = Source(params)
    found = {"-".join(names): plan(params, *names, source)[1] for names in cells}
    for name, planned in found.items():
        planned.write(trace_cache.PLANS / f"{name}.json")
    standing = sum(planned.stands for planned in found.values())
    print(f"[plan] {len(found)} cells, {standing} as Git has them -> {trace_cache.PLANS}")


def plan(params: Params, dataset: str, backbone: str, method: str, source: Source | None = None) -> tuple[Plan, Planned]:
    """One cell's plan, and what its file says."""
    source = source or Source(params)
    made = Plan.of(params, dataset, backbone, method, source=source)
    settings, by = choices.known(made)
    own, common = trace_cache.files(made.name)
    there = trace_cache.stamped(trace_cache.KEPT / f"{made.name}.json", own, beside=[common])
    digest = made.made_from(source, made.rows, made.seeds, made.method.router == "codebook")
    return made, Planned(digest, made.code, params.device, settings, by, **there)
