"""Every architecture through its adapter: a tiny checkpoint with random weights against its own forward."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from ruamel.yaml import YAML

from stages.backbone.adapters import adapt
from stages.backbone.blip2_lite import Blip2LiteConfig, Blip2LiteForConditionalGeneration
from stages.backbone.checkpoints import PROMPT, point
from stages.backbone.tower import EfficientNetLiteConfig, preprocess
from stages.backbone.vlm import Backbone, Query
from stages.editing import trace
from stages.editing.editor import load_editor
from stages.params import UserError, load
from tests.rows import ROW, SAMPLES
from tests.test_editing import SETTINGS as EDITORS

LLAMA = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "initializer_range": 0.2,
}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2}
NORMAL = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
PICTURES = {
    "red": Image.new("RGB", (28, 28), (200, 30, 30)),
    "noise": Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 56, 3), dtype=np.uint8)),
}
MARKS = (
    "<image>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<fake_token_around_image>", "<global-img>",
    "<end_of_utterance>", "<|begin_of_text|>", "<bos>", "<eos>",
)  # fmt: skip


@pytest.fixture(scope="module")
def words(tokenizer) -> hf.PreTrainedTokenizerFast:
    """The tests' character tokenizer with every architecture's special tokens."""
    made = hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, eos_token=tokenizer.eos_token, pad_token="<eos>")
    made.add_special_tokens({"additional_special_tokens": list(MARKS)})
    return made


def llava(ids: Callable[[str], int], size: int) -> tuple:
    vision = hf.CLIPVisionConfig(**VISION, image_size=28, patch_size=14, projection_dim=32)
    text = hf.LlamaConfig(**LLAMA, vocab_size=size)
    config = hf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=ids("<image>"), image_seq_length=4)
    side = {"height": 28, "width": 28}
    return hf.LlavaForConditionalGeneration(config), hf.CLIPImageProcessorPil(size=side, crop_size=side, **NORMAL)


def blip_2(ids: Callable[[str], int], size: int, text: hf.PretrainedConfig | None = None) -> tuple:
    text = text or hf.OPTConfig(
        hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_hidden_layers=4, num_attention_heads=4, vocab_size=size,
        max_position_embeddings=512, init_std=0.2, do_layer_norm_before=True,
    )  # fmt: skip
    config = hf.Blip2Config(
        vision_config=hf.Blip2VisionConfig(**VISION, image_size=28, patch_size=14),
        qformer_config=hf.Blip2QFormerConfig(**LLAMA_LIKE_QFORMER), text_config=text, num_query_tokens=8,
        image_token_index=ids("<image>"),
    )  # fmt: skip
    return hf.Blip2ForConditionalGeneration(config), hf.BlipImageProcessorPil(size={"height": 28, "width": 28}, **NORMAL)


LLAMA_LIKE_QFORMER = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "encoder_hidden_size": 32,
    "vocab_size": 120, "initializer_range": 0.2,
}  # fmt: skip


def blip_2_llama(ids: Callable[[str], int], size: int) -> tuple:
    return blip_2(ids, size, hf.LlamaConfig(**LLAMA, vocab_size=size))


def blip_2_lite(ids: Callable[[str], int], size: int) -> tuple:
    config = Blip2LiteConfig(
        vision_config=EfficientNetLiteConfig(image_size=64, grid=2).to_dict(),
        qformer_config=hf.Blip2QFormerConfig(**LLAMA_LIKE_QFORMER).to_dict(),
        text_config=hf.LlamaConfig(**LLAMA, vocab_size=size).to_dict(), num_query_tokens=8, image_token_index=ids("<image>"),
    )  # fmt: skip
    return Blip2LiteForConditionalGeneration(config), None


def instructblip(ids: Callable[[str], int], size: int) -> tuple:
    config = hf.InstructBlipConfig(
        vision_config=hf.InstructBlipVisionConfig(**VISION, image_size=28, patch_size=14),
        qformer_config=hf.InstructBlipQFormerConfig(**LLAMA_LIKE_QFORMER), text_config=hf.LlamaConfig(**LLAMA, vocab_size=size),
        num_query_tokens=8, image_token_index=ids("<image>"),
    )  # fmt: skip
    return hf.InstructBlipForConditionalGeneration(config), hf.BlipImageProcessorPil(size={"height": 28, "width": 28}, **NORMAL)


def llava_onevision(ids: Callable[[str], int], size: int) -> tuple:
    pins = [[28, 28], [28, 56]]
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**VISION_PLAIN, image_size=28, patch_size=14),
        text_config=hf.Qwen2Config(**LLAMA, vocab_size=size), image_token_index=ids("<image>"), image_grid_pinpoints=pins,
    )  # fmt: skip
    process = hf.LlavaOnevisionImageProcessorPil(size={"height": 28, "width": 28}, image_grid_pinpoints=pins, **NORMAL)
    return hf.LlavaOnevisionForConditionalGeneration(config), process


VISION_PLAIN = {k: v for k, v in VISION.items() if k != "initializer_range"}


def qwen(kind: str, ids: Callable[[str], int], size: int) -> tuple:
    text = LLAMA | {
        "vocab_size": size,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
    }
    shared = {"image_token_id": ids("<image>"), "vision_start_token_id": ids("<|vision_start|>"), "text_config": text}
    process = hf.Qwen2VLImageProcessorPil(
        patch_size=14, merge_size=2, size={"shortest_edge": 28 * 28, "longest_edge": 56 * 56}, **NORMAL
    )
    if kind == "2":
        vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 14}
        return hf.Qwen2VLForConditionalGeneration(hf.Qwen2VLConfig(vision_config=vision, **shared)), process
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 14, "out_hidden_size": 32,
        "window_size": 56, "fullatt_block_indexes": [1],
    }  # fmt: skip
    return hf.Qwen2_5_VLForConditionalGeneration(hf.Qwen2_5_VLConfig(vision_config=vision, **shared)), process


def idefics3(kind: str, ids: Callable[[str], int], size: int) -> tuple:
    text = hf.LlamaConfig(**LLAMA, vocab_size=size, pad_token_id=ids("<eos>"))
    vision = VISION_PLAIN | {"image_size": 28, "patch_size": 14}
    config, model = {
        "idefics3": (hf.Idefics3Config, hf.Idefics3ForConditionalGeneration),
        "smolvlm": (hf.SmolVLMConfig, hf.SmolVLMForConditionalGeneration),
    }[kind]
    made = config(
        vision_config=vision, text_config=text, scale_factor=2, image_token_id=ids("<image>"), pad_token_id=ids("<eos>")
    )
    process = {"idefics3": hf.Idefics3ImageProcessorPil, "smolvlm": hf.SmolVLMImageProcessorPil}[kind]
    return model(made), process(size={"longest_edge": 28}, max_image_size={"longest_edge": 28}, **NORMAL)


def paligemma(ids: Callable[[str], int], size: int) -> tuple:
    config = hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(**VISION_PLAIN, image_size=28, patch_size=14, projection_dim=32),
        text_config=hf.GemmaConfig(**LLAMA, vocab_size=size, head_dim=8, hidden_activation="gelu_pytorch_tanh"),
        image_token_index=ids("<image>"), projection_dim=32,
    )  # fmt: skip
    return hf.PaliGemmaForConditionalGeneration(config), hf.SiglipImageProcessorPil(size={"height": 28, "width": 28}, **NORMAL)


ARCHITECTURES = {
    "llava": llava, "blip_2-opt": blip_2, "blip_2-llama": blip_2_llama, "blip_2_lite": blip_2_lite, "instructblip": instructblip,
    "llava_onevision": llava_onevision, "qwen2_vl": lambda *a: qwen("2", *a), "qwen2_5_vl": lambda *a: qwen("2.5", *a),
    "idefics3": lambda *a: idefics3("idefics3", *a), "smolvlm": lambda *a: idefics3("smolvlm", *a), "paligemma": paligemma,
}  # fmt: skip


def save_checkpoint(architecture: str, words: hf.PreTrainedTokenizerFast, folder: Path) -> Path:
    """A checkpoint's folder as the hub has it: weights, tokenizer and processor, of random weights."""
    torch.manual_seed(0)
    model, process = ARCHITECTURES[architecture](words.convert_tokens_to_ids, len(words))
    for name, parameter in model.named_parameters():
        # Fifty convolutions of such weights would blow rounding up: the convolutional tower keeps its own start.
        if parameter.ndim > 1 and not (architecture == "blip_2_lite" and "vision" in name):
            parameter.data.normal_(0, 0.2)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    if architecture == "blip_2_lite":  # embedded: what it is asked through is known, and its tower takes pictures by itself
        (folder / PROMPT).write_text("{}")
    else:
        process.save_pretrained(folder)
    if architecture == "instructblip":
        words.save_pretrained(folder / "qformer_tokenizer")
    return folder


def open_checkpoint(folder: Path, at: Path, **entry: Any) -> Backbone:
    """The way of a real checkpoint: an entry of params.yaml, the pointer that the stage leaves in `at`, the backbone."""
    if (folder / PROMPT).exists():
        opened = Backbone.open(folder, 2)
    else:
        raw = YAML(typ="safe").load(Path("params.yaml"))
        raw["backbones"]["real"] = {"checkpoint": str(folder), "dtype": "float32", "device_map": "cpu", "layer": 2} | entry
        YAML().dump(raw, at / "params.yaml")
        settings = load(at / "params.yaml").backbone("real")
        point(settings, at / "backbone")
        opened = Backbone.open(at / "backbone", settings.layer)
    opened.add_pictures(PICTURES)
    return opened


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def real(request: pytest.FixtureRequest, words, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = save_checkpoint(request.param, words, tmp_path_factory.mktemp(request.param))
    return open_checkpoint(folder, tmp_path_factory.mktemp("study"))


QUERIES = [Query("What is it?", "red"), Query("Which colour has the thing?", "noise"), Query("Who?", None)]


def own_inputs(backbone: Backbone, query: Query, answer: Sequence[int] = ()) -> tuple[torch.nn.Module, dict, int]:
    """What Hugging Face's own forward takes for one unpadded prompt and answer, which model takes it, and the prompt's length."""
    adapter = backbone.adapter
    before, after = adapter.marks
    shown = backbone.show([query])[0]
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
    shown = [picture and len(picture.features) for picture in real.show(QUERIES)]
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


@pytest.mark.parametrize("name", sorted(EDITORS))
def test_every_editor_edits_it_and_leaves_its_weights(real: Backbone, name: str) -> None:
    before = {key: tensor.clone() for key, tensor in real.model.state_dict().items()}
    probes = trace.probes_of(ROW, SAMPLES)
    states = trace.run_trunk(real, ROW, probes)
    untrained = load_editor(name)(real, trace.request_of(states, ROW), EDITORS[name] | {"steps": 0})
    edit = load_editor(name)(real, trace.request_of(states, ROW), EDITORS[name])
    rows = trace.trace_edit(real, ROW, probes, states, edit)
    assert edit.loss < untrained.loss and rows[0]["target_on"] == edit.reached
    assert edit.reached or name == "grace"  # one vector in place of an MLP's output need not suffice on random weights
    assert all(torch.equal(before[key], tensor) for key, tensor in real.model.state_dict().items())


def test_an_architecture_without_an_adapter_is_named(words) -> None:
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA, vocab_size=len(words)))
    with pytest.raises(UserError, match="architecture: 'llama' has no adapter; allowed: blip_2, .*smolvlm"):
        adapt(model, words)
