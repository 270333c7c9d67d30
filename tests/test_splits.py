"""No split asks what another asks, whatever the source."""

import dataclasses
import pkgutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.backbone.corpus import TRAINING_TEXTS
from stages.okedit import schema, sources
from stages.okedit.generate import collect
from stages.okedit.locality import open_questions
from stages.okedit.schema import SPLITS, EditRow, asked
from stages.okedit.splits import dealt
from stages.okedit.validate import Tally
from stages.params import UserError

SOURCES = [module.name for module in pkgutil.iter_modules(sources.__path__)]


def row_of(edit_id: str, split: str, question: str = "What?", image: str = "a", locality: tuple = ()) -> EditRow:
    return EditRow(edit_id, split, "r", "c", question, image, "old", "new", ["T?"], ["E?"], [f"{image}2"], locality, [])


@pytest.mark.parametrize("source", SOURCES)
def test_no_probe_of_an_edit_is_one_of_another_split(source: str, request: pytest.FixtureRequest) -> None:
    """The edits are those of the fixture rows_of_<source> (tests/worlds.py)."""
    rows = request.getfixturevalue(f"rows_of_{source}")
    assert {row.split for row in rows} == set(SPLITS)
    of = {split: set().union(*(asked(vars(row)) for row in rows if row.split == split)) for split in SPLITS}
    for row in rows:
        assert len(row.locality) > 1 and {p["kind"] for p in row.locality} & {"text_only", "unrelated", "near_image"}
    assert not (of["train"] & of["dev"] or of["train"] & of["test"] or of["dev"] & of["test"])
    schema.check_splits(rows)


def test_all_that_is_asked_of_an_edit() -> None:
    probes = (
        {"kind": "text_only", "image_id": None, "question": "Who?"},
        {"kind": "no_image", "image_id": None, "question": "What?"},
    )
    assert asked(vars(row_of("e", "test", locality=probes))) == {
        ("What?", "a"), ("What?", "a2"), ("T?", "a"), ("T?", "a2"), ("E?", "a"), ("E?", "a2"), ("Who?", None),
    }  # fmt: skip


def test_what_is_asked_in_two_splits_is_named() -> None:
    near = {"kind": "near_image", "image_id": "a2", "question": "E?", "answer": ""}
    rows = [row_of("one", "test"), row_of("two", "train", image="b", locality=(near,))]
    schema.check_splits([rows[0], dataclasses.replace(rows[1], split="test")])
    with pytest.raises(UserError, match=r"two \(train\) and one \(test\): 'E\?' about 'a2' is asked in both splits"):
        schema.check_splits(rows)


def test_an_item_that_another_split_asks_is_left_out_and_counted() -> None:
    tally, there = Tally(), [row_of("one", "test", image="a")]
    made = collect(2, ["a", "b", "c"], lambda image: row_of(image, "dev", image=image), str, tally, "x", there)
    assert [row.edit_id for row in made] == ["b", "c"]
    assert dict(tally) == {"edit: another split asks one of its probes": 1}


def test_text_only_questions_are_shared_out_and_asked_once(tmp_path: Path) -> None:
    questions = [*(f"q{i}" for i in range(TRAINING_TEXTS + 7)), f"q{TRAINING_TEXTS}"]
    pq.write_table(pa.Table.from_pylist([{"question": q, "answers": ["a"]} for q in questions]), tmp_path / "nq_open.parquet")
    listed = [[p["question"] for p in open_questions(tmp_path, split)] for split in SPLITS]
    assert sorted(map(len, listed)) == [2, 2, 3]
    assert sorted(sum(listed, [])) == [f"Q{TRAINING_TEXTS + i}?" for i in range(7)]


def test_small_groups_are_dealt_evenly_and_large_ones_by_what_is_wanted() -> None:
    groups = {"small": [f"s{i}" for i in range(9)], "large": [f"l{i}" for i in range(60)] + ["s0"]}
    drawn = dealt(groups, {"test": 2, "dev": 1, "train": 3}, 5, 0)
    count = {s: (sum(drawn[n] == s for n in groups["small"]), sum(drawn[n] == s for n in groups["large"])) for s in SPLITS}
    assert {s: n for s, (n, _) in count.items()} == {"test": 3, "dev": 3, "train": 3}
    assert all(
        abs(n - share) <= 1 for n, share in zip((count[s][1] for s in ("test", "dev", "train")), (20, 10, 31), strict=True)
    )


@given(
    st.dictionaries(st.text(max_size=2), st.sets(st.text(min_size=1, max_size=2)), max_size=4),
    st.integers(1, 9), st.integers(0, 9), st.integers(0, 12),
)  # fmt: skip
def test_every_name_has_one_split_that_is_wanted(groups: dict[str, set[str]], test: int, dev: int, each: int) -> None:
    wanted = {"test": test, "dev": dev}
    drawn = dealt(groups, wanted, each, 0)
    assert drawn.keys() == set().union(*groups.values()) and set(drawn.values()) <= {s for s, n in wanted.items() if n}
