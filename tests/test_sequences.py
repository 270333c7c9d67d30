"""Sequences of edits: what is traced for them, and by hand what is left after each."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from stages.backbone.vlm import Backbone
from stages.editing.cell import Cell
from stages.editing.conflicts import UNEDITED
from stages.editing.editors import load_editor
from stages.editing.edits import Difference, Edit
from stages.editing.probes import probes_of
from stages.editing.resume import Records
from stages.editing.team import Team
from stages.editing.trace import Trial, trace_edit, trace_edits
from stages.editing.transform import Layer, Value
from stages.editing.trunk import request_of, run_trunk
from stages.params import UserError
from stages.sequences import check, interference, planning, retention, rollout
from stages.sequences.chain import chain
from stages.sequences.orders import orders, points
from stages.sequences.probes import KEPT, outcomes, probe_sets, queries_of
from stages.sequences.replay import replay
from stages.settings import Place
from tests.cells import PARAMS, SOURCE, make, method
from tests.editors import settings_of
from tests.rows import ROW, SAMPLES

OTHER = ROW | {"edit_id": "colour-noise", "image_id": "noise", "target": "it", "generality_image_ids": ["red", "noise"]}
SPREAD = PARAMS.sequence


def two(backbone: Backbone, name: str, probes: int = 2, **hyper: object) -> Cell:
    """A cell of two edits of one question about two pictures."""
    queries = {row["edit_id"]: queries_of(row, SAMPLES, {}, probes) for row in (ROW, OTHER)}
    return replace(make(backbone, method(name, **hyper)), rows=[ROW, OTHER], queries=queries)


def near(value: object) -> object:
    """A number that may differ by what a batch of another size rounds otherwise."""
    return pytest.approx(float(value), nan_ok=True)


def approximately(row: dict[str, object]) -> dict[str, object]:
    """The same row with its numbers `near`."""
    return {name: near(value) if isinstance(value, float) else value for name, value in row.items()}


@pytest.mark.parametrize("name", ["balancedit", "finetune", "grace"])
def test_an_edit_that_goes_on_from_a_finished_one_begins_where_it_ended(backbone, name: str) -> None:
    request = request_of(run_trunk(backbone, ROW, probes_of(ROW, SAMPLES)), ROW)
    settings = settings_of(name)
    first = load_editor(name)(backbone, request, settings)
    again = load_editor(name)(backbone, replace(request, start=first), settings)
    assert first.steps > 0 and again.reached and again.loss <= first.loss
    assert again.steps == 0 or first.steps == settings.steps
    kept = next(iter(again.added.values()), again.output)
    assert isinstance(kept, Difference | Layer | Value)


@pytest.mark.parametrize("name", ["lora", "finetune-connector"])
def test_edits_below_the_layer_go_on_from_each_other(backbone, name: str) -> None:
    editor, settings = name.split("-")[0], settings_of(name)
    request = request_of(run_trunk(backbone, ROW, probes_of(ROW, SAMPLES)), ROW)
    first = load_editor(editor)(backbone, request, settings)
    again = load_editor(editor)(backbone, replace(request, start=first), replace(settings, steps=1, lr=1e-9))
    assert first.reached and first.steps > 0 and again.loss == pytest.approx(first.loss, rel=1e-4)


def test_a_memory_answers_each_probe_with_the_edit_it_recalls(backbone) -> None:
    cell = two(backbone, "ft", 1, part="layer", lr=1e-2, loss=0.05)
    (one,), none = cell.made(cell.prepared({})[0], cell.grid[0], [ROW], 0), Edit()
    asked = probe_sets(cell)[0]
    recalled = replace(none, recall=lambda query: one if query.image_id == ROW["image_id"] else none)
    expected = [(one if probe.image_id == ROW["image_id"] else none) for probe in asked.probes]
    by_each = {id(edit): outcomes(cell, edit, [asked]) for edit in (one, none)}
    assert outcomes(cell, recalled, [asked]) == [approximately(by_each[id(edit)][i]) for i, edit in enumerate(expected)]
    assert by_each[id(one)] != by_each[id(none)]


def test_every_outcome_is_the_recalled_edits_with_the_score_that_decides_later(backbone) -> None:
    """Also where the score is low: which threshold the router has is chosen afterwards."""
    cell = two(backbone, "ft", 1, part="layer", lr=1e-2, loss=0.05)
    (one,), asked = cell.made(cell.prepared({})[0], cell.grid[0], [ROW], 0), probe_sets(cell)[0]
    pictured = replace(one, scores=lambda queries, *_: torch.tensor([0.25 + 0.5 * (q.image_id == "red") for q in queries]))
    expected = [
        told | {"score": 0.75 if probe.image_id == "red" else 0.25}
        for probe, told in zip(asked.probes, outcomes(cell, one, [asked]), strict=True)
    ]
    assert outcomes(cell, Edit(recall=lambda _query: pictured), [asked]) == [approximately(row) for row in expected]
    assert {row["score"] for row in expected} == {0.25, 0.75}


def test_probes_are_read_once(backbone) -> None:
    cell = two(backbone, "balancedit", lr=1e-2)
    assert probe_sets(cell) is probe_sets(cell) and [one.row for one in probe_sets(cell)] == cell.rows
    assert [one.row for one in probe_sets(replace(cell, rows=[OTHER]))] == [OTHER]  # another cell has its own


def test_an_edit_of_pictures_tokens_is_asked_about_pictures_alone(backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = two(backbone, "ft", 1, part="connector", lr=1e-2, loss=0.05)
    (edit,), asked, told = cell.made(cell.prepared({})[0], cell.grid[0], [ROW], 0), probe_sets(cell)[0], []

    def telling(backbone: Backbone, trials: list[Trial]) -> list[list[dict[str, object]]]:
        told.extend(probe for one in trials for probe in one.probes if not one.edit.changes_nothing)
        return trace_edits(backbone, trials)

    whole = trace_edit(backbone, ROW, asked.probes, asked.states, edit)
    monkeypatch.setattr("stages.sequences.probes.trace_edits", telling)
    found = [{name: row[name] for name in KEPT} for row in outcomes(cell, edit, [asked])]
    assert found == [{name: near(one[name]) for name in KEPT} for one in whole]
    pictured = [probe for probe in asked.probes if probe.image_id is not None]
    assert told == pictured and len(pictured) < len(asked.probes)


def test_what_cannot_be_played_is_refused_before_any_work() -> None:
    with pytest.raises(UserError, match="sequence.methods: 'ike' is not allowed; allowed: router codebook, or an editor whose"):
        planning.plan(PARAMS, "okedit", "llava-smollm2", "ike", SimpleNamespace())


def test_few_probes_of_each_kind_are_asked_and_of_held_out_edits_for_locality_alone() -> None:
    kinds = [probe.kind for probe in queries_of(ROW, SAMPLES, {}, 1)]
    assert kinds[0] == "edit" and "hop1" not in kinds and "black_image" not in kinds
    asked = [kind for kind in kinds if not kind.startswith("sample_")]
    assert len(set(asked)) == len(asked) and len(kinds) == len(asked) + len(SAMPLES)
    held_out = {probe.kind for probe in queries_of(ROW | {"split": "dev"}, [], {}, 1)}
    assert held_out == set(asked) - {"edit", "text_generality", "image_generality", "joint_generality"}


def test_fewer_probes_have_the_same_outcomes(backbone, records: Records) -> None:
    cell = two(backbone, "balancedit", lr=1e-2)
    asked, states = probe_sets(cell)[0], cell.states(ROW)
    edit = cell.editor.edit(backbone, request_of(states, ROW), cell.editor.Settings(**cell.grid[0]))
    whole = trace_edit(backbone, ROW, cell.queries[ROW["edit_id"]], states, edit)
    some = asked.some([0, 2])
    assert some.labels() == [{"edit_id": ROW["edit_id"], "probe": 0}, {"edit_id": ROW["edit_id"], "probe": 2}]
    for number, found in zip(some.numbers, outcomes(cell, edit, [some]), strict=True):
        assert {name: found[name] for name in KEPT} == {name: near(whole[number][name]) for name in KEPT}


def test_distances_to_every_key_and_outcomes_where_another_edit_may_answer(backbone, records: Records) -> None:
    cell = two(backbone, "balancedit", lr=1e-2)
    asked = probe_sets(cell)
    trace, table = interference.each(Team.alone(cell), cell.grid[0], cell.rows, [[0, 1]], [1, 2], records)
    assert trace.groupby("edit_id", sort=False).size().tolist() == [len(cell.queries[row["edit_id"]]) for row in cell.rows]
    assert set(table["entry"]) == {ROW["edit_id"], OTHER["edit_id"]} and len(table) == 2 * sum(len(a.probes) for a in asked)
    own = table["entry"] == table["edit_id"]
    assert (table.loc[own & (table["probe"] == 0), "euclidean_prompt"] == 0).all() and table.loc[own, "target_on"].isna().all()
    apart = table.set_index(["edit_id", "probe", "entry"])["euclidean_prompt"].unstack()
    for (edit, probe), row in apart.iterrows():
        other = next(name for name in apart if name != edit)
        told = table[(table["edit_id"] == edit) & (table["probe"] == probe) & (table["entry"] == other)]
        assert told["target_on"].notna().all() or row[other] >= row[edit]
    assert table["target_on"].notna().any()
    with_new = cell.editor.edit(backbone, request_of(cell.states(OTHER), OTHER), cell.editor.Settings(**cell.grid[0]))
    met = table[table["target_on"].notna() & (table["entry"] == OTHER["edit_id"])]
    for one, found in zip(met.itertuples(), outcomes(cell, with_new, [asked[0].some(met["probe"].tolist())]), strict=True):
        assert (one.target_on, one.same_on) == (found["target_on"], found["same_on"])


@pytest.mark.parametrize("alpha", [0.0, 0.37, 1.0])
def test_every_weight_of_two_keys_has_its_outcomes(backbone, records: Records, alpha: float) -> None:
    """Whatever α routes a query to, its outcome there was made."""
    kinds = {"view": ("What is it?", "red"), "nearest": ("What is it?", "noise"), "other_question": ("Who owns it?", "red")}
    more = [{"kind": f"sample_{kind}", "question": asked, "image_id": image} for kind, (asked, image) in kinds.items()]
    cell = two(backbone, "balancedit", lr=1e-2)
    cell.trunk.keys = {"picture": Place("connector", "image")}
    queries = {row["edit_id"]: queries_of(row, [*SAMPLES, *more], {}, 2) for row in cell.rows}
    method = replace(cell.method, scope="two_keys", radius=replace(cell.method.radius, alpha=alpha))
    cell = replace(cell, method=method, queries=queries)
    trace, met = interference.each(Team.alone(cell), cell.grid[0], cell.rows, [[0, 1]], [1, 2], records)
    tables = retention.Tables.of({"trace": trace, "interference": met, "rollout": pd.DataFrame()})
    points = list(retention.codebook(tables, [[0, 1]], [1, 2], method, "nearest"))
    assert [point.made for point in points] == [1, 2] and points[1].counts["entries"] == 2
    assert {"euclidean_picture", "euclidean_last"} <= {*met}


def test_which_edits_may_answer_by_hand() -> None:
    """On a line: keys at 0, 2 and 10; queries at 1.9 (of the first) and 9 (held out). The nearest of each subset may answer."""
    table = np.abs(np.array([[1.9], [9]]) - np.array([0.0, 2, 10]))
    owner, nobody = np.array([0, -1]), np.zeros(3, dtype=bool)
    assert interference.nearest(table, owner, nobody, [[0, 1]]).tolist() == [[False, True, False], [False, True, False]]
    assert interference.nearest(table, owner, nobody, [[1, 2]]).tolist() == [[False] * 3, [False, False, True]]
    gone = np.array([False, True, False])  # taken in by another, the second has no key of its own
    assert interference.nearest(table, owner, gone, [[0, 1]]).tolist() == [[True, True, False]] * 2


def test_edits_of_one_target_within_reach_may_be_taken_in() -> None:
    """On a line: keys at 0, 2 and 10. What comes later is taken in, if no key of another target lies in between."""
    apart = np.abs(np.array([[0.0], [2], [10]]) - np.array([0.0, 2, 10]))

    def taken(far: list[float], targets: str, *orders: list[int]) -> list[list[int]]:
        return np.argwhere(interference.may_take_in(apart, far, targets, orders)).tolist()

    assert taken([3, 1, 9], "aaa", [0, 1, 2]) == [[0, 1]]
    assert taken([3, 3, 9], "aaa", [0, 1, 2], [2, 1, 0]) == [[0, 1], [1, 0], [2, 1]]
    assert taken([11, 9, 9], "aba", [0, 1, 2]) == []  # the second lies between the first and the third
    assert taken([11, 9, 9], "aaa", [0, 1, 2]) == [[0, 1], [0, 2], [1, 2]]  # unless the first has taken it in


def test_always_on_edits_are_traced_by_themselves_and_held_out_ones_never_made(backbone, records: Records) -> None:
    cell = replace(two(backbone, "ft", part="layer", lr=1e-2, loss=0.05), rows=[ROW, OTHER | {"split": "dev"}])
    trace, met = interference.each(Team.alone(cell), cell.grid[0], [ROW], [[0]], [1], records)
    held_out = trace[(trace["edit_id"] == OTHER["edit_id"]) & ~trace["kind"].str.startswith("sample_")]
    assert met.empty and set(held_out["split"]) == {"dev"} and held_out["same_on"].all()
    assert trace.loc[(trace["edit_id"] == ROW["edit_id"]) & (trace["kind"] == "edit"), "target_on"].all()


def test_an_entry_widens_to_twice_its_farthest_sample(backbone, records: Records) -> None:
    cell = two(backbone, "balancedit", lr=1e-2)
    states = cell.states(ROW)
    samples = [i for i, probe in enumerate(cell.queries[ROW["edit_id"]]) if probe.is_sample]
    apart = (states.phi["prompt"][samples] - states.key["prompt"]).norm(dim=1)
    assert interference.reach(cell, ROW)["euclidean_prompt"] == pytest.approx(2 * float(apart.max()))


def test_shared_weights_forget_and_every_point_tests_all_so_far(backbone, records: Records) -> None:
    cell = two(backbone, "ft", 1, part="layer", lr=1e-2, loss=0.05)
    settings = replace(SPREAD, at=(1,), orders=2)
    table = rollout.rollout(Team.alone(cell), cell.grid[0], cell.rows, points(settings, 2), settings.orders, 0, records)
    held = table[table["probe"] == 0].set_index(["order", "made", "edit_id"])["target_on"].sort_index()
    assert len(held.loc[0, 1]) == 1 and len(held.loc[0, 2]) == 2
    assert held.loc[0, 1, ROW["edit_id"]] == 1 and held.loc[0, 2].to_dict() == {ROW["edit_id"]: 0, OTHER["edit_id"]: 1}


def test_sequences_are_made_from_edits_settings_and_sizes(backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = replace(two(backbone, "balancedit", lr=1e-2), samples=[])

    def digest(rows: list = cell.rows, **changed: object) -> str:
        params = replace(PARAMS, **changed)
        params = replace(params, methods={"balancedit": replace(cell.method, sequence=params.sequence)})
        monkeypatch.setattr(planning.Plan, "of", lambda *_: replace(cell, rows=rows))
        monkeypatch.setattr(planning, "in_sequence", lambda *_: rows)
        source = SimpleNamespace(**vars(SOURCE), edits=lambda _: [])
        return planning.plan(params, "okedit", "llava-smollm2", "balancedit", source)[1].made_from

    monkeypatch.setattr(planning.Stamp, "read", lambda path: SimpleNamespace(settings=cell.grid[0]))
    longer = replace(SPREAD, orders=SPREAD.orders + 1)
    assert len({digest(), digest([ROW]), digest(sequence=longer), digest(seed=5)}) == 4 and digest() == digest()


@pytest.mark.parametrize(("name", "hyper"), [("balancedit", {"lr": 1e-2}), ("ft", {"part": "layer", "lr": 1e-2, "loss": 0.05})])
def test_changed_code_is_checked_on_some_edits(backbone, records: Records, name: str, hyper: dict) -> None:
    """What is made again is the same, an outcome that another order leaves is not, and what was never met is not compared."""
    cell, settings = two(backbone, name, **hyper), replace(SPREAD, at=(1,), orders=1)
    team = Team.alone(replace(cell, method=replace(cell.method, sequence=settings)))
    tables = chain(team, cell.grid[0], settings, 0, True, records)
    assert check.differs(team, cell.grid[0], settings, tables, 0) == ""
    changed = {
        "trace": ("same_on", ""),
        "rollout": ("target_on", ", after 2 edits"),
        "interference": ("tf_on", ", after colour-"),
    }
    for table, (column, where) in changed.items():
        if len(tables[table]):
            other = tables[table].assign(**{column: tables[table][column].map(lambda value: not value)})
            found = check.differs(team, cell.grid[0], settings, tables | {table: other}, 0)
            assert found.startswith(f"{column} of colour-") and where in found


def test_orders_are_fixed_and_differ() -> None:
    rows = [{"edit_id": str(i)} for i in range(20)]
    found = orders(rows, 3, 0)
    assert found[0] == rows and found == orders(rows, 3, 0)
    assert all(sorted(r["edit_id"] for r in order) == sorted(r["edit_id"] for r in rows) for order in found)
    assert found[1] != found[2] != rows


def test_points_are_those_that_there_are_edits_for() -> None:
    settings = replace(SPREAD, at=(1, 10, 100))
    assert points(settings, 40) == [1, 10, 40] and points(settings, 10) == [1, 10]


def test_a_replay_by_hand() -> None:
    """On a line: edits at 0, 2 (same target, inside the first) and 10 (another); queries at .5 and 9."""
    places, edits = np.array([0.0, 2, 10, 0.5, 9]), np.array([0.0, 2, 10])
    told = [
        (made, list(state.reach.radii), state.answering().tolist(), state.taken_in, state.shrunk)
        for made, state in replay([0, 1, 2], np.abs(places[:, None] - edits), [3, 2, 9], ["a", "a", "b"], [1, 2, 3], "shrink")
    ]
    assert told == [
        (1, [3], [0, 0, -1, 0, -1], 0, 0),
        (2, [4], [1, 1, -1, 1, -1], 1, 0),
        (3, [4, 9], [1, 1, 2, 1, 2], 1, 0),
    ]
    ((_, state),) = replay([0, 2, 1], np.abs(places[:, None] - edits), [3, 2, 9], ["a", "a", "b"], [3], "shrink")
    assert state.answers == [1, 2] and state.answering().tolist() == [1, 1, 2, 1, 2]  # the later entry stays
    near = np.abs(places[:, None] - np.array([0.0, 2, 10]))
    ((_, state),) = replay([0, 1], near, [3, 3], ["a", "b"], [2], "shrink")
    assert state.reach.radii == [1, 1] and state.shrunk == 2
    ((_, state),) = replay([0, 1], near, [3, 3], ["a", "b"], [2], "nearest")
    assert state.reach.radii == [3, 3] and state.answering().tolist() == [0, 1, UNEDITED, 0, UNEDITED]


def hand_made() -> retention.Tables:
    """Two edits, each with its own query, a rephrasing and a near picture; one held-out edit with a near picture."""
    kinds = ("edit", "text_generality", "near_image")
    asked = [("x", 0), ("x", 1), ("x", 2), ("y", 0), ("y", 1), ("y", 2), ("z", 2)]
    trace = pd.DataFrame(
        {
            "seed": 0, "edit_id": edit, "split": "dev" if edit == "z" else "test", "probe": probe, "kind": kinds[probe],
            "expected": edit.upper(), "target_off": False, "target_on": probe < 2, "same_on": False, "tf_off": 0.25,
            "tf_on": 0.75, "correct_off": True, "top10_on": np.nan, "diverged": False,
            "bytes": {"x": 100, "y": 30, "z": 0}[edit], "key_bytes": 8,
        }
        for edit, probe in asked
    )  # fmt: skip
    at = {"x": {"x": [0, 1, 5], "y": [9, 9, 2], "z": [0, 0, 3]}, "y": {"x": [9, 9, 9], "y": [0, 1, 8], "z": [0, 0, 9]}}
    interference = pd.DataFrame(
        {"entry": entry, "edit_id": edit, "probe": probe, "d": float(at[entry][edit][probe]), "target_on": 0.0, "same_on": 0.0,
         "tf_on": 0.5}
        for entry in "xy"
        for edit, probe in asked
    )  # fmt: skip
    return retention.Tables(trace, interference, pd.DataFrame(), ["x", "y"])


def behind(tables: retention.Tables, points: list[int], *radii: float) -> Iterator[retention.Point]:
    """x and then y, with these radii."""
    return retention.behind(tables, [[0, 1]], points, tables.matrix("d"), np.array(radii, dtype=float), "shrink")


def test_retention_by_hand() -> None:
    """The second edit's near picture goes to the first edit (2 ≤ 4); the held-out picture too (3 ≤ 4), by 1 alone not."""
    tables = hand_made()
    first, both = behind(tables, [1, 2], 4, 1)
    assert (first.made, both.made) == (1, 2) and first.counts == {"entries": 1, "taken_in": 0, "shrunk": 0, "bytes": 108}
    found = pd.DataFrame(retention.scored(both, tables.edits)).set_index(["protocol", "metric"])["value"]
    assert found["strict", "reliability"] == 1 and found["strict", "text_generality"] == 1
    assert found["strict", "locality"] == 0.5  # x's near picture is 5 away, y's meets x
    assert found["strict", "held_out_locality"] == 0 and found["none", "entries"] == 2
    assert found["none", "bytes"] == 146
    narrow = next(behind(tables, [2], 1, 1))
    found = pd.DataFrame(retention.scored(narrow, tables.edits)).set_index(["protocol", "metric"])["value"]
    assert found["strict", "locality"] == 1 and found["strict", "held_out_locality"] == 1


def test_the_released_code_asks_the_last_edits_radius(backbone) -> None:
    tables = hand_made()
    rolled_out = tables.trace[["edit_id", "probe"]].assign(order=0, made=2, target_on=1.0, same_on=0.0, tf_on=1.0, score=1.0)
    tables = replace(tables, rollout=rolled_out)
    (everywhere,) = retention.shared(tables, [[0, 1]], None, "")
    assert not everywhere.outcomes["same"].any() and everywhere.outcomes["target"].all()
    (within,) = retention.shared(tables, [[0, 1]], {"x": 9, "y": 1}, "d")  # y came last: 1 for both keys
    kept = within.outcomes.set_index(["edit_id", "probe"])["same"]
    assert kept.loc["x", 2] and kept.loc["y", 2] and kept.loc["z", 2] and not kept.loc["x", 1]
    assert within.counts == {"entries": 1, "bytes": 30 + 2 * 8}  # one copy, two keys


def test_in_shared_weights_a_query_is_answered_from_the_threshold_on() -> None:
    """Scores of 1, ½ and ¼ for an edit's own query, its rephrasing and its near picture; none has no score and no answer."""
    tables = hand_made()
    scored = tables.trace["probe"].map({0: 1.0, 1: 0.5, 2: 0.25}).mask(tables.trace["edit_id"] == "z")
    rolled_out = tables.trace[["edit_id", "probe"]].assign(order=0, made=2, target_on=1.0, same_on=0.0, tf_on=1.0, score=scored)
    tables = replace(tables, rollout=rolled_out)

    def answered(threshold: float | None) -> list[tuple[str, int]]:
        (point,) = retention.shared(tables, [[0, 1]], None, "", threshold=threshold)
        changed = point.outcomes[~point.outcomes["same"].astype(bool)]
        return sorted(zip(changed["edit_id"], changed["probe"], strict=True))

    assert answered(0.5) == [("x", 0), ("x", 1), ("y", 0), ("y", 1)] and answered(0.6) == [("x", 0), ("y", 0)]
    assert answered(2.0) == [] and len(answered(None)) == len(tables.trace)


def test_an_outcome_that_is_not_known_is_an_error() -> None:
    tables = hand_made()
    tables.interference.loc[(tables.interference["entry"] == "x") & (tables.interference["edit_id"] == "y"), "same_on"] = np.nan
    with pytest.raises(UserError, match="a narrower radius"):
        list(behind(tables, [2], 4, 1))


def test_each_edit_alone_by_hand() -> None:
    tables = hand_made()
    index = pd.MultiIndex.from_frame(tables.trace[["edit_id", "probe"]])
    point = retention.alone(tables, pd.Series(tables.trace["probe"].to_numpy() < 1, index=index))
    found = pd.DataFrame(retention.scored(point, tables.edits)).set_index(["protocol", "metric"])["value"]
    assert found["strict", "reliability"] == 1 and found["strict", "text_generality"] == 0 and found["strict", "locality"] == 1
    assert "held_out_locality" not in found["strict"]
