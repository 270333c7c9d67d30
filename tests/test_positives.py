"""Phrasings for positive samples: no backbone is trained on them and no evaluation asks them."""

import json
from pathlib import Path

import pytest

from stages.assets.knowledge import load
from stages.backbone.corpus import training_questions
from stages.okedit.positives import positives
from stages.okedit.validate import normal
from stages.params import UserError


def test_the_table_has_new_phrasings_of_every_relation() -> None:
    table = load()
    found = positives(table)
    assert found.keys() == table.relations.keys() and min(map(len, found.values())) >= 3
    asked = {normal(q) for r in table.relations.values() for q in (r.question, *r.rephrasings_train, *r.rephrasings)}
    trained = {normal(q.question) for group in training_questions(table).values() for concept in group for q in concept}
    new = {normal(question) for phrasings in found.values() for question in phrasings}
    assert trained < asked and not new & asked
    assert len(new) == sum(map(len, found.values()))
    assert all(question.endswith("?") for phrasings in found.values() for question in phrasings)


@pytest.mark.parametrize(
    ("legs", "message"),
    [
        (["A?", "B?"], "legs: 2 phrasings; needed: 3 or more"),
        (["A?", "B?", "Home phrasing 2?"], "'Home phrasing 2\\?' is not allowed: it is also in the table of facts"),
        (["A?", "B?", "home, put in way 0?"], "home: 'home, put in way 0\\?' is not allowed: it is also in legs"),
        (["A?", "B?", "B?"], "it is also in legs"),
    ],
)
def test_a_phrasing_that_is_not_new_is_named(knowledge, tmp_path: Path, legs: list[str], message: str) -> None:
    path = tmp_path / "positives.yaml"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"legs": legs}))
    with pytest.raises(UserError, match=message):
        positives(knowledge)
