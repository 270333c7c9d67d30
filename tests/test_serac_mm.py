"""The multimodal scope classifier by hand: what it compares, which pairs it learns from, and what a memory recalls by it."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from stages.backbone.vlm import Query
from stages.editing import sentences
from stages.editing.editors import serac, serac_mm
from stages.editing.fitting import Example, fitted, training_probes
from stages.editing.trunk import request_of, run_trunk
from tests.editors import SETTINGS, TRAIN, settings_of
from tests.rows import ROW

pytestmark = pytest.mark.usefixtures("letters")
PLACES = {"red": 0.0, "noise": 3.0}


@pytest.fixture()
def placed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures have one feature, to be checked by hand; none is at −9."""
    found = lambda _backbone, queries: torch.tensor([[PLACES.get(query.image_id, -9.0)] for query in queries])  # noqa: E731
    monkeypatch.setattr(serac_mm, "pictures_of", found)


def test_the_classifier_by_hand() -> None:
    """0.5 apart in words and 3 in pictures: 4·0.25 + 0.5·9 = 5.5; the same as the edit has 1."""
    classifier = serac_mm.Classifier(None, torch.tensor([4.0, 0.5]), torch.ones(()))
    edit = torch.tensor([1.0, 0.0]), torch.tensor([3.0])
    found = classifier(edit, (torch.tensor([[1.0, 0.0], [1.0, 0.5]]), torch.tensor([[3.0], [0.0]])))
    assert found.tolist() == pytest.approx([1.0, torch.e**-5.5])


def test_pictures_are_means_of_what_the_connector_makes(backbone) -> None:
    shown = backbone.image_features([Query("What?", "red")])[0].features
    found = serac_mm.pictures_of(backbone, [Query("Who?", "red"), Query("Who?", None)])
    torch.testing.assert_close(found[0], shown.mean(0))
    assert found.shape == (2, 32) and not found[1].any()
    assert serac_mm.pictures_of(backbone, []).shape == (0, 32)


def test_pairs_by_hand(examples) -> None:
    """Of the first train edit: its rephrasing, two pictures and one of both are inside, another question and one without a
    picture outside; not the edit itself.
    """
    pairs = [(query, aim) for edit, query, aim in serac_mm.pairs_of(examples[:1]) if edit == Query("Tell me?", "noise")]
    inside = {Query("Say it.", "noise"), Query("Tell me?", "noise"), Query("Tell me?", "red"), Query("Say it.", "noise")}
    assert {query for query, aim in pairs if aim} == inside
    assert [query for query, aim in pairs if not aim] == [Query("Who owns it?", "red"), Query("Who sang?", None)]


def test_it_learns_that_another_picture_is_outside(backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """One question about all: only pictures tell a near one from the edit's own, and their factor grows."""
    near = [{"kind": "near_image", "image_id": "noise", "question": "What is it?", "answer": "it"}]
    row = ROW | {"rephrasings_train": ["What is it?"], "generality_image_ids": ["red"], "locality": near}
    example = Example(row, training_probes(row), partial(run_trunk, backbone, row))
    found = lambda _backbone, queries: torch.tensor([[PLACES[query.image_id] / 6] for query in queries])  # noqa: E731
    monkeypatch.setattr(serac_mm, "pictures_of", found)
    fitted = serac_mm.fit_scope(backbone, [example], settings_of("serac_mm", scope_steps=300, scope_lr=0.05))
    classifier = serac_mm.Classifier(backbone, **fitted)
    asked = [Query("What is it?", name) for name in ("red", "noise")]
    features = classifier.features(asked)
    likely = classifier([part[0] for part in features], features)
    assert likely[0] == 1 and likely[1] < 0.5 and fitted["factors"][1] > 1


def test_pictures_that_are_all_alike_have_a_deviation(backbone, examples) -> None:
    queries = [Query("What?", "red"), Query("Who?", None)]
    norm = serac_mm.pictures_of(backbone, queries)[0].norm()
    assert serac_mm.deviation(backbone, queries) == pytest.approx(serac_mm.LEAST * norm.item())
    assert serac_mm.deviation(backbone, queries[1:]) == 1


def test_the_counterfactual_model_is_seracs(backbone, examples, tmp_path) -> None:
    own = [
        fitted(editor, backbone, examples, SETTINGS["serac"], "test", tmp_path / editor.__name__) for editor in (serac, serac_mm)
    ]
    assert all(torch.equal(*pair) for pair in zip(*(one["counterfactual"] for one in own), strict=True))


def test_in_a_sequence_a_query_goes_to_the_edit_of_its_picture(backbone, examples, placed, tmp_path) -> None:
    """Two edits ask the same of two pictures, the first of them twice: the latest of equal ones answers."""
    learnt, last = fitted(serac_mm, backbone, examples, SETTINGS["serac_mm"], "test", tmp_path), None
    learnt["scope"] = {"factors": torch.ones(2), "unit": torch.ones(())}
    for image_id, target in (("red", "cat"), ("noise", "dog"), ("red", "ox")):
        row = TRAIN[0] | {"image_id": image_id, "target": target}
        request = request_of(run_trunk(backbone, row, training_probes(row)), row)
        last = serac_mm.edit(backbone, replace(request, start=last), settings_of("serac_mm"), learnt)
    met = [last.recall(Query("Tell me?", image_id)).prefix for image_id in ("red", "noise")]
    assert met == [serac.reminder(backbone, "Tell me?", target) for target in ("ox", "dog")]
    assert last.scores([Query("Tell me?", "red"), Query("Tell me?", "noise")]).tolist() == pytest.approx([1.0, torch.e**-9])
    assert sentences.embed([""]).shape == (1, 26)
