"""Sequences of edits: what memories hold, what an edit goes on from, and that retention is measured on all that was made."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from stages.editing.cell import Cell
from stages.editing.codebook import Codebook
from stages.editing.editor import Difference, Edit, load_editor
from stages.editing.trace import probes_of, request_of, run_trunk, select, trace_edit
from stages.editing.transform import Layer, Value
from stages.params import UserError
from stages.sequence import __main__ as sequence
from stages.sequence import play
from stages.sequence.memory import Routed, Weights
from tests.rows import ROW, SAMPLES
from tests.test_editing import SETTINGS
from tests.test_tuning import make, method, records  # noqa: F401

KEY = torch.tensor([1.0, 0.0])


def test_weights_are_handed_on_and_a_diverged_edit_is_not() -> None:
    memory, edit = Weights(), Edit(Layer(torch.ones(2, 2)))
    assert memory.start(KEY, "a") is None and memory.answering(KEY[None]).changes_nothing and memory.entries == 0
    memory.add(KEY, 0.0, "a", edit)
    memory.add(KEY, 0.0, "b", Edit(diverged=True))
    assert memory.start(KEY, "c") is edit and memory.answering(KEY[None]) is edit and memory.entries == 1


def test_a_codebook_goes_on_where_the_same_answer_stands_already() -> None:
    memory, edit = Routed(Codebook()), Edit(Value(torch.ones(2)))
    memory.add(KEY, 0.5, "a", edit)
    assert memory.start(KEY, "a") is edit and memory.start(KEY, "b") is None and memory.start(KEY + 1, "a") is None
    answer = memory.answering(torch.stack([KEY, KEY + 1]))
    inputs, prompt = torch.zeros(2, 3, 2), torch.ones(2, 3, dtype=torch.bool)
    assert answer.output(inputs, torch.zeros(2, 3, 2), prompt).sum(-1).tolist() == [[2, 2, 2], [0, 0, 0]]
    assert memory.answering(KEY[None] + 1).changes_nothing


@pytest.mark.parametrize("name", ["balancedit", "finetune", "grace"])
def test_an_edit_that_goes_on_from_a_finished_one_begins_where_it_ended(backbone, name: str) -> None:
    probes = make(backbone, method("balancedit", lr=1e-2)).queries[ROW["edit_id"]]
    request = request_of(run_trunk(backbone, ROW, probes), ROW)
    first = load_editor(name)(backbone, request, SETTINGS[name])
    again = load_editor(name)(backbone, replace(request, start=first), SETTINGS[name])
    assert first.steps > 0 and again.reached and again.loss <= first.loss
    assert again.steps == 0 or first.steps == SETTINGS[name]["steps"]
    kept = next(iter(again.added.values()), again.output)
    assert isinstance(kept, Difference | Layer | Value)
    assert again.output is not first.output or again.added is not first.added  # the first edit's tensors stay as they are


def test_fewer_probes_have_the_same_outcomes(backbone) -> None:
    cell = make(backbone, method("balancedit", lr=1e-2))
    probes = cell.queries[ROW["edit_id"]]
    states = run_trunk(backbone, ROW, probes)
    edit = cell.editor.edit(backbone, request_of(states, ROW), cell.grid[0])
    whole = trace_edit(backbone, ROW, probes, states, edit)
    chosen, part = play.few(probes, states, 1)
    assert [p.kind for p in chosen] == list(dict.fromkeys(p.kind for p in probes if not p.is_sample))
    rows = trace_edit(backbone, ROW, chosen, part, edit)
    for probe, row in zip(chosen, rows, strict=True):
        same = whole[probes.index(probe)]
        assert (row["target_on"], row["same_on"]) == (same["target_on"], same["same_on"])
        assert row["euclidean_prompt"] == pytest.approx(same["euclidean_prompt"], abs=1e-6)
    assert select(states, [0]).hidden.shape[0] == 1


def test_the_second_edit_overwrites_weights_and_not_a_codebook(backbone, records) -> None:  # noqa: F811
    """Two edits of one question to other answers: fine-tuning keeps the last, a codebook that keeps them apart as well, and
    at its own key each edit of two pictures holds.
    """
    other = ROW | {"edit_id": "colour-noise", "image_id": "noise", "target": "it", "generality_image_ids": ["red", "noise"]}
    for name, hyper in (("ft", {"part": "layer", "lr": 1e-2, "loss": 0.05}), ("balancedit", {"lr": 1e-2})):
        cell = make(backbone, method(name, **hyper))
        queries = {row["edit_id"]: probes_of(row, SAMPLES) for row in (ROW, other)}
        cell = replace(cell, rows=[ROW, other], queries=queries)
        radii = {row["edit_id"]: 1e-3 for row in (ROW, other)}
        memory = play.memory_of(cell, False)
        made = [count for count, _ in play.play(cell, cell.grid[0], [ROW, other], radii, memory, (1, 2))]
        traced = play.tested(cell, [ROW, other], memory, 1)
        held = traced[traced["kind"] == "edit"].set_index("edit_id")["target_on"]
        assert made == [1, 2] and held["colour-noise"]
        assert memory.entries == (1 if name == "ft" else 2)
        assert held["colour-red"] == (name == "balancedit")


def test_orders_are_fixed_and_differ() -> None:
    rows = [{"edit_id": str(i)} for i in range(20)]
    found = play.orders(rows, 3, 0)
    assert found[0] == rows and found == play.orders(rows, 3, 0)
    assert all(sorted(r["edit_id"] for r in order) == sorted(r["edit_id"] for r in rows) for order in found)
    assert found[1] != found[2] != rows


def test_points_are_those_that_there_are_edits_for() -> None:
    settings = replace(sequence.load().sequence, at=(1, 10, 100))
    assert sequence.points(settings, 40) == [1, 10, 40] and sequence.points(settings, 10) == [1, 10]


def test_a_method_without_sequences_is_named(backbone) -> None:
    cell: Cell = make(backbone, replace(method("ft", part="connector"), name="ft_v"))
    with pytest.raises(UserError, match="methods.ft_v: no sequence; allowed: methods behind a codebook"):
        play.memory_of(cell, False)


def test_scores_of_all_that_was_made(backbone, records) -> None:  # noqa: F811
    cell = make(backbone, method("balancedit", lr=1e-2))
    memory = play.memory_of(cell, False)
    for _ in play.play(cell, cell.grid[0], [ROW], {ROW["edit_id"]: 1e-3}, memory, (1,)):
        found = pd.DataFrame(sequence.scored(cell, [ROW], memory, 2)).set_index(["protocol", "metric"])["value"]
    assert found["strict", "reliability"] == 1
    assert {metric for _, metric in found.index} == {*sequence.PARTS, "hm", "held_out_locality"}
