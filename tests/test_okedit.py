"""The embedded source on a small made-up world, and the schema's checks."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from stages.assets.knowledge import Concept, Hop, Knowledge, Relation
from stages.backbone.corpus import TRAINING_TEXTS, as_sentence
from stages.backbone.views import SEEN_VENDORS
from stages.okedit import schema
from stages.okedit.images import Neighbours, composite
from stages.okedit.sources.embedded import COMPOSITES, VENDORS, build
from stages.params import Dataset, UserError
from stages.samples.generate import samples_of
from stages.samples.pools import Drawings

LEGS = {
    "cat": "four", "dog": "four", "cow": "four", "pig": "four", "hen": "two", "owl": "two", "gull": "two",
    "ant": "six", "bee": "six", "wasp": "six", "eel": "none", "cod": "none", "ray": "none",
}  # fmt: skip


def relation(name: str, facts: dict[str, str], hops: tuple[Hop, ...] = ()) -> Relation:
    asked = [f"{name} phrasing {i}?" for i in range(14)]
    return Relation(name, "type", asked[0], tuple(asked[1:4]), tuple(asked[4:]), facts, hops)


@pytest.fixture()
def knowledge() -> Knowledge:
    concepts = tuple(Concept(c, c, "Animals", f"U+{i:04X}") for i, c in enumerate(LEGS))
    halves = {"four": "two", "two": "one", "six": "three", "none": "none"}
    relations = {
        "legs": relation("legs", LEGS, (Hop(1, "Half of its legs?", halves),)),
        "home": relation("home", {c: ("sea" if a == "none" else "land" if a == "four" else "air") for c, a in LEGS.items()}),
        "name": relation("name", {c: c for c in LEGS}),
    }
    return Knowledge(concepts, relations)


@pytest.fixture()
def assets(tmp_path: Path, knowledge: Knowledge) -> Path:
    rng = np.random.default_rng(0)
    for vendor in VENDORS:
        (tmp_path / "emoji" / vendor).mkdir(parents=True)
        for concept in knowledge.concepts:
            pixels = rng.integers(0, 256, (72, 72, 4), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "emoji" / vendor / f"{concept.code_point}.png")
    asked = [{"question": f"question {i}", "answers": [f"answer {i}"]} for i in range(TRAINING_TEXTS + 20)]
    pq.write_table(pa.Table.from_pylist(asked), tmp_path / "nq_open.parquet")
    return tmp_path


DATASET = Dataset(
    name="small", source="embedded", test=4, dev=2, train=2, near=2, far=2, other_question=1, unrelated=2, text_only=2
)


@pytest.fixture()
def built(knowledge: Knowledge, assets: Path, backbone):
    return build(DATASET, knowledge, assets, [backbone], seed=0)


def test_rows_keep_every_promise_of_the_design(built, knowledge: Knowledge) -> None:
    rows, pictures, _ = built
    ids = {p.image_id for p in pictures}
    assert [sum(r.split == s for r in rows) for s in ("test", "dev", "train")] == [4, 2, 2]
    split_of: dict[str, str] = {}
    for row in rows:
        assert split_of.setdefault(row.concept, row.split) == row.split
        answers = knowledge.relations[row.relation].facts
        assert row.answer == answers[row.concept] and row.target in set(answers.values()) - {row.answer}
        assert len(row.generality_image_ids) == len(VENDORS) - 1 + COMPOSITES
        assert row.image_id not in row.generality_image_ids and set(row.generality_image_ids) <= ids
        assert set(row.rephrasings_train).isdisjoint(row.rephrasings) and row.question not in row.rephrasings
        kinds = [p["kind"] for p in row.locality]
        assert kinds == [
            *["near_image"] * 2, *["far_image"] * 2, "other_question", *["unrelated"] * 2, *["text_only"] * 2, "no_image",
        ]  # fmt: skip
        for probe in row.locality:
            if probe["kind"] in ("near_image", "far_image"):
                assert probe["question"] == row.question and probe["answer"] != row.target
                assert not probe["image_id"].endswith(row.image_id.split("/")[1])
            if probe["kind"] == "text_only":
                assert int(probe["answer"].split()[1]) >= TRAINING_TEXTS
        if row.relation == "legs":
            assert row.hops[0]["answer_before"] != "" and row.hops[0]["n"] == 1


def test_the_same_seed_gives_the_same_rows(built, knowledge: Knowledge, assets: Path, backbone) -> None:
    again = build(DATASET, knowledge, assets, [backbone], seed=0)
    assert [dataclasses.asdict(r) for r in built[0]] == [dataclasses.asdict(r) for r in again[0]]
    assert built[1] == again[1]


def test_targets_avoid_what_a_backbone_already_says(knowledge: Knowledge, assets: Path, backbone, monkeypatch) -> None:
    monkeypatch.setattr("stages.okedit.sources.embedded.Builder.unedited", lambda *_: "Two")
    rows, _, rejected = build(DATASET, knowledge, assets, [backbone], seed=0)
    assert "two" not in {r.target for r in rows if r.relation == "legs"}
    assert rejected["target is the unedited answer"] > 0


def test_more_edits_than_facts_are_refused(knowledge: Knowledge, assets: Path, backbone) -> None:
    with pytest.raises(UserError, match=r"datasets\.small\.test: 400 is more than .* up to \d+"):
        build(dataclasses.replace(DATASET, test=400), knowledge, assets, [backbone], seed=0)


def known(features: dict[str, torch.Tensor]) -> Neighbours:
    """Neighbours whose tower has already seen every picture."""
    neighbours = Neighbours(None, Path(), [])
    neighbours._known = {(v, i): row for v, table in features.items() for i, row in enumerate(table)}
    return neighbours


def test_nearest_is_by_cosine_within_a_vendor() -> None:
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [-1.0, -1.1]])  # the others' mean is the origin
    assert known({"Goog": table}).nearest("Goog", 0, [1, 2, 3]) == [2, 1, 3]


def test_composites_differ_and_repeat() -> None:
    image = Image.new("RGBA", (72, 72), (0, 200, 0, 255))
    one, same, other = (composite(image, np.random.default_rng(s)).tobytes() for s in (1, 1, 2))
    assert one == same != other


def test_sentences() -> None:
    assert as_sentence("who wrote hamlet") == "Who wrote hamlet?"
    assert as_sentence("Is it so? ") == "Is it so?"


def test_samples_are_disjoint_from_probes(built, knowledge: Knowledge, assets: Path, backbone) -> None:
    row = dataclasses.asdict(built[0][0])
    pool = Drawings(knowledge, assets / "emoji", backbone)
    table = torch.randn(len(LEGS), 4, generator=torch.Generator().manual_seed(0))
    pool.neighbours = known(dict.fromkeys(SEEN_VENDORS, table))
    vendor = row["image_id"].split("/")[0]
    code = {c.concept: c.code_point for c in knowledge.concepts}
    shown = {p["image_id"].split("/")[1] for p in row["locality"] if p["image_id"]}
    others = pool.others(row)
    assert others == [
        f"{vendor}/{code[c]}" for c in knowledge.relations[row["relation"]].facts
        if c != row["concept"] and code[c] not in shown
    ]  # fmt: skip
    found = samples_of(row, others, pool.nearest(row, others), "What is shown?", seed=0)
    kinds = [s.kind for s in found]
    assert kinds == ["sample_positive"] * 3 + [
        f"sample_{k}" for k in ("black", "white", "noise", "random", "nearest", "other_question")
    ]
    assert all(s.image_id == row["image_id"] for s in found if s.kind in ("sample_positive", "sample_other_question"))
    assert {s.question for s in found[:3]}.isdisjoint(row["rephrasings"])
    index = [list(code.values()).index(i.split("/")[1]) for i in others]
    own = list(code).index(row["concept"])
    assert found[7].image_id == f"{vendor}/{list(code.values())[pool.neighbours.nearest(vendor, own, index)[0]]}"
    assert found[6].image_id in others
    assert pool.picture(found[6].image_id).png == (assets / "emoji" / f"{found[6].image_id}.png").read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target": ""}, "target: missing"),
        ({"question": None}, "question: missing"),
        ({"split": "trial"}, "split: 'trial' is not allowed; allowed: train, dev, test"),
        ({"image_id": "Goog/U+FFFF"}, "image 'Goog/U\\+FFFF' is missing"),
        ({"locality": [{"kind": "nearby", "image_id": None, "question": "q", "answer": "a"}]}, "'nearby' is not allowed"),
    ],
)
def test_bad_rows_are_named_and_nothing_is_written(built, tmp_path: Path, change: dict, said: str) -> None:
    rows, pictures, _ = built
    bad = dataclasses.replace(rows[1], **change)
    with pytest.raises(UserError, match=said):
        schema.write(tmp_path / "out", [rows[0], bad], pictures)
    assert not (tmp_path / "out").exists()


def test_a_counterfactual_must_be_false(built, tmp_path: Path) -> None:
    rows, pictures, _ = built
    with pytest.raises(UserError, match="is the true answer"):
        schema.write(tmp_path, [dataclasses.replace(rows[0], target=rows[0].answer)], pictures)


def test_tables_round_trip_and_a_lost_field_is_named(built, tmp_path: Path) -> None:
    rows, pictures, _ = built
    schema.write(tmp_path, rows, pictures)
    assert schema.read_edits(tmp_path, ("test",))[0]["edit_id"] == rows[0].edit_id
    assert schema.read_images(tmp_path / "images.parquet") == {p.image_id: p.png for p in pictures}
    whole = pq.read_table(tmp_path / "edits.parquet").to_pylist()
    schema.write_table(tmp_path / "edits.parquet", [whole[0] | {"target": None}, *whole[1:]], schema.EDITS)
    with pytest.raises(UserError, match=re.escape(f"{rows[0].edit_id}.target: None")):
        schema.read_edits(tmp_path)
    pq.write_table(pq.read_table(tmp_path / "edits.parquet").drop_columns(["target"]), tmp_path / "edits.parquet")
    with pytest.raises(UserError, match="'target' is missing"):
        schema.read_edits(tmp_path)


def test_a_corrupt_picture_is_named() -> None:
    with pytest.raises(UserError, match="image 'Goog/U"):
        schema.decode("Goog/U+1F600", b"not a png")
