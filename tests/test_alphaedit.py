"""AlphaEdit by hand: the projected update, which keys it leaves, how moves are sought, and what a sequence carries on."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.backbone.vlm import Query
from stages.editing.editors import alphaedit
from stages.editing.edits import Edit
from stages.editing.fitting import fitted
from stages.editing.optimise import Batch, judge
from stages.editing.trunk import request_of
from tests.editors import SETTINGS, settings_of
from tests.rows import ROW

pytestmark = pytest.mark.usefixtures("letters")
NO_KEYS = torch.zeros(0, 2)


@pytest.fixture()
def learnt(backbone, examples, tmp_path) -> dict:
    """Eigenvalues and eigenvectors of the train edits' keys."""
    return fitted(alphaedit, backbone, examples, SETTINGS["alphaedit"], "test", tmp_path)


def test_an_update_by_hand() -> None:
    """Of the key [3 4] the null space has 4: the move 5 gives 5·4/(16 + 4) = 1 there, and nothing elsewhere."""
    found = alphaedit.update(NO_KEYS, torch.tensor([[3.0, 4.0]]), torch.tensor([[5.0]]), torch.tensor([[0.0], [1.0]]), 4.0)
    assert found.tolist() == [[0.0, 1.0]]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 3), st.integers(1, 3), st.integers(1, 6))
def test_an_update_is_the_papers_and_leaves_preserved_keys(seed: int, earlier: int, count: int, wide: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    null, kept = basis[:, :wide], basis[:, wide:]
    before, keys = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (earlier, count))
    moves = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    found, p = alphaedit.update(before, keys, moves, null, 0.5), null @ null.T
    whole = before.T @ before @ p + keys.T @ keys @ p + 0.5 * torch.eye(6)
    torch.testing.assert_close(found, moves.T @ keys @ p @ torch.linalg.inv(whole))
    torch.testing.assert_close(found @ kept, torch.zeros(2, 6 - wide, dtype=torch.float64))


def test_without_a_ridge_the_outputs_move_as_wanted_and_earlier_keys_stay() -> None:
    before, keys, moves = torch.randn(2, 8), torch.randn(2, 8), torch.randn(2, 3)
    found = alphaedit.update(before, keys, moves, torch.eye(8), 1e-6)
    torch.testing.assert_close(keys @ found.T, moves, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(before @ found.T, torch.zeros(2, 3), atol=1e-3, rtol=1e-3)


def test_moves_are_added_at_the_last_positions() -> None:
    """Two of three; OPT flattens batch and positions."""
    moved = alphaedit.Moved(torch.tensor([[[1.0], [2.0]]]), lambda inputs: inputs.sum(-1, keepdim=True))
    inputs = torch.ones(1, 3, 4)
    assert moved(inputs)[0, :, 0].tolist() == moved(inputs[0])[:, 0].tolist() == [4.0, 5.0, 6.0]


def test_preserved_keys_are_of_all_positions_pictures_and_own_answers_among_them(backbone, states) -> None:
    keys = alphaedit.preserved(backbone, states)
    assert len(keys) == states.mask.sum() + states.same.real[:, 1:].sum()
    mlp, seen = backbone.decoder.layers[backbone.layer].mlp, {}
    hook = mlp.down_proj.register_forward_pre_hook(lambda _m, args: seen.update(inputs=args[0]))
    prompts = backbone.prompts([Query(ROW["question"], ROW["image_id"])])
    backbone.prefill(prompts)
    hook.remove()
    pictured = seen["inputs"][0][prompts.spans["image"][0]]
    assert len(pictured) == 4 and (torch.cdist(pictured, keys).amin(1) < 1e-3).all()


def test_what_is_preserved_stays_but_for_its_share_below_the_threshold(backbone, examples, states, learnt) -> None:
    """Outputs at the train edits' keys move by a hundredth of what they would without the projection."""
    request, values = request_of(states, ROW), learnt["preserved"]["values"]
    keys = torch.cat([alphaedit.preserved(backbone, example.states) for example in examples])
    size = {}
    for null in (float(values[8]), float(values[-1]) * 2):
        edit = alphaedit.edit(backbone, request, settings_of("alphaedit", preserve=null, ridge=1e-6), learnt)
        delta = next(iter(edit.added.values())).delta
        size[null] = ((keys @ delta.T).square().mean() / delta.square().mean()).sqrt().item()
    narrow, wide = size.values()
    assert narrow < 0.5 * wide


def test_moves_are_sought_within_a_share_of_the_states_norm(backbone, states) -> None:
    request, own = request_of(states, ROW), settings_of("alphaedit", clamp=0.2, steps=30, lr=0.5)
    batch = Batch.of([request], backbone.device)
    moves, steps, first = alphaedit.sought(backbone, batch, own)
    norms = batch.hidden[0, -moves.shape[1] :].norm(dim=-1)
    assert (moves[0].norm(dim=-1) <= 0.2 * norms + 1e-5).all() and steps == [30]
    moved = Edit(added={alphaedit.value_map(backbone): alphaedit.Moved(moves, None)})
    assert judge(backbone, batch, moved)[0].item() < first[0]


def test_a_sequence_carries_weight_and_keys_on(backbone, examples, learnt) -> None:
    """What the first edit's keys give stays as the first edit left it."""
    own, last, left = settings_of("alphaedit", preserve=1e3, ridge=1e-6), None, []
    for example in examples:
        last = alphaedit.edit(backbone, replace(request_of(example.states, example.row), start=last), own, learnt)
        left.append(next(iter(last.added.values())))
    first, second = left
    assert torch.equal(second.keys[: len(first.keys)], first.keys) and len(second.keys) > len(first.keys)
    torch.testing.assert_close(first.keys @ second.delta.T, first.keys @ first.delta.T, atol=2e-2, rtol=1e-2)
    assert not torch.allclose(second.delta, first.delta, atol=1e-3)
