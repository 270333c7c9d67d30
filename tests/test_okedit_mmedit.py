"""The source mmedit on real rows and photos: what is read, rejected, exported and read again."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from conftest import Endpoint

from stages.editing.probes import probes_of
from stages.editing.trunk import run_trunk
from stages.okedit import easyedit, schema
from stages.okedit.schema import EditRow
from stages.okedit.sources import mmedit
from stages.okedit.validate import Tally
from stages.params import UserError
from stages.samples.generate import plain_pictures, samples_of
from stages.samples.pools import Photos as PhotoPool
from tests.sources import png
from tests.worlds import build_mmedit


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
    """Every second record with another picture's name, and all with other questions, as a training file has."""
    for record in records:
        record.update({name: f"In short: {record[name]}" for name in ("src", "rephrase", "loc", "m_loc_q")})
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
    ("text", "message"),
    [
        ('[{"src": ', r"datasets\.x\.evaluation: .*eval\.json' cannot be read as JSON: .*line 1"),
        ("{}", r"datasets\.x\.evaluation: .* holds no records; allowed: a JSON list"),
        ("[]", "holds no records"),
        ("\xff", "cannot be read as JSON"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_not_as_published_stops_the_build(tmp_path: Path, backbone, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "eval.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=message):
        build_mmedit(tmp_path, backbone)


def test_settings_of_mmedit(vqa: Path, backbone) -> None:
    for entries, message in (
        ({"text_only": 2}, r"datasets\.x\.text_only: 2 is not allowed; allowed: 0"),
        ({"train": 2}, r"datasets\.x\.training: missing; needed for datasets\.x\.train: 2"),
        ({"images": str(vqa / "none")}, r"datasets\.x\.images: .*none' does not exist"),
        ({"images": []}, r"datasets\.x\.images: \[\] is not allowed; allowed: a path or a list of paths"),
        ({"evaluaton": "x"}, r"datasets\.x\.evaluaton: 'x': unknown key; allowed: .*near, .*evaluation"),
    ):
        with pytest.raises(UserError, match=message):
            build_mmedit(vqa, backbone, **entries)


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


def test_samples_and_traces_take_photos(vqa: Path, backbone) -> None:
    built, pictures, _ = build_mmedit(vqa, backbone, test=6, dev=2)
    rows = [dataclasses.asdict(r) for r in built]
    images = {p.image_id: p.png for p in pictures}
    pool = PhotoPool(rows, images, backbone)
    row = rows[0]
    others = pool.others(row, {rows[1]["image_id"]})
    assert rows[1]["image_id"] not in others
    assert others and set(others).isdisjoint({row["image_id"], *(p["image_id"] for p in row["locality"])})
    nearest = pool.nearest(row, others)
    samples = [dataclasses.asdict(s) for s in samples_of(row, [], others, nearest, "What is shown?", seed=0)]
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
        PhotoPool(rows[:1], images, backbone).others(row, set())
