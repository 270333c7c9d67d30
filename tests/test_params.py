"""params.yaml is read into typed values; a mistake in it is one line with key, value and what is allowed."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from stages.params import UserError, derive_seed, load, run, write_atomically
from stages.sections import count, entry
from stages.settings import Edits, Place

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")


@pytest.fixture
def stages(tmp_path):
    """A stages folder with the modules that the committed params.yaml names, and some that serve them."""
    editors = {method["editor"] for method in YAML(typ="safe").load(TEXT)["methods"].values()}
    modules = [*(f"editing/editors/{editor}" for editor in sorted(editors)), "editing/editors/__init__", "editing/codebook"]
    modules += ["okedit/sources/embedded", "okedit/sources/evqa", "scoring/scopes/ball", "scoring/scopes/two_keys"]
    modules += ["backbone/families/llava_smollm2", "backbone/families/blip2_smollm2"]
    for module in modules:
        path = tmp_path / "stages" / f"{module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        own = "ROUTES = True\n" if path.stem in ("serac", "wise") else ""
        path.write_text(f"\nclass Settings: ...\n{own}" if path.stem in editors else "\n")
    return tmp_path / "stages"


def load_text(text, stages):
    path = stages.parent / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return load(path, stages)


def load_with(stages, *keys, value):
    """The committed file with one key set to `value`."""
    raw = YAML(typ="safe").load(TEXT)
    section = raw
    for key in keys[:-1]:
        section = section[key]
    section[keys[-1]] = value
    path = stages.parent / "params.yaml"
    YAML().dump(raw, path)
    return load(path, stages)


def test_the_committed_file_is_read_into_types(stages):
    params = load_text(TEXT, stages)
    assert params.method("ft").hyper["lr"] == [3e-5, 1e-4, 3e-4, 1e-3]  # YAML 1.1 would read 1e-3 as text
    assert params.backbone("llava-smollm2").layer == 27
    assert params.dataset("okedit").test == 150 and params.edits == Edits(100, 30, 300, params.edits.probes)
    assert params.edits.probes["image_generality"] == 6
    assert params.seeds == {"s0": 0, "s1": 1, "s2": 2} and params.device == "cpu"


def test_a_checkpoint_needs_its_name_alone(stages):
    real = load_with(stages, "backbones", "real", value={"checkpoint": "owner/name"}).backbone("real")
    assert (real.revision, real.dtype, real.device_map, real.quantization) == ("main", "bfloat16", "auto", "none")
    assert (real.template, real.layer) == (None, None)
    raw = {"checkpoint": "/models/x", "template": "Q: {question} {image} A:", "layer": 3}
    real = load_with(stages, "backbones", "real", value=raw).backbone("real")
    assert (real.template, real.layer) == (raw["template"], 3)


def test_a_method_overrides_only_the_entries_it_has(stages):
    params = load_text(TEXT.replace("distance: euclidean", "distance: cosine"), stages)
    grace, balancedit = params.method("grace"), params.method("balancedit")
    assert (grace.key.span, grace.radius.strategy, grace.radius.distance) == ("last", "constant", "cosine")
    assert (balancedit.key, balancedit.radius) == (params.key, params.radius)
    wise, ft = (load_with(stages, "methods", "wise", "sequence", value={"shared": 7}).method(name) for name in ("wise", "ft"))
    assert wise.sequence == replace(ft.sequence, shared=7) and "sequence" not in wise.hyper


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (("radius", "alpha"), 1.5, ("radius.alpha", "1.5", "from 0 to 1")),
        (("radius", "alpha"), float("nan"), ("radius.alpha", "nan", "from 0 to 1")),
        (("radius", "alpha"), "best", ("radius.alpha", "'best'", "or dev")),
        (("radius", "epsilon"), "best", ("radius.epsilon", "'best'", "> 0 or dev")),
        (("methods", "wise", "threshold"), "best", ("methods.wise.threshold", "'best'", "a number or dev")),
        (("methods", "wise", "published"), "dev", ("methods.wise.published", "'dev'", "a number")),
        (("workers",), 0, ("workers", "0", "from 1 to 1024")),
        (("edits", "probes"), {"near": 5}, ("edits.probes.near", "5", "unknown key", "near_image")),
        (("edits", "probes"), {"near_image": 0}, ("edits.probes.near_image", "0", "a whole number >= 1")),
        (("edits", "probes"), 5, ("edits.probes", "5", "a section")),
        (("edits", "dev"), 0, ("methods.serac.threshold", "'dev' needs dev edits of okedit", "a number")),
        (("radius", "alpha"), True, ("radius.alpha", "True", "a number")),
        (
            ("radius", "strategy"),
            "best",
            ("radius.strategy", "'best'", "balanced, constant, positive, negative"),
        ),
        (("radius", "epsilon"), 0, ("radius.epsilon", "0", "> 0")),
        (("radius", "positives"), 2.0, ("radius.positives", "2.0", "a whole number from 1 to 3")),
        (("radius", "negative"), None, ("radius.negative", "None", "black, white")),
        (("radius", "negative"), ["black", "grey"], ("radius.negative", "['black', 'grey']", "a list of different ones")),
        (("radius", "negative"), ["black", "black"], ("radius.negative", "['black', 'black']", "a list of different ones")),
        (("radius", "alfa"), 0.1, ("radius.alfa", "0.1", "strategy, alpha")),
        (("radius",), 0.5, ("radius", "0.5", "key: value")),
        (
            ("key", "span"),
            "answer",
            ("key.span", "'answer'", "prompt, question, image, last, teacher_forced"),
        ),
        (("seed",), -1, ("seed", "-1", "from 0")),
        (("speed",), 3, ("speed", "3", "seed, threads")),
        (("metrics", "level"), 95, ("metrics.level", "95", "from 0.5 to 0.999")),
        (("backbones", "llava-smollm2", "layer"), -1, ("backbones.llava-smollm2.layer", "-1", ">= 0")),
        (("backbones", "llava-smollm2", "training"), "opt", ("smollm2.training", "'opt'", "llava-more, llava-facts, blip2")),
        (("backbones", "llava-smollm2"), {"layer": 2}, ("backbones.llava-smollm2", "training", "checkpoint")),
        (("backbones", "real"), {"checkpoint": 7}, ("backbones.real.checkpoint", "7", "a text")),
        (("backbones", "real"), {"checkpoint": "a/b", "revision": 123}, ("backbones.real.revision", "123", "a text")),
        (("backbones", "real"), {"checkpoint": "a/b", "dtype": "int8"}, ("real.dtype", "'int8'", "float32, bfloat16, float16")),
        (("backbones", "real"), {"checkpoint": "a/b", "device_map": "gpu"}, ("real.device_map", "'gpu'", "auto, cpu, cuda")),
        (("backbones", "real"), {"checkpoint": "a/b", "quantization": "4bit"}, ("quantization", "'4bit'", "none, 8bit")),
        (("backbones", "real"), {"checkpoint": "a/b", "template": "{image}?"}, ("real.template", "'{image}?'", "{question}")),
        (("backbones", "real"), {"checkpoint": "a/b", "training": "x"}, ("real.training", "'x'", "checkpoint, revision, dtype")),
        (("training", "llava-smollm2", "family"), "opt", ("training.llava-smollm2.family", "'opt'", "llava_smollm2")),
        (("training", "llava-smollm2", "sampling"), "name", ("llava-smollm2.sampling", "'name'", "concept, fact")),
        (("training", "llava-smollm2", "lr"), "fast", ("training.llava-smollm2.lr", "'fast'", "a number > 0")),
        (
            ("training", "llava-smollm2", "init_from"),
            "blip2-smollm2",
            ("llava-smollm2.init_from", "'blip2-smollm2'", "allowed: tower"),
        ),
        (
            ("training", "blip2-smollm2", "init_from"),
            "itself",
            ("smollm2.init_from", "'itself'", "tower, llava-smollm2, llava-more, llava-facts"),
        ),
        (("training", "blip2-smollm2", "lora_rank"), 4, ("blip2-smollm2.lora_rank", "4", "16, that of llava-smollm2")),
        (("edited",), ["opt"], ("edited", "'opt'", "llava-smollm2, blip2-smollm2")),
        (("device",), "gpu", ("device", "'gpu'", "cpu, cuda")),
        (("sequence", "datasets"), ["okvqa"], ("sequence.datasets", "'okvqa'", "okedit, evqa")),
        (("sequence", "backbones"), ["opt"], ("sequence.backbones", "'opt'", "llava-smollm2, blip2-smollm2")),
        (("sequence", "methods"), ["rome"], ("sequence.methods", "'rome'", "base, ft, ft_published, ft_l")),
        (("edited",), [], ("edited", "[]", "a list of different texts")),
        (("datasets", "okedit", "source"), "web", ("datasets.okedit.source", "'web'", "embedded")),
        (("datasets", "ok-edit"), {}, ("datasets", "'ok-edit'", "lower-case letters, digits, _")),
        (("datasets",), {}, ("datasets", "{}", "at least one")),
        (("methods", "ft", "editor"), "codebook", ("methods.ft.editor", "'codebook'", "balancedit, base")),
        (("methods", "ft", "router"), "maybe", ("methods.ft.router", "'maybe'", "never, always, codebook, builtin, oracle")),
        (
            ("methods", "grace", "radius", "alpha"),
            -0.1,
            ("methods.grace.radius.alpha", "-0.1", "from 0 to 1"),
        ),
        (("methods", "grace", "key"), None, ("methods.grace.key", "None", "key: value")),
        (("methods", "wise", "sequence"), 50, ("methods.wise.sequence", "50", "key: value")),
        (("methods", "wise", "sequence"), {"orders": 1}, ("methods.wise.sequence.orders", "1", "shared")),
        (("seeds", "s0"), "zero", ("seeds.s0", "'zero'", "a whole number")),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_what_is_allowed(stages, keys, value, words):
    with pytest.raises(UserError) as caught:
        load_with(stages, *keys, value=value)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_the_number_of_a_scope_is_its_routers(stages):
    """α of a balanced radius, ε of a constant one, the threshold of an editor's own router; others have none."""
    params = load_text(TEXT, stages)
    found = {name: (params.method(name).number, params.method(name).number_value) for name in params.methods}
    assert found["balancedit"] == ("alpha", "dev") and found["balancedit_published"] == ("alpha", 0.5)
    assert found["grace"] == ("epsilon", "dev") and found["grace_published"] == ("epsilon", 1.0)
    assert found["wise"] == ("threshold", "dev") and found["wise_published"] == ("threshold", 0.88)
    assert found["base"] == found["ft"] == (None, None)
    assert (params.method("wise").published, params.method("grace").published, params.method("ft").published) == (0.88, 1.0, None)
    positive = load_with(stages, "radius", "strategy", value="positive").method("balancedit")
    assert (positive.number, positive.number_value) == (None, None)


def test_rollouts_are_shorter_but_for_the_first_pair(stages):
    sequence = replace(load_text(TEXT, stages).sequence, datasets=("a", "b"), backbones=("x", "y"), shared=300, orders=3)
    sequence = replace(sequence, shared_elsewhere=100, orders_elsewhere=2)
    found = {place: sequence.rollouts(*place) for place in (("a", "x"), ("a", "y"), ("b", "x"))}
    assert found == {("a", "x"): (300, 3), ("a", "y"): (100, 2), ("b", "x"): (100, 2)}
    assert replace(sequence, shared=50, orders=1).rollouts("b", "y") == (50, 1)


@pytest.mark.parametrize(
    ("name", "keys", "words"),
    [
        ("wise", ("threshold",), "methods.wise.threshold"),
        ("grace", ("radius", "epsilon"), "radius.epsilon"),
        ("balancedit", ("radius", "alpha"), "radius.alpha"),
    ],
)
def test_what_is_chosen_on_dev_edits_needs_some(stages, name, keys, words):
    raw = YAML(typ="safe").load(TEXT)
    raw["edits"]["dev"], raw["radius"]["alpha"], raw["sequence"]["methods"] = 0, 0.5, [name]
    raw["methods"], raw["scopes"] = {name: raw["methods"][f"{name}_published"]}, {}
    path = stages.parent / "params.yaml"
    YAML().dump(raw, path)
    load(path, stages)
    section = raw["methods"][name] if len(keys) == 1 else raw["methods"][name].setdefault("radius", {})
    section[keys[-1]] = "dev"
    YAML().dump(raw, path)
    with pytest.raises(UserError, match=f"^{words}: 'dev' needs dev edits of okedit, evqa; allowed: a number"):
        load(path, stages)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 0\n", "threads: missing"),
        (TEXT.replace("  alpha: dev\n", ""), "radius.alpha: missing"),
        (TEXT + "seed: 1\n", "seed"),
        (TEXT.replace("seed: 0", "seed: ["), "not valid YAML"),
        ("", "None"),
        ("- 1\n", "[1]"),
    ],
)
def test_a_file_that_is_no_complete_yaml_mapping_is_refused(stages, text, words):
    with pytest.raises(UserError, match=re.escape(words)):
        load_text(text, stages)


def test_a_missing_or_unreadable_file_is_refused(stages, tmp_path):
    with pytest.raises(UserError, match="No such file"):
        load(tmp_path / "none.yaml", stages)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "bytes.yaml", stages)


def test_what_only_a_source_knows_is_read_by_the_source(stages):
    @dataclass(frozen=True)
    class Settings:
        images: int = entry(count(1))

    dataset = load_with(stages, "datasets", "okedit", "images", value=0).dataset("okedit")
    assert dataset.own == {"images": 0} and dataset.near == 5
    with pytest.raises(UserError, match=r"datasets\.okedit\.images: 0 is not allowed; allowed: a whole number >= 1"):
        dataset.settings(Settings)
    dataset = load_with(stages, "datasets", "okedit", "nera", value=3).dataset("okedit")
    with pytest.raises(UserError, match=r"datasets\.okedit\.nera: 3: unknown key; allowed: source, .*near, .*images"):
        dataset.settings(Settings)


def test_a_new_editor_is_a_new_file_and_a_missing_folder_allows_nothing(stages, tmp_path):
    (stages / "editing/editors/newest.py").write_text("\nclass Settings: ...\n")
    assert load_with(stages, "methods", "ft", "editor", value="newest").method("ft").editor == "newest"
    with pytest.raises(UserError, match="no module in stages/"):
        load(tmp_path / "params.yaml", tmp_path / "nowhere")


@pytest.mark.parametrize("axis", ["dataset", "backbone", "method"])
def test_an_unknown_name_on_the_command_line_lists_the_known_ones(stages, axis):
    params = load_text(TEXT, stages)
    with pytest.raises(UserError, match=f"^{axis}: 'x' is not allowed; allowed: [a-z]"):
        getattr(params, axis)("x")


def test_every_key_of_the_committed_file_has_a_comment():
    """By a comment right above it or above another of its name, or by one that lists the keys of all entries of its section."""
    lines = TEXT.splitlines()
    listed = set()
    for line in lines:
        if match := re.match(r"#   ([a-z_, ]+):", line):
            listed.update(match[1].split(", "))
    found = ((i, re.match(r"\s*([a-z0-9_-]+):", line)) for i, line in enumerate(lines))
    keys = [(i, match[1]) for i, match in found if match]
    listed.update(key for i, key in keys if lines[i - 1].lstrip().startswith("#"))
    bare = [key for _, key in keys if key not in listed]
    inherited = {"span", "strategy", "epsilon"}  # GRACE's own entries of the sections key and radius
    bare = [key for key in bare if not key.endswith("_published")]  # the comment of the methods says what these are
    assert len(keys) > 40
    # A seed's name documents itself under the comment of its section.
    assert [key for key in bare if key not in inherited] == ["s0", "s1", "s2"]


@given(st.integers(0, 2**32 - 1), st.lists(st.text(), max_size=4))
def test_a_seed_has_32_bits_and_depends_on_every_name(root, names):
    seed = derive_seed(root, *names)
    assert 0 <= seed < 2**32
    assert seed == derive_seed(root, *names)
    assert seed != derive_seed(root, *names, "more")


def test_a_seed_is_the_same_on_every_machine():
    assert derive_seed(0, "a") == 1244231897
    assert derive_seed(0, "a", "b") != derive_seed(0, "ab")


def test_write_atomically_replaces_only_on_success(tmp_path):
    path = tmp_path / "new" / "file.csv"
    with write_atomically(path) as temporary:
        temporary.write_text("one")
        assert temporary.suffix == ".csv"
        assert not path.exists()
    with pytest.raises(RuntimeError), write_atomically(path) as temporary:
        temporary.write_text("two")
        raise RuntimeError
    assert path.read_text() == "one"
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="No space left on device"), write_atomically(tmp_path / "file"):
        raise OSError(28, os.strerror(28))
    assert list(tmp_path.iterdir()) == []


def run_script(text):
    return subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_run_prints_one_line_and_exits_2():
    script = "from stages.params import *\ndef main(): raise UserError('a: 1\\nis wrong')\nrun(main)"
    done = run_script(script)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: a: 1 is wrong\n")


def test_run_ends_an_interrupt_in_one_line_and_130():
    heeded = "import os, signal\nsignal.signal(2, signal.default_int_handler)\n"  # a background job ignores it
    done = run_script(heeded + "from stages.params import run\nrun(lambda: os.kill(os.getpid(), 2))")
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_an_error_of_the_program_itself_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)


def test_a_scope_has_anothers_edits(stages: Path) -> None:
    entry = {"edits": "balancedit", "scope": "two_keys", "radius": {"alpha": 0.25}}
    params = load_with(stages, "scopes", value={"mine": entry})
    mine, base = params.method("mine"), params.method("balancedit")
    assert (mine.made_as, mine.scope, mine.radius.alpha, mine.hyper) == ("balancedit", "two_keys", 0.25, base.hyper)
    assert (base.made_as, base.scope) == ("balancedit", "ball") and "mine" not in params.methods and "mine" in params.compared
    assert params.is_ours(base) and not params.is_ours(mine)
    assert load_with(stages, "scopes", value={}).scopes == {}


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"scope": "two_keys"}, "scopes.mine.edits: missing"),
        ({"edits": "rome"}, "scopes.mine.edits: 'rome' is not allowed"),
        ({"edits": "ft"}, "scopes.mine.edits: 'ft' is not allowed; allowed: grace"),
        ({"edits": "grace", "scope": "three_keys"}, "scopes.mine.scope: 'three_keys' is not allowed; allowed: ball"),
        ({"edits": "grace", "lr": 1.0}, "scopes.mine.lr: 1.0: unknown key; allowed: edits, key"),
    ],
)
def test_a_scope_that_cannot_be_is_refused(stages: Path, entry: dict, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        load_with(stages, "scopes", value={"mine": entry})


def test_keys_are_read_and_named(stages: Path) -> None:
    keys = {"shown": {"where": "connector", "span": "image"}, "deep": {"where": 3, "span": "last"}}
    params = load_with(stages, "keys", value=keys)
    assert params.keys == {"shown": Place("connector", "image"), "deep": Place(3, "last")}
    with pytest.raises(UserError, match="keys.x.where: 'above' is not allowed; allowed: a whole number >= 0 or connector"):
        load_with(stages, "keys", value={"x": {"where": "above", "span": "image"}})
    with pytest.raises(UserError, match="keys: the name: 'prompt' is not allowed"):
        load_with(stages, "keys", value={"prompt": {"where": 3, "span": "last"}})
    with pytest.raises(
        UserError, match="key.span: 'shown' is not allowed; allowed: prompt, question, image, last, teacher_forced"
    ):
        load_with(stages, "key", "span", value="shown")
