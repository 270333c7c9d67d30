"""What backbones answer before any edit: kept for a build with the same models, pictures and questions, else asked again."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from stages.backbone.vlm import Query
from stages.okedit import unedited
from stages.okedit.unedited import Unedited, keep, pixels, recalled

RED, BLUE = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
PICTURES = {"r": RED, "b": BLUE}
QUERIES = [Query("What?", "r"), Query("Who?", "r"), Query("What?", "b")]


class Model:
    """Answers with its name, the question and the picture's id; counts what it is asked."""

    def __init__(self, name: str):
        self.name, self.asked = name, 0

    def add_pictures(self, pictures: object) -> None:
        """It needs none."""


@pytest.fixture(autouse=True)
def answering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(model: Model, queries: Sequence[Query]) -> list[str]:
        model.asked += len(queries)
        return [f"{model.name} {query.question} {query.image_id}" for query in queries]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(unedited, "unedited_answers", answers)


def never() -> Model:
    pytest.fail("a model was opened")


@pytest.fixture()
def kept() -> list[str]:
    """Two models' answers, in the files."""
    first = recalled("set", [("m1", lambda: Model("one")), ("m2", lambda: Model("two"))])
    given = [one.answers(QUERIES, PICTURES) for one in first]
    keep("set", first)
    assert given == [[f"{name} {q.question} {q.image_id}" for q in QUERIES] for name in ("one", "two")]
    return given[0]


def changed_code() -> None:
    path = Path("reports/unedited/set.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"code": "before"}))


def test_a_build_with_the_same_models_opens_none(kept: list[str]) -> None:
    before = Path("reports/unedited/set.parquet").read_bytes()
    again = recalled("set", [("m1", never), ("m2", never)])
    other_id = {"another id": RED.convert("RGBA")}  # the same pixels
    assert again[0].answers(QUERIES, PICTURES) == kept and again[0].answers([Query("What?", "another id")], other_id) == kept[:1]
    again[1].answers(QUERIES, PICTURES)
    keep("set", again)
    assert Path("reports/unedited/set.parquet").read_bytes() == before


def test_another_model_or_what_is_new_is_asked(kept: list[str]) -> None:
    model = Model("new")
    one = recalled("set", [("m1", lambda: model)])[0]
    assert one.answers([*QUERIES, Query("Who?", "b")], PICTURES) == [*kept, "new Who? b"] and model.asked == 1
    keep("set", [one])
    assert len(recalled("set", [("m1", never)])[0].answers([Query("Who?", "b")], PICTURES)) == 1
    assert recalled("set", [("m3", lambda: model)])[0].answers(QUERIES, PICTURES)[0] == "new What? r"
    assert model.asked == 4


def test_other_code_that_answers_the_same_is_believed_after_some(kept: list[str]) -> None:
    changed_code()
    model = Model("one")
    one = recalled("set", [("m1", lambda: model)])[0]
    assert one.answers(QUERIES[:1], PICTURES) == kept[:1] and model.asked == 1
    assert one.answers(QUERIES, PICTURES) == kept and model.asked == 1
    keep("set", [one])
    assert recalled("set", [("m1", never)])[0].answers(QUERIES, PICTURES) == kept


def test_other_code_that_answers_otherwise_is_asked_all(kept: list[str]) -> None:
    changed_code()
    model = Model("changed")
    one = recalled("set", [("m1", lambda: model)])[0]
    assert one.answers(QUERIES[:1], PICTURES) == ["changed What? r"]
    assert one.answers(QUERIES, PICTURES)[1] == "changed Who? r" and model.asked == 1 + 1 + 2


def test_an_interrupted_build_asks_no_question_twice(kept: list[str]) -> None:
    changed_code()
    first, second = Model("one"), Model("two")
    build = recalled("set", [("m1", lambda: first), ("m2", lambda: second)])
    build[0].answers([*QUERIES, Query("Who?", "b")], PICTURES)  # asks again what is known, and what is not
    assert first.asked == 4
    again = recalled("set", [("m1", lambda: first), ("m2", lambda: second)])
    assert again[0].answers([Query("Who?", "b")], PICTURES) == ["one Who? b"]
    assert first.asked == 5 and not again[1].sure  # the second model's answers are still to be checked, so all are
    again[1].answers(QUERIES, PICTURES)
    again[1].answers([Query("How?", "b")], PICTURES)
    assert second.asked == 4
    sure = recalled("set", [("m1", never), ("m2", never)])
    assert sure[1].answers([*QUERIES, Query("How?", "b")], PICTURES)[3] == "two How? b" and len(sure[0].known) == 4


def test_pictures_are_told_apart_by_what_is_seen() -> None:
    assert pixels(RED) == pixels(RED.convert("RGBA")) != pixels(BLUE)
    assert pixels(RED) != pixels(Image.new("RGB", (2, 8), "red"))
    assert Unedited("m", never).given == {}
