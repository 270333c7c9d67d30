"""Every architecture through its adapter: a tiny checkpoint with random weights against its own forward."""

from collections.abc import Sequence

import pytest
import torch
import transformers as hf

from stages.backbone.adapters import adapt
from stages.backbone.adapters.base import Adapter
from stages.backbone.tower import preprocess
from stages.backbone.vlm import Backbone, Query
from stages.editing import trace
from stages.editing.editors import load_editor
from stages.editing.probes import probes_of
from stages.editing.trunk import request_of, run_trunk
from stages.params import UserError
from tests.architectures import ARCHITECTURES, LLAMA, PICTURES, open_checkpoint, save_checkpoint
from tests.editors import ONE_MAP, settings_of
from tests.rows import ROW, SAMPLES


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def real(request: pytest.FixtureRequest, words, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = save_checkpoint(request.param, words, tmp_path_factory.mktemp(request.param))
    return open_checkpoint(folder, tmp_path_factory.mktemp("study"))


QUERIES = [Query("What is it?", "red"), Query("Which colour has the thing?", "noise"), Query("Who?", None)]


def own_inputs(backbone: Backbone, query: Query, answer: Sequence[int] = ()) -> tuple[torch.nn.Module, dict, int]:
    """What Hugging Face's own forward takes for one unpadded prompt and answer, which model takes it, and the prompt's length."""
    adapter = backbone.adapter
    before, after = adapter.image_delimiters
    shown = backbone.image_features([query])[0]
    image = before + adapter.image_token * len(shown.features) + after if shown else ""
    text = adapter.template.replace("{image}", image).replace("{question}", query.question)
    prompt = backbone.tokenizer(text, add_special_tokens=False).input_ids
    ids = torch.tensor([[*prompt, *answer]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    kind = backbone.model.config.model_type
    if shown and kind == "blip-2-lite":
        inputs["pixel_values"] = preprocess([PICTURES[query.image_id]], 64)
    elif shown:
        inputs |= adapter.inputs(PICTURES[query.image_id], query.question)
    if "image_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = (ids == adapter.image_id).int()
    if kind == "paligemma":
        inputs["token_type_ids"] = torch.tensor([[0] * len(prompt) + [1] * len(answer)])
    alone = not shown and "blip" in kind  # BLIP's own forward insists on a picture
    return backbone.model.language_model if alone else backbone.model, inputs, len(prompt)


def test_padded_trunk_and_tail_give_the_full_forwards_logits(real: Backbone) -> None:
    answers = [real.answer_ids(a)[:-1] for a in ("red", "blu", "you")]
    trunk = real.prefill(real.prompts(QUERIES))
    hidden, _, final = real.extend(trunk, torch.tensor(answers))
    logits = real.head(final)
    told = 1 + len(answers[0])
    mask = torch.cat([trunk.prompts.mask, torch.ones(3, told - 1, dtype=torch.bool)], 1)
    with torch.no_grad():
        tail = real.head(real.tail(torch.cat([trunk.hidden, hidden], 1), mask, trunk.prompts.positions, told))
    for i, query in enumerate(QUERIES):
        model, inputs, _ = own_inputs(real, query, answers[i])
        with torch.no_grad():
            expected = model(**inputs).logits[0, -told:]
        torch.testing.assert_close(logits[i], expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(tail[i], expected, atol=1e-5, rtol=1e-4)


def test_spans_are_the_placeholders_and_the_question(real: Backbone) -> None:
    spans = real.prompts(QUERIES).spans
    shown = [picture and len(picture.features) for picture in real.image_features(QUERIES)]
    assert spans["image"].sum(1).tolist() == [shown[0], shown[1], 0] and shown[0] > 0
    assert spans["question"].sum(1).tolist() == [len(q.question) for q in QUERIES]
    assert not (spans["question"] & spans["image"]).any() and spans["last"][:, -1].all()


def test_greedy_is_what_generate_gives(real: Backbone) -> None:
    greedy = real.greedy(real.prefill(real.prompts(QUERIES)), 6)
    for query, answer in zip(QUERIES, greedy, strict=True):
        model, inputs, length = own_inputs(real, query)
        told = model.generate(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=real.end, pad_token_id=real.end)[0]
        told = told[length:] if len(told) > 6 else told  # language models given embeddings return the answer alone
        assert answer == told.tolist()


def test_a_batch_agrees_with_its_rows(real: Backbone) -> None:
    queries = [Query(question, image) for image in ("red", "noise", None, "red") for question in ("What?", "Which one is this?")]
    together = real.head(real.prefill(real.prompts(queries)).final)
    alone = torch.cat([real.head(real.prefill(real.prompts([query])).final) for query in queries])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_prompts_about_one_picture_share_their_beginning(real: Backbone) -> None:
    """Where attention is causal and pictures' tokens do not depend on the question; answers are those of each prompt alone."""
    queries = [Query(question, "red") for question in ("What?", "Which one is this?", "Why?")]
    prompts = real.prompts(queries)
    apart = type(real.adapter).order is not Adapter.order or real.adapter.reads_question
    assert (prompts.shared is None) == apart
    trunk, ids = real.prefill(prompts), torch.tensor([real.answer_ids("red")[:-1]] * 3)
    hidden, _, final = real.extend(trunk, ids)
    for i, query in enumerate(queries):
        alone = real.prefill(real.prompts([query]))
        expected = real.extend(alone, ids[:1])
        torch.testing.assert_close(trunk.hidden[i, prompts.mask[i]], alone.hidden[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(hidden[i], expected[0][0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(real.head(final[i]), real.head(expected[2][0]), atol=1e-4, rtol=1e-4)


def test_padding_on_the_right_gives_the_same(real: Backbone) -> None:
    """The model's forward over eight prompts, padded on either side, agrees at their last positions."""
    queries = [Query(question, image) for image in ("red", "noise", None, "red") for question in ("What?", "Which one is this?")]
    prompts = real.prompts(queries)
    lengths = prompts.mask.sum(1).tolist()
    shifted = [
        torch.stack([row.roll(n, dims) for row, n in zip(rows, lengths, strict=True)], axis)
        for rows, dims, axis in ((prompts.embeds, 0, 0), (prompts.mask, 0, 0), (prompts.positions.unbind(-2), -1, -2))
    ]
    embeds, mask, positions = shifted
    with torch.no_grad():
        attention = real.adapter.attention(mask, mask.shape[1])
        out = real.decoder(inputs_embeds=embeds, attention_mask=attention, position_ids=positions).last_hidden_state
    final = out[torch.arange(len(queries)), torch.tensor(lengths) - 1]
    torch.testing.assert_close(real.head(final), real.head(real.prefill(prompts).final), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(ONE_MAP))
def test_every_editor_edits_it_and_leaves_its_weights(real: Backbone, name: str) -> None:
    before = {key: tensor.clone() for key, tensor in real.model.state_dict().items()}
    probes = probes_of(ROW, SAMPLES)
    states = run_trunk(real, ROW, probes)
    untrained = load_editor(name)(real, request_of(states, ROW), settings_of(name, steps=0))
    edit = load_editor(name)(real, request_of(states, ROW), settings_of(name))
    rows = trace.trace_edit(real, ROW, probes, states, edit)
    assert edit.loss < untrained.loss and rows[0]["target_on"] == edit.reached
    bounded = hasattr(real.decoder.layers[-1], "post_feedforward_layernorm")  # Gemma 2 bounds what one layer's MLP can add
    assert edit.reached or bounded or name == "grace"  # one vector in an MLP's place need not suffice on random weights
    assert all(torch.equal(before[key], tensor) for key, tensor in real.model.state_dict().items())


def test_an_architecture_without_an_adapter_is_named(words) -> None:
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA, vocab_size=len(words)))
    with pytest.raises(UserError, match="architecture: 'llama' has no adapter; allowed: blip_2, .*smolvlm"):
        adapt(model, words)
