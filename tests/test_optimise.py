"""Edits side by side: each is the one that would be made alone, whatever stands beside it."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.editing import trace
from stages.editing.editors import module_of
from stages.editing.edits import Difference, Edit, Request, together
from stages.editing.fitting import fitted
from stages.editing.optimise import Batch, judge, leads_by, optimise
from stages.editing.probes import probes_of
from stages.editing.trunk import request_of, run_trunk
from tests.editors import settings_of
from tests.rows import ROW, SAMPLES

pytestmark = pytest.mark.usefixtures("letters")
ROWS = [
    ROW,
    ROW | {"question": "Which long name has it?", "target": "a big cow"},
    ROW | {"question": "Why?", "image_id": "noise", "target": "e"},
    ROW | {"question": "And without a picture?", "image_id": None, "target": "none"},
]
NAMES = ["balancedit", "grace", "finetune", "finetune-last", "lora", "wise", "mend", "ultraedit", "memoir", "alphaedit"]
some = st.lists(st.integers(0, len(ROWS) - 1), min_size=1, max_size=5)


@pytest.fixture()
def readings(backbone) -> list[trace.Trial]:
    """The rows with their probes and what the trunk says of them."""
    listed = [(row, probes_of(row | {"rephrasings": ["Say it?"], "hops": []}, SAMPLES)) for row in ROWS]
    return [trace.Trial(row, probes, run_trunk(backbone, row, probes), Edit()) for row, probes in listed]


def requests_of(readings: list[trace.Trial]) -> list[Request]:
    return [request_of(one.states, one.row) for one in readings]


@pytest.mark.parametrize("name", NAMES)
def test_an_edit_made_beside_others_is_the_one_made_alone(name: str, backbone, examples, readings, tmp_path) -> None:
    """The same steps, loss and outcomes, over random batches of prompts and targets of several lengths."""
    own = settings_of(name)
    own = replace(own, steps=12) if hasattr(own, "margin") or name in ("wise", "memoir", "alphaedit") else own
    editor = module_of(name.split("-")[0])
    more = {"fitted": fitted(editor, backbone, examples, vars(own), "test", tmp_path)} if hasattr(editor, "fit") else {}
    requests, each = requests_of(readings), [replace(own, seed=number) for number in range(len(ROWS))]
    alone = [editor.edit(backbone, *pair, **more) for pair in zip(requests, each, strict=True)]
    told = [rows_of(backbone, one, edit) for one, edit in zip(readings, alone, strict=True)]

    @settings(max_examples=4, deadline=None)
    @given(some)
    def check(chosen: list[int]) -> None:
        made = editor.edit_batch(backbone, [requests[i] for i in chosen], [each[i] for i in chosen], **more)
        traced = trace.trace_edits(backbone, [replace(readings[i], edit=edit) for i, edit in zip(chosen, made, strict=True)])
        for i, edit, rows in zip(chosen, made, traced, strict=True):
            assert (edit.steps, edit.reached, edit.diverged) == (alone[i].steps, alone[i].reached, alone[i].diverged)
            assert edit.loss == pytest.approx(alone[i].loss, rel=2e-3, abs=1e-4)
            assert [{k: v for k, v in row.items() if isinstance(v, bool | str)} for row in rows] == told[i]

    check()


def rows_of(backbone, one: trace.Trial, edit: Edit) -> list[dict[str, object]]:
    """The outcomes of an edit's probes that are no numbers."""
    rows = trace.trace_edit(backbone, one.row, one.probes, one.states, edit)
    return [{key: value for key, value in row.items() if isinstance(value, bool | str)} for row in rows]


def test_a_row_that_diverges_does_not_touch_its_neighbours(backbone, readings) -> None:
    editor, own = module_of("balancedit"), settings_of("balancedit")
    first, broken, third = requests_of(readings)[:3]
    broken = replace(broken, hidden=broken.hidden * float("nan"))
    made = editor.edit_batch(backbone, [first, broken, third], [own] * 3)
    assert made[1].diverged and made[1].changes_nothing
    for edit, request in ((made[0], first), (made[2], third)):
        alone = editor.edit(backbone, request, own)
        assert (edit.steps, edit.reached) == (alone.steps, True)
        torch.testing.assert_close(edit.output.weight, alone.output.weight, atol=1e-4, rtol=1e-3)


def test_rows_leave_when_they_are_done(backbone, readings) -> None:
    """Each time that some rows reach their targets, the batch is built anew of the others."""
    up, requests, widths = backbone.decoder.layers[-1].mlp.up_proj, requests_of(readings), []

    def build(deltas: list[torch.Tensor]) -> Edit:
        widths.append(len(deltas[0]) if deltas[0].dim() == 3 else 0)
        return Edit(added={up: Difference(deltas[0])})

    begun = [[torch.zeros_like(up.weight)]] * len(requests)
    made = optimise(backbone, requests, build, begun, lr=1e-2, steps=60, stop=leads_by(0.1))
    batches = [width for width in widths if width]
    steps = sorted(edit.steps for edit in made)
    assert batches == [sum(one >= at for one in steps) for at in sorted(set(steps))] and len(batches) > 1


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some)
def test_a_padded_batch_has_the_losses_of_its_rows(backbone, readings, chosen: list[int]) -> None:
    requests = [requests_of(readings)[i] for i in chosen]
    losses, leads = judge(backbone, Batch.of(requests, backbone.device), Edit())
    for request, loss, lead in zip(requests, losses, leads, strict=True):
        alone = judge(backbone, Batch.of([request], backbone.device), Edit())
        torch.testing.assert_close(torch.stack([loss, lead]), torch.cat(alone), atol=1e-4, rtol=1e-4)


def test_edits_of_a_batch_act_on_their_own_rows() -> None:
    """Two rows of the first edit, one of the second, none of the third kind of module."""
    part, inputs = torch.nn.Linear(2, 2), torch.ones(3, 1, 2)
    double = Edit(added={part: lambda x: 2 * x})
    mixed = together([double, Edit()], [2, 1])
    assert mixed.added[part](inputs)[:, 0, 0].tolist() == [2.0, 2.0, 0.0]
    assert mixed.added[part](inputs.flatten(0, 1))[:, 0].tolist() == [2.0, 2.0, 0.0]  # OPT flattens batch and positions
    assert together([double, double], [1, 2]) is double
    replaced = together([Edit(output=lambda x, old, prompt: x * 0), Edit()], [1, 2])
    prompt = torch.ones(3, 1, dtype=torch.bool)
    assert replaced.output(inputs, inputs * 5, prompt)[:, 0, 0].tolist() == [0.0, 5.0, 5.0]
