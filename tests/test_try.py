"""`balancedit`: an edit is the one that the study makes, answers say where they come from, and a mistake is one line."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import balancedit
from balancedit import files
from balancedit.model import REPHRASED, REPHRASED_ALONE, Model
from stages.backbone.vlm import Backbone
from stages.editing.editors import balancedit as editor
from stages.editing.probes import Probe
from stages.editing.trunk import request_of, run_trunk
from stages.params import UserError
from tests.architectures import save_checkpoint
from tests.editors import bits

ROOT = Path(__file__).parent.parent
RED, BLACK = (Image.new("RGB", (64, 64), colour) for colour in ((200, 30, 30), (0, 0, 0)))
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
HYPER = {"lr": 0.01, "margin": 0.1}


@pytest.fixture()
def model(backbone: Backbone) -> Model:
    return Model(backbone)


def distance(backbone: Backbone, *queries: tuple[str, str]) -> list[float]:
    """How far the keys of queries lie from the first one's, by the study's trunk."""
    probes = [Probe("edit", *queries[0], "ox", ""), *(Probe("sample_black", *query, "", "") for query in queries[1:])]
    states = run_trunk(backbone, {"question": queries[0][0], "image_id": queries[0][1], "target": "ox"}, probes)
    return (states.phi["prompt"][1:] - states.key["prompt"]).norm(dim=-1).tolist()


# -- one edit ---------------------------------------------------------------------------------------------------------------


def test_an_edit_answers_and_leaves_the_weights(model: Model) -> None:
    weights, before = bits(model.backbone), model.ask(RED, "What is it?")
    assert (before.text, before.entry, before.nearest, before.distance, before.radius) == (before.before, None, None, None, None)
    entry = model.edit(RED, "What is it?", "ox", **HYPER)
    answer = model.ask(RED, "What is it?")
    assert entry.reached and model.entries == [entry]
    assert (answer.text, answer.before, answer.entry, answer.radius) == ("ox", before.text, entry, entry.radius)
    assert str(answer) == "ox" and answer.distance < 1e-4
    assert bits(model.backbone) == weights and not model.backbone.edited._forward_hooks


def test_it_is_the_edit_that_the_study_makes(model: Model) -> None:
    entry = model.edit(RED, "What is it?", "ox", **HYPER)
    model.backbone.add_pictures({"again": RED})
    row = {"question": "What is it?", "image_id": "again", "target": "ox"}
    states = run_trunk(model.backbone, row, [Probe("edit", "What is it?", "again", "ox", "")])
    expected = editor.edit(model.backbone, request_of(states, row), editor.Settings(**HYPER))
    torch.testing.assert_close(entry.key, states.key["prompt"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entry.edit.output.weight, expected.output.weight, atol=1e-4, rtol=1e-3)
    assert entry.steps == expected.steps


@pytest.mark.parametrize("rephrasing", [None, "What might it be?"])
def test_the_radius_lies_between_the_samples(model: Model, rephrasing: str | None) -> None:
    entry = model.edit(RED, "What is it?", "ox", rephrasing=rephrasing, alpha=0.25, **HYPER)
    model.backbone.add_pictures({"shown": RED, "dark": BLACK})
    positive = rephrasing or REPHRASED.format("What is it?")
    apart = distance(model.backbone, ("What is it?", "shown"), (positive, "shown"), ("What is it?", "dark"))
    assert [entry.d_plus, entry.d_minus] == pytest.approx(apart, rel=1e-4)
    assert entry.radius == pytest.approx(0.25 * apart[0] + 0.75 * apart[1], rel=1e-4)


def test_the_models_alpha_holds_where_an_edit_names_none(backbone: Backbone) -> None:
    entry = Model(backbone, alpha=1.0).edit(RED, "What is it?", "ox", **HYPER)
    assert entry.radius == entry.d_plus != entry.d_minus


def test_outside_the_radius_nothing_changes(model: Model) -> None:
    entry = model.edit(RED, "What is it?", "ox", radius=1e-3, **HYPER)
    answer = model.ask(NOISE, "Who owns it?")
    assert (answer.text, answer.entry, answer.nearest, answer.radius) == (answer.before, None, entry, 1e-3)
    assert answer.distance > 1e-3


def test_an_edit_without_a_picture(model: Model) -> None:
    entry = model.edit(None, "Who is it?", "ox", radius=1e-3, **HYPER)
    assert (model.ask(None, "Who is it?").text, model.ask(RED, "Who is it?").entry) == ("ox", None)
    apart = distance(model.backbone, ("Who is it?", None), (REPHRASED_ALONE.format("Who is it?"), None))
    assert entry.d_plus == pytest.approx(apart[0], rel=1e-4)


def test_a_picture_is_known_by_what_it_shows(model: Model, tmp_path: Path) -> None:
    RED.save(tmp_path / "red.png")
    shown = {model._show(tmp_path / "red.png"), model._show(str(tmp_path / "red.png")), model._show(RED.convert("RGBA"))}
    assert shown == {model._show(RED)} and model._show(NOISE) not in shown and model._show(None) is None


# -- several edits ----------------------------------------------------------------------------------------------------------


def test_the_nearest_key_answers_and_a_removed_edit_leaves_no_trace(model: Model) -> None:
    first = model.edit(RED, "What is it?", "ox", radius=1e6, **HYPER)
    alone = model.ask(NOISE, "Who?")
    second = model.edit(NOISE, "Who?", "he", radius=1e6, **HYPER)
    assert [model.ask(RED, "What is it?").entry, model.ask(NOISE, "Who?").entry] == [first, second]
    model.remove(second)
    assert model.entries == [first] and model.ask(NOISE, "Who?") == alone
    model.remove(first)
    assert model.ask(RED, "What is it?").entry is None
    with pytest.raises(UserError, match="no such edit; allowed: one of its 0 `entries`"):
        model.remove(first)


def test_a_fact_that_is_edited_again_has_its_newest_answer_until_that_goes(model: Model) -> None:
    old = model.edit(RED, "What is it?", "ox", **HYPER)
    new = model.edit(RED, "What is it?", "he", **HYPER)
    assert (model.ask(RED, "What is it?").text, model.ask(RED, "What is it?").entry) == ("he", new)
    model.remove(new)
    assert (model.ask(RED, "What is it?").text, model.ask(RED, "What is it?").entry) == ("ox", old)


def test_an_edit_inside_another_with_the_same_answer_goes_on_from_it(model: Model) -> None:
    first = model.edit(RED, "What is it?", "ox", radius=100.0, **HYPER)
    second = model.edit(RED, "What is this?", "ox", radius=100.0, **HYPER)
    answer = model.ask(RED, "What is this?")
    assert (answer.text, model.entries, answer.entry) == ("ox", [first, second], second)
    assert answer.radius == pytest.approx(100 + answer.distance)  # wide enough to cover what either covered
    model.remove(first)  # the second stands where it would have stood alone
    assert model.ask(RED, "What is this?").radius == 100.0


@pytest.mark.parametrize("editor", ["finetune", "lora"])
def test_an_edit_that_is_always_on(model: Model, tmp_path: Path, editor: str) -> None:
    hyper = {"rank": 4, "scale": 8.0} if editor == "lora" else {}
    before = model.ask(NOISE, "Who?").text
    entry = model.edit(RED, "What is it?", "ox", editor=editor, lr=0.01, steps=60, **hyper)
    answer = model.ask(RED, "What is it?")
    assert (answer.text, answer.entry, answer.nearest, answer.distance) == ("ox", entry, None, None)
    assert model.ask(NOISE, "Who?").entry is entry
    with pytest.raises(UserError, match=f"{editor}.*always on, and one stands already; remove it first"):
        model.edit(RED, "What is it?", "he", editor=editor)
    with pytest.raises(UserError, match="always on; allowed: edits with a key"):
        model.save(tmp_path / "edits.safetensors")
    assert not list(tmp_path.iterdir())
    model.remove(entry)
    assert model.ask(NOISE, "Who?").text == before


def test_grace_stands_behind_a_key_too(backbone: Backbone) -> None:
    model = Model(backbone, span="last")
    entry = model.edit(RED, "What is it?", "ox", editor="grace", radius=0.5, replace="all")
    assert (model.ask(RED, "What is it?").text, entry.radius) == ("ox", 0.5)
    with pytest.raises(UserError, match="editor: 'balancedit' is not allowed; allowed: grace"):
        model.edit(RED, "What is it?", "ox")


# -- mistakes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"picture": "none.png"}, "picture: 'none.png' cannot be read: No such file"),
        ({"picture": __file__}, "cannot be read: PIL knows no such picture; allowed: a picture's file, a PIL image, or None"),
        ({"picture": 3}, "picture: 'int' is not allowed"),
        ({"question": " "}, "question: ' ' is not allowed; allowed: a text of one line that is not empty"),
        ({"answer": ""}, "answer: '' is not allowed"),
        ({"rephrasing": ""}, "rephrasing: '' is not allowed"),
        ({"alpha": 2}, "alpha: 2 is not allowed; allowed: a number from 0 to 1"),
        ({"radius": -1}, "radius: -1 is not allowed; allowed: a number >= 0"),
        ({"editor": "none"}, r"editor: 'none' is not allowed; allowed: balancedit, finetune, grace, lora"),
        ({"editor": "mend"}, "the others learn from a train split first"),
        ({"lr": -1}, "balancedit.lr: -1 is not allowed; allowed: a number > 0"),
        ({"colour": 1}, "balancedit.colour: 1: unknown key; allowed: lr, steps, margin, rank"),
        ({"lr": 1e38}, "balancedit: the edit diverged"),
        ({"picture": None, "editor": "finetune", "part": "connector"}, "picture: None is not allowed; allowed: a picture"),
    ],
)
def test_a_mistake_is_one_line_and_no_edit(model: Model, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        model.edit(**{"picture": RED, "question": "What is it?", "answer": "ox"} | changes)
    assert "\n" not in str(caught.value) and not model.entries


@pytest.mark.parametrize("changes", [{"alpha": -1}, {"span": "all"}, {"distance": "far"}, {"rule": "none"}])
def test_a_model_refuses_what_does_not_exist(backbone: Backbone, changes: dict) -> None:
    with pytest.raises(UserError, match=f"{next(iter(changes))}: .* is not allowed; allowed: "):
        Model(backbone, **changes)


def test_keys_over_the_picture_need_one(backbone: Backbone) -> None:
    model = Model(backbone, span="image")
    with pytest.raises(UserError, match="span: 'image' is not allowed; allowed: prompt, question, last"):
        model.edit(None, "Who?", "ox", **HYPER)
    model.edit(RED, "Who?", "ox", **HYPER)
    assert model.ask(None, "Who?").distance is None


# -- files ------------------------------------------------------------------------------------------------------------------


def test_edits_come_back_as_they_were(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "open", lambda source, **_: Model(model.backbone))
    model.span, model.distance = "question", "cosine"
    model.edit(RED, "What is it?", "ox", alpha=0.5, **HYPER)
    model.edit(NOISE, "Who?", "he", radius=0.0, **HYPER)
    asked = [(RED, "What is it?"), (NOISE, "Who?"), (NOISE, "Who owns it?")]
    path = tmp_path / "edits.safetensors"
    model.save(path)
    again = balancedit.load(path, "tiny")
    assert (again.span, again.distance, again.rule) == ("question", "cosine", "nearest")
    assert [repr(entry) for entry in again.entries] == [repr(entry) for entry in model.entries]
    for query in asked:
        one, other = model.ask(*query), again.ask(*query)
        assert (one.text, one.before, one.distance, one.radius) == (other.text, other.before, other.distance, other.radius)
    again.remove(again.entries[0])
    assert [path.name for path in tmp_path.iterdir()] == ["edits.safetensors"]


def test_a_file_that_is_none_of_ours_is_refused(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "open", lambda source, **_: Model(model.backbone))
    model._book.save(tmp_path / "book.safetensors", model.backbone)
    with pytest.raises(UserError, match="a codebook without its questions; allowed: a file that `Model.save` wrote"):
        balancedit.load(tmp_path / "book.safetensors", "tiny")
    with pytest.raises(UserError, match="not a readable codebook"):
        balancedit.load(tmp_path / "none.safetensors", "tiny")


def test_what_can_be_opened() -> None:
    with pytest.raises(UserError, match="backbone: 'llava' is not allowed; allowed: llava-smollm2, blip2-smollm2, a checkp"):
        balancedit.open("llava")
    with pytest.raises(UserError, match="open: 'dtype' is not allowed; allowed: layer, alpha, span, distance, rule"):
        balancedit.open("llava-smollm2", dtype="float16")


def test_a_backbone_that_is_not_assembled_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    monkeypatch.setattr(files, "ROOT", tmp_path)
    with pytest.raises(UserError, match="llava-smollm2 holds no checkpoint; run the `backbone` stage first"):
        balancedit.open("llava-smollm2")
    assert files.chosen_alpha("llava-smollm2") == 0.5


def test_the_alpha_is_the_one_that_the_study_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reports/ablations").mkdir(parents=True)
    summary = {"okedit": {"llava-smollm2": {"balancedit": {"best_alpha_on_dev": 0.1}}}}
    (tmp_path / "reports/ablations/summary.json").write_text(json.dumps(summary))
    monkeypatch.setattr(files, "ROOT", tmp_path)
    assert [files.chosen_alpha(name) for name in ("llava-smollm2", "blip2-smollm2")] == [0.1, 0.5]


def test_a_checkpoints_folder_is_opened_and_edited(words, tmp_path: Path) -> None:
    folder = save_checkpoint("llava", words, tmp_path / "saved")
    (folder / "prompt.json").write_text(json.dumps({"template": "{image}Q: {question} A:"}))  # a checkpoint may have one too
    model = balancedit.open(folder, dtype="float32", device_map="cpu", layer=2)
    model.edit(RED, "What is it?", "ox", **HYPER)
    assert model.alpha == 0.5 and model.backbone.layer == 2 and model.ask(RED, "What is it?").text == "ox"
    assert model.backbone.adapter.process is not None and model.backbone.adapter.template == "{image}Q: {question} A:"


def test_what_is_installed_is_what_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {line.split()[0] for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"}
    assert project["name"] == "balancedit-study" and set(project["dependencies"]) <= pinned
