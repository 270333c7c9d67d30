"""When two answers say the same, and what that means for counterfactuals."""

from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from stages.okedit.schema import read_table
from stages.okedit.validate import answer_fault, rephrasing_fault
from stages.okedit.wording import ARTICLES, says_same, words

WORD = st.from_regex(r"[a-z]{3,9}", fullmatch=True).filter(lambda word: word not in ARTICLES)


@pytest.mark.parametrize(
    ("gold", "same"),
    [
        ("bus", ["Bus", "the bus", "a bus.", "buses", "busses", "red bus", "red buses", "bus stop", "Bus's"]),
        ("red bus", ["bus", "the red bus", "bus, red"]),
        ("knife", ["knives"]), ("leaf", ["leaves"]), ("horse", ["horses"]), ("cherry", ["cherries"]), ("glass", ["glasses"]),
        ("fireman", ["firemen"]), ("child", ["children"]), ("tomato", ["tomatoes"]), ("teddy bear", ["Teddy-bears"]),
        ("2", ["two", "2.0", "02", "2 dogs"]), ("1,000", ["1000"]), ("-1", ["\u22121", "-1.0", "-1 degrees"]), ("0.5", [".5"]),
        ("café", ["cafe", "CAFE\u0301"]), ("U.S.", ["US", "the U.S"]), ("C++", ["c++", "C++ language"]), ("+", [" +"]),
        ("O\u2019Neill", ["o'neill"]), ("an", ["An"]),
    ],
)  # fmt: skip
def test_what_says_the_same_is_no_false_answer(gold: str, same: list[str]) -> None:
    for candidate in same:
        assert says_same(candidate, gold) and says_same(gold, candidate), candidate
        if words(candidate):
            assert answer_fault(candidate, {"tram": "is another", gold: "is a true answer"}) == "is a true answer"


@pytest.mark.parametrize(
    ("gold", "others"),
    [
        ("bus", ["tram", "omnibus", "business", "bust", "a"]),
        ("1", ["-1", "11", "1.5", "10:1"]), ("C", ["C++", "C#"]), ("C++", ["C", "C#"]), ("A-", ["A", "B-"]),
        ("A", ["A-", "A+"]), ("-5C", ["5C"]), ("15", ["1.5", "1 5"]), ("women", ["men"]), ("+", ["-"]), ("x-ray", ["ray-gun"]),
        ("", ["bus"]),
    ],
)  # fmt: skip
def test_what_says_something_else_may_be_a_false_answer(gold: str, others: list[str]) -> None:
    for candidate in others:
        assert not says_same(candidate, gold) and not says_same(gold, candidate), candidate
        assert answer_fault(candidate, {gold: "is a true answer"}) in (None, "format")


def test_an_answer_with_signs_is_given_away_by_itself_alone() -> None:
    assert rephrasing_fault("Which letter C is it?", "What is it?", [], ("C++",)) is None
    assert rephrasing_fault("Is it C++ code?", "What is it?", [], ("C++",)) == "gives an answer away"
    assert rephrasing_fault("Is it at 1 degree?", "What is it?", [], ("-1", "?")) is None


@given(st.text(), st.text())
def test_it_holds_both_ways_and_of_a_text_and_itself(one: str, other: str) -> None:
    assert says_same(one, one)
    assert says_same(one, other) == says_same(other, one)


@given(WORD, WORD, st.sampled_from(sorted(ARTICLES)))
def test_articles_plurals_and_more_words_say_the_same(noun: str, more: str, article: str) -> None:
    plural = f"{noun}es" if noun.endswith(("s", "x", "z", "ch", "sh")) else f"{noun}s"
    for said in (noun.upper(), f"{article} {noun}", plural, f"{more} {noun}", f"{noun} {more}", f"{article} {more} {plural}"):
        assert says_same(said, noun), said


@given(st.integers(1, 10**6), st.sampled_from(["", ".0", " %", " years"]))
def test_a_sign_makes_another_number(number: int, behind: str) -> None:
    assert says_same(f"{number:,}{behind}", str(number))
    assert not says_same(f"-{number}{behind}", str(number)) and not says_same(f"{number + 1}{behind}", str(number))


@given(st.text(max_size=30), st.lists(st.text(max_size=10), max_size=10))
def test_no_alias_of_an_answer_is_a_false_one(candidate: str, aliases: list[str]) -> None:
    if any(says_same(candidate, alias) for alias in aliases):
        assert answer_fault(candidate, dict.fromkeys(aliases, "is a true answer")) in ("is a true answer", "format")


@pytest.mark.parametrize("name", ["okedit"])
def test_the_built_sets_targets_are_false_answers(name: str) -> None:
    path = Path(ROOT / f"data/okedit/{name}/edits.parquet")
    if not path.exists():
        pytest.skip("the set is not built")
    for row in read_table(path, ["edit_id", "answer", "target", "unedited"]).to_pylist():
        refused = {row["answer"]: "is a true answer"} | dict.fromkeys(row["unedited"], "is the unedited answer")
        assert answer_fault(row["target"], refused) is None, row["edit_id"]
