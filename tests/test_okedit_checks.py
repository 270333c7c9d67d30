"""What every source is held to: validated items, splits by name, photos that can be read, recipes that name every key."""

import dataclasses
import io
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from ruamel.yaml import YAML

from stages.okedit.generate import prompt
from stages.okedit.photos import Photos
from stages.okedit.sources import mmedit, okvqa
from stages.okedit.splits import split_of
from stages.okedit.validate import Rejected, answer_fault, lines, normal, picture_fault, rephrasing_fault
from tests.sources import dataset, png

QUESTION = "What toy is this?"


def test_lists_are_read_as_language_models_write_them() -> None:
    reply = '1. Which toy is it?\n- "What is this toy?"\n\n * Name it?\n(3) 7 toys?\n12: Twelve?\n2 dogs?'
    assert lines(reply) == ["Which toy is it?", "What is this toy?", "Name it?", "7 toys?", "Twelve?", "2 dogs?"]


@pytest.mark.parametrize(
    ("candidate", "fault"),
    [
        ("Which toy can be seen?", None),
        ("what toy is  THIS ?", "equals the question"),
        ("Which toy, is shown?", "duplicate"),
        ("Is this a teddy bear?", "gives an answer away"),
        ("Is this a teddy bearskin?", None),
        ("Here are ten questions:", "format"),
        ("?!", "format"),
        ("Which toy " + "very " * 60 + "?", "format"),
    ],
)
def test_rephrasings(candidate: str, fault: str | None) -> None:
    assert rephrasing_fault(candidate, QUESTION, ["Which toy is shown?"], ("teddy bear",)) == fault


@given(st.text(st.characters(codec="ascii"), min_size=1).filter(normal), st.sampled_from(["", " ", "  "]))
def test_a_question_is_never_its_own_rephrasing(question: str, space: str) -> None:
    same = f"{space}{question.upper()}{space}?"
    assert rephrasing_fault(same, f"{question}?", [], ()) in ("equals the question", "format")


@pytest.mark.parametrize(
    ("candidate", "fault"),
    [
        ("a doll", None),
        ("Teddy-bear", "is a true answer"),
        ("robot!", "is the target"),
        ("", "format"),
        ("a very long answer with words", "format"),
        ("Sure, here it is:", "format"),
    ],
)
def test_false_answers(candidate: str, fault: str | None) -> None:
    assert answer_fault(candidate, {"teddy bear": "is a true answer", "robot": "is the target"}) == fault


def test_pictures() -> None:
    flat = io.BytesIO()
    Image.new("RGB", (64, 64)).save(flat, "PNG")
    assert picture_fault(png(0), [png(1)]) is None
    assert picture_fault(png(0), [png(1), png(0)]) == "duplicate"
    assert picture_fault(png(0, 16), []) == "too small"
    assert picture_fault(flat.getvalue(), []) == "one flat colour"
    assert picture_fault(b"<html>", []) == picture_fault(png(0)[:500], []) == "format"


@given(st.sets(st.text(min_size=1), min_size=1), st.integers(1, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 99))
def test_each_name_has_one_split_that_is_wanted(names: set[str], test: int, dev: int, train: int, seed: int) -> None:
    wanted = {"test": test, "dev": dev, "train": train}
    drawn = split_of(names, wanted, seed)
    assert drawn.keys() == names and set(drawn.values()) <= {s for s, n in wanted.items() if n}
    assert drawn == split_of(sorted(names), wanted, seed)


def test_splits_are_in_proportion() -> None:
    drawn = list(split_of(map(str, range(100)), {"test": 6, "dev": 1, "train": 3}, 0).values())
    assert [drawn.count(s) for s in ("test", "dev", "train")] == [60, 10, 30]


def test_photos_are_found_packed_and_refused(tmp_path: Path) -> None:
    (tmp_path / "val2014").mkdir()
    (tmp_path / "val2014" / "a.png").write_bytes(png(0, 96))
    (tmp_path / "b.png").write_bytes(png(0, 40))
    (tmp_path / "c.png").write_bytes(png(0)[:200])
    photos = Photos([tmp_path / "none", tmp_path], side=48)
    assert photos.image(photos.add("val2014/a.png")).size == (48, 48)
    assert photos.pictures[photos.add("val2014/b.png")].png == png(0, 40)  # small enough: as it is
    for name, reason in (("c.png", "unreadable"), ("d.png", "missing")):
        with pytest.raises(Rejected, match=reason):
            photos.add(name)


@pytest.mark.parametrize("use", ["rephrase", "counterfactual", "third", "scene"])
def test_prompts_carry_what_is_asked_whatever_it_holds(use: str) -> None:
    made = prompt(use, question="What {is} this?", answer="a {cat}", target="a dog", count=7)
    assert "What {is} this?" in made and ("7" if use == "rephrase" else "a {cat}") in made
    assert ("a dog" in made) == (use == "third")


@pytest.mark.parametrize(("name", "source"), [("okvqa", okvqa), ("mmedit_vqa", mmedit)])
def test_the_recipes_are_valid_and_name_every_key(name: str, source) -> None:
    entries = YAML(typ="safe").load(ROOT / "recipes/datasets.yaml")[name]
    settings = dataset(**entries).settings(source.Settings)
    assert set(entries) >= {f.name for f in dataclasses.fields(source.Settings)}
    for nested in {"text", "image", "agreement"} & set(entries):
        known = {f.name for f in dataclasses.fields(getattr(settings, nested))}
        assert set(entries[nested]) - {"provider", "by"} == known
