"""Editors and traces: edits succeed and restore, outcomes and distances by hand, resumption."""

import contextlib
import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from stages.backbone.vlm import Query
from stages.editing import chunked_loss, trace
from stages.editing.cell import decode_shown
from stages.editing.editors import load_editor, module_of
from stages.editing.edits import Edit, differences
from stages.editing.optimise import Remembered, leads_by, remembering
from stages.editing.probes import GENERALITY, Probe, probes_of
from stages.editing.resume import Records
from stages.editing.transform import Layer, replaced
from stages.editing.trunk import ANSWER_LIMIT, Candidates, request_of, run_trunk
from stages.editing.trunk_cache import TrunkCache
from stages.okedit.schema import encode
from stages.params import UserError, load
from stages.settings import Method, Place
from tests.editors import ONE_MAP, bits, settings_of
from tests.rows import ROW, SAMPLES

ROOT = Path(__file__).parent.parent


def test_probes_are_the_rows_queries(probes: list[Probe]) -> None:
    kinds = [p.kind for p in probes]
    assert kinds == [
        "edit", *["text_generality"] * 2, *["image_generality"] * 2, "joint_generality", "other_question", "no_image", "hop1",
        "black_image", "sample_positive", "sample_black",
    ]  # fmt: skip
    assert {p.expected for p in probes[:6]} == {"ox"}
    assert (probes[8].expected, probes[8].truth) == ("b", "a")


def test_a_study_asks_the_first_probes_of_each_kind() -> None:
    own = {"rephrasings": [f"q{i}" for i in range(6)], "generality_image_ids": [f"i{i}" for i in range(6)]}
    far = [{"kind": "far_image", "image_id": f"f{i}", "question": "What?", "answer": ""} for i in range(3)]
    row = ROW | own | {"locality": far + ROW["locality"]}
    counts = {"text_generality": 2, "image_generality": 3, "joint_generality": 2, "far_image": 1}
    found = [(p.kind, p.question, p.image_id) for p in probes_of(row, SAMPLES, counts)]
    whole = [(p.kind, p.question, p.image_id) for p in probes_of(row, SAMPLES)]
    assert [one for one in whole if one[0] not in counts] == [one for one in found if one[0] not in counts]
    assert [one[1:] for one in found if one[0] == "text_generality"] == [("q0", "red"), ("q1", "red")]
    assert [one[1:] for one in found if one[0] == "joint_generality"] == [("q0", "i0"), ("q2", "i2")]
    assert [one[2] for one in found if one[0] in ("image_generality", "far_image")] == ["i0", "i1", "i2", "f0"]
    assert probes_of(row, SAMPLES, {"far_image": 9}) == probes_of(row, SAMPLES)


@pytest.mark.parametrize("name", sorted(ONE_MAP))
def test_an_edit_reaches_its_target_and_leaves_every_weight(backbone, probes, states, name: str) -> None:
    before = bits(backbone)
    edit = load_editor(name)(backbone, request_of(states, ROW), settings_of(name))
    rows = trace.trace_edit(backbone, ROW, probes, states, edit)
    assert edit.reached
    assert rows[0]["target_on"] and not rows[0]["target_off"]
    assert bits(backbone) == before


@pytest.mark.parametrize("name", ["balancedit", "finetune"])
def test_the_edited_layer_attends_once_and_all_steps_are_the_same(backbone, states, monkeypatch, name: str) -> None:
    attention, calls = backbone.decoder.layers[backbone.layer].self_attn, []
    attention.register_forward_hook(lambda *_: calls.append(1))
    request = request_of(states, ROW)
    once = load_editor(name)(backbone, request, settings_of(name))
    assert len(calls) == 1 and backbone.decoder.layers[backbone.layer].self_attn is attention
    monkeypatch.setattr("stages.editing.optimise.remembering", lambda *_: contextlib.nullcontext())
    always = load_editor(name)(backbone, request, settings_of(name))
    assert len(calls) == 2 + always.steps and (once.steps, once.loss) == (always.steps, always.loss)
    weights = [next(iter(edit.added.values())).delta if edit.added else edit.output.weight for edit in (once, always)]
    assert torch.equal(*weights)


def test_attention_that_the_edit_changes_runs_every_time(backbone, states) -> None:
    layer, below = backbone.decoder.layers[backbone.layer], backbone.decoder.layers[backbone.layer - 1]
    for part in (layer.self_attn.q_proj, below.mlp.up_proj):
        with remembering(backbone, Edit(added=differences([part], [torch.zeros_like(part.weight)]))):
            assert not isinstance(layer.self_attn, Remembered)


def test_a_low_rank_is_doubled_until_the_target_is_exact(backbone, probes, states) -> None:
    request = request_of(states, ROW)
    edit = load_editor("balancedit")(backbone, request, settings_of("balancedit", rank=1))
    assert edit.output.a.shape[0] in (1, 2, 4, 8, 16) and edit.reached
    assert trace.trace_edit(backbone, ROW, probes, states, edit)[0]["target_on"]
    whole = load_editor("balancedit")(backbone, request, settings_of("balancedit", rank=32))
    assert isinstance(whole.output, Layer)  # of full rank there is nothing to spare


@pytest.mark.parametrize("name", sorted(ONE_MAP))
def test_the_trace_says_what_generation_with_the_edit_gives(backbone, probes, states, name: str) -> None:
    """Teacher forcing of a candidate agrees with decoding token by token while the edit stays applied."""
    edit = load_editor(name)(backbone, request_of(states, ROW), settings_of(name))
    rows = trace.trace_edit(backbone, ROW, probes, states, edit)
    for probe, row in zip(probes, rows, strict=True):
        if probe.is_sample:
            continue
        prompts = backbone.prompts([Query(probe.question, probe.image_id)])
        trunk = backbone.prefill(prompts)
        said: list[int] = []
        while len(said) < ANSWER_LIMIT and (not said or said[-1] != backbone.end):
            if said:
                more, _, _ = backbone.extend(trunk, torch.tensor([said]))
                hidden = torch.cat([trunk.hidden, more], 1)
            else:
                hidden = trunk.hidden
            mask = torch.cat([prompts.mask, torch.ones(1, len(said), dtype=torch.bool)], 1)
            with torch.no_grad(), edit.applied(backbone, prompts.mask):
                said.append(int(backbone.head(backbone.tail(hidden, mask, prompts.positions, 1))[0, -1].argmax()))
        text = backbone.decode(said)
        assert row["same_on"] == (text == row["answer_off"])
        if probe.kind in GENERALITY:
            assert row["target_on"] == (text == ROW["target"] and said[-1] == backbone.end)


def test_no_edit_changes_nothing(backbone, probes, states) -> None:
    rows = trace.trace_edit(backbone, ROW, probes, states, Edit(None))[: len(states.answers)]
    assert all(r["same_on"] and r["target_on"] == r["target_off"] and r["tf_on"] == r["tf_off"] for r in rows)
    assert all(r["top10_on"] == 1 for r in rows if r["kind"] in ("other_question", "no_image", "black_image"))


def test_distances_by_hand() -> None:
    phi = torch.tensor([[3.0, 4.0], [3.0, 4.0], [0.0, 0.0], [-4.0, 3.0]])
    found = trace.distances_to_key({"prompt": phi}, {"prompt": phi[0]})
    assert found["euclidean_prompt"].tolist() == pytest.approx([0, 0, 5, 50**0.5])
    assert found["cosine_prompt"].tolist() == pytest.approx([0, 0, 1, 1], abs=1e-6)


def test_the_key_never_sees_the_answer(backbone, probes) -> None:
    """Distances of every span but `teacher_forced` are the same whatever the target is."""
    one, other = (run_trunk(backbone, ROW | {"target": t}, probes) for t in ("ox", "a long cow"))
    for span in ("prompt", "question", "image", "last"):
        torch.testing.assert_close(one.phi[span], other.phi[span], atol=0, rtol=0, equal_nan=True)


def test_keys_are_read_where_params_say(backbone, probes) -> None:
    """The connector's is the mean of the picture's tokens; the edited layer's own is the span's."""
    keys = {"shown": Place("connector", "image"), "deep": Place(0, "question"), "same": Place(backbone.layer, "last")}
    states, plain = run_trunk(backbone, ROW, probes, keys), run_trunk(backbone, ROW, probes)
    assert states.phi.keys() - plain.phi.keys() == keys.keys() and torch.equal(states.hidden, plain.hidden)
    torch.testing.assert_close(states.phi["same"], plain.phi["last"], atol=0, rtol=0)
    (picture,), seen = backbone.image_features([probes[0].query]), []
    torch.testing.assert_close(states.phi["shown"][0], picture.features.mean(0))
    assert all(states.phi["shown"][i].isnan().all() for i, probe in enumerate(probes) if probe.image_id is None)
    hook = backbone.linear(0).register_forward_pre_hook(lambda _map, args: seen.append(args[0][0]))
    prompts = backbone.prompts([probes[0].query])
    backbone.prefill(prompts)
    hook.remove()
    torch.testing.assert_close(states.phi["deep"][0], seen[0][prompts.spans["question"][0]].mean(0), atol=1e-5, rtol=1e-5)


def test_a_pictures_tokens_do_not_depend_on_its_company(backbone) -> None:
    """An interrupted run shows other pictures together than a whole one does."""
    (alone,) = backbone.image_features([Query("What?", "red")])
    with backbone.bypassing_image_cache():
        together = backbone.image_features([Query("What?", "noise"), Query("What?", "red")])
    assert torch.equal(alone.features, together[1].features)


def test_accuracy_by_hand() -> None:
    ids, real = torch.tensor([[5, 6, 0], [7, 0, 0]]), torch.tensor([[True, True, True], [True, True, False]])
    candidates = Candidates(ids, real, ids, ids)
    said = torch.tensor([[5, 9, 0], [7, 1, 1]])
    assert trace.accuracy(said, ids, candidates, end=0).tolist() == [0.5, 1.0]
    assert trace.exact(said, candidates).tolist() == [False, False]
    assert trace.exact(torch.tensor([[5, 6, 0], [7, 0, 3]]), candidates).tolist() == [True, True]


def test_margin_by_hand() -> None:
    stop = leads_by(0.5)
    assert stop(0.5, 9.0) and not stop(0.4, 0.0)


@given(
    st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(2, 3 * chunked_loss.BLOCK), st.booleans(), st.sampled_from([1, 40])
)
def test_one_pass_over_the_vocabulary_is_cross_entropy(seed: int, tokens: int, size: int, biased: bool, scale: float) -> None:
    torch.manual_seed(seed)
    head, states = nn.Linear(8, size, bias=biased), (torch.randn(tokens, 8) * scale).requires_grad_()
    target = torch.randint(size, (tokens,))
    losses, logits = chunked_loss.target_losses(head, states, target)
    loss = losses.mean()
    expected = F.cross_entropy(head(states), target)
    (gradient,), (wanted,) = (torch.autograd.grad(2 * one, [states]) for one in (loss, expected))
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits, head(states).detach())
    assert not logits.requires_grad


def test_logits_that_are_bent_are_so_in_the_loss() -> None:
    """Gemma 2's: within 2 of 0, and cross-entropy and its gradient are those of what comes out."""
    torch.manual_seed(0)
    head, states = nn.Linear(8, 50, bias=False), (10 * torch.randn(3, 8)).requires_grad_()
    target = torch.tensor([1, 2, 49])
    losses, logits = chunked_loss.target_losses(head, states, target, cap=2.0)
    bent = 2 * (head(states) / 2).tanh()
    expected = F.cross_entropy(bent, target, reduction="none")
    torch.testing.assert_close((losses, logits), (expected, bent.detach()))
    assert logits.abs().max() <= 2 and not logits.requires_grad
    torch.testing.assert_close(*(torch.autograd.grad(one.sum(), [states]) for one in (losses, expected)))


def test_one_pass_over_a_vocabulary_in_bfloat16() -> None:
    torch.manual_seed(0)
    head, states = nn.Linear(16, 5000, bias=False).bfloat16(), torch.randn(2, 16, requires_grad=True)
    losses, logits = chunked_loss.target_losses(head, states, torch.tensor([3, 4999]))
    loss = losses.mean()
    expected = F.cross_entropy(head.float()(states), torch.tensor([3, 4999]))
    (gradient,), (wanted,) = (torch.autograd.grad(one, [states]) for one in (loss, expected))
    assert logits.dtype == gradient.dtype == torch.float32
    torch.testing.assert_close(loss, expected, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(gradient, wanted, atol=1e-2, rtol=5e-2)


def test_grace_replaces_where_it_says() -> None:
    prompt = torch.tensor([[False, True, True]])
    inputs = torch.zeros(1, 5, 2)
    assert replaced(inputs, prompt, "last").tolist() == [[False, False, True, False, False]]
    assert replaced(inputs, prompt, "prompt").tolist() == [[False, True, True, False, False]]
    assert replaced(inputs, prompt, "all").all()


def test_a_loss_that_is_not_finite_is_an_error(backbone, states) -> None:
    request = request_of(states, ROW)
    broken = replace(request, hidden=request.hidden * float("nan"))
    edit = load_editor("balancedit")(backbone, broken, settings_of("balancedit"))
    assert edit.diverged and edit.changes_nothing and np.isnan(edit.loss)


def test_the_trunk_is_computed_once(backbone, probes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cache(**changed: str) -> TrunkCache:
        return TrunkCache(backbone, {"red": "r", "noise": "n"} | changed, tmp_path / "tiny", 2**30)

    first = cache().states(ROW, probes)
    monkeypatch.setattr("stages.editing.trunk_cache.run_trunk", lambda *_: pytest.fail("ran the trunk again"))
    again = cache().states(ROW, probes)
    for name in ("hidden", "fed", "mask", "branches", "positions"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert first.answers == again.answers
    with pytest.raises(pytest.fail.Exception):
        cache(red="another picture").states(ROW, probes)


def test_pictures_are_checked_before_any_edit(probes) -> None:
    whole = encode(Image.new("RGB", (4, 4)))
    assert set(decode_shown({"one": probes}, {"red": whole, "noise": whole})) == {"red", "noise"}
    with pytest.raises(UserError, match="one: image 'noise' is missing"):
        decode_shown({"one": probes}, {"red": whole})
    with pytest.raises(UserError, match="image 'noise': not a readable picture"):
        decode_shown({"one": probes}, {"red": whole, "noise": whole[:40]})


def test_interrupted_work_resumes_and_other_inputs_do_not(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Records(tmp_path / "cell", "inputs") as partial:
        partial["0-a"] = [{"x": 1.5}]
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), Records(tmp_path / "cell", "inputs") as partial:
        assert "0-a" in partial and partial["0-a"] == [{"x": 1.5}]
        raise KeyboardInterrupt
    with Records(tmp_path / "cell", "other inputs") as partial:
        assert "0-a" not in partial
        with pytest.raises(UserError, match="another run"), Records(tmp_path / "cell", "other inputs"):
            pass
    assert not (tmp_path / "cell").exists()


def test_nan_survives_a_record() -> None:
    """Distances of spans that do not exist are NaN; records keep them."""
    assert np.isnan(json.loads(json.dumps({"d": float("nan")}))["d"])


@pytest.mark.parametrize("method", load(ROOT / "params.yaml").methods.values(), ids=lambda m: m.name)
def test_every_method_of_the_committed_file_has_settings_its_editor_knows(method: Method) -> None:
    for settings in method.grid(module_of(method.editor).Settings):
        for name, value in method.hyper.items():
            assert asdict(settings)[name] in (value if isinstance(value, list) else [value])


@pytest.mark.parametrize(
    ("hyper", "words"),
    [
        ({"step": 3}, "methods.m.step: 3: unknown key; allowed: part, layers, lr, steps, loss"),
        ({"lr": 0}, "methods.m.lr: 0 is not allowed; allowed: a number > 0"),
        ({"part": "first"}, "methods.m.part: 'first' is not allowed; allowed: layer, last, connector"),
    ],
)
def test_a_setting_that_the_editor_does_not_know_is_named(hyper: dict, words: str) -> None:
    method = replace(load(ROOT / "params.yaml").method("ft"), name="m", hyper=hyper)
    with pytest.raises(UserError, match=re.escape(words)):
        method.grid(module_of("finetune").Settings)
