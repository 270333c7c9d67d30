"""SERAC by hand: how far the scope classifier sees, what the counterfactual model reads, and what a memory recalls."""

from dataclasses import replace

import pytest
import torch

from stages.backbone.vlm import Query
from stages.editing import sentences
from stages.editing.editors import serac
from stages.editing.edits import Edit
from stages.editing.fitting import fitted
from stages.editing.optimise import answer_states
from stages.editing.size import size_of
from stages.editing.trunk import request_of
from tests.editors import SETTINGS, plain, settings_of

pytestmark = pytest.mark.usefixtures("letters")


def test_the_scope_classifier_by_hand() -> None:
    """Four times the squared distance: a query 0.5 away has e⁻¹, one at the edit itself has 1."""
    scope, edit = torch.tensor(4.0), torch.tensor([1.0, 0.0])
    found = serac.similarity(scope, edit, torch.tensor([[1.0, 0.0], [1.0, 0.5]]))
    assert found.tolist() == pytest.approx([1.0, torch.e**-1])


def test_the_scope_classifier_learns_how_far_is_inside(examples, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rephrasings at distance 2 and other questions at 4: both outside under a factor of 1, then told apart."""
    place = {q: 2.0 for e in examples for q in e.row["rephrasings_train"]} | {e.row["question"]: 0.0 for e in examples}
    monkeypatch.setattr(sentences, "embed", lambda texts: torch.tensor([[place.get(text, 4.0)] for text in texts]))
    scope = serac.fit_scope(examples, settings_of("serac", scope_steps=300, scope_lr=0.05))
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
    settings = settings_of("serac", steps=100, lr=1e-2, rank=8, scale=32.0)
    learnt = fitted(serac, backbone, examples, vars(settings), "test", tmp_path)
    untrained = learnt | {"counterfactual": [torch.zeros_like(d) for d in learnt["counterfactual"]]}
    request = replace(request_of(examples[0].states, examples[0].row))
    before, after = (serac.edit(backbone, request, settings, known) for known in (untrained, learnt))
    assert after.loss < 0.1 * before.loss and after.reached
    asked = [Query("Tell me?", "noise"), Query("Who owns it?", "noise")]
    told = after.scores(asked)
    assert told[0] == pytest.approx(1) and told[1] < told[0]  # the edit's own question, and another


def test_in_a_sequence_a_query_goes_to_the_most_similar_edit_of_the_memory(backbone, examples, tmp_path) -> None:
    """Letters decide: "Tell me!" is nearest to the two edits of "Tell me?", of which the later one answers."""
    learnt, last = fitted(serac, backbone, examples, SETTINGS["serac"], "test", tmp_path), None
    for example, target in zip((*examples, examples[0]), ("cat", "dog", "ox"), strict=True):
        request = request_of(example.states, example.row)
        last = serac.edit(backbone, replace(request, start=last, answer=target), settings_of("serac"), learnt)
    prefixes = [last.recall(Query(text, "red")).prefix for text in ("Tell me!", "Which one is it?")]
    assert prefixes == [serac.reminder(backbone, *edit) for edit in (("Tell me?", "ox"), ("Which one?", "dog"))]
    assert len(last.recall.edits) == 3 and size_of(last, list(learnt["counterfactual"])) == 8 * len(last.prefix)
