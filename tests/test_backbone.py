"""The adapter: spans, the frozen trunk against the full forward, greedy decoding against `generate`, packing of training rows."""

from functools import partial

import numpy as np
import pytest
import torch

from stages.backbone.families.llava_smollm2 import ridge
from stages.backbone.parts import IMAGE_TOKEN, TEMPLATE
from stages.backbone.train import Row, pack
from stages.backbone.vlm import Backbone, Query, following, mean_over
from stages.params import UserError

QUERIES = [Query("What is it?", "red"), Query("Which colour does the thing have?", "noise"), Query("Who?", None)]


def full_logits(backbone: Backbone, query: Query, answer: list[int], picture: torch.Tensor | None) -> torch.Tensor:
    """[A + 1, V]: Hugging Face's own forward over one unpadded prompt and answer."""
    shown = IMAGE_TOKEN * (4 if query.image_id else 0)
    ids = backbone.tokenizer(TEMPLATE.format(image=shown, question=query.question)).input_ids + answer
    with torch.no_grad():
        out = backbone.model(input_ids=torch.tensor([ids]), pixel_values=picture)
    return out.logits[0, -len(answer) - 1 :]


@pytest.fixture()
def pictures(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> dict:
    """Pixel values of the pictures that the fixture showed to the backbone."""
    from PIL import Image

    from stages.backbone.tower import preprocess

    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return {
        "red": preprocess([Image.new("RGB", (64, 64), (200, 30, 30))], 64),
        "noise": preprocess([Image.fromarray(noise)], 64),
        None: None,
    }


def test_spans_cover_what_they_name(backbone: Backbone) -> None:
    prompts = backbone.prompts(QUERIES)
    counts = {name: span.sum(1).tolist() for name, span in prompts.spans.items()}
    assert counts["image"] == [4, 4, 0]
    assert counts["question"] == [len(q.question) for q in QUERIES]
    assert counts["last"] == [1, 1, 1]
    assert prompts.spans["last"][:, -1].all()
    assert torch.equal(prompts.spans["prompt"], prompts.mask)


def test_padded_trunk_gives_the_full_forwards_logits(backbone: Backbone, pictures: dict) -> None:
    answers = [backbone.answer_ids(a)[:-1] for a in ("red", "blu", "you")]
    trunk = backbone.prefill(backbone.prompts(QUERIES))
    _, _, final = backbone.extend(trunk, torch.tensor(answers))
    for i, query in enumerate(QUERIES):
        expected = full_logits(backbone, query, answers[i], pictures[query.image_id])
        torch.testing.assert_close(backbone.head(final[i]), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", [0, 2, 4])
def test_tail_from_the_cached_trunk_gives_the_full_forwards_logits(backbone: Backbone, pictures: dict, layer: int) -> None:
    backbone.layer, backbone.edited = layer, backbone.decoder.layers[layer].mlp.up_proj
    answers = torch.tensor([backbone.answer_ids(a)[:-1] for a in ("red", "blu", "you")])
    trunk = backbone.prefill(backbone.prompts(QUERIES))
    hidden, _, _ = backbone.extend(trunk, answers)
    mask = torch.cat([trunk.prompts.mask, torch.ones_like(answers, dtype=torch.bool)], 1)
    with torch.no_grad():
        whole = torch.cat([trunk.hidden, hidden], 1)
        logits = backbone.head(backbone.tail(whole, mask, trunk.prompts.positions, answers.shape[1] + 1))
    for i, query in enumerate(QUERIES):
        expected = full_logits(backbone, query, answers[i].tolist(), pictures[query.image_id])
        torch.testing.assert_close(logits[i], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_branches_are_what_each_would_be_alone(backbone: Backbone) -> None:
    """Several answers in one pass, through the trunk and through the tail, with padded rows among them."""
    trunk = backbone.prefill(backbone.prompts(QUERIES))
    answers = [torch.tensor([backbone.answer_ids(a)[:-1]] * 3) for a in ("red", "a", "blue!")]
    widths = [ids.shape[1] for ids in answers]
    branches = torch.cat([torch.full_like(ids, number) for number, ids in enumerate(answers, 1)], 1)
    hidden, inputs, final = backbone.extend(trunk, torch.cat(answers, 1), branches)
    mask = torch.cat([trunk.prompts.mask, torch.ones(3, sum(widths), dtype=torch.bool)], 1)
    tail = backbone.tail(torch.cat([trunk.hidden, hidden], 1), mask, trunk.prompts.positions, 1 + sum(widths), branches)
    close = partial(torch.testing.assert_close, atol=1e-4, rtol=1e-4)  # sums of float32 differ with the kind of core
    close(tail, final)
    parts = zip(answers, *(states.split(widths, 1) for states in (hidden, inputs, final[:, 1:])), strict=True)
    for ids, entering, fed, after in parts:
        alone = backbone.extend(trunk, ids)
        for found, expected in zip((entering, fed, torch.cat([final[:, :1], after], 1)), alone, strict=True):
            close(found, expected)


def test_extend_leaves_the_trunk_reusable(backbone: Backbone) -> None:
    trunk = backbone.prefill(backbone.prompts(QUERIES))
    ids = torch.tensor([backbone.answer_ids("abc")[:-1]] * 3)
    first = backbone.extend(trunk, ids)[2]
    backbone.greedy(trunk, 5)
    torch.testing.assert_close(backbone.extend(trunk, ids)[2], first, atol=0, rtol=0)


def test_greedy_agrees_with_generate(backbone: Backbone, pictures: dict) -> None:
    greedy = backbone.greedy(backbone.prefill(backbone.prompts(QUERIES)), 8)
    for query, answer in zip(QUERIES, greedy, strict=True):
        shown = IMAGE_TOKEN * (4 if query.image_id else 0)
        ids = backbone.tokenizer(TEMPLATE.format(image=shown, question=query.question), return_tensors="pt").input_ids
        shown = {"pixel_values": pictures[query.image_id]} if query.image_id else {}
        generated = backbone.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, **shown
        )
        assert answer == generated[0, ids.shape[1] :].tolist()


def test_a_layer_that_does_not_exist_is_named(tokenizer, backbone: Backbone) -> None:
    with pytest.raises(UserError, match=r"layer: 5 .*0\.\.4"):
        Backbone(backbone.model, tokenizer, 5, "tiny", backbone.adapter)


def test_mean_over_and_positions_by_hand() -> None:
    states = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]]])
    assert mean_over(states, torch.tensor([[True, True, False]])).tolist() == [[2.0, 4.0]]
    assert mean_over(states, torch.zeros(1, 3, dtype=torch.bool)).isnan().all()
    assert following(torch.tensor([[0, 0, 1], [0, 1, 2]]), 2).tolist() == [[2, 3], [3, 4]]
    assert following(torch.tensor([[[0, 1]], [[0, 3]]]), 1).tolist() == [[[2]], [[4]]]


def test_packed_branches_do_not_see_each_other(backbone: Backbone, tokenizer) -> None:
    """Each branch of a packed row has the logits it would have alone."""
    features = torch.randn(4, 1280, generator=torch.Generator().manual_seed(0))
    turns = [("What?", "dog"), ("Where does it live?", "farm")]
    together = pack([Row(features, turns)], tokenizer, 4)
    hidden = []
    for batch in [together, *(pack([Row(features, [turn])], tokenizer, 4) for turn in turns)]:
        embeds = backbone.model.get_input_embeddings()(batch.ids)
        shown = backbone.model.model.multi_modal_projector(batch.images)
        embeds = embeds.masked_scatter((batch.ids == backbone.adapter.image_id)[..., None], shown)
        with torch.no_grad():
            out = backbone.decoder(inputs_embeds=embeds, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False)
        hidden.append(out.last_hidden_state[batch.labels != -100])
        answer_ids = batch.labels[batch.labels != -100]
        assert tokenizer.decode(answer_ids, skip_special_tokens=True) in ("dogfarm", "dog", "farm")
    torch.testing.assert_close(hidden[0], torch.cat(hidden[1:]), atol=1e-5, rtol=1e-5)


def test_ridge_start_maps_features_onto_names(backbone: Backbone) -> None:
    """With as many features as pictures, the projector starts by naming every training picture."""
    generator = torch.Generator().manual_seed(0)
    names = torch.randn(20, 32, generator=generator)
    pooled = torch.randn(20, 1280, generator=generator)
    projector = backbone.model.model.multi_modal_projector
    ridge(projector, pooled, names, penalty=1.0)
    with torch.no_grad():
        shown = projector(pooled)
    assert torch.cdist(shown, names).argmin(1).tolist() == list(range(20))
