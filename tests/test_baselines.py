"""Baselines on cases small enough to check by hand, and what every editor owes: the backbone, restored bit for bit."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from stages.backbone.vlm import Backbone, Query
from stages.editing import full, ike, lora, sentences, serac, trace, wise
from stages.editing.cell import Cell
from stages.editing.editor import Edit, answer_states, attempt, differences, module_of, optimise, request_loss
from stages.editing.fitting import Example, fitted, learn, training_probes
from stages.editing.plan import Plan
from stages.editing.size import size_of
from stages.params import UserError, load
from tests.rows import ROW
from tests.test_editing import SETTINGS, bits

TRAIN = [
    ROW | {"edit_id": "t0", "question": "Tell me?", "image_id": "noise", "target": "cat", "rephrasings_train": ["Say it."]},
    ROW | {"edit_id": "t1", "question": "Which one?", "image_id": "red", "target": "dog", "rephrasings_train": ["Pick one."]},
]  # fmt: skip
OURS = SETTINGS | {
    "base": {},
    "finetune": {"part": "layer", "layers": 1, "lr": 0.01, "steps": 50, "loss": 0.05},
    "lora": {"rank": 4, "scale": 8.0, "lr": 0.01, "steps": 60, "margin": 0.1, "seed": 0},
    "ike": {"demonstrations": 1, "seed": 0},
    "mend": {
        "layers": 2, "rank": 8, "edit_lr": 1e-3, "lr": 1e-4, "lr_lr": 1e-3, "c_edit": 1.0, "c_loc": 1.0, "steps": 3, "seed": 0,
    },
    "serac": {"scope_lr": 0.01, "scope_steps": 20, "rank": 2, "scale": 4.0, "lr": 1e-3, "steps": 3, "seed": 0},
    "wise": {
        "alpha": 5.0, "beta": 20.0, "gamma": 10.0, "mask": 0.5, "ratio": 0.88, "bound": 1.0, "lr": 0.1, "steps": 150, "seed": 0,
    },
}  # fmt: skip
PARTS = {"finetune-last": {"part": "last"}, "finetune-connector": {"part": "connector", "lr": 0.1, "steps": 150}}
EVERY = [*OURS, *PARTS]


def letters(texts: list[str]) -> torch.Tensor:
    """An embedding to check by hand: how often each of 26 letters occurs, as a unit vector."""
    counts = torch.tensor([[float(text.lower().count(chr(97 + i))) for i in range(26)] for text in texts])
    return F.normalize(counts, dim=-1)


@pytest.fixture(autouse=True)
def _letters(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "real_encoder" not in request.keywords:
        monkeypatch.setattr(sentences, "embed", letters)


@pytest.fixture()
def examples(backbone: Backbone) -> list[Example]:
    more = [{"kind": "text_only", "image_id": None, "question": "Who sang?", "answer": "he"}]
    rows = [row | {"locality": ROW["locality"] + more} for row in TRAIN]
    return [Example(row, training_probes(row), partial(trace.run_trunk, backbone, row)) for row in rows]


def made(name: str, backbone: Backbone, examples: list[Example], states: trace.States, tmp_path: Path) -> Edit:
    """The edit of ROW by an editor, fitted first where it learns."""
    editor = module_of(name.split("-")[0])
    settings = OURS[name.split("-")[0]] | PARTS.get(name, {})
    make = editor.edit
    if hasattr(editor, "fit"):
        make = partial(make, fitted=fitted(editor, backbone, examples, settings, "test", tmp_path))
    return make(backbone, trace.request_of(states, ROW), settings)


# -- every editor -----------------------------------------------------------------------------------------------------------


def hooks(backbone) -> list[tuple[list[int], list[int]]]:
    """The hooks of every module, by their ids."""
    return [(list(m._forward_hooks), list(m._forward_pre_hooks)) for m in backbone.model.modules()]


@pytest.mark.parametrize("name", EVERY)
def test_the_backbone_is_restored_bit_for_bit(name, backbone, examples, probes, states, tmp_path) -> None:
    """By an edit, its trace, and an error while it is applied: weights, hooks, modules and remembered pictures."""
    before, parts, shown, hung = bits(backbone), list(backbone.model.modules()), dict(backbone._shown), hooks(backbone)
    clean = backbone.prefill(backbone.prompts([Query("What is it?", "red")])).final
    edit = made(name, backbone, examples, states, tmp_path)
    rows = trace.trace_edit(backbone, ROW, probes, states, edit)
    assert len(rows) == len(probes) and not rows[0]["diverged"]
    with pytest.raises(RuntimeError, match="inside"), edit.applied(backbone, states.mask):
        raise RuntimeError("inside")
    assert bits(backbone) == before and list(backbone.model.modules()) == parts
    assert hooks(backbone) == hung
    assert all(torch.equal(shown[key].features, backbone._shown[key].features) for key in shown)
    assert torch.equal(clean, backbone.prefill(backbone.prompts([Query("What is it?", "red")])).final)


@pytest.mark.parametrize("name", [n for n in EVERY if n not in ("base", "ike", "mend", "serac")])
def test_what_is_optimised_reaches_its_target(name, backbone, examples, probes, states, tmp_path) -> None:
    edit = made(name, backbone, examples, states, tmp_path)
    assert edit.reached
    assert trace.trace_edit(backbone, ROW, probes, states, edit)[0]["target_on"]


@pytest.mark.parametrize("name", ["finetune-last", "lora", "finetune-connector", "ike", "serac", "wise"])
def test_the_trace_says_what_generation_with_the_edit_gives(name, backbone, examples, probes, states, tmp_path) -> None:
    """Token by token, each through a plain full forward of one unpadded prompt while the edit is applied."""
    edit = made(name, backbone, examples, states, tmp_path)
    rows = trace.trace_edit(backbone, ROW, probes, states, edit)
    for probe, row in list(zip(probes, rows, strict=True))[:9]:
        said: list[int] = []
        while len(said) < trace.ANSWER_LIMIT and (not said or said[-1] != backbone.end):
            said.append(int(plain(backbone, edit, probe.query, said)[-1].argmax()))
        assert row["same_on"] == (backbone.decode(said) == row["answer_off"])
        if probe.kind in trace.GENERALITY:
            assert row["target_on"] == (backbone.decode(said) == ROW["target"] and said[-1] == backbone.end)


@torch.no_grad()
def plain(backbone: Backbone, edit: Edit, query: Query, said: list[int]) -> torch.Tensor:
    """Logits [T, V] of one sequence of prefix, prompt and answer through the decoder, without cache or padding."""
    embed = backbone.adapter.embed
    with edit.applied(backbone):
        embeds = [embed(torch.tensor([list(edit.prefix)], dtype=torch.long)), backbone.prompts([query]).embeds]
        embeds.append(embed(torch.tensor([said], dtype=torch.long)))
        return backbone.head(backbone.decoder(inputs_embeds=torch.cat(embeds, 1)).last_hidden_state)[0]


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
    candidates = (states.target, states.same, states.truth)
    again = full.finals(backbone, edit, asked, [c.ids for c in candidates])
    with torch.no_grad():
        tail = trace.tail_finals(backbone, states, edit, candidates)
        logits = trace.tail_logits(backbone, states, edit, states.target)
    for c, whole, above in zip(candidates, again, tail, strict=True):
        torch.testing.assert_close(whole[c.real], above[c.real], atol=1e-4, rtol=1e-4)
    real = states.target.real
    torch.testing.assert_close(backbone.head(tail[0])[real], logits[real], atol=1e-4, rtol=1e-4)


# -- divergence ---------------------------------------------------------------------------------------------------------------


def test_a_loss_that_rises_is_divergence(backbone, states) -> None:
    """The unedited model's own answer is asked for: there is little to gain, and a step far too long loses it."""
    own = states.same.argmax[:1, : int(states.same.real[0].sum())]
    length = states.mask.shape[1] + own.shape[1] - 1
    hidden = torch.cat([states.hidden[:1], states.same.hidden[:1]], 1)[:, :length]
    mask = torch.cat([states.mask[:1], states.same.real[:1, 1:]], 1)[:, :length]
    request = replace(trace.request_of(states, ROW), hidden=hidden, mask=mask, target=own)
    with pytest.raises(FloatingPointError, match="the loss rose"):
        module_of("finetune").edit(backbone, request, OURS["finetune"] | {"lr": 30.0, "steps": 1, "loss": 1e-9})


def test_a_diverged_edit_is_the_unedited_model_and_says_so(backbone, probes, states) -> None:
    request = trace.request_of(states, ROW)
    broken = replace(request, hidden=request.hidden * float("nan"))
    edit = attempt(lambda: module_of("balancedit").edit(backbone, broken, SETTINGS["balancedit"]))
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
    plan = Plan("set", "tiny", backbone.fingerprint, load().method("ft"), editor, [OURS["mend"]], [], [], [], [0])
    cell = Cell(**vars(plan), backbone=backbone, queries={}, examples=examples, digests={})
    make, _ = cell.prepared(OURS["mend"] | {"edit_lr": float("inf")})
    assert make(backbone, trace.request_of(states, ROW), OURS["mend"]).diverged
    assert "training diverged" in capsys.readouterr().err
    with pytest.raises(UserError, match="no train edits"):
        replace(cell, examples=[]).prepared(OURS["mend"])


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
    request = trace.request_of(states, ROW)
    edit = lora.edit(backbone, request, OURS["lora"] | {"steps": 0})
    assert len(edit.added) == 2 * len(backbone.decoder.layers)
    with torch.no_grad():
        torch.testing.assert_close(request_loss(backbone, request, edit), request_loss(backbone, request, Edit()))


def test_optimise_stops_where_it_is_told(backbone, states) -> None:
    """One step of Adam moves every entry with a gradient by the learning rate."""
    up, request = backbone.decoder.layers[-1].mlp.up_proj, trace.request_of(states, ROW)
    delta = torch.zeros_like(up.weight, requires_grad=True)
    edit = Edit(added=differences([up], [delta]))
    found = optimise(backbone, request, edit, [delta], lr=1e-3, steps=1, stop=lambda *_: False)
    assert found["steps"] == 1
    torch.testing.assert_close(delta.abs().max(), torch.tensor(1e-3), rtol=1e-3, atol=0)


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
    monkeypatch.setattr(full, "POSITIONS", 150)
    edit = Edit(prefix=prefix)
    found, first = (backbone.head(final) for final in full.finals(backbone, edit, queries, [answers, answers[:, :1]]))
    for i, query in enumerate(queries):
        expected = plain(backbone, edit, query, answers[i, :-1].tolist())[-answers.shape[1] :]
        torch.testing.assert_close(found[i], expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(first[i], expected[:1], atol=1e-4, rtol=1e-4)
    trunk = backbone.prefill(full.prefixed(backbone, backbone.prompts(queries), prefix))
    again = backbone.head(backbone.extend(trunk, answers[:, :-1])[-1])
    torch.testing.assert_close(again, found, atol=1e-4, rtol=1e-4)


# -- SERAC --------------------------------------------------------------------------------------------------------------------


def test_the_scope_classifier_by_hand() -> None:
    """Four times the squared distance: a query 0.5 away has e⁻¹, one at the edit itself has 1."""
    scope, edit = torch.tensor(4.0), torch.tensor([1.0, 0.0])
    found = serac.similarity(scope, edit, torch.tensor([[1.0, 0.0], [1.0, 0.5]]))
    assert found.tolist() == pytest.approx([1.0, torch.e**-1])


def test_the_scope_classifier_learns_how_far_is_inside(examples, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rephrasings at distance 2 and other questions at 4: both outside under a factor of 1, then told apart."""
    place = {q: 2.0 for e in examples for q in e.row["rephrasings_train"]} | {e.row["question"]: 0.0 for e in examples}
    monkeypatch.setattr(sentences, "embed", lambda texts: torch.tensor([[place.get(text, 4.0)] for text in texts]))
    scope = serac.fit_scope(examples, OURS["serac"] | {"scope_steps": 300, "scope_lr": 0.05})
    at = torch.tensor([[0.0], [2.0], [4.0]])
    assert (serac.similarity(torch.tensor(1.0), at[0], at) > 0.5).tolist() == [True, False, False]
    assert (serac.similarity(scope, at[0], at) > 0.5).tolist() == [True, True, False]


def test_the_counterfactual_model_reads_the_edit_before_the_query(backbone, examples) -> None:
    """What it is trained on are edit, query and target, as a plain forward has them."""
    prompts, ids = serac.told(backbone, examples[0], [0, 1])
    assert len(prompts.mask) == len(ids) == 2 and backbone.decode(ids[0].tolist()) == "cat"
    with torch.no_grad():
        logits = backbone.head(answer_states(backbone, prompts, ids))
    edit = Edit(prefix=serac.reminder(backbone, "Tell me?", "cat"))
    expected = plain(backbone, edit, examples[0].probes[0].query, ids[0, :-1].tolist())[-ids.shape[1] :]
    torch.testing.assert_close(logits[0], expected, atol=1e-4, rtol=1e-4)


def test_serac_learns_the_targets_it_reads(backbone, examples, states, tmp_path) -> None:
    settings = OURS["serac"] | {"steps": 100, "lr": 1e-2, "rank": 8, "scale": 32.0}
    learnt = fitted(serac, backbone, examples, settings, "test", tmp_path)
    untrained = learnt | {"counterfactual": [torch.zeros_like(d) for d in learnt["counterfactual"]]}
    request = replace(trace.request_of(examples[0].states, examples[0].row))
    before, after = (serac.edit(backbone, request, settings, known) for known in (untrained, learnt))
    assert after.loss < 0.1 * before.loss and after.reached
    asked = [Query("Tell me?", "noise"), Query("Who owns it?", "noise")]
    assert after.fires(asked)[0]


def test_in_a_sequence_a_query_goes_to_the_most_similar_edit_of_the_memory(backbone, examples, tmp_path) -> None:
    """Letters decide: "Tell me!" is nearest to the two edits of "Tell me?", of which the later one answers."""
    learnt, last = serac.fit(backbone, examples, OURS["serac"], tmp_path / "fit.pt"), None
    for example, target in zip((*examples, examples[0]), ("cat", "dog", "ox"), strict=True):
        request = trace.request_of(example.states, example.row)
        last = serac.edit(backbone, replace(request, start=last, answer=target), OURS["serac"], learnt)
    prefixes = [last.recall(Query(text, "red")).prefix for text in ("Tell me!", "Which one is it?")]
    assert prefixes == [serac.reminder(backbone, *edit) for edit in (("Tell me?", "ox"), ("Which one?", "dog"))]
    assert len(last.recall.edits) == 3 and size_of(last, list(learnt["counterfactual"])) == 8 * len(last.prefix)


# -- WISE ---------------------------------------------------------------------------------------------------------------------


def test_activation_and_margins_by_hand() -> None:
    """Inputs [1 0] and [0 1], W′ − W = [[3 0] [4 0]]: norms 5 and 0, mean 2.5; the padded first position is not read."""
    inputs = torch.tensor([[[9.0, 9.0], [1.0, 0.0], [0.0, 1.0]]])
    mask = torch.tensor([[False, True, True]])
    assert wise.score(inputs, torch.tensor([[3.0, 0.0], [4.0, 0.0]]), mask).tolist() == [2.5]
    settings = {"alpha": 5.0, "beta": 20.0, "gamma": 10.0}
    assert wise.margins(torch.tensor(25.0), torch.tensor(4.0), settings) == 0
    assert wise.margins(torch.tensor(12.0), torch.tensor(8.0), settings) == (8 - 5) + (20 - 12) + (10 - 4)


def test_a_side_memory_is_sparse_bounded_and_fires_on_its_edit(backbone, examples, states, tmp_path) -> None:
    edit = made("wise", backbone, examples, states, tmp_path)
    (value, add), *others = edit.added.items()
    delta = add.delta
    assert value is backbone.decoder.layers[backbone.layer].mlp.down_proj and not others
    assert 0.45 < (delta == 0).float().mean() < 0.55 and delta.abs().max() <= 1
    asked = [Query("What is it?", "red")]
    assert edit.fires(asked, states.hidden[:1], states.mask[:1], states.positions[:1]).tolist() == [True]


def test_shards_are_merged_by_ties_by_hand() -> None:
    """Of four entries the two largest stay; where signs differ the larger sum wins; what one alone has is not halved."""
    one, other = torch.tensor([4.0, -3.0, 1.0, 0.0]), torch.tensor([2.0, 5.0, 0.0, 1.0])
    assert wise.ties([one, other], 0.5).tolist() == [3.0, 5.0, 0.0, 0.0]


def test_a_sequence_trains_one_shard_and_then_another(backbone, examples, states, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(wise, "SHARD", 2)
    settings = OURS["wise"] | {"steps": 40}
    learnt = fitted(wise, backbone, examples, settings, "test", tmp_path)
    requests = [trace.request_of(one, row) for one, row in [(states, ROW), *((e.states, e.row) for e in examples[:2])]]
    last, left = None, []
    for number, request in enumerate(requests):
        last = wise.edit(backbone, replace(request, start=last), settings | {"seed": number}, learnt)
        left.append(last.fires)
    first, second, third = left
    assert [len(side.shards) for side in left] == [1, 1, 2] and [side.edits for side in left] == [1, 2, 3]
    assert torch.equal(first.trained, second.trained) and not torch.equal(second.trained, third.trained)
    assert not second.shards[0][~second.trained].any() and torch.equal(third.shards[0], second.shards[0])
    assert third.least <= second.least <= first.least
    assert torch.equal(next(iter(last.added.values())).delta, wise.ties(third.shards, wise.DENSITY))


def test_activations_are_the_value_maps_inputs(backbone, states) -> None:
    found = wise.activations(backbone, states.hidden, states.mask, states.positions)
    mlp = backbone.decoder.layers[backbone.layer].mlp
    seen = {}
    hook = mlp.down_proj.register_forward_pre_hook(lambda _m, args: seen.update(inputs=args[0]))
    backbone.prefill(backbone.prompts([Query("What is it?", "red")]))
    hook.remove()
    real = states.mask[0]
    torch.testing.assert_close(found[0, real], seen["inputs"][0], atol=1e-4, rtol=1e-4)


# -- learning -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(Path(trace.__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_an_editor_is_random_iff_it_reads_the_seed(path: Path) -> None:
    text = path.read_text()
    assert ("\nRANDOM = True" in text) == ('settings["seed"]' in text and "class Settings" in text)


def test_training_probes_never_ask_what_evaluation_asks() -> None:
    asked = {p.question for row in TRAIN for p in training_probes(row)}
    assert "Say it." in asked and not asked & set(ROW["rephrasings"])


def test_an_interrupted_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    def run(steps: int, checkpoint: Path) -> torch.Tensor:
        torch.manual_seed(0)
        module = torch.nn.Linear(2, 1)

        def loss_of(step: int) -> torch.Tensor:
            return (module(torch.tensor([1.0, step / 100])) - 3).square().sum()

        learn(module, [{"params": list(module.parameters()), "lr": 0.01}], loss_of, steps, checkpoint)
        return module.weight.detach()

    run(50, tmp_path / "part.pt")  # as long as one checkpoint
    assert torch.equal(run(120, tmp_path / "part.pt"), run(120, tmp_path / "other.pt"))


@pytest.mark.parametrize("before", [0, 50, 150])
def test_the_state_of_the_least_loss_held_out_is_left(before: int, tmp_path: Path) -> None:
    """The loss held out is how far a state is from the one after 100 steps; interrupted before, at a checkpoint or behind it."""

    def run(steps: int) -> float:
        module = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(module.weight)
        module.register_buffer("done", torch.zeros(()))

        def loss_of(step: int) -> torch.Tensor:
            module.done.fill_(step + 1)
            return module.weight.square().sum()

        groups = [{"params": list(module.parameters()), "lr": 1e-3}]
        learn(module, groups, loss_of, steps, tmp_path / "part.pt", lambda: abs(module.done.item() - 100))
        return module.done.item()

    if before:
        run(before)
    assert run(220) == 100


def test_what_was_learnt_is_kept_by_content(backbone, examples, tmp_path, monkeypatch) -> None:
    first = fitted(wise, backbone, examples, OURS["wise"], "code", tmp_path)
    monkeypatch.setattr(wise, "fit", lambda *_: pytest.fail("fitted again"))
    again = fitted(wise, backbone, examples, OURS["wise"], "code", tmp_path)
    assert torch.equal(first[0]["inputs"], again[0]["inputs"])
    for changed in ((examples[:1], OURS["wise"], "code"), (examples, OURS["wise"] | {"seed": 1}, "code"), (examples, {}, "new")):
        with pytest.raises(pytest.fail.Exception):
            fitted(wise, backbone, *changed, tmp_path)


@pytest.mark.real_encoder
def test_minilm_tells_a_rephrasing_from_another_question() -> None:
    if not (sentences.MINILM / "config.json").exists():
        pytest.skip("the sentence encoder is made by the `assets` stage")
    found = sentences.embed(["Which country is this from?", "Where does this originate?", "How many wheels does it have?"])
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    assert found[0] @ found[1] > found[0] @ found[2] + 0.1
    alone = torch.cat([sentences.embed([text]) for text in ("Which country is this from?", "Where does this originate?")])
    torch.testing.assert_close(found[:2], alone, atol=1e-5, rtol=1e-4)
