"""UltraEdit by hand: rows of an edit, their lifelong normalisation, the shift in closed form, and how a sequence carries both
on."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.editing.editors import ultraedit
from stages.editing.edits import Edit, differences
from stages.editing.fitting import fitted
from stages.editing.optimise import Batch, judge
from stages.editing.trunk import request_of
from tests.editors import SETTINGS, settings_of
from tests.rows import ROW

pytestmark = pytest.mark.usefixtures("letters")
LAST = {"layers": 1}


@pytest.fixture()
def learnt(backbone, examples, tmp_path) -> dict:
    """Statistics of the train edits, of the last layer's map alone."""
    return fitted(ultraedit, backbone, examples, SETTINGS["ultraedit"] | LAST, "test", tmp_path)


def test_a_shift_by_hand() -> None:
    """h = [1 2] and v = 3 as they are: the move is −0.1·5·3 = −1.5, and of it 1.5·h/(5 + 1) goes into the weight."""
    plain = ultraedit.Normaliser(2.0, torch.zeros(3), torch.ones(3))
    found = ultraedit.shift(torch.tensor([[1.0, 2.0, 3.0]]), plain, 2, 0.1)
    torch.testing.assert_close(found, torch.tensor([[-0.25, -0.5]]), atol=1e-5, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 6))
def test_a_shift_is_the_ridge_regression_of_the_moves(seed: int, count: int) -> None:
    """As the paper writes it, over inputs: (HᵀH + I)⁻¹·Hᵀ·V."""
    rows = torch.randn(count, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    normaliser = ultraedit.Normaliser.of(torch.randn(9, 7, dtype=torch.float64))
    h, (hat, slopes) = rows[:, :4], normaliser(rows).split([4, 3], -1)
    moves = -0.5 * hat.square().sum(-1, keepdim=True) * slopes
    expected = torch.linalg.solve(h.T @ h + torch.eye(4), h.T @ moves).T
    torch.testing.assert_close(ultraedit.shift(rows, normaliser, 4, 0.5), expected)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(0, 1000))
def test_statistics_are_those_of_all_rows_in_whatever_turns_they_came(sizes: list[int], seed: int) -> None:
    rows = torch.randn(sum(sizes) + 1, 3, generator=torch.Generator().manual_seed(seed)) * 4 + 10
    first, *turns = rows.split([1, *sizes])
    known = ultraedit.Normaliser.of(first)
    for turn in turns:
        known = known.after(turn)
    expected = (rows - rows.mean(0)) / rows.std(0)
    torch.testing.assert_close(known(rows), expected, atol=1e-3, rtol=1e-3)
    assert known.seen == len(rows)


def test_the_edited_maps_are_the_last_output_maps(backbone) -> None:
    layers = backbone.decoder.layers
    assert ultraedit.edited_maps(backbone, 2) == [layers[i].mlp.down_proj for i in (3, 4)]
    assert len(ultraedit.edited_maps(backbone, 5)) == 5 - backbone.layer  # none below the layer


def test_rows_are_of_the_positions_that_predict_the_target(backbone, states) -> None:
    """In the last layer no other position has a gradient, so that they make up the weight's."""
    request, maps = request_of(states, ROW), ultraedit.edited_maps(backbone, 1)
    (((rows,),), (loss,)) = ultraedit.rows_of(backbone, [request], maps)
    assert len(rows) == request.target.shape[1]
    zero = torch.zeros_like(maps[0].weight).requires_grad_()
    losses, _ = judge(backbone, Batch.of([request], backbone.device), Edit(added=differences(maps, [zero])))
    (expected,) = torch.autograd.grad(losses.sum(), [zero])
    h, v = rows.split([maps[0].in_features, maps[0].out_features], -1)
    torch.testing.assert_close(v.T @ h, expected, atol=1e-5, rtol=1e-4)
    assert loss == pytest.approx(losses.item(), rel=1e-5)


def test_train_edits_begin_the_statistics(backbone, examples, learnt) -> None:
    tokens = sum(request_of(e.states, e.row).target.shape[1] for e in examples)
    (one,) = learnt["statistics"].values()
    assert one["seen"] == tokens and one["mean"].shape == (48 + 32,)


def test_a_sequence_carries_weights_and_statistics_on(backbone, states, learnt) -> None:
    """The second edit's rows are those of the model that the first left, and are counted with all before them."""
    request, own = request_of(states, ROW), settings_of("ultraedit", layers=1, lr=1e-2)
    first = ultraedit.edit(backbone, request, own, learnt)
    second = ultraedit.edit(backbone, replace(request, start=first), own, learnt)
    ((value, one),), (two,) = first.added.items(), second.added.values()
    count = request.target.shape[1]
    assert two.seen == one.seen + count == next(iter(learnt["statistics"].values()))["seen"] + 2 * count
    ((rows,),), _ = ultraedit.rows_of(backbone, [replace(request, start=first)], [value])
    known = ultraedit.Normaliser(one.seen, one.mean, one.spread).after(rows)
    expected = one.delta + ultraedit.shift(rows, known, value.in_features, 1e-2)
    torch.testing.assert_close(two.delta, expected, atol=1e-6, rtol=1e-4)
    assert second.loss < first.loss


def test_a_gradient_that_is_no_number_is_divergence(backbone, states, learnt) -> None:
    request = request_of(states, ROW)
    broken = replace(request, hidden=request.hidden * float("nan"))
    assert ultraedit.edit(backbone, broken, settings_of("ultraedit", layers=1), learnt).diverged
