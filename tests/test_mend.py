"""MEND by hand: the decomposed gradient, the identity that training starts from, normalisation, and what training minimises."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stages.editing import trace
from stages.editing.editors import mend
from stages.editing.edits import Edit, differences
from stages.editing.fitting import Example, training_probes
from stages.editing.optimise import Batch, judge
from stages.editing.probes import probes_of
from stages.editing.trunk import request_of, run_trunk
from tests.rows import ROW, SAMPLES

SETTINGS = mend.Settings(
    layers=2, rank=16, edit_lr=1e-3, lr=1e-3, lr_lr=1e-3, c_edit=1.0, c_loc=1.0, steps=40, seed=0
)  # fmt: skip
TEXT = {"kind": "text_only", "image_id": None, "question": "Who sang?", "answer": "he"}


@pytest.fixture()
def request_(backbone) -> object:
    return request_of(run_trunk(backbone, ROW, probes_of(ROW, SAMPLES)), ROW)


@pytest.fixture()
def example(backbone) -> Example:
    row = ROW | {"rephrasings_train": ["Say it."], "locality": [*ROW["locality"], TEXT]}
    return Example(row, training_probes(row), partial(run_trunk, backbone, row))


def gradients(backbone, request, maps, added=None) -> list[torch.Tensor]:
    """Autograd's gradient of the edit's loss in each map's weight, from which it differs as `added` has it."""
    deltas = [(added[m].delta.clone() if added else torch.zeros_like(m.weight)).requires_grad_() for m in maps]
    loss, _ = judge(backbone, Batch.of([request], backbone.device), Edit(added=differences(maps, deltas)))
    return list(torch.autograd.grad(loss.sum(), deltas))


def test_the_edited_maps_are_the_last_mlps(backbone) -> None:
    layers = backbone.decoder.layers
    expected = [getattr(layers[i].mlp, name) for i in (3, 4) for name in ("up_proj", "down_proj")]
    assert sorted(map(id, mend.edited_maps(backbone, 2))) == sorted(map(id, expected))
    assert len(mend.edited_maps(backbone, 5)) == 2 * (5 - backbone.layer)  # none below the layer


def test_inputs_and_output_gradients_compose_the_weights_gradient(backbone, request_) -> None:
    maps = mend.edited_maps(backbone, 2)
    (factors,), (loss,) = mend.factors_of(backbone, [request_], maps)
    for one, rows, expected in zip(maps, factors, gradients(backbone, request_, maps), strict=True):
        u, delta = rows.split([one.in_features, one.out_features], -1)
        torch.testing.assert_close(delta.T @ u, expected, atol=1e-5, rtol=1e-4)
    assert loss == pytest.approx(judge(backbone, Batch.of([request_], backbone.device), Edit())[0].item())


def test_before_training_a_step_is_a_scaled_gradient_step(backbone, request_) -> None:
    maps = mend.edited_maps(backbone, 2)
    (factors,), _ = mend.factors_of(backbone, [request_], maps)
    added = mend.Mend(maps, SETTINGS)(maps, factors)
    for one, gradient in zip(maps, gradients(backbone, request_, maps), strict=True):
        torch.testing.assert_close(added[one].delta, -1e-3 * gradient, atol=1e-7, rtol=1e-4)


def test_an_edit_goes_on_from_the_weights_of_the_one_before(backbone, request_) -> None:
    maps = mend.edited_maps(backbone, 2)
    fitted = mend.Mend(maps, SETTINGS).state_dict()
    first = mend.edit(backbone, request_, SETTINGS, fitted)
    second = mend.edit(backbone, replace(request_, start=first), SETTINGS, fitted)
    for one, gradient in zip(maps, gradients(backbone, request_, maps, first.added), strict=True):
        assert gradient.abs().max() > 0
        torch.testing.assert_close(second.added[one].delta, first.added[one].delta - 1e-3 * gradient, atol=1e-7, rtol=1e-4)


def test_normalisation_is_over_all_rows_that_were_watched() -> None:
    transform = mend.Transform(2, 1, 1, 2, torch.Generator().manual_seed(0))
    rows = torch.tensor([[1.0, 10.0, 0.0], [3.0, 10.0, 2.0], [5.0, 40.0, 7.0], [7.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    transform.watch(rows[:2])
    transform.watch(rows[2:])
    u, delta = transform(rows, 0)
    expected = (rows - rows.mean(0)) / rows.std(0)
    torch.testing.assert_close(torch.cat([u, delta], -1), expected, atol=1e-5, rtol=1e-5)


def test_a_transform_by_hand() -> None:
    """Rank 1 over [u; δ] = [2; 1]: h = 2 + max(0, (1 · (2 + 1) + 1) · 2 − 3) = 7 in the first place; the second layer is zero."""
    transform = mend.Transform(1, 1, 2, 1, torch.Generator().manual_seed(0))
    with torch.no_grad():
        transform.v[0], transform.u[0] = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0], [0.0]])
        transform.bias[0] = torch.tensor([1.0, 0.0])
        transform.scale[0, 1], transform.offset[0, 1] = torch.tensor([2.0, 1.0]), torch.tensor([-3.0, 0.0])
    u, delta = transform(torch.tensor([[2.0, 1.0]]), 1)
    assert (u.item(), delta.item()) == (7.0, 1.0)


def test_the_loss_outside_is_a_divergence_that_no_edit_has(backbone, example) -> None:
    """Without an edit the KL is zero, so the loss is that of the two queries in scope."""
    none = mend.outer_loss(backbone, example, Edit(), replace(SETTINGS, c_edit=0.0), np.random.default_rng(0))
    assert none.item() == pytest.approx(0, abs=1e-5)
    reach = mend.outer_loss(backbone, example, Edit(), SETTINGS, np.random.default_rng(0)).item()
    states, rng = example.states, np.random.default_rng(0)
    rows = [int(rng.choice(example.of(kind))) for kind in ("text_generality", "image_generality")]
    with torch.no_grad():
        logits = trace.tail_logits(backbone, states, Edit(), states.target, rows)
    length = int(states.target.real[0].sum())
    each = [F.cross_entropy(one[:length], states.target.ids[0, :length]).item() for one in logits]
    assert reach == pytest.approx(sum(each), rel=1e-4)


def test_training_lowers_the_loss_after_the_edit(backbone, request_, example, tmp_path) -> None:
    before = mend.fit(backbone, [example], replace(SETTINGS, steps=1), tmp_path / "one.pt")
    after = mend.fit(backbone, [example], SETTINGS, tmp_path / "many.pt")
    first, trained = (mend.edit(backbone, request_, SETTINGS, known) for known in (before, after))
    assert trained.loss < first.loss and trained.steps == 1


def test_what_is_held_out_is_not_learnt_from(backbone, example, tmp_path, monkeypatch) -> None:
    """Of five train edits the last chooses: the weights stay what four make of them, but where they were best by its loss."""
    asked = []

    def learn(_module, _groups, loss_of, _steps, _checkpoint, held_out) -> None:
        loss_of(0)
        asked.append(held_out())

    monkeypatch.setattr(mend, "learn", learn)
    row = example.row | {"target": "another answer"}
    other = Example(row, training_probes(row), partial(run_trunk, backbone, row))
    found = [mend.fit(backbone, [example] * 4 + [last], SETTINGS, tmp_path / "fit.pt") for last in (example, other)]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0]) and asked[0] != asked[1]
    monkeypatch.setattr(mend, "learn", lambda *given: asked.append(given[-1]))
    mend.fit(backbone, [example] * 4, SETTINGS, tmp_path / "fit.pt")
    assert asked[-1] is None  # too few to hold one out
