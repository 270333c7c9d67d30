"""WISE by hand: activations and margins, the side memory, its shards, and how they are merged."""

from dataclasses import replace

import pytest
import torch

from stages.backbone.vlm import Query
from stages.editing.editors import wise
from stages.editing.fitting import fitted
from stages.editing.trunk import request_of
from tests.editors import SETTINGS, made, settings_of
from tests.rows import ROW

pytestmark = pytest.mark.usefixtures("letters")


def test_activation_and_margins_by_hand() -> None:
    """Inputs [1 0] and [0 1], W′ − W = [[3 0] [4 0]]: norms 5 and 0, mean 2.5; the padded first position is not read."""
    inputs = torch.tensor([[[9.0, 9.0], [1.0, 0.0], [0.0, 1.0]]])
    mask = torch.tensor([[False, True, True]])
    assert wise.score(inputs, torch.tensor([[3.0, 0.0], [4.0, 0.0]]), mask).tolist() == [2.5]
    settings = settings_of("wise", alpha=5.0, beta=20.0, gamma=10.0)
    assert wise.margins(torch.tensor(25.0), torch.tensor(4.0), settings) == 0
    assert wise.margins(torch.tensor(12.0), torch.tensor(8.0), settings) == (8 - 5) + (20 - 12) + (10 - 4)


def test_a_side_memory_is_sparse_bounded_and_scores_shares_of_its_edits_activation(backbone, examples, states, tmp_path) -> None:
    edit = made("wise", backbone, examples, states, tmp_path)
    (value, add), *others = edit.added.items()
    delta = add.delta
    assert value is backbone.decoder.layers[backbone.layer].mlp.down_proj and not others
    assert 0.45 < (delta == 0).float().mean() < 0.55 and delta.abs().max() <= 1
    told = edit.scores([], states.hidden, states.mask, states.positions)
    own = wise.score(wise.activations(backbone, states.hidden, states.mask, states.positions), delta, states.mask)
    assert told[0] == pytest.approx(1) and told.tolist() == pytest.approx((own / own[0]).tolist(), rel=1e-5)


def test_an_edit_is_held_apart_from_one_irrelevant_query(backbone, examples, states, tmp_path, monkeypatch) -> None:
    """All its steps ask one train edit's query; another seed may ask another's."""
    learnt = fitted(wise, backbone, examples, SETTINGS["wise"], "test", tmp_path)
    request, asked, score = request_of(states, ROW), {}, wise.score
    monkeypatch.setattr(wise, "score", lambda inputs, *rest: seen.append(inputs) or score(inputs, *rest))
    for seed in range(6):
        seen = []
        wise.edit(backbone, request, settings_of("wise", seed=seed, steps=40), learnt)
        asked[seed] = {i for i, one in enumerate(learnt) if any(torch.equal(one["inputs"], inputs) for inputs in seen)}
    assert all(len(numbers) == 1 for numbers in asked.values()) and len(set.union(*asked.values())) > 1


def test_shards_are_merged_by_ties_by_hand() -> None:
    """Of four entries the two largest stay; where signs differ the larger sum wins; what one alone has is not halved."""
    one, other = torch.tensor([4.0, -3.0, 1.0, 0.0]), torch.tensor([2.0, 5.0, 0.0, 1.0])
    assert wise.ties([one, other], 0.5).tolist() == [3.0, 5.0, 0.0, 0.0]


def test_a_sequence_trains_one_shard_and_then_another(backbone, examples, states, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(wise, "SHARD", 2)
    settings = settings_of("wise", steps=40)
    learnt = fitted(wise, backbone, examples, vars(settings), "test", tmp_path)
    requests = [request_of(one, row) for one, row in [(states, ROW), *((e.states, e.row) for e in examples[:2])]]
    last, left = None, []
    for number, request in enumerate(requests):
        last = wise.edit(backbone, replace(request, start=last), replace(settings, seed=number), learnt)
        left.append(last.scores)
    first, second, third = left
    assert [len(side.shards) for side in left] == [1, 1, 2] and [side.edits for side in left] == [1, 2, 3]
    assert torch.equal(first.trained, second.trained) and not torch.equal(second.trained, third.trained)
    assert not second.shards[0][~second.trained].any() and torch.equal(third.shards[0], second.shards[0])
    assert third.least <= second.least <= first.least
    assert torch.equal(next(iter(last.added.values())).delta, wise.ties(third.shards, wise.DENSITY))


def test_activations_are_the_value_maps_inputs(backbone, states) -> None:
    found = wise.activations(backbone, states.hidden, states.mask, states.positions)
    mlp = backbone.decoder.layers[backbone.layer].mlp
    seen = {}
    hook = mlp.down_proj.register_forward_pre_hook(lambda _m, args: seen.update(inputs=args[0]))
    backbone.prefill(backbone.prompts([Query("What is it?", "red")]))
    hook.remove()
    real = states.mask[0]
    torch.testing.assert_close(found[0, real], seen["inputs"][0], atol=1e-4, rtol=1e-4)
