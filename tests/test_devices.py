"""Models on an accelerator and in short types: no tensor meets one of another device, and edits stay exact where they must."""

from functools import partial

import pytest
import torch

from stages.backbone.adapters import adapt
from stages.backbone.vlm import Backbone
from stages.editing import trace
from stages.editing.cell import place, sums
from stages.editing.codebook import Codebook, Entry
from stages.editing.editors import load_editor
from stages.editing.fitting import Example
from stages.editing.probes import probes_of
from stages.editing.trunk import request_of, run_trunk
from tests import elsewhere
from tests.architectures import ARCHITECTURES, open_checkpoint, save_checkpoint
from tests.editors import EVERY, ONE_MAP, made, settings_of
from tests.rows import ROW, SAMPLES

pytestmark = pytest.mark.usefixtures("letters")
PROBES = probes_of(ROW, SAMPLES)


def traced(backbone: Backbone, editor: str) -> list[dict]:
    states = run_trunk(backbone, ROW, PROBES)
    edit = load_editor(editor)(backbone, request_of(states, ROW), settings_of(editor))
    return trace.trace_edit(backbone, ROW, PROBES, states, edit)


def moved(backbone: Backbone) -> Backbone:
    """The same backbone on the pretended accelerator; the one given is used up."""
    model, tokenizer, old = elsewhere.move(backbone.model), backbone.tokenizer, backbone.adapter
    prompt = {"template": old.template, "end": old.end, "image_delimiters": old.image_delimiters}
    made = Backbone(model, tokenizer, backbone.layer, backbone.fingerprint, adapt(model, tokenizer, old.process, prompt))
    made.add_pictures(backbone._images)
    return made


def test_the_stand_in_refuses_what_a_gpu_refuses() -> None:
    far, near = torch.ones(2, 3).to("cpu"), torch.ones(2, 3)
    with elsewhere.accelerator():
        far = far.to(elsewhere.DEVICE)
        for wrong in (
            lambda: far + near,
            lambda: torch.cat([far, near]),
            lambda: far @ near.T,
            lambda: far[0].where(near > 0, far),
        ):
            with pytest.raises(RuntimeError, match="CPU and elsewhere"):
                wrong()
        assert (far + torch.tensor(1.0)).sum().item() == 12  # scalars may meet
        assert far[torch.tensor([True, False])].cpu().tolist() == [[1, 1, 1]]  # indices may be on the CPU
        assert torch.arange(3, device=far.device).cpu().tolist() == [0, 1, 2]
        assert torch.tensor([2.0], device=far.device).cpu().tolist() == [2]


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_a_model_elsewhere_is_traced_as_on_the_cpu(architecture: str, words, tmp_path) -> None:
    """With the editors that stand for the rest on one architecture, and one editor on all."""
    backbone = open_checkpoint(save_checkpoint(architecture, words, tmp_path / "saved"), tmp_path)
    editors = sorted(ONE_MAP) if architecture == "llava" else ["balancedit"]
    expected, weights = {name: traced(backbone, name) for name in editors}, sums(backbone)
    backbone = moved(backbone)
    with elsewhere.accelerator():
        found = {name: traced(backbone, name) for name in editors}
        assert sums(backbone) == weights
    for name in editors:
        for here, there in zip(expected[name], found[name], strict=True):
            numbers = {key for key, value in here.items() if isinstance(value, float)}
            assert {k: there[k] for k in there.keys() - numbers} == {k: here[k] for k in here.keys() - numbers}
            for key in numbers:
                assert there[key] == pytest.approx(here[key], abs=1e-3, rel=1e-3, nan_ok=True), key


@pytest.mark.parametrize("name", EVERY)
def test_every_method_edits_elsewhere_as_on_the_cpu(name, backbone, examples, probes, states, tmp_path) -> None:
    """What it learns from train edits first, the edit itself, when it answers, and what it does to the edit's probes."""
    here = made(name, backbone, examples, states, tmp_path / "here")
    expected = trace.trace_edit(backbone, ROW, probes, states, here)
    backbone = moved(backbone)
    with elsewhere.accelerator():
        states = run_trunk(backbone, ROW, probes)
        again = [Example(e.row, e.probes, partial(run_trunk, backbone, e.row)) for e in examples]
        there = made(name, backbone, again, states, tmp_path / "there")
        found = trace.trace_edit(backbone, ROW, probes, states, there)
    assert there.loss == pytest.approx(here.loss, rel=1e-2, abs=1e-3) and there.reached == here.reached
    for one, other in zip(expected, found, strict=True):
        said = [key for key, value in one.items() if not isinstance(value, float)]
        assert [other[key] for key in said] == [one[key] for key in said]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("name", EVERY)
def test_every_method_edits_on_a_gpu_as_on_the_cpu(name, backbone, examples, probes, states, tmp_path) -> None:
    here = made(name, backbone, examples, states, tmp_path / "here")
    place(backbone.model, "cuda")
    backbone._features.clear()
    states = run_trunk(backbone, ROW, probes)
    again = [Example(e.row, e.probes, partial(run_trunk, backbone, e.row)) for e in examples]
    there = made(name, backbone, again, states, tmp_path / "there")
    assert there.reached == here.reached and there.loss == pytest.approx(here.loss, rel=0.1, abs=0.02)
    assert len(trace.trace_edit(backbone, ROW, probes, states, there)) == len(probes)


def test_a_codebook_elsewhere_answers_as_on_the_cpu(words, tmp_path) -> None:
    backbone = open_checkpoint(save_checkpoint("llava", words, tmp_path / "saved"), tmp_path)

    def answered(backbone: Backbone) -> torch.Tensor:
        states = run_trunk(backbone, ROW, PROBES)
        phi, book = states.phi["prompt"], Codebook()
        edit = load_editor("balancedit")(backbone, request_of(states, ROW), settings_of("balancedit"))
        book.add(Entry(phi[0], 1e-3, ROW["target"], edit))
        chosen = book.route(phi[: len(states.mask)])
        assert 0 in chosen and -1 in chosen
        with torch.no_grad(), book.applied(backbone, states.mask, chosen):
            return backbone.head(backbone.tail(states.hidden, states.mask, states.positions, 1)).cpu()

    expected = answered(backbone)
    backbone = moved(backbone)
    with elsewhere.accelerator():
        torch.testing.assert_close(answered(backbone), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - {"blip_2_lite"}))
def test_short_types_are_edited_in_float32(architecture: str, words, tmp_path) -> None:
    """bfloat16 states, float32 keys and master weights; every editor lowers the loss and leaves the weights as they were."""
    backbone = open_checkpoint(save_checkpoint(architecture, words, tmp_path / "saved"), tmp_path, dtype="bfloat16")
    assert backbone.edited.weight.dtype == torch.bfloat16
    weights, states = sums(backbone), run_trunk(backbone, ROW, PROBES)
    assert states.hidden.dtype == torch.bfloat16
    assert {phi.dtype for phi in states.phi.values()} == {backbone.weight.dtype} == {torch.float32}
    for name in sorted(ONE_MAP) if architecture == "llava" else ["balancedit"]:
        request = request_of(states, ROW)
        before = load_editor(name)(backbone, request, settings_of(name, steps=0))
        edit = load_editor(name)(backbone, request, settings_of(name))
        rows = trace.trace_edit(backbone, ROW, PROBES, states, edit)
        assert edit.loss < before.loss and rows[0]["target_on"] == edit.reached
    assert sums(backbone) == weights


def test_a_step_too_small_for_a_short_type_still_counts(words, tmp_path) -> None:
    """Adam's steps of 1e-4 are below half a bfloat16 step of most weights; float32 master weights take them all."""
    backbone = open_checkpoint(save_checkpoint("llava", words, tmp_path / "saved"), tmp_path, dtype="bfloat16")
    request = request_of(run_trunk(backbone, ROW, PROBES), ROW)
    settings = settings_of("balancedit", lr=1e-4, steps=1, margin=100.0)
    edit = load_editor("balancedit")(backbone, request, settings)
    identity = torch.eye(backbone.edited.in_features)[None]
    seen = edit.output(identity, identity, request.prompt)[0].T
    changed = (seen - backbone.weight).abs()
    assert changed.max() < 2e-4 and (changed > 5e-5).float().mean() > 0.9
