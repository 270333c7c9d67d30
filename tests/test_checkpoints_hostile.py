"""A checkpoint's folder that is cut, broken or foreign ends in one line that names the file; none runs code."""

import builtins
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.backbone import checkpoints, minigpt4, pointer
from stages.backbone.vlm import Backbone
from stages.okedit.schema import decode
from stages.params import UserError
from stages.settings import Checkpoint

CODE = "import pathlib\npathlib.Path({ran!r}).touch()\nraise SystemExit\n"


@pytest.fixture(autouse=True)
def nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("somebody was asked"))


def refused(folder: Path, **entry: object) -> str:
    """The line that pointing at a folder ends in, and that opening it by a pointer made before ends in too."""
    settings = Checkpoint("real", str(folder), **{"dtype": "float32", "device_map": "cpu"} | entry)
    with pytest.raises(UserError) as caught:
        checkpoints.point(settings, folder.parent / "pointer")
    line = str(caught.value)
    assert "\n" not in line and len(line) < 900 and not (folder.parent / "pointer").exists()
    return line


def changed(path: Path, **more: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("config.json", {"auto_map": {"AutoConfig": "own.Config", "AutoModelForImageTextToText": "own.Model"}}),
        ("config.json", {"model_type": "its-own", "auto_map": {"AutoConfig": "own.Config"}}),
        ("config.json", {"text_config": {"auto_map": {"AutoConfig": "own.Config"}}}),
        ("config.json", {"attn_implementation": "somebody/kernel"}),
        ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": "own.Processor"}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}}),
        ("tokenizer_config.json", {"auto_map": "own.Tokenizer"}),
    ],
)
def test_a_folder_that_asks_to_run_its_own_code_is_refused(copied: Path, tmp_path: Path, name: str, more: dict) -> None:
    ran = tmp_path / "ran"
    (copied / "own.py").write_text(CODE.format(ran=str(ran)))
    changed(copied / name, **more)
    line = refused(copied)
    assert str(copied / name) in line and "code" in line and "allowed: the code that transformers has itself" in line
    assert not ran.exists()
    with pytest.raises(UserError, match="asks to run"):
        minigpt4.assemble(copied, copied, copied / "none", tmp_path / "out")


def test_no_reader_of_checkpoints_trusts_code() -> None:
    """`trust_remote_code=False` is said wherever a folder is opened: without it the library asks, and runs it on a yes."""
    root = Path(__file__).parent.parent
    for path in [*root.glob("stages/backbone/**/*.py"), *root.glob("stages/okedit/**/*.py")]:
        text = path.read_text()
        for piece in text.split(".from_pretrained(")[1:]:
            call = piece[: piece.index("\n")]
            assert "OWN" in call or "trust_remote_code=False" in call or "**how" in call, f"{path}: {call}"


def test_an_adapter_to_another_model_is_refused(copied: Path) -> None:
    (copied / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "somebody/else"}')
    assert "adapter_config.json: an adapter to another model; allowed: a whole model" in refused(copied)


def test_a_word_of_a_vocabulary_is_no_code(copied: Path) -> None:
    (copied / "vocab.json").write_text('{"auto_map": 3}')
    pointer.check_code(copied)


BROKEN = ("", "{", "[]", "null", "7", '"a"', "\x00\x01", "[" * 100_000)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_a_small_file_that_is_no_json_object_is_named(copied: Path, name: str, text: str) -> None:
    (copied / name).write_text(text)
    assert str(copied / name) in refused(copied)
    (copied / name).write_bytes(b"\xff\xfe")
    assert str(copied / name) in refused(copied)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("config.json", {"text_config": 5}),
        ("config.json", {"text_config": {"model_type": "llama", "num_hidden_layers": "many"}}),
        ("config.json", {"text_config": {"model_type": "llama", "num_hidden_layers": 10**9}}),
        ("config.json", {"text_config": {"model_type": "llama", "num_hidden_layers": -1}}),
        ("config.json", {"text_config": {"model_type": "llama", "hidden_size": None}}),
        ("config.json", {"vision_config": []}),
        ("config.json", {"model_type": 7}),
        ("config.json", {"model_type": ["llava"]}),
        ("config.json", {"model_type": None}),
        ("config.json", {"image_token_id": "x", "image_token_index": "x"}),
        ("config.json", {"image_token_id": -1, "image_token_index": -1}),
        ("config.json", {"image_token_id": 10**30, "image_token_index": 10**30}),
        ("preprocessor_config.json", {"image_processor_type": 5}),
        ("tokenizer.json", {"model": {"type": "none"}}),
        ("tokenizer.json", {"added_tokens": 7}),
    ],
)
def test_entries_of_a_wrong_type_are_one_line(copied: Path, name: str, more: dict) -> None:
    changed(copied / name, **more)
    line = refused(copied)
    assert str(copied) in line or "architecture" in line


def cut(data: bytes) -> dict[str, bytes]:
    length = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    first = next(name for name in header if name != "__metadata__")

    def said(entry: object) -> bytes:
        text = json.dumps(header | {first: entry}).encode()
        return len(text).to_bytes(8, "little") + text + rest

    return {
        "empty": b"",
        "seven bytes": data[:7],
        "the length alone": data[:8],
        "half the header": data[: 8 + length // 2],
        "no data": data[: 8 + length],
        "half the data": data[: len(data) // 2],
        "a byte short": data[:-1],
        "a byte more": data + b"0",
        "a page": b"<!DOCTYPE html><html>not found</html>" * 9,
        "a pointer of LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "no JSON": (9).to_bytes(8, "little") + b"notjson!!" + rest,
        "a list": (2).to_bytes(8, "little") + b"[]",
        "no offsets": said({"dtype": "F32", "shape": [1]}),
        "a text": said("x"),
        "offsets of text": said({"dtype": "F32", "shape": [1], "data_offsets": ["a", "b"]}),
        "a negative shape": said({"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}),
        "offsets beyond the end": said({"dtype": "F32", "shape": [1], "data_offsets": [0, 10**12]}),
    }


def test_weights_that_are_cut_or_foreign_are_named(copied: Path) -> None:
    path = copied / "model.safetensors"
    for what, data in cut(path.read_bytes()).items():
        path.write_bytes(data)
        line = refused(copied)
        assert f"{path}: cut, or no safetensors file; download it again" in line, what
        with pytest.raises(UserError, match="cut, or no safetensors file; `./study repro` makes it again"):
            pointer.header(path, pointer.AGAIN)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("", "cannot be read"),
        ("[]", "a JSON list"),
        ("{}", "weight_map: needed"),
        ('{"weight_map": []}', "weight_map: needed"),
        ('{"weight_map": {}}', "weight_map: needed"),
        ('{"weight_map": {"a": 5}}', "weight_map: needed"),
        ('{"weight_map": {"a": "../../model.safetensors"}}', "weight_map: needed"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "weight_map: needed"),
        ('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}', "holds no model-00001-of-00002.safetensors"),
    ],
)
def test_an_index_that_is_broken_or_leads_elsewhere_is_named(copied: Path, index: str, said: str) -> None:
    (copied / "model.safetensors.index.json").write_text(index)
    assert said in refused(copied)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("[]", "prompt.json: a JSON list"),
        ("", "prompt.json: cannot be read"),
        ('{"template": 5}', "template: 5 is not allowed; allowed: a text with {image} and {question}"),
        ('{"template": "{image}"}', "template: '{image}' is not allowed"),
        ('{"image_delimiters": "ab"}', "image_delimiters: 'ab' is not allowed; allowed: a list of two texts"),
        ('{"lead": 7}', "lead: 7 is not allowed; allowed: a text"),
        ('{"end": []}', "end: [] is not allowed"),
        ('{"run": "x"}', "run: 'x': unknown key; allowed: template"),
    ],
)
def test_a_prompt_that_is_broken_is_named(copied: Path, prompt: str, said: str) -> None:
    (copied / checkpoints.PROMPT).write_text(prompt)
    assert said in refused(copied)


def test_a_layer_that_is_not_there_is_refused_before_loading(copied: Path, tmp_path: Path, monkeypatch) -> None:
    assert "backbones.real.layer: 4 is not allowed; allowed: 0 to 3, the decoder layers of real" in refused(copied, layer=4)
    checkpoints.point(Checkpoint("real", str(copied), dtype="float32", device_map="cpu"), tmp_path / "real")
    monkeypatch.setattr(checkpoints.AutoModelForImageTextToText, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    for asked in (pointer.fingerprint, Backbone.open):
        with pytest.raises(UserError, match="backbones.real.layer: 9 is not allowed; allowed: 0 to 3"):
            asked(tmp_path / "real", 9)
    (copied / checkpoints.PROMPT).write_text("{}")  # as an embedded backbone has it
    for asked in (pointer.fingerprint, Backbone.open):
        with pytest.raises(UserError, match="backbones.copy.layer: 4 is not allowed; allowed: 0 to 3"):
            asked(copied, 4)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"checkpoint": 5}', '{"run": 1}'])
def test_a_pointer_that_is_broken_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / pointer.POINTER).write_text(text)
    with pytest.raises(UserError, match="checkpoint.json.*`./study repro` makes it again"):
        pointer.fingerprint(tmp_path, 0)


def test_an_embedded_backbone_that_is_broken_is_one_line(copied: Path) -> None:
    (copied / checkpoints.PROMPT).write_text("{}")
    with pytest.raises(UserError, match="model.safetensors: missing; `./study repro` makes it again"):
        pointer.weights(copied.parent)
    breaks: dict[str, Callable[[Path], object]] = {
        "tokenizer.json": lambda path: path.write_text("{}"),
        "config.json": lambda path: path.write_text('{"model_type": "nothing"}'),
        checkpoints.PROMPT: lambda path: path.write_text("{"),
        "model.safetensors": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    }
    for name, broken in breaks.items():
        kept = (copied / name).read_bytes()
        broken(copied / name)
        with pytest.raises(UserError, match="`./study repro` makes it again") as caught:
            Backbone.open(copied, 2)
        assert str(copied) in str(caught.value) and "\n" not in str(caught.value), name
        (copied / name).write_bytes(kept)


def test_weights_of_another_shape_are_one_line(copied: Path, tmp_path: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    weights["language_model.model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 3)
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    checkpoints.point(Checkpoint("real", str(copied), dtype="float32", device_map="cpu"), tmp_path / "real")
    with pytest.raises(UserError) as caught:
        Backbone.open(tmp_path / "real", None)
    assert "\n" not in str(caught.value) and str(copied) in str(caught.value)


@pytest.mark.parametrize("name", ["x" * 5000, "~nobody-of-this-name/x", "./\U0001f434", "/dev/null"])
def test_a_name_that_no_folder_has_is_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^checkpoint: "):
        checkpoints.point(Checkpoint("real", name), tmp_path / "pointer")


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"BM" + b"\x00" * 60, b"GIF89a", b"\x00" * 99])
def test_a_picture_that_is_cut_is_one_line(data: bytes) -> None:
    with pytest.raises(UserError, match="image 'a': not a readable picture"):
        decode("a", data)
