"""Plan the sequences of cells: data/plans/sequences/<cell>.json says what each is made from and by, and what Git keeps of it."""

from collections.abc import Mapping
from itertools import product
from typing import Any

from stages import code
from stages.editing import choices as singles
from stages.editing import trace_cache as traces
from stages.editing.declared import declared
from stages.editing.plan import Plan, Source
from stages.editing.trace_cache import Planned, Stamp
from stages.okedit.schema import in_sequence
from stages.params import Params, UserError
from stages.sequences import cache, choices
from stages.sequences.choices import Choice
from stages.settings import Method


def cells(params: Params) -> list[tuple[str, str, str]]:
    """Dataset, backbone and method of every cell."""
    return list(product(params.sequence.datasets, params.sequence.backbones, params.sequence.methods))


def write(params: Params) -> None:
    """The plans of all cells."""
    source = Source(params)
    found = {"-".join(names): plan(params, *names, source)[1] for names in cells(params)}
    for name, planned in found.items():
        planned.write(cache.PLANS / f"{name}.json")
    standing = sum(planned.stands for planned in found.values())
    print(f"[sequences] {len(found)} cells, {standing} as Git has them -> {cache.PLANS}")


def plan(params: Params, dataset: str, backbone: str, name: str, source: Source | None = None) -> tuple[Plan, Planned]:
    """One cell's plan, and what its file says: settings are those that were chosen on a sequence of dev edits, where they were,
    and those that its edits by themselves were made with.
    """
    source, method = source or Source(params), params.method(name)
    size, routed = method.sequence, method.router == "codebook"
    if not routed and not goes_on(method):
        allowed = "router codebook, or an editor whose edits go on from each other"
        raise UserError(f"sequence.methods: {name!r} is not allowed; allowed: {allowed}")
    rolled = size.rollouts(dataset, backbone)
    count = size.edits if routed else min(size.edits, rolled[0])
    rows = in_sequence(source.edits(params.dataset(dataset).name), params.edits, count)
    made = Plan.of(params, dataset, backbone, name, rows, source)
    asked = [size.edits, *rolled, size.orders, size.at, size.probes]
    digest = made.made_from(source, rows, made.seeds[:1], method.router, method.key.span, method.scope, asked, params.seed)
    by = code.of_editor(method.editor, "stages.sequences.chain", *made.adapters)
    there, choice = cache.KEPT / made.name, known(made)
    settings, chosen_by = (settings_of(made, choice), choice.code) if choice else (None, None)
    kept = traces.stamped(there / cache.STAMP, *cache.files(there))
    return made, Planned(digest, by, params.device, settings, chosen_by, **kept)


def settings_of(made: Plan, choice: Choice) -> dict[str, Mapping[str, Any]]:
    """The settings of a cell's sequences: of the `sequence` that dev edits make, and of single `edits`."""
    single = f"{made.dataset}-{made.backbone_name}-{made.method.made_as}"
    return {"sequence": choice.settings, "edits": Stamp.read(traces.STAMPS / f"{single}.json").settings}


def made_from(plan: Plan) -> str:
    """A digest of what a choice depends on: what that of single edits does, and how many probes are asked."""
    return f"{singles.made_from(plan)}-{plan.method.sequence.probes}"


def known(plan: Plan) -> Choice | None:
    """What was chosen for a cell from the same, None where nothing was."""
    at = (plan.dataset, plan.backbone_name, plan.method.name)
    for line in choices.of_cell(at):
        if line["chosen"] == "True" and line["made_from"] == made_from(plan):
            return choices.choice_of(line)
    return None


def goes_on(method: Method) -> bool:
    """Whether a method's edits can go on from each other."""
    return getattr(declared(method.editor), "SEQUENTIAL", False)
