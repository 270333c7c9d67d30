"""The embedded source on a small made-up world, and the schema's checks."""

import copy
import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stages.assets.knowledge import Knowledge, load
from stages.backbone.corpus import TRAINING_TEXTS, as_sentence
from stages.backbone.views import HELD_OUT_VENDORS, SEEN_VENDORS
from stages.backbone.vlm import Query
from stages.okedit import easyedit, schema
from stages.okedit.images import Neighbours, composite
from stages.okedit.sources import embedded, evqa
from stages.okedit.sources.embedded import COMPOSITES, VENDORS, Fact, build, in_turn, spread
from stages.params import UserError
from stages.samples.generate import samples_of
from stages.samples.pools import Drawings, other_question, shown_elsewhere
from stages.samples.views import COLOURS, views_of
from stages.settings import Edits
from tests.sources import relation_of
from tests.worlds import DATASET, LEGS, unedited


@pytest.fixture()
def built(knowledge: Knowledge, assets: Path, backbone):
    return build(DATASET, knowledge, assets, unedited(backbone), seed=0)


def test_rows_keep_every_promise_of_the_design(built, knowledge: Knowledge) -> None:
    rows, pictures, _ = built
    ids = {p.image_id for p in pictures}
    assert [sum(r.split == s for r in rows) for s in ("test", "dev", "train")] == [4, 2, 2]
    assert tuple(r.image_id.split("/")[0] for r in rows if r.split == "test") == SEEN_VENDORS[:4]
    split_of: dict[str, str] = {}
    for row in rows:
        assert split_of.setdefault(row.concept, row.split) == row.split
        assert len(row.unedited) == 1
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
    again = build(DATASET, knowledge, assets, unedited(backbone), seed=0)
    assert [dataclasses.asdict(r) for r in built[0]] == [dataclasses.asdict(r) for r in again[0]]
    assert built[1] == again[1]


def says(monkeypatch: pytest.MonkeyPatch, answer: Callable[[object, Query], str]) -> list[Query]:
    """Let each backbone give this answer; the list fills with what they are asked."""
    asked: list[Query] = []

    def answers(backbone: object, queries: Sequence[Query]) -> list[str]:
        asked.extend(queries)
        return [answer(backbone, query) for query in queries]

    monkeypatch.setattr("stages.okedit.unedited.unedited_answers", answers)
    return asked


def test_targets_avoid_what_a_backbone_already_says(knowledge: Knowledge, assets: Path, backbone, monkeypatch) -> None:
    asked = says(monkeypatch, lambda *_: "Two")
    rows, _, rejected = build(DATASET, knowledge, assets, unedited(backbone), seed=0)
    assert "two" not in {r.target for r in rows if r.relation == "legs"}
    assert {r.unedited for r in rows} == {("Two",)}
    assert rejected["target: is the unedited answer"] > 0
    assert {(q.question, q.image_id) for q in asked} == {(r.question, r.image_id) for r in rows}


def test_one_more_backbone_changes_only_the_targets_that_it_says(knowledge, assets, backbone, monkeypatch) -> None:
    says(monkeypatch, lambda *_: "Two")
    before, _, _ = build(DATASET, knowledge, assets, unedited(backbone), seed=0)
    wrong = next(r.target for r in before)
    says(monkeypatch, lambda asked, _: "Two" if asked is backbone else wrong)
    after, _, rejected = build(DATASET, knowledge, assets, unedited(backbone, copy.copy(backbone)), seed=0)
    for old, new in zip(before, after, strict=True):
        assert new.target != wrong and new.unedited == ("Two", wrong)
        assert old.target in (wrong, new.target) and old.image_id == new.image_id
    assert rejected["target: is the unedited answer"] >= sum(r.target == wrong for r in before) > 0


def test_more_edits_than_facts_are_refused(knowledge: Knowledge, assets: Path, backbone) -> None:
    with pytest.raises(UserError, match=r"datasets\.small\.test: 400 is more than .* up to \d+"):
        build(dataclasses.replace(DATASET, test=400), knowledge, assets, unedited(backbone), seed=0)


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


def test_samples_are_disjoint_from_probes(built, knowledge: Knowledge, assets: Path) -> None:
    row = dataclasses.asdict(built[0][0])
    pool = Drawings(knowledge, assets)
    table = torch.randn(len(LEGS), 4, generator=torch.Generator().manual_seed(0))
    pool.neighbours = known(dict.fromkeys(SEEN_VENDORS, table))
    vendor = row["image_id"].split("/")[0]
    code = {c.concept: c.code_point for c in knowledge.concepts}
    shown = {p["image_id"].split("/")[1] for p in row["locality"] if p["image_id"] and p["question"] == row["question"]}
    elsewhere = shown_elsewhere([dataclasses.asdict(one) for one in built[0]])[row["split"]]
    assert elsewhere == {i for one in built[0] if one.split != row["split"] for i in one.shown()}
    others = pool.others(row, elsewhere)
    drawings = [f"{vendor}/{code[c]}" for c in knowledge.relations[row["relation"]].facts if c != row["concept"]]
    assert others == [i for i in drawings if i.split("/")[1] not in shown and i not in elsewhere] != []
    found = samples_of(row, ["view"], others, pool.nearest(row, others), "What is shown?", seed=0)
    kinds = [s.kind for s in found]
    assert kinds == ["sample_positive"] * 3 + [
        f"sample_{k}" for k in ("view", "black", "white", "noise", "random", "nearest", "other_question")
    ]
    assert (found[3].question, found[3].image_id) == (row["question"], "view")
    assert all(s.image_id == row["image_id"] for s in found if s.kind in ("sample_positive", "sample_other_question"))
    assert {s.question for s in found[:3]}.isdisjoint(row["rephrasings"])
    index = [list(code.values()).index(i.split("/")[1]) for i in others]
    own = list(code).index(row["concept"])
    assert found[8].image_id == f"{vendor}/{list(code.values())[pool.neighbours.nearest(vendor, own, index)[0]]}"
    assert found[7].image_id in others
    assert pool.picture(found[7].image_id).png == (assets / "emoji" / f"{found[7].image_id}.png").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": ""}, "target: missing"),
        ({"question": None}, "question: missing"),
        ({"split": "trial"}, "split: 'trial' is not allowed; allowed: train, dev, test"),
        ({"image_id": "Goog/U+FFFF"}, "image 'Goog/U\\+FFFF' is missing"),
        ({"locality": [{"kind": "nearby", "image_id": None, "question": "q", "answer": "a"}]}, "'nearby' is not allowed"),
    ],
)
def test_bad_rows_are_named_and_nothing_is_written(built, tmp_path: Path, change: dict, message: str) -> None:
    rows, pictures, _ = built
    bad = dataclasses.replace(rows[1], **change)
    with pytest.raises(UserError, match=message):
        schema.write(tmp_path / "out", [rows[0], bad], pictures)
    assert not (tmp_path / "out").exists()


def test_a_target_is_false_or_corrects_what_was_answered(built, tmp_path: Path) -> None:
    rows, pictures, _ = built
    ids, true = {p.image_id for p in pictures}, dataclasses.replace(rows[0], target=rows[0].answer)
    with pytest.raises(UserError, match="is the true answer"):
        schema.check([dataclasses.replace(true, unedited=())], ids)
    for row in (true, rows[0]):
        with pytest.raises(UserError, match="is an unedited answer"):
            schema.check([dataclasses.replace(row, unedited=("no idea", row.target.upper()))], ids)
        schema.check([dataclasses.replace(row, unedited=("no idea",))], ids)


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


def test_a_sequences_edits_are_neither_learnt_from_nor_held_out(built, tmp_path: Path) -> None:
    rows, pictures, _ = built
    splits = ["test", "test", "dev", "dev", "train", "train", "train"]
    made = [dataclasses.replace(row, split=split) for row, split in zip(rows, splits, strict=False)]
    assert len(made) == len(splits)
    schema.write_table(tmp_path / "edits.parquet", map(dataclasses.asdict, made), schema.EDITS)
    ids, edits = [row.edit_id for row in made], Edits(test=1, dev=1, train=1)
    found = [row["edit_id"] for row in schema.in_sequence(schema.read_edits(tmp_path), edits, 3)]
    assert found == [ids[0], ids[1], ids[5], ids[2]]  # test edits, one that is not learnt from, and the dev edit last
    found = [row["edit_id"] for row in schema.in_sequence(schema.read_edits(tmp_path), edits, 300)]
    assert found == [ids[0], ids[1], *ids[5:], ids[2]]


def test_a_corrupt_picture_is_named() -> None:
    with pytest.raises(UserError, match="image 'Goog/U"):
        schema.decode("Goog/U+1F600", b"not a png")


# -- error corrections -------------------------------------------------------------------------------------------------------


@pytest.fixture()
def corrected(knowledge: Knowledge, assets: Path, backbone, monkeypatch):
    """Corrections of two backbones: both are right about the birds and about all that Windows's artist drew, the second about
    ants too; else they have no idea.
    """
    second = copy.copy(backbone)

    def answer(asked_of: object, query: Query) -> str:
        relation = next(r for r in knowledge.relations.values() if r.question == query.question)
        vendor, code = query.image_id.split("/")[:2]
        concept = next(c.concept for c in knowledge.concepts if c.code_point == code)
        known = {"hen", "owl", "gull"} | ({"ant"} if asked_of is second else set())
        return relation.facts[concept] if vendor == "Wind" or concept in known else "no idea"

    asked = says(monkeypatch, answer)
    dataset = dataclasses.replace(DATASET, name="corrections", source="evqa", test=12, dev=4, train=4, far=1)
    return *evqa.build(dataset, knowledge, assets, unedited(backbone, second), seed=0), asked


def test_corrections_are_made_where_every_backbone_is_wrong(corrected, knowledge: Knowledge) -> None:
    rows, pictures, rejected, asked = corrected
    assert [sum(r.split == s for r in rows) for s in ("test", "dev", "train")] == [12, 4, 4]
    for split in schema.SPLITS:
        assert [r.relation for r in rows if r.split == split][:3] == ["name", "legs", "home"]  # relations take turns
    assert {r.concept for r in rows} <= set(LEGS) - {"hen", "owl", "gull", "ant"}
    for row in rows:
        assert row.target == row.answer == knowledge.relations[row.relation].facts[row.concept]
        assert row.image_id.split("/")[0] == "Twtr"
        assert row.unedited == ("no idea", "no idea") and row.hops == []
        assert len(row.generality_image_ids) == len(set(row.generality_image_ids)) == len(VENDORS) - 1 + COMPOSITES
        assert row.image_id not in row.generality_image_ids
        kinds = {p["kind"] for p in row.locality}
        assert kinds == set(schema.LOCALITY_KINDS)
        assert all(p["answer"] != row.target for p in row.locality if p["kind"] in ("near_image", "far_image"))
    assert rejected["unedited answer: right"] > 0
    assert {q.image_id.split("/")[0] for q in asked} == set(HELD_OUT_VENDORS)
    assert {p.image_id for p in pictures} == set().union(*(r.shown() for r in rows))
    schema.check(rows, {p.image_id for p in pictures})


def test_a_correction_exports_what_was_answered(corrected, tmp_path: Path) -> None:
    rows, pictures, _, _ = corrected
    easyedit.export(tmp_path / "easyedit", rows, pictures)
    records = [r for split in schema.SPLITS for r in json.loads((tmp_path / f"easyedit/{split}.json").read_text())]
    assert {r["pred"] for r in records} == {"no idea"}
    assert [r["alt"] for r in records] == [r.target for split in schema.SPLITS for r in rows if r.split == split]


def test_an_answer_in_other_words_is_no_error(knowledge: Knowledge, assets: Path, backbone) -> None:
    builder = embedded.opened(evqa.Builder, DATASET, knowledge, assets, unedited(backbone), 0)
    fact = Fact("name", "cat", "name-U+0000", "Twtr", "Twtr/U+0000")
    judged = {a: builder.is_wrong(dataclasses.replace(fact, unedited=(a,))) for a in ("dog", "", "Cat", "A cat", "four")}
    assert judged == {"dog": True, "": True, "Cat": False, "A cat": False, "four": False}  # it has four legs
    assert builder.rejected == {"unedited answer: right": 1, "unedited answer: may be true": 2}


def test_a_sample_asks_another_question_than_the_edits(corrected, knowledge: Knowledge, assets: Path) -> None:
    pool = Drawings(knowledge, assets)
    for row in map(dataclasses.asdict, corrected[0]):
        asked = other_question(row, knowledge)
        mine = knowledge.relations[row["relation"]]
        assert asked not in (mine.question, *mine.rephrasings_train, *mine.rephrasings)
        assert (pool.picture(row["image_id"]) is None) == (row["image_id"].count("/") == 2)


def test_a_relation_gives_way_where_no_more_errors_are(knowledge: Knowledge, assets: Path, backbone, monkeypatch) -> None:
    """The backbone knows every home and two of four legs: recognition and the legs that are left take turns."""
    says(monkeypatch, lambda _, query: {"home": "land", "legs": "two"}.get(query.question.split()[0], "no idea"))
    homes = dict.fromkeys(LEGS, "land")
    table = dataclasses.replace(knowledge, relations=knowledge.relations | {"home": relation_of("home", homes | {"cat": "sea"})})
    dataset = dataclasses.replace(DATASET, name="corrections", source="evqa", test=99, dev=0, train=0, near=0, far=0)
    rows, _, _ = evqa.build(dataset, table, assets, unedited(backbone), seed=0)
    assert [r.relation for r in rows][:8] == ["name", "legs", "home", *["name", "legs"] * 2, "name"]
    wrong = [answer != "two" for answer in LEGS.values()]
    assert len(rows) == len(LEGS) + sum(wrong) + 1  # fewer than wanted: all errors there are


@pytest.mark.parametrize("seen", range(8))
def test_the_first_pictures_are_mixed_as_all_are(seen: int) -> None:
    """Of two drawings by unseen artists and `seen` others, and of one: an unseen one early, the rest at even distances."""
    listed = spread([f"s{i}" for i in range(seen)], ["u0", "u1"])
    assert sorted(listed) == sorted([*(f"s{i}" for i in range(seen)), "u0", "u1"])
    assert listed.index("u0") <= 2 and listed.index("u0") < listed.index("u1")
    assert abs(listed.index("u1") - listed.index("u0") - (seen + 2) / 2) <= 1
    assert [one for one in listed if one[0] == "s"] == [f"s{i}" for i in range(seen)]
    assert spread(list(range(seen)), [9]).index(9) <= 2


@given(st.lists(st.lists(st.integers(), max_size=5), max_size=4))
def test_queues_take_turns(queues: list[list[int]]) -> None:
    numbered = [[(turn, i) for turn, _ in enumerate(queue)] for i, queue in enumerate(queues)]
    assert list(in_turn(*numbered)) == sorted(pair for queue in numbered for pair in queue)


def test_what_is_to_be_recognised_can_be_asked_another_question(assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where two concepts have one name and a fact is known of one of them alone; and there is room for errors to be rare."""
    monkeypatch.undo()  # the real table has real phrasings
    table = load()
    dataset = dataclasses.replace(DATASET, name="corrections", source="evqa", test=150, dev=50, train=300)
    builder = embedded.opened(evqa.Builder, dataset, table, assets, [], 0)
    for split, wanted in builder.wanted.items():
        listed = [fact for facts in builder.candidates(split) for fact in facts]
        assert len({fact.edit_id for fact in listed}) == len(listed) >= 2 * wanted
        for fact in listed:
            if fact.relation == "name":
                assert other_question({"relation": "name", "concept": fact.concept}, table)


def test_views_show_the_picture_otherwise() -> None:
    """Of the picture's size, on white, all different, and the same each time; the second has no colour, the third few."""
    drawn = Image.new("RGBA", (60, 40), (0, 0, 0, 0))
    drawn.paste(Image.linear_gradient("L").resize((30, 20)).convert("RGBA"), (5, 10))
    drawn.paste((200, 30, 30, 255), (20, 15, 30, 25))
    views = views_of("e", "apple", schema.encode(drawn))
    assert [view.image_id for view in views] == ["view_1/e", "view_2/e", "view_3/e"]
    assert views == views_of("e", "apple", schema.encode(drawn))
    pale, grey, flat = (np.asarray(schema.decode(view.image_id, view.png)).astype(int) for view in views)
    assert pale.shape == grey.shape == flat.shape == (40, 60, 3)
    assert all((view[0, 0] > 245).all() for view in (pale, grey, flat))
    assert (grey.max(-1) == grey.min(-1)).all() and (pale.max(-1) > pale.min(-1)).any()
    assert len(np.unique(flat.reshape(-1, 3), axis=0)) <= COLOURS
    assert (grey[:, :30] > 250).sum() > (grey[:, 30:] > 250).sum()  # mirrored: what stood on the left stands on the right
