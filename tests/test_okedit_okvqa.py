"""The source okvqa on real rows and photos: what is read, generated, rejected, written and resumed."""

import dataclasses
import io
import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import Endpoint, send
from PIL import Image

from stages.okedit import __main__ as stage
from stages.okedit import schema
from stages.okedit.sources import okvqa
from stages.okedit.validate import Tally
from stages.params import UserError
from tests.sources import dataset, png
from tests.worlds import answers, build_okvqa, official


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
    annotations = [{"question_id": i, "answers": [{"answer": "b"}, {"answer": "a"}, {"answer": "a"}]} for i in range(2)]
    annotations += [annotations[1], {"question_id": 2, "answers": [{"answer": " "}]}, {"question_id": 3, "answers": 5}, 7]
    (tmp_path / "a.json").write_text(json.dumps({"annotations": annotations}))
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
    for entries, message in (
        ({"agreement": {"by": "eye"}}, r"datasets\.x\.agreement\.by: 'eye' is not allowed; allowed: clip, backbone"),
        ({"generality": 0}, r"datasets\.x\.generality: 0 is not allowed; allowed: a whole number >= 1"),
        ({"questions": 3}, r"datasets\.x\.questions: 3 is not allowed; allowed: a path"),
        ({"image": {"provider": "folder"}}, r"datasets\.x\.image\.folder: missing"),
        ({"annotations": "none.json"}, r"datasets\.x\.annotations: 'none\.json' cannot be read as JSON"),
    ):
        with pytest.raises(UserError, match=message):
            build_okvqa(coco | entries, backbone)


@pytest.fixture()
def run_stage(backbone, monkeypatch: pytest.MonkeyPatch):
    """Run the okedit stage in the current folder on one entry, with the tiny backbone."""

    def run(entries: Mapping[str, Any]) -> None:
        params = type("P", (), {"threads": 1, "seed": 0, "edited": {"b": type("B", (), {"name": "b", "layer": 2})}})()
        params.dataset = lambda name: dataset(**entries)
        monkeypatch.setattr(stage, "load", lambda: params)
        monkeypatch.setattr(stage.Backbone, "open", lambda *_: backbone)
        monkeypatch.setattr(stage.pointer, "fingerprint", lambda *_: "tiny")
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
    assert len(json.loads((tmp_path / "data/easyedit/x/test.json").read_text())) == 2
    assert len(schema.read_edits(tmp_path / "data/okedit/x")) == sum(report["splits"][s]["edits"] for s in schema.SPLITS)


def test_a_build_without_a_test_edit_writes_nothing(coco: dict[str, Any], run_stage, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"datasets\.x\.test: 2 wanted, no edit is left; rejected: image: missing \(5046\)"):
        run_stage(coco | {"images": str(tmp_path / "empty"), "text_only": 0})
    assert not (tmp_path / "reports").exists() and not (tmp_path / "data/okedit").exists()
