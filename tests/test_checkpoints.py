"""Real checkpoints: pointers, digests, what is refused and in which words, MiniGPT-4 from its pieces, the recipes' overrides."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import transformers as hf
from dvc.utils.hydra import apply_overrides
from huggingface_hub import constants, errors
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from stages.backbone import checkpoints, minigpt4, pointer
from stages.backbone.__main__ import assemble, measure
from stages.backbone.vlm import Backbone, Query
from stages.params import UserError, load
from stages.settings import Accuracy, Checkpoint
from tests.architectures import LLAMA, LLAMA_LIKE_QFORMER, PICTURES, VISION, open_checkpoint

ROOT = Path(__file__).parent.parent


def settings(checkpoint: Path | str, **entry: object) -> Checkpoint:
    return Checkpoint("real", str(checkpoint), **{"dtype": "float32", "device_map": "cpu"} | entry)


def refused(tmp_path: Path, checkpoint: Path | str, **entry: object) -> str:
    with pytest.raises(UserError) as caught:
        checkpoints.point(settings(checkpoint, **entry), tmp_path / "backbone")
    assert not (tmp_path / "backbone").exists() and "\n" not in str(caught.value).strip()
    return str(caught.value)


# -- pointers ---------------------------------------------------------------------------------------------------------------


def test_a_pointer_copies_nothing_and_says_how_to_load(saved: Path, tmp_path: Path) -> None:
    checkpoints.point(settings(saved, dtype="bfloat16", template="{image}Q: {question} A:"), tmp_path / "real")
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["checkpoint.json"]
    pointer = json.loads((tmp_path / "real/checkpoint.json").read_text())
    assert pointer["checkpoint"] == str(saved) and pointer["revision"] is None and pointer["dtype"] == "bfloat16"
    backbone = Backbone.open(tmp_path / "real", None)
    assert backbone.layer == 3 and backbone.edited is backbone.decoder.layers[3].mlp.up_proj  # the last of four
    assert backbone.adapter.template == "{image}Q: {question} A:"
    assert backbone.model.dtype == torch.bfloat16


@pytest.mark.parametrize("device_map", ["auto", "cpu"])
def test_device_maps_of_a_machine_without_gpus_load_the_same(saved: Path, tmp_path: Path, device_map: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    backbone = open_checkpoint(saved, tmp_path, device_map=device_map)
    weights = load_file(saved / "model.safetensors")
    assert torch.equal(backbone.edited.weight, weights["language_model.model.layers.2.mlp.up_proj.weight"])
    assert len(backbone.greedy(backbone.prefill(backbone.prompts([Query("What?", "red")])), 3)[0]) <= 3


def test_the_fingerprint_follows_weights_prompt_and_type_but_not_the_place(saved: Path, copied: Path, tmp_path: Path) -> None:
    found = {
        name: open_checkpoint(folder, tmp_path, **entry).fingerprint
        for name, folder, entry in (
            ("first", saved, {}), ("again", copied, {}), ("type", saved, {"dtype": "bfloat16"}),
            ("prompt", saved, {"template": "{image}{question}"}), ("layer", saved, {"layer": 1}),
        )
    }  # fmt: skip
    weights = load_file(copied / "model.safetensors")
    weights["language_model.model.layers.0.mlp.up_proj.weight"][0, 0] += 1
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    found["weights"] = open_checkpoint(copied, tmp_path).fingerprint
    assert found["first"] == found.pop("again")
    assert len(set(found.values())) == len(found)


def test_the_fingerprint_is_known_before_anything_is_loaded(saved: Path, copied: Path, tmp_path: Path) -> None:
    checkpoints.point(settings(saved, dtype="bfloat16"), tmp_path / "real")
    (copied / checkpoints.PROMPT).write_text("{}")  # as an embedded backbone has it
    for folder, layer in ((tmp_path / "real", None), (tmp_path / "real", 1), (copied, 2)):
        assert pointer.fingerprint(folder, layer) == Backbone.open(folder, layer).fingerprint
    with pytest.raises(UserError, match="backbone: .*none holds no checkpoint; run the `backbone` stage first"):
        pointer.fingerprint(tmp_path / "none", 2)


def test_a_checkpoint_that_changes_under_its_pointer_is_refused(copied: Path, tmp_path: Path) -> None:
    checkpoints.point(settings(copied), tmp_path / "real")
    config = copied / "tokenizer_config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(UserError, match="has changed since the `backbone` stage"):
        Backbone.open(tmp_path / "real", None)


def test_the_digest_reads_the_beginnings_of_tensors(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(100, 100), "b": torch.zeros(3)}
    digests = []
    for row, column in ((None, None), (0, 5), (99, 99)):  # the last lies beyond the sample: a stated limit
        if row is not None:
            tensors["a"] = torch.zeros(100, 100)
            tensors["a"][row, column] = 1
        save_file(tensors, tmp_path / "model.safetensors")
        digests.append(checkpoints.digest(tmp_path))
    assert digests[0] != digests[1] and digests[0] == digests[2]
    assert [shape for shape, _ in checkpoints.tensors(tmp_path / "model.safetensors")] == [(100, 100), (3,)]


def test_memory_is_estimated_from_the_headers(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(100, 10), "b": torch.zeros(50)}, tmp_path / "model.safetensors")
    for entry, each in (({"dtype": "float32"}, 4), ({"dtype": "bfloat16"}, 2), ({"quantization": "8bit"}, 1)):
        assert checkpoints.memory_needed(settings(tmp_path, **entry), tmp_path) == pytest.approx(1.1 * 1050 * each)
    free, what = checkpoints.memory_free("cpu")
    assert what == "memory" and free > 2**20


def test_a_hub_model_is_pinned_to_its_commit(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a cache as the hub's own library lays it out; downstream asks for the commit and never the hub."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache/models--lab--tiny"
    shutil.copytree(saved, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    pointer = checkpoints.point(settings("lab/tiny"), tmp_path / "real")
    assert (pointer.checkpoint, pointer.revision) == ("lab/tiny", commit)
    assert Backbone.open(tmp_path / "real", 0).layer == 0
    shutil.rmtree(repository)
    with pytest.raises(UserError, match="has left the hub's cache; run the `backbone` stage again"):
        Backbone.open(tmp_path / "real", 0)


@pytest.mark.skipif(not (ROOT / "data/assets/emoji").exists(), reason="the pictures of data/assets are not here")
def test_the_stage_points_and_measures(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    params = load()
    few = replace(params, accuracy=Accuracy(2, 2), backbones={"real": settings(saved)})
    (tmp_path / "data").mkdir()
    (tmp_path / "data/assets").symlink_to((ROOT / "data/assets").resolve())
    (tmp_path / "data/assets.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assemble(few, "real")
    measure(few, "real")
    table = pd.read_csv(tmp_path / "reports/backbones/real.csv")
    assert (tmp_path / "data/backbones/real/checkpoint.json").exists()
    card = (tmp_path / "reports/backbones/real.md").read_text()
    assert str(saved) in card and "decoder layer 3" in card and "| real | naming | seen artists |" in card
    assert set(table["task"]) == {"naming", "facts", "text_only"} and len(table) == 15
    assert table["accuracy"].between(0, 1).all() and (table["n"] == 2).all()
    measure(few, "real")
    assert "15 accuracies as Git has them in reports/backbones/real.csv" in capsys.readouterr().out
    monkeypatch.setattr("stages.backbone.__main__.code.digest", lambda *_: "changed")
    monkeypatch.setattr("stages.backbone.__main__.accuracies", lambda *_: pytest.fail("measured again"))
    measure(few, "real")
    assert "checked on one artist's pictures by the code of now" in capsys.readouterr().out
    assert json.loads((tmp_path / "reports/backbones/real.json").read_text())["code"] == "changed"
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        measure(replace(few, seed=1), "real")


# -- what is refused --------------------------------------------------------------------------------------------------------


def test_missing_parts_are_named(copied: Path, tmp_path: Path) -> None:
    assert "no folder './nowhere'" in refused(tmp_path, "./nowhere")
    (copied / "preprocessor_config.json").rename(copied / "kept")
    assert "holds no image processor" in refused(tmp_path, copied)
    (copied / "kept").rename(copied / "preprocessor_config.json")
    (copied / "model.safetensors").rename(copied / "kept")
    assert "holds no model.safetensors; download it again" in refused(tmp_path, copied)
    (copied / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors", "b": "kept"}}')
    assert "holds no model-1.safetensors" in refused(tmp_path, copied)
    (copied / "tokenizer.json").unlink()
    assert "holds no tokenizer" in refused(tmp_path, copied)
    (copied / "config.json").unlink()
    assert "holds no config.json" in refused(tmp_path, copied)


def test_architectures_that_cannot_be_edited_are_named(copied: Path, tmp_path: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    assert "architecture: 'llama' has no adapter; allowed: blip_2" in refused(tmp_path, copied)
    (copied / "config.json").write_text(json.dumps(config | {"model_type": "blip-2", "text_config": {"model_type": "t5"}}))
    assert "encoder-decoder language model has no adapter" in refused(tmp_path, copied)
    (copied / "config.json").write_text(json.dumps(config | {"model_type": "llava", "vision_config": {"model_type": "pixtral"}}))
    assert "architecture: 'llava' over the vision tower 'pixtral' has no adapter; allowed: clip_" in refused(tmp_path, copied)
    (copied / "config.json").write_text(json.dumps(config | {"model_type": "gpt9000"}))
    assert "transformers cannot read its config.json" in refused(tmp_path, copied)
    (copied / "config.json").write_text(json.dumps(config | {"image_token_id": 10**6, "image_token_index": 10**6}))
    assert "no image token that config and tokenizer agree on" in refused(tmp_path, copied)


def test_what_does_not_fit_or_is_not_there_is_said_before_loading(saved: Path, tmp_path: Path, monkeypatch) -> None:
    if not torch.cuda.is_available():
        assert "device_map: 'cuda' is not allowed: PyTorch sees no GPU" in refused(tmp_path, saved, device_map="cuda")
    monkeypatch.setattr(checkpoints, "memory_free", lambda _: (1000.0, "memory"))
    assert re.search(r"needs about \d.* GiB of memory are free; take a larger machine", refused(tmp_path, saved))
    monkeypatch.setattr(checkpoints.importlib.util, "find_spec", lambda name: None)
    assert "needs bitsandbytes; run `pip install bitsandbytes`" in refused(tmp_path, saved, quantization="8bit")


def test_weights_that_are_missing_are_not_drawn_at_random(copied: Path, tmp_path: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    del weights["language_model.model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    checkpoints.point(settings(copied), tmp_path / "real")
    with pytest.raises(UserError, match=r"lacks 1 weights of its architecture, first .*layers\.1\.mlp\.up_proj"):
        Backbone.open(tmp_path / "real", None)


ANSWER = SimpleNamespace(headers={}, request=None)  # what these errors read of the hub's answer


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.GatedRepoError("x", response=ANSWER), r"'lab/big' is gated .*ask for access.*HF_TOKEN"),
        (errors.RepositoryNotFoundError("x", response=ANSWER), r"the hub shows no 'lab/big' .*check the name"),
        (errors.RevisionNotFoundError("x", response=ANSWER), r"revision: 'main' of 'lab/big' does not exist"),
        (errors.HfHubHTTPError("500 Server Error", response=ANSWER), r"'lab/big': the hub says: .*500"),
        (errors.HFValidationError("x"), r"'lab/big' is not allowed; allowed: a folder, or owner/name"),
        (errors.LocalEntryNotFoundError("x"), r"neither a folder nor in the hub's cache, and the hub cannot be reached"),
    ],
)
def test_what_the_hub_refuses_is_one_line(error: Exception, words: str, tmp_path: Path, monkeypatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(checkpoints.hub, "snapshot_download", download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert re.search(words, refused(tmp_path, "lab/big"))


def test_the_closed_hub_says_how_to_open_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE=1 keeps it from the hub; run once with HF_HUB_OFFLINE=0" in refused(tmp_path, "lab/big")


# -- MiniGPT-4 --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny random pieces of the published structure: a BLIP-2 over T5, a LLaMA in old pickled files, a projection."""
    folder = tmp_path_factory.mktemp("pieces")
    torch.manual_seed(0)
    text = hf.T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, vocab_size=60)
    config = hf.Blip2Config(
        vision_config=hf.Blip2VisionConfig(**VISION, image_size=28, patch_size=14),
        qformer_config=hf.Blip2QFormerConfig(**LLAMA_LIKE_QFORMER), text_config=text, num_query_tokens=8, image_token_index=5,
    )  # fmt: skip
    hf.Blip2ForConditionalGeneration(config).save_pretrained(folder / "blip2")
    hf.BlipImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(folder / "blip2")
    characters = [chr(c) for c in range(32, 127)]
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *characters, "##"])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    vicuna = hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA, vocab_size=len(tokenizer)))
    vicuna.config.save_pretrained(folder / "vicuna")
    tokenizer.save_pretrained(folder / "vicuna")
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    torch.save(vicuna.state_dict() | old, folder / "vicuna/pytorch_model.bin")
    projection = {"llama_proj.weight": torch.randn(32, 32), "llama_proj.bias": torch.randn(32)}
    torch.save({"model": projection, "optimizer": {}, "epoch": 4}, folder / "projection.pth")
    return folder


def test_minigpt4_is_its_pieces(pieces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    given = {"blip2": "blip2", "vicuna": "vicuna", "projection": "projection.pth"}
    arguments = [word for key, name in given.items() for word in (f"--{key}", str(pieces / name))]
    monkeypatch.setattr(sys, "argv", ["minigpt4", *arguments, "--out", str(tmp_path / "out")])
    minigpt4.main()
    assert "[minigpt4]" in capsys.readouterr().out
    checkpoints.point(settings(tmp_path / "out"), tmp_path / "real")
    backbone = Backbone.open(tmp_path / "real", None)
    backbone.add_pictures(PICTURES)

    blip2 = hf.Blip2ForConditionalGeneration.from_pretrained(pieces / "blip2")
    projection = torch.load(pieces / "projection.pth", weights_only=True)["model"]
    pixels = backbone.adapter.inputs(PICTURES["noise"], "")["pixel_values"]
    with torch.no_grad():
        seen = blip2.vision_model(pixels).last_hidden_state
        asked = blip2.qformer(query_embeds=blip2.query_tokens, encoder_hidden_states=seen).last_hidden_state
        by_hand = asked[0] @ projection["llama_proj.weight"].T + projection["llama_proj.bias"]
    torch.testing.assert_close(backbone.image_features([Query("Who?", "noise")])[0].features, by_hand, atol=1e-5, rtol=1e-5)

    prompts = backbone.prompts([Query("Who is it?", "noise"), Query("Who is it?", None)])
    torch.testing.assert_close(prompts.embeds[0][prompts.spans["image"][0]], by_hand, atol=1e-5, rtol=1e-5)
    ids = backbone.tokenizer("<s>###Human: Who is it? ###Assistant: ", add_special_tokens=False).input_ids
    tensors = torch.load(pieces / "vicuna/pytorch_model.bin", weights_only=True)
    vicuna = hf.LlamaForCausalLM(hf.LlamaConfig.from_pretrained(pieces / "vicuna"))
    vicuna.load_state_dict({name: tensor for name, tensor in tensors.items() if "inv_freq" not in name})
    with torch.no_grad():
        expected = vicuna(torch.tensor([ids])).logits[0, -1]
    torch.testing.assert_close(backbone.head(backbone.prefill(prompts).final)[1], expected, atol=1e-5, rtol=1e-5)
    assert backbone.tokenizer.convert_ids_to_tokens(backbone.end) == "##"


def test_minigpt4_names_what_does_not_fit(pieces: Path, tmp_path: Path) -> None:
    def said_of(projection: object = None, blip2: Path = pieces / "blip2", vicuna: Path = pieces / "vicuna") -> str:
        path = pieces / "projection.pth"
        if projection is not None:
            path = tmp_path / "other.pth"
            torch.save(projection, path)
        with pytest.raises(UserError) as caught:
            minigpt4.assemble(blip2, vicuna, path, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    good = torch.load(pieces / "projection.pth", weights_only=True)["model"]
    assert "holds no `model`" in said_of({"weights": good})
    assert "needed: llama_proj.weight, llama_proj.bias, and no others" in said_of({"model": good | {"extra": torch.ones(1)}})
    wide = good | {"llama_proj.weight": torch.ones(32, 30)}
    assert "language_projection.weight has shape [32, 30], not [32, 32]" in said_of({"model": wide})
    assert "is no file of weights" in said_of({"model": good, "code": Path("x")})
    assert "holds no config.json" in said_of(blip2=tmp_path)
    vicuna = Path(shutil.copytree(pieces / "vicuna", tmp_path / "vicuna"))
    tensors = torch.load(vicuna / "pytorch_model.bin", weights_only=True)
    lost = tensors.pop("model.norm.weight")
    torch.save(tensors, vicuna / "pytorch_model.bin")
    assert "language_model.model.norm.weight is missing" in said_of(vicuna=vicuna)
    torch.save(tensors | {"model.norm.weight": lost, "model.more": lost}, vicuna / "pytorch_model.bin")
    assert "language_model.model.more is unexpected" in said_of(vicuna=vicuna)


# -- recipes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.sh")), ids=lambda path: path.stem)
def test_a_recipe_adds_a_checkpoint_and_says_what_it_takes(recipe: Path, tmp_path: Path) -> None:
    text = recipe.read_text()
    overrides = re.findall(r"-S '([^']+)'", text)
    params = Path(shutil.copy(ROOT / "params.yaml", tmp_path))
    before = load(params)
    for _ in range(2):  # a recipe can be run again
        apply_overrides(params, overrides)
    after = load(params)
    (added,) = after.backbones.keys() - before.backbones.keys()
    assert isinstance(after.backbone(added), Checkpoint)
    assert {name: after.backbones[name] for name in before.backbones} == before.backbones
    assert [*after.edited] == [*before.edited, added]
    assert "Hardware, estimated, not measured:" in text and recipe.stat().st_mode & 0o111
