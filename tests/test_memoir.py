"""MEMOIR by hand: masks by TopHash, what the memory reads through them, and which edit's mask a query meets in a sequence."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.backbone.vlm import Query
from stages.editing.editors import memoir
from stages.editing.fitting import fitted
from stages.editing.size import size_of
from stages.editing.trunk import request_of
from tests.editors import SETTINGS, settings_of
from tests.rows import ROW

pytestmark = pytest.mark.usefixtures("letters")


@pytest.fixture()
def learnt(backbone, examples, tmp_path) -> dict:
    """The average prompt and the permutation."""
    return fitted(memoir, backbone, examples, SETTINGS["memoir"], "test", tmp_path)


def test_a_mask_by_hand() -> None:
    """−5 and 3 are largest, in places 1 and 0; the permutation sends these to 0 and 2."""
    found = memoir.top_hash(torch.tensor([[3.0, -5.0, 1.0, 0.0]]), torch.tensor([2, 0, 3, 1]), 2)
    assert found.tolist() == [[True, False, True, False]]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, 1000), st.floats(0.01, 100))
def test_a_mask_has_its_size_and_knows_no_scale(size: int, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    features, permutation = torch.randn(3, 12, generator=generator), torch.randperm(12, generator=generator)
    masks = memoir.top_hash(features, permutation, size)
    assert masks.sum(1).tolist() == [size] * 3
    assert torch.equal(memoir.top_hash(-scale * features, permutation, size), masks)
    unmoved = memoir.top_hash(features, torch.arange(12), size)
    assert torch.equal(masks[:, permutation], unmoved)


def test_the_memory_reads_through_a_mask_by_hand() -> None:
    """Of x = [1 10] only the second counts, or for a second row only the first; OPT flattens batch and positions."""
    delta, inputs = torch.tensor([[2.0, 3.0]]), torch.tensor([[[1.0, 10.0]], [[1.0, 10.0]]])
    assert memoir.Sparse(delta, torch.tensor([False, True]))(inputs).flatten().tolist() == [30.0, 30.0]
    each = memoir.Sparse(delta.expand(2, 1, 2), torch.tensor([[False, True], [True, False]]))
    assert each(inputs).flatten().tolist() == each(inputs.flatten(0, 1)).flatten().tolist() == [30.0, 2.0]


def test_shares_by_hand() -> None:
    """Masks of two: one column in common is a half, both are one."""
    kept = torch.tensor([[True, True, False, False], [False, True, True, False]])
    router = memoir.Router(None, torch.zeros(4), torch.arange(4), kept)
    assert router.shares(torch.tensor([[False, True, True, False]])).tolist() == [[0.5, 1.0]]


def test_an_edit_changes_the_columns_of_its_mask_and_scores_shares_of_it(backbone, states, learnt) -> None:
    edit = memoir.edit(backbone, request_of(states, ROW), settings_of("memoir", share=0.25, steps=10), learnt)
    ((value, part),) = edit.added.items()
    assert value is backbone.decoder.layers[backbone.layer].mlp.down_proj and part.kept.sum() == 12
    assert not part.delta[:, ~part.kept].any() and part.delta[:, part.kept].any()
    told = edit.scores([], states.hidden, states.mask, states.positions)
    masks = edit.scores.masks(states.hidden, states.mask, states.positions)
    assert told[0] == 1 and told.tolist() == pytest.approx(((masks & part.kept).sum(1) / 12).tolist())
    assert edit.recall(Query("Who is this?", "noise")).added[value].kept is not None
    assert size_of(edit) == part.delta.numel() * 4 + part.kept.numel()


def test_a_step_goes_no_further_than_the_rate(backbone, states, learnt) -> None:
    edit = memoir.edit(backbone, request_of(states, ROW), settings_of("memoir", lr=0.25, steps=1), learnt)
    assert next(iter(edit.added.values())).delta.norm() <= 0.25 * memoir.CLIP + 1e-6


def test_the_permutation_is_the_seeds(backbone, examples, learnt, tmp_path) -> None:
    again = fitted(memoir, backbone, examples, SETTINGS["memoir"] | {"seed": 1}, "test", tmp_path)["hash"]
    permutation = learnt["hash"]["permutation"]
    assert sorted(permutation.tolist()) == list(range(48)) and not torch.equal(permutation, again["permutation"])
    assert torch.equal(learnt["hash"]["average"], again["average"])


def test_edits_of_a_sequence_leave_each_others_columns_and_are_recalled_by_their_masks(
    backbone, examples, learnt, monkeypatch
) -> None:
    settings, last, left = settings_of("memoir", share=0.25, steps=10), None, []
    for example in examples:
        last = memoir.edit(backbone, replace(request_of(example.states, example.row), start=last), settings, learnt)
        left.append(next(iter(last.added.values())))
    first, second = left
    assert torch.equal(first.delta[:, ~second.kept], second.delta[:, ~second.kept])
    assert torch.equal(last.scores.kept, torch.stack([first.kept, second.kept]))
    asked = [Query(e.row["question"], e.row["image_id"]) for e in examples]
    for query, one in zip(asked, left, strict=True):
        (met,) = last.recall(query).added.values()
        assert torch.equal(met.kept, one.kept) and met.delta is second.delta
    assert last.recall(asked[0]) is last.recall(asked[0])
    monkeypatch.setattr(backbone, "prefill", lambda *_: pytest.fail("read again"))
    third = memoir.edit(backbone, replace(request_of(examples[0].states, examples[0].row), start=last), settings, learnt)
    (met,) = third.recall(asked[0]).added.values()
    assert torch.equal(third.scores.kept[2], first.kept) and met.delta is next(iter(third.added.values())).delta
