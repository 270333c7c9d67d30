"""The sources okvqa and mmedit on real rows and photos: what is read, generated, rejected, written, exported and read again."""

import dataclasses
import io
import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, Endpoint, send
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from ruamel.yaml import YAML

from stages.backbone.corpus import TRAINING_TEXTS
from stages.editing.trace import probes_of, run_trunk
from stages.okedit import __main__ as stage
from stages.okedit import easyedit, schema
from stages.okedit.generate import prompt
from stages.okedit.photos import Photos
from stages.okedit.schema import EditRow
from stages.okedit.sources import mmedit, okvqa
from stages.okedit.splits import split_of
from stages.okedit.validate import Rejected, Tally, answer_fault, lines, normal, picture_fault, rephrasing_fault
from stages.params import UserError
from stages.samples.generate import plain_pictures, samples_of
from stages.samples.pools import Photos as PhotoPool
from stages.sections import read_section
from stages.settings import STAGES, Dataset


def dataset(**entries: Any) -> Dataset:
    return read_section(Dataset, "datasets.x", {"test": 2, "dev": 1, "train": 1} | entries, STAGES, name="x")


def png(seed: int, size: int = 64) -> bytes:
    """A picture of noise."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


# -- validation -------------------------------------------------------------------------------------------------------------

QUESTION = "What toy is this?"


def test_lists_are_read_as_language_models_write_them() -> None:
    said = '1. Which toy is it?\n- "What is this toy?"\n\n * Name it?\n(3) 7 toys?\n12: Twelve?\n2 dogs?'
    assert lines(said) == ["Which toy is it?", "What is this toy?", "Name it?", "7 toys?", "Twelve?", "2 dogs?"]


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


# -- mmedit -----------------------------------------------------------------------------------------------------------------


def test_the_published_files_are_read_whole(real: Path) -> None:
    for name, kept, rejected in (
        ("mmedit/vqa_eval.json", 2042, {"rephrasing: equals the question": 46, "target: equals the answer": 5}),
        ("mmedit/caption_eval_edit.json", 1000, {}),
        ("okedit-fork/vqa_eval_300.json", 293, {"rephrasing: equals the question": 6, "target: equals the answer": 1}),
    ):
        tally = Tally()
        records = easyedit.read("k", real / name, tally)
        assert (len(records), dict(tally)) == (kept, rejected)
        ids = [mmedit.edit_id_of(r) for r in records]
        assert len(set(ids)) == kept
        assert all(r["alt"] == r["alt"].strip() for r in records)


@pytest.fixture()
def vqa(real: Path, tmp_path: Path) -> Path:
    """Folder with real photos under the names that 40 real E-VQA records ask for; eval.json holds the records."""
    records = json.loads((real / "mmedit/vqa_eval.json").read_text())[:40]
    shown = sorted(real.glob("images/*.jpg"))
    named = sorted({r[name] for r in records for name in easyedit.PICTURES})
    for i, name in enumerate(named):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        photo = Image.open(shown[i % len(shown)]).convert("RGB")
        photo.rotate(i, expand=True).resize((80, 60)).save(tmp_path / name, "JPEG")
    (tmp_path / "eval.json").write_text(json.dumps(records))
    return tmp_path


def build_mmedit(folder: Path, backbone, **entries: Any):
    entries = {"source": "mmedit", "evaluation": str(folder / "eval.json"), "images": str(folder), "train": 0} | entries
    return mmedit.build(dataset(**entries), None, Path("none"), [backbone], seed=0)


def test_rows_of_evqa(vqa: Path, backbone) -> None:
    (vqa / "train.json").write_text(json.dumps(_renamed(json.loads((vqa / "eval.json").read_text()), vqa)))
    rows, pictures, tally = build_mmedit(vqa, backbone, test=20, dev=5, train=3, training=str(vqa / "train.json"), near=1, far=1)
    ids = {p.image_id for p in pictures}
    schema.check(rows, ids)
    assert {s: sum(r.split == s for r in rows) for s in schema.SPLITS} == {"test": 20, "dev": 5, "train": 3}
    assert tally["rephrasing: equals the question"] == 2  # record 31, once in each file
    assert tally["training: its picture is an evaluation picture"] == 20 - 1
    published = {mmedit.edit_id_of(r): r for r in json.loads((vqa / "eval.json").read_text())}
    pictured: dict[str, str] = {}
    for row in rows:
        assert pictured.setdefault(row.image_id, row.split) == row.split
        assert [p["kind"] for p in row.locality] == ["near_image", "far_image", "unrelated", "text_only", "no_image"]
        assert len(row.rephrasings) == len(row.generality_image_ids) == 1 and len(row.rephrasings_train) == 3
        assert row.question not in row.rephrasings_train
        if row.split != "train":
            record = published[row.edit_id]
            assert (row.answer, row.target, row.rephrasings) == (record["pred"], record["alt"], [record["rephrase"]])
            assert row.locality[2]["image_id"] == record["m_loc"] and row.locality[3]["question"] == record["loc"]
    assert rows == build_mmedit(vqa, backbone, test=20, dev=5, train=3, training=str(vqa / "train.json"), near=1, far=1)[0]


def _renamed(records: list[dict], folder: Path) -> list[dict]:
    """Every second record with another picture's name, as a training file has."""
    for record in records[::2]:
        name = record["image"].replace("val2014_", "train2014_")
        (folder / name).write_bytes((folder / record["image"]).read_bytes())
        record["image"] = name
    return records


def test_positives_come_from_the_record_the_provider_or_frames(vqa: Path, backbone, endpoint: Endpoint, monkeypatch) -> None:
    monkeypatch.chdir(vqa)
    records = json.loads((vqa / "eval.json").read_text())
    records[0][easyedit.POSITIVES] = ["Count the tennis balls?", records[0]["src"], records[0]["rephrase"]]
    (vqa / "eval.json").write_text(json.dumps(records[:2]))
    endpoint.says = lambda prompt: "How many pans are there?\nWhat number of pans is shown?\nCan you count the pans?\nTwo pans?"
    text = {"provider": "openai", "model": "m", "url": endpoint.url, "wait": 0}
    rows, _, tally = build_mmedit(vqa, backbone, test=2, dev=0, text=text)
    by_question = {r.question: list(r.rephrasings_train) for r in rows}
    assert by_question["How many tennis balls are in the picture?"] == ["Count the tennis balls?"]
    assert by_question["How many pans do you see?"] == endpoint.says("").splitlines()[:3]
    assert len(endpoint.requests) == 1 and tally["rephrasing: gives an answer away"] == 1


def test_captions(real: Path, tmp_path: Path, backbone) -> None:
    records = json.loads((real / "mmedit/caption_eval_edit.json").read_text())[:4]
    for i, name in enumerate(sorted({r[n] for r in records for n in easyedit.PICTURES})):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(i))
    (tmp_path / "eval.json").write_text(json.dumps(records))
    rows, _, _ = build_mmedit(tmp_path, backbone, test=3, dev=1)
    assert {r.relation for r in rows} == {"caption"} and {r.question for r in rows} == {"a photo of"}
    assert "A boy throwing out a pitch in a ball game." in {r.target for r in rows}


def test_bad_records_are_counted_and_named(vqa: Path, backbone) -> None:
    records = json.loads((vqa / "eval.json").read_text())[:20]
    records[0].pop("alt")
    records[1] |= {"pred": 3}
    records[2] |= {"image": "../../secret.jpg"}
    records[3] |= {"pred": f" {records[3]['alt'].upper()}."}
    records[4] = records[5]
    records[6] = "text"
    records[7] |= {easyedit.POSITIVES: "one"}
    (vqa / records[8]["image_rephrase"]).unlink()
    (vqa / records[9]["m_loc"]).write_bytes(b"not a picture")
    (vqa / "eval.json").write_text(json.dumps(records))
    rows, _, tally = build_mmedit(vqa, backbone, test=20, dev=0)
    assert dict(tally) == {
        "record: a field is missing": 2,
        "record: a field is no text": 1,
        "record: a picture outside the folder": 1,
        "target: equals the answer": 1,
        "record: duplicate": 1,
        f"record: {easyedit.POSITIVES} is no list of texts": 1,
        "image: missing": 1,
        "image: unreadable": 1,
    }
    assert len(rows) == 20 - 9 and tally.examples["record: duplicate"] == ["eval.json[5]"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"src": ', r"datasets\.x\.evaluation: .*eval\.json' cannot be read as JSON: .*line 1"),
        ("{}", r"datasets\.x\.evaluation: .* holds no records; allowed: a JSON list"),
        ("[]", "holds no records"),
        ("\xff", "cannot be read as JSON"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_not_as_published_stops_the_build(tmp_path: Path, backbone, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "eval.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=said):
        build_mmedit(tmp_path, backbone)


def test_settings_of_mmedit(vqa: Path, backbone) -> None:
    for entries, said in (
        ({"text_only": 2}, r"datasets\.x\.text_only: 2 is not allowed; allowed: 0"),
        ({"train": 2}, r"datasets\.x\.training: missing; needed for datasets\.x\.train: 2"),
        ({"images": str(vqa / "none")}, r"datasets\.x\.images: .*none' does not exist"),
        ({"images": []}, r"datasets\.x\.images: \[\] is not allowed; allowed: a path or a list of paths"),
        ({"evaluaton": "x"}, r"datasets\.x\.evaluaton: 'x': unknown key; allowed: .*near, .*evaluation"),
    ):
        with pytest.raises(UserError, match=said):
            build_mmedit(vqa, backbone, **entries)


# -- export -----------------------------------------------------------------------------------------------------------------


def core(rows: list[EditRow], pictures: Mapping[str, bytes]) -> list[tuple]:
    """What EasyEdit's format keeps of an edit, with pictures by content."""
    kept = []
    for r in rows:
        about = next(p for p in r.locality if p["kind"] in ("near_image", "unrelated") and p["answer"])
        text = next(p for p in r.locality if p["kind"] == "text_only")
        shown = tuple(pictures[i] for i in (r.image_id, r.generality_image_ids[0], about["image_id"]))
        asked = (about["question"], about["answer"], text["question"], text["answer"])
        kept.append((r.question, r.answer, r.target, r.rephrasings[0], tuple(r.rephrasings_train), shown, asked))
    return sorted(kept)


def test_an_export_is_read_again_as_it_was(vqa: Path, backbone, tmp_path: Path) -> None:
    rows, pictures, _ = build_mmedit(vqa, backbone, test=12, dev=4, far=2)
    lacking = dataclasses.replace(rows[0], edit_id="other", rephrasings=[])
    done = easyedit.export(tmp_path / "out", [*rows, lacking], pictures)
    assert done == {"edits": {"test": 12, "dev": 4, "train": 0}, "left_out": {"rephrase": 1}}
    encoded = {p.image_id: p.png for p in pictures}
    for split, n in (("test", 12), ("dev", 4)):
        assert set(json.loads((tmp_path / f"out/{split}.json").read_text())[0]) == {*easyedit.FIELDS, easyedit.POSITIVES}
        again, shown, tally = build_mmedit(
            tmp_path / "out", backbone, evaluation=str(tmp_path / f"out/{split}.json"), test=n, dev=0
        )
        assert not tally
        assert core(again, {p.image_id: p.png for p in shown}) == core([r for r in rows if r.split == split], encoded)


# -- okvqa ------------------------------------------------------------------------------------------------------------------


def official(real: Path, folder: Path) -> tuple[Path, Path]:
    """OK-VQA's real question file, and its real answers in the official annotation file's shape."""
    questions = real / "okvqa/OpenEnded_mscoco_val2014_questions.json"
    records = json.loads((real / "okvqa/okvqa_val.json").read_text())
    annotations = [
        {
            "question_id": r["question_id"],
            "image_id": int(r["image"][-16:-4]),
            "question_type": "eight" if i % 2 else "four",
            "answers": [{"answer_id": j + 1, "raw_answer": a, "answer": a} for j, a in enumerate(r["answer"])],
        }
        for i, r in enumerate(records)
    ]
    types = {"four": "Sports and Recreation", "eight": "Plants and Animals"}
    path = folder / "mscoco_val2014_annotations.json"
    path.write_text(json.dumps({"question_types": types, "annotations": annotations}))
    return questions, path


def test_the_official_files_are_read_whole(real: Path, tmp_path: Path) -> None:
    tally = Tally()
    questions, annotations = official(real, tmp_path)
    found = okvqa.read_questions("at", questions, annotations, tally)
    assert len(found) == 5046 and len({q.image for q in found}) == 5033 and not tally
    first = found[0]
    assert (first.question, first.image) == ("What sport can you use this for?", "val2014/COCO_val2014_000000297147.jpg")
    assert (first.answers, first.category) == (["racing", "motocross", "riding"], "Sports and Recreation")
    plain = okvqa.read_questions("at", questions, real / "okvqa/okvqa_val.json", tally)
    assert [dataclasses.replace(q, category="") for q in plain] == [dataclasses.replace(q, category="") for q in found]


def test_bad_questions_and_annotations_are_counted(tmp_path: Path) -> None:
    asked = [{"question_id": i, "image_id": i, "question": f"q{i}?"} for i in range(4)]
    asked += [asked[0], {"question_id": 9}, {"question_id": 5, "image_id": "x", "question": "?"}, None]
    asked += [{"question_id": "../3", "image_id": 3, "question": "q?"}]
    (tmp_path / "q.json").write_text(json.dumps({"data_subtype": "val2014", "questions": asked}))
    said = [{"question_id": i, "answers": [{"answer": "b"}, {"answer": "a"}, {"answer": "a"}]} for i in range(2)]
    said += [said[1], {"question_id": 2, "answers": [{"answer": " "}]}, {"question_id": 3, "answers": 5}, 7]
    (tmp_path / "a.json").write_text(json.dumps({"annotations": said}))
    tally = Tally()
    found = okvqa.read_questions("at", tmp_path / "q.json", tmp_path / "a.json", tally)
    assert [(q.question_id, q.answers) for q in found] == [("0", ["a", "b"]), ("1", ["a", "b"])]
    assert dict(tally) == {
        "annotation: duplicate id": 1, "annotation: malformed": 3, "question: no answers": 2, "question: duplicate id": 1,
        "question: malformed": 4,
    }  # fmt: skip
    for file in ("q", "a"):
        (tmp_path / "bad.json").write_text('{"other": 1}')
        paths = {"q": tmp_path / "q.json", "a": tmp_path / "a.json", file: tmp_path / "bad.json"}
        with pytest.raises(UserError, match=r"allowed: the official file"):
            okvqa.read_questions("at", paths["q"], paths["a"], Tally())


def answers(prompt: str) -> str:
    """What a good text provider says."""
    if "different ways" in prompt:
        question = re.search(r"Question: (.*)", prompt).group(1)
        count = int(re.search(r"Write (\d+)", prompt).group(1))
        return "\n".join(f"{i + 1}. Put in way {i}, {question}" for i in range(count))
    return "A third thing." if "third" in prompt else "something else"


@pytest.fixture()
def coco(real: Path, tmp_path: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Entries of a dataset of the four OK-VQA questions whose real photos are there, with pictures from a folder."""
    monkeypatch.chdir(tmp_path)
    endpoint.says = answers
    questions, annotations = official(real, tmp_path)
    for i, question_id in enumerate(("425", "3285", "6615", "3355855")):
        (tmp_path / "drawn" / question_id).mkdir(parents=True)
        for j in range(3):
            (tmp_path / f"drawn/{question_id}/generality-{j}.png").write_bytes(png(10 * i + j))
        (tmp_path / f"drawn/{question_id}/locality-0.png").write_bytes(png(10 * i + 9))
    questions_asked = [{"question": f"question {i}", "answers": [f"answer {i}"]} for i in range(TRAINING_TEXTS + 9)]
    pq.write_table(pa.Table.from_pylist(questions_asked), tmp_path / "nq_open.parquet")
    return {
        "source": "okvqa", "questions": str(questions), "annotations": str(annotations), "images": [str(real / "images")],
        "text": {"provider": "openai", "model": "m", "url": endpoint.url, "retries": 1, "wait": 0},
        "image": {"provider": "folder", "folder": str(tmp_path / "drawn")}, "generality": 3, "side": 160,
        "near": 2, "far": 1, "unrelated": 1, "text_only": 2,
    }  # fmt: skip


def build_okvqa(entries: Mapping[str, Any], backbone):
    return okvqa.build(dataset(**entries), None, Path(), [backbone], seed=0)


def test_rows_of_okvqa(coco: dict[str, Any], backbone) -> None:
    rows, pictures, tally = build_okvqa(coco, backbone)
    schema.check(rows, {p.image_id for p in pictures})
    assert sorted(r.split for r in rows) == ["dev", "test", "test", "train"]
    assert dict(tally) == {"image: missing": 5042} and len({r.image_id for r in rows}) == 4
    for row in rows:
        assert (row.target, len(row.rephrasings_train), len(row.rephrasings)) == ("something else", 3, 10)
        assert set(row.rephrasings_train).isdisjoint(row.rephrasings)
        assert row.generality_image_ids == [f"generated/{row.edit_id}/generality-{i}" for i in range(3)]
        drawn = next(p for p in row.locality if p["kind"] == "near_image")
        assert (drawn["image_id"], drawn["answer"]) == (f"generated/{row.edit_id}/locality-0", "A third thing")
    for row in (r for r in rows if r.split == "test"):
        other = next(r for r in rows if r.split == "test" and r != row)
        kinds = {p["kind"]: p for p in row.locality}
        # A split of two photos: the other one is the near photo; the far probe and the sample find none.
        assert kinds["near_image"]["image_id"] == other.image_id and kinds["near_image"]["answer"] == ""
        assert (kinds["unrelated"]["question"], kinds["unrelated"]["answer"]) == (other.question, other.answer)
        assert "far_image" not in kinds and "other_question" not in kinds
        assert sum(p["kind"] == "text_only" for p in row.locality) == 2
    shown = {p.image_id: p.png for p in pictures}
    assert all(max(Image.open(io.BytesIO(shown[r.image_id])).size) == 160 for r in rows)


def test_an_interrupted_build_goes_on_where_it_was(coco: dict[str, Any], backbone, endpoint: Endpoint) -> None:
    def interrupted(prompt: str) -> str:
        if len(endpoint.requests) == 5:
            endpoint.replies = [partial(send, body="down", status=503)] * 50
        return answers(prompt)

    endpoint.says = interrupted
    first, _, tally = build_okvqa(coco, backbone)
    assert len(first) == 1 and tally["endpoint: HTTP 503"] == 3
    endpoint.replies, endpoint.says, asked = [], answers, len(endpoint.requests)
    again, _, tally = build_okvqa(coco, backbone)
    assert len(again) == 4 and "endpoint: HTTP 503" not in tally
    assert len(endpoint.requests) == asked + 3 * 4 - 5
    whole = len(endpoint.requests)
    assert build_okvqa(coco, backbone)[0] == again and len(endpoint.requests) == whole


def test_an_endpoint_that_stays_down_stops_the_build(coco: dict[str, Any], backbone, endpoint: Endpoint) -> None:
    endpoint.replies = [partial(send, body="down", status=500)] * 50
    with pytest.raises(UserError, match=r"okedit x test: endpoint: HTTP 500, 3 edits in a row; stopped; run it again"):
        build_okvqa(coco | {"test": 4, "dev": 0, "train": 0}, backbone)


def test_bad_items_are_asked_for_again_and_counted(coco: dict[str, Any], backbone, endpoint: Endpoint) -> None:
    tried: dict[str, int] = {}

    def first_badly(prompt: str) -> str:
        tried[prompt] = tried.get(prompt, 0) + 1
        if "shoe" not in prompt or tried[prompt] > 1:
            return answers(prompt)
        if "different ways" in prompt:
            question = re.search(r"Question: (.*)", prompt).group(1)
            return f"Sure! Here they are:\n{question}\nIs it called a shelf?\nNew way, {question}\nNew way, {question}"
        return "rack" if "third" not in prompt else "something else"

    endpoint.says = first_badly
    rows, _, tally = build_okvqa(coco, backbone)
    shoe = next(r for r in rows if r.edit_id == "425")
    assert [*shoe.rephrasings_train, *shoe.rephrasings][0] == f"New way, {shoe.question}" and len(rows) == 4
    del tally["image: missing"]
    assert dict(tally) == {
        "counterfactual: is a true answer": 1, "third: is the target": 1, "rephrasing: format": 1,
        "rephrasing: equals the question": 1, "rephrasing: gives an answer away": 1, "rephrasing: duplicate": 1,
    }  # fmt: skip
    assert tally.examples["counterfactual: is a true answer"] == ["425"]


def test_edits_without_valid_items_are_left_out(coco: dict[str, Any], backbone, endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.says = lambda prompt: "rack" if "shoe" in prompt else answers(prompt)
    (tmp_path / "drawn/3285/generality-1.png").unlink()
    (tmp_path / "drawn/6615/generality-1.png").write_bytes(png(20))  # the same as generality-0
    rows, pictures, tally = build_okvqa(coco | {"attempts": 2}, backbone)
    assert [r.edit_id for r in rows] == ["3355855"]
    del tally["image: missing"]
    assert dict(tally) == {
        "counterfactual: is a true answer": 2, "edit: no counterfactual": 1, "image folder: no file": 1, "picture: duplicate": 1,
        "edit: too few pictures": 1,
    }  # fmt: skip
    drawn = {p.image_id for p in pictures if p.vendor == "generated"}
    assert len(drawn) == 4 and all(i.startswith("generated/3355855/") for i in drawn)


def test_agreement_rejects_pictures(coco: dict[str, Any], backbone) -> None:
    rows, _, tally = build_okvqa(coco | {"agreement": {"by": "backbone"}}, backbone)
    assert rows == [] and tally["picture: does not show the answer"] == tally["edit: too few pictures"] == 4


def test_settings_of_okvqa(coco: dict[str, Any], backbone) -> None:
    for entries, said in (
        ({"agreement": {"by": "eye"}}, r"datasets\.x\.agreement\.by: 'eye' is not allowed; allowed: clip, backbone"),
        ({"generality": 0}, r"datasets\.x\.generality: 0 is not allowed; allowed: a whole number >= 1"),
        ({"questions": 3}, r"datasets\.x\.questions: 3 is not allowed; allowed: a path"),
        ({"image": {"provider": "folder"}}, r"datasets\.x\.image\.folder: missing"),
        ({"annotations": "none.json"}, r"datasets\.x\.annotations: 'none\.json' cannot be read as JSON"),
    ):
        with pytest.raises(UserError, match=said):
            build_okvqa(coco | entries, backbone)


@pytest.mark.parametrize(("name", "source"), [("okvqa", okvqa), ("mmedit_vqa", mmedit)])
def test_the_recipes_are_valid_and_name_every_key(name: str, source) -> None:
    entries = YAML(typ="safe").load(ROOT / "recipes/datasets.yaml")[name]
    settings = dataset(**entries).settings(source.Settings)
    assert set(entries) >= {f.name for f in dataclasses.fields(source.Settings)}
    for nested in {"text", "image", "agreement"} & set(entries):
        known = {f.name for f in dataclasses.fields(getattr(settings, nested))}
        assert set(entries[nested]) - {"provider", "by"} == known


# -- the stages -------------------------------------------------------------------------------------------------------------


@pytest.fixture()
def run_stage(backbone, monkeypatch: pytest.MonkeyPatch):
    """Run the okedit stage in the current folder on one entry, with the tiny backbone."""

    def run(entries: Mapping[str, Any]) -> None:
        params = type("P", (), {"threads": 1, "seed": 0, "edited": {"b": type("B", (), {"name": "b", "layer": 2})}})()
        params.dataset = lambda name: dataset(**entries)
        monkeypatch.setattr(stage, "load", lambda: params)
        monkeypatch.setattr(stage.Backbone, "open", lambda *_: backbone)
        monkeypatch.setattr("sys.argv", ["okedit", "x"])
        stage.main()

    return run


def test_the_stage_writes_rows_report_and_export(coco: dict[str, Any], run_stage, tmp_path: Path, capsys) -> None:
    (tmp_path / "data/assets").mkdir(parents=True)
    (tmp_path / "nq_open.parquet").rename(tmp_path / "data/assets/nq_open.parquet")
    run_stage(coco | {"dev": 2})
    report = json.loads((tmp_path / "reports/okedit/x.json").read_text())
    test = report["splits"]["test"]
    assert test["edits"] == 2 and sum(test["relations"].values()) == 2
    assert test["probes"] == {
        "edit": 2, "text_generality": 20, "image_generality": 6, "near_image": 4, "unrelated": 2, "text_only": 4, "no_image": 2,
    }  # fmt: skip
    assert test["phrasings"] == {"question": 2, "rephrasings_train": 6, "rephrasings": 20}
    assert report["rejected"] == {"image: missing": 5042} and len(report["rejected_first"]["image: missing"]) == 5
    assert report["short"] == {"train": 1} and report["easyedit"]["edits"] == {
        s: report["splits"][s]["edits"] for s in schema.SPLITS
    }
    assert "1 train edits fewer than wanted; reports/okedit/x.json says why" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "data/okedit/x/easyedit/test.json").read_text())) == 2
    assert len(schema.read_edits(tmp_path / "data/okedit/x")) == sum(report["splits"][s]["edits"] for s in schema.SPLITS)


def test_a_build_without_a_test_edit_writes_nothing(coco: dict[str, Any], run_stage, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"datasets\.x\.test: 2 wanted, no edit is left; rejected: image: missing \(5046\)"):
        run_stage(coco | {"images": str(tmp_path / "empty"), "text_only": 0})
    assert not (tmp_path / "reports").exists() and not (tmp_path / "data/okedit").exists()


def test_samples_and_traces_take_photos(vqa: Path, backbone) -> None:
    built, pictures, _ = build_mmedit(vqa, backbone, test=6, dev=2)
    rows = [dataclasses.asdict(r) for r in built]
    images = {p.image_id: p.png for p in pictures}
    pool = PhotoPool(rows, images, backbone)
    row = rows[0]
    others = pool.others(row)
    assert others and set(others).isdisjoint({row["image_id"], *(p["image_id"] for p in row["locality"])})
    nearest = pool.nearest(row, others)
    samples = [dataclasses.asdict(s) for s in samples_of(row, others, nearest, "What is shown?", seed=0)]
    assert {s["kind"]: s["image_id"] for s in samples}["sample_nearest"] == nearest
    assert [s["kind"] for s in samples[:3]] == ["sample_positive"] * 3 and pool.picture(nearest) is None
    probes = probes_of(row, samples)
    kinds = [p.kind for p in probes]
    assert kinds[:4] == ["edit", "text_generality", "image_generality", "joint_generality"] and "black_image" in kinds
    images |= {p.image_id: p.png for p in plain_pictures()}
    used = [p for p in probes if p.image_id is None or p.image_id in images]
    backbone.add_pictures({p.image_id: schema.decode(p.image_id, images[p.image_id]) for p in used if p.image_id})
    states = run_trunk(backbone, row, used)
    assert len(states.answers) == sum(not p.is_sample for p in used)
    with pytest.raises(UserError, match="no other edit's picture is left"):
        PhotoPool(rows[:1], images, backbone).others(row)
