"""Records that no build survived: each is counted and named, or the build ends in one line that names the file."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Endpoint

from stages.okedit import easyedit
from stages.okedit.photos import Photos, read_json
from stages.okedit.providers.openai_text import Settings
from stages.okedit.sources import mmedit, okvqa
from stages.okedit.validate import Rejected, Tally
from stages.params import UserError
from tests.sources import dataset, png

HALF = "\ud800"  # of a surrogate pair: JSON may hold it, no file can
RECORD = {
    "src": "What is it?", "pred": "a cat", "rephrase": "What is shown?", "alt": "a dog", "image": "val2014/p3.jpg",
    "image_rephrase": "p1.jpg", "loc": "Who sang?", "loc_ans": "he", "m_loc": "p2.jpg", "m_loc_q": "Colour?", "m_loc_a": "red",
}  # fmt: skip


def test_bad_records_of_mmedit_are_counted_and_named(tmp_path: Path) -> None:
    bad = {
        "record: a text that is no Unicode": [{name: f"x{HALF}"} for name in easyedit.FIELDS] + [{easyedit.POSITIVES: [HALF]}],
        "record: a picture's name is too long": [{"image": "a" * 300}, {"m_loc": f"{'é' * 150}/p.jpg"}],
        "record: a picture outside the folder": [{"image": "../a.jpg"}, {"image": " /etc/a.jpg"}],
        "record: a field is no text": [{"src": float("inf")}, {"src": " "}],
    }
    records = [RECORD, *(RECORD | changes for listed in bad.values() for changes in listed)]
    (tmp_path / "r.json").write_text(json.dumps(records))
    tally = Tally()
    assert easyedit.read("at", tmp_path / "r.json", tally) == [RECORD]
    assert dict(tally) == {reason: len(listed) for reason, listed in bad.items()}
    assert tally.examples["record: a text that is no Unicode"][0] == "r.json[1]"


def test_a_target_with_another_sign_is_another_answer(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps([RECORD | {"pred": "1", "alt": "-1"}, RECORD | {"pred": "1", "alt": "1."}]))
    tally = Tally()
    assert len(easyedit.read("at", tmp_path / "r.json", tally)) == 1 and dict(tally) == {"target: equals the answer": 1}


def test_two_names_of_one_photo_are_one_picture(tmp_path: Path) -> None:
    """`p3.jpg` and `val2014/p3.jpg` gave two edits of one id, which the stage found when all work was done."""
    (tmp_path / "val2014").mkdir()
    (tmp_path / "val2014/p3.jpg").write_bytes(png(0))
    changed = [
        {"image": "p3.jpg"},
        {"image": "p3.jpg", "src": "Where is it?"},
        {"image": "train2014/p3.jpg", "src": "Where is it?"},
    ]
    (tmp_path / "r.json").write_text(json.dumps([RECORD, *(RECORD | changes for changes in changed)]))
    (tmp_path / "t.json").write_text(json.dumps([RECORD | {"image": "p3.jpg", "src": "Why?"}]))
    settings = mmedit.Settings(tmp_path / "r.json", (tmp_path,), tmp_path / "t.json")
    photos, tally = Photos([tmp_path, tmp_path / "val2014"], side=448), Tally()
    found = mmedit.records_of(dataset(source="mmedit", train=1), settings, photos, tally, seed=0)
    kept = [(record["image"], record["src"]) for records in found.values() for record in records]
    assert sorted(kept) == [("val2014/p3.jpg", "What is it?"), ("val2014/p3.jpg", "Where is it?")]
    assert tally["record: duplicate id"] == 2 and tally["training: its picture is an evaluation picture"] == 1
    assert sum(map(bool, found.values())) == 1  # one picture is in one split


def test_bad_records_of_okvqa_are_counted_and_named(tmp_path: Path) -> None:
    good = {"question_id": 1, "image_id": 3, "question": "What is it?"}
    wrong: list[Any] = [float("inf"), float("nan"), True, 1.5, -3, "x", 10**30, [3], None, "\u0663"]
    asked = [good, *(good | {"image_id": value} for value in wrong), good | {"question": HALF}, good | {"question_id": "a" * 300}]
    answers = [{"answer": "race", "raw_answer": "racing"}, {"answer": "race", "raw_answer": "races"}]
    given = [{"question_id": 1, "answers": answers}, {"question_id": 2, "answers": [{"answer": HALF}]}]
    given.append({"question_id": HALF, "answers": answers})
    (tmp_path / "q.json").write_text(json.dumps({"data_subtype": "val2014", "questions": asked}))
    (tmp_path / "a.json").write_text(json.dumps({"annotations": given}))
    tally = Tally()
    (found,) = okvqa.read_questions("at", tmp_path / "q.json", tmp_path / "a.json", tally)
    assert found.image == "val2014/COCO_val2014_000000000003.jpg"
    assert dict(tally) == {"question: malformed": len(wrong) + 2, "annotation: malformed": 2}
    assert tally.examples["question: malformed"][0] == "q.json[1]" and tally.examples["annotation: malformed"][1] == "a.json[2]"
    json.dumps(tally.examples, ensure_ascii=False).encode()
    assert set(found.true) == {"race", "racing", "races"}  # what annotators wrote is never a target either


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "nested too deep"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deep"),
        (b"[" + b"9" * 5000 + b"]", "Exceeds the limit"),
        (b"\xff", "codec can't decode"),
        (b"", "Expecting value"),
    ],
)
def test_a_file_that_cannot_be_read_ends_in_one_line(content: bytes, fault: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_bytes(content)
    for path, said in ((tmp_path / "r.json", fault), (tmp_path, "Is a directory")):
        with pytest.raises(
            UserError, match=rf"^at: '{path}' cannot be read as JSON: .*{said}.*; allowed: the file as published$"
        ):
            read_json("at", path)


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json("at", tmp_path / "r.json") == [1]


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", HALF, ".", "", "folder"])
def test_names_that_no_file_has_are_missing_photos(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(Rejected, match="image: missing"):
        Photos([tmp_path], side=48).add(name)


def test_an_endpoint_may_say_half_of_a_surrogate_pair(endpoint: Endpoint) -> None:
    endpoint.says = lambda prompt: f"a {HALF} dog"
    provider = Settings("m", endpoint.url).open("at")
    provider = getattr(provider, "provider", provider)
    assert b"a ? dog" in provider.make("p", 0, "n")
