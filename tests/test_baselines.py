"""Baselines on cases small enough to check by hand, and what every editor owes: the backbone, restored bit for bit."""

from dataclasses import replace

import pytest
import torch

from stages.backbone.vlm import Backbone, Query
from stages.editing import full_forward, trace
from stages.editing.cell import Cell
from stages.editing.editors import ike, lora, module_of
from stages.editing.edits import Edit, differences
from stages.editing.optimise import Batch, judge, optimise
from stages.editing.plan import Plan
from stages.editing.probes import GENERALITY
from stages.editing.trunk import ANSWER_LIMIT, answer_hidden, columns_of, request_of
from stages.editing.trunk_cache import TrunkCache
from stages.params import UserError, load
from tests.editors import EVERY, SETTINGS, bits, made, plain, settings_of
from tests.rows import ROW

pytestmark = pytest.mark.usefixtures("letters")


# -- every editor -----------------------------------------------------------------------------------------------------------


def hooks(backbone) -> list[tuple[list[int], list[int]]]:
    """The hooks of every module, by their ids."""
    return [(list(m._forward_hooks), list(m._forward_pre_hooks)) for m in backbone.model.modules()]


@pytest.mark.parametrize("name", EVERY)
def test_the_backbone_is_restored_bit_for_bit(name, backbone, examples, probes, states, tmp_path) -> None:
    """By an edit, its trace, and an error while it is applied: weights, hooks, modules and remembered pictures."""
    before, parts, shown, hung = bits(backbone), list(backbone.model.modules()), dict(backbone._features), hooks(backbone)
    clean = backbone.prefill(backbone.prompts([Query("What is it?", "red")])).final
    edit = made(name, backbone, examples, states, tmp_path)
    rows = trace.trace_edit(backbone, ROW, probes, states, edit)
    assert len(rows) == len(probes) and not rows[0]["diverged"]
    with pytest.raises(RuntimeError, match="inside"), edit.applied(backbone, states.mask):
        raise RuntimeError("inside")
    assert bits(backbone) == before and list(backbone.model.modules()) == parts
    assert hooks(backbone) == hung
    assert all(torch.equal(shown[key].features, backbone._features[key].features) for key in shown)
    assert torch.equal(clean, backbone.prefill(backbone.prompts([Query("What is it?", "red")])).final)


@pytest.mark.parametrize("name", [n for n in EVERY if n not in ("base", "ike", "mend", "serac", "serac_mm", "ultraedit")])
def test_what_is_optimised_reaches_its_target(name, backbone, examples, probes, states, tmp_path) -> None:
    edit = made(name, backbone, examples, states, tmp_path)
    assert edit.reached
    assert trace.trace_edit(backbone, ROW, probes, states, edit)[0]["target_on"]


@pytest.mark.parametrize(
    "name", ["finetune-last", "lora", "finetune-connector", "ike", "serac", "wise", "ultraedit", "memoir", "alphaedit"]
)
def test_the_trace_says_what_generation_with_the_edit_gives(name, backbone, examples, probes, states, tmp_path) -> None:
    """Token by token, each through a plain full forward of one unpadded prompt while the edit is applied."""
    edit = made(name, backbone, examples, states, tmp_path)
    rows = trace.trace_edit(backbone, ROW, probes, states, edit)
    for probe, row in list(zip(probes, rows, strict=True))[:9]:
        said: list[int] = []
        while len(said) < ANSWER_LIMIT and (not said or said[-1] != backbone.end):
            said.append(int(plain(backbone, edit, probe.query, said)[-1].argmax()))
        assert row["same_on"] == (backbone.decode(said) == row["answer_off"])
        if probe.kind in GENERALITY:
            assert row["target_on"] == (backbone.decode(said) == ROW["target"] and said[-1] == backbone.end)


def test_an_edit_below_the_layer_does_not_run_from_it(backbone) -> None:
    above, below = (backbone.decoder.layers[i].mlp.up_proj for i in (backbone.layer, backbone.layer - 1))
    nothing = [torch.zeros_like(above.weight)]
    assert Edit(added=differences([above], nothing)).within_tail(backbone)
    assert not Edit(added=differences([below], nothing)).within_tail(backbone)
    assert not Edit(prefix=(1,)).within_tail(backbone)


def test_full_and_tail_agree_where_both_can_run(backbone, probes, states) -> None:
    up = backbone.decoder.layers[-1].mlp.up_proj
    edit = Edit(added=differences([up], [0.3 * torch.randn_like(up.weight)]))
    asked = [p.query for p in probes if not p.is_sample]
    again = full_forward.finals(backbone, edit, asked, states.tokens, states.branches)
    rows, real = torch.arange(len(asked)), columns_of(states.branches)
    with torch.no_grad():
        (tail,) = trace.tail_finals(backbone, [trace.Trial(ROW, probes, states, edit)], [(0, rows)])
        logits = trace.tail_logits(backbone, states, edit, states.target, rows.tolist())
    torch.testing.assert_close(again[real], tail[real], atol=1e-4, rtol=1e-4)
    places = states.target.places[..., None].expand(-1, -1, tail.shape[-1])
    told = backbone.head(tail.gather(1, places))
    torch.testing.assert_close(told[states.target.real], logits[states.target.real], atol=1e-4, rtol=1e-4)


# -- divergence ---------------------------------------------------------------------------------------------------------------


def test_a_loss_that_rises_is_divergence(backbone, states) -> None:
    """The unedited model's own answer is asked for: there is little to gain, and a step far too long loses it."""
    own = states.same.argmax[:1, : int(states.same.real[0].sum())]
    length = states.mask.shape[1] + own.shape[1] - 1
    hidden = torch.cat([states.hidden[:1], answer_hidden(states, states.same, [0])], 1)[:, :length]
    mask = torch.cat([states.mask[:1], states.same.real[:1, 1:]], 1)[:, :length]
    request = replace(request_of(states, ROW), hidden=hidden, mask=mask, target=own)
    settings = settings_of("finetune", lr=30.0, steps=1, loss=1e-9)
    assert module_of("finetune").edit(backbone, request, settings).diverged


def test_a_diverged_edit_is_the_unedited_model_and_says_so(backbone, probes, states) -> None:
    request = request_of(states, ROW)
    broken = replace(request, hidden=request.hidden * float("nan"))
    edit = module_of("balancedit").edit(backbone, broken, settings_of("balancedit"))
    assert edit.diverged and edit.changes_nothing
    up = backbone.decoder.layers[-1].mlp.up_proj
    late = Edit(added=differences([up], [torch.full_like(up.weight, float("nan"))]), steps=3)
    for found in (edit, late):
        rows = trace.trace_edit(backbone, ROW, probes, states, found)
        assert all(r["diverged"] for r in rows)
        assert all(r["same_on"] and r["target_on"] == r["target_off"] for r in rows if r["kind"][:6] != "sample")


def test_a_training_that_diverges_fails_every_edit(backbone, examples, states, tmp_path, monkeypatch, capsys) -> None:
    editor = module_of("mend")
    monkeypatch.setattr("stages.editing.cell.FITS", tmp_path)
    plan = Plan("set", "tiny", backbone.fingerprint, load().method("ft"), editor, [SETTINGS["mend"]], [], [], [], [0], {}, {}, [])
    cell = Cell(
        **vars(plan), backbone=backbone, queries={}, examples=examples, trunk=TrunkCache(backbone, {}, tmp_path, 0), batch=1
    )
    make, _ = cell.prepared(SETTINGS["mend"] | {"edit_lr": float("inf")})
    assert [edit.diverged for edit in make([request_of(states, ROW)], [settings_of("mend")])] == [True]
    assert "training diverged" in capsys.readouterr().err
    with pytest.raises(UserError, match="no train edits"):
        replace(cell, examples=[]).prepared(SETTINGS["mend"])


# -- FT-V and LoRA ------------------------------------------------------------------------------------------------------------


def test_tuning_the_connector_leaves_queries_without_a_picture(backbone, examples, probes, states, tmp_path) -> None:
    edit = made("finetune-connector", backbone, examples, states, tmp_path)
    rows = trace.trace_edit(backbone, ROW, probes, states, edit)
    assert {r["same_on"] for r in rows if r["kind"] == "no_image"} == {True}
    maps = [m for m in backbone.model.model.multi_modal_projector.modules() if isinstance(m, torch.nn.Linear)]
    assert list(edit.added) == maps and len(maps) == 2


def test_lora_by_hand() -> None:
    """r = 1: A = [1 2], B = [3 0]ᵀ, α/r = 2, x = [1 1] gives 2 · [3 0] · 3."""
    update = lora.LowRank(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [0.0]]), 2.0)
    assert update(torch.tensor([1.0, 1.0])).tolist() == [18.0, 0.0]


def test_lora_starts_as_the_unedited_model_on_every_layer(backbone, states) -> None:
    request = request_of(states, ROW)
    edit = lora.edit(backbone, request, settings_of("lora", steps=0))
    assert len(edit.added) == 2 * len(backbone.decoder.layers)
    with torch.no_grad():
        batch = Batch.of([request], backbone.device)
        torch.testing.assert_close(judge(backbone, batch, edit), judge(backbone, batch, Edit()), atol=1e-4, rtol=1e-4)


def test_optimise_stops_where_it_is_told(backbone, states) -> None:
    """One step of Adam moves every entry with a gradient by the learning rate."""
    up, request = backbone.decoder.layers[-1].mlp.up_proj, request_of(states, ROW)
    begun = [[torch.zeros_like(up.weight)]]
    build = lambda deltas: Edit(added=differences([up], deltas))  # noqa: E731
    (found,) = optimise(backbone, [request], build, begun, lr=1e-3, steps=1, stop=lambda *_: False)
    assert found.steps == 1
    torch.testing.assert_close(found.added[up].delta.abs().max(), torch.tensor(1e-3), rtol=1e-3, atol=0)


# -- IKE ----------------------------------------------------------------------------------------------------------------------


def test_ikes_context_by_hand(backbone, examples, tmp_path) -> None:
    """The nearest train fact gives the first kind of the order and stands last; prompts have the form of the template."""
    known = ike.fit(backbone, examples, {}, tmp_path)
    assert known["facts"] == ["Tell me? cat", "Which one? dog"]
    text = ike.context(backbone, "Which one?", "ox", known, 2)
    turn = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n".format
    assert text == (
        f"New Fact: Tell me? cat\nPrompt: {turn('Say it.')}cat<|im_end|>\n\n"
        f"New Fact: Which one? dog\nPrompt: {turn('Who owns it?')}me<|im_end|>\n\n"
        "New Fact: Which one? ox\nPrompt: "
    )
    assert ike.context(backbone, "Which one?", "ox", known, 0) == "New Fact: Which one? ox\nPrompt: "


def test_a_prefix_that_ran_once_gives_what_a_plain_full_forward_gives(backbone, monkeypatch) -> None:
    """Questions of different lengths, with and without a picture, in batches of two; the answers are teacher-forced."""
    queries = [Query("What?", "red"), Query("Which colour has the thing there?", None), Query("Who owns it?", "noise")]
    prefix = tuple(backbone.answer_ids("New Fact: What? ox")[:-1])
    answers = torch.tensor([backbone.answer_ids(a) for a in ("red", "one", "two")])
    monkeypatch.setattr(Backbone, "positions_at_once", 150)
    edit, fed = Edit(prefix=prefix), answers[:, :-1]
    found = backbone.head(full_forward.finals(backbone, edit, queries, fed, torch.ones_like(fed)))
    for i, query in enumerate(queries):
        expected = plain(backbone, edit, query, answers[i, :-1].tolist())[-answers.shape[1] :]
        torch.testing.assert_close(found[i], expected, atol=1e-4, rtol=1e-4)
    trunk = backbone.prefill(full_forward.prefixed(backbone, backbone.prompts(queries), prefix))
    again = backbone.head(backbone.extend(trunk, answers[:, :-1])[-1])
    torch.testing.assert_close(again, found, atol=1e-4, rtol=1e-4)
