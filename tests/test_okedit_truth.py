"""The table of facts and what may be true by it: it allows what the embedded sources promise."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.assets.knowledge import Concept, Hop, Knowledge, load
from stages.assets.wheels import WHEELS
from stages.okedit import schema
from stages.okedit.splits import dealt
from stages.okedit.truth import Truth
from stages.params import UserError
from tests.sources import relation_of


@pytest.fixture(scope="module")
def table() -> Knowledge:
    return load()


@pytest.fixture(scope="module")
def truth(table: Knowledge) -> Truth:
    return Truth(table)


@given(st.data())
def test_targets_are_never_known_to_be_true(table: Knowledge, truth: Truth, data: st.DataObject) -> None:
    """A target that is allowed is none of the concept's own answers, under any of its code points, and overlaps with none."""
    relation = data.draw(st.sampled_from([r for r in table.relations.values() if r.relation != "name"]))
    concept = data.draw(st.sampled_from(sorted(relation.facts)))
    answer = data.draw(st.sampled_from(sorted(set(relation.facts.values()))))
    name = {c.concept: c.name for c in table.concepts}
    own = {a for c, a in relation.facts.items() if name[c] == name[concept]}
    together = [group for group in truth.groups.get(relation.relation, []) if answer in group and group & own]
    if answer in own or together:
        assert truth.may_be(relation.relation, concept, answer)
    assert truth.may_be(relation.relation, concept, answer.upper()) == truth.may_be(relation.relation, concept, answer)


def test_what_the_table_says_elsewhere_may_be_true(tmp_path: Path) -> None:
    facts = {"cow": "farmer", "drum": "musician"}
    known = Knowledge(
        tuple(Concept(c, c, "Things", f"U+{i}") for i, c in enumerate((*facts, "tent"))),
        {
            "worker": relation_of("worker", facts, (Hop(1, "Where?", {"farmer": "farm", "musician": "stage"}),)),
            "place": relation_of("place", {"cow": "stable", "drum": "cellar", "tent": "farm"}),
        },
    )
    (tmp_path / "overlaps.yaml").write_text("place:\n- [stable, cellar]\nanother:\n- [a, b]\n")
    truth = Truth(known, tmp_path / "overlaps.yaml")
    assert truth.of("place", "cow") == {"stable", "cellar", "farmer", "farm"}
    assert [truth.may_be("place", "tent", a) for a in ("cellar", "farm", "old farm")] == [False, True, True]
    (tmp_path / "overlaps.yaml").write_text("place:\n- [stable, moon]\n")
    with pytest.raises(UserError, match="overlaps.yaml: place: 'moon' is not allowed"):
        Truth(known, tmp_path / "overlaps.yaml")


def test_every_fact_has_targets_and_enough_others(table: Knowledge, truth: Truth) -> None:
    """Three counterfactuals at least, and five near and five far concepts beside the one that is left for a sample."""
    name = {c.concept: c.name for c in table.concepts}
    for relation in table.relations.values():
        for concept in relation.facts if relation.relation != "name" else ():
            answers = set(relation.facts.values())
            targets = {a for a in answers if not truth.may_be(relation.relation, concept, a)}
            assert len(targets) >= 3, (relation.relation, concept)
            for target in targets | {relation.facts[concept]}:
                others = {name[c] for c, a in relation.facts.items() if a != target} - {name[concept]}
                assert len(others) >= 5 + 1 + 5, (relation.relation, concept, target)


@pytest.mark.parametrize("seed", range(3))
def test_the_split_by_concept_leaves_the_edits_of_the_full_set(table: Knowledge, seed: int) -> None:
    wanted = {"test": 150, "dev": 50, "train": 300}
    name = {c.concept: c.name for c in table.concepts}
    groups = {r.relation: {name[c] for c in r.facts} for r in table.relations.values()}
    splits = dealt(groups, wanted, 12, seed)
    assert splits.keys() == set(name.values())
    for split, n in wanted.items():
        assert sum(splits[named] == split for group, names in groups.items() if group != "name" for named in names) >= 1.3 * n
    for group, names in groups.items():
        least = min(12, len(names) // 3)
        assert all(sum(splits[named] == split for named in names) >= least - 2 for split in wanted), group


def test_the_data_card_says_what_the_code_has(table: Knowledge) -> None:
    card = (Path(__file__).parent.parent / "data/README.md").read_text()
    assert re.findall(r"\| `([0-9a-f]{64})` \|", card) == [wheel.sha256 for wheel in WHEELS]
    assert all(f"| {wheel.name} {wheel.version} |" in card for wheel in WHEELS)
    facts = [r.facts for r in table.relations.values() if r.relation != "name"]
    assert (
        f"{len(facts)} relations, {sum(map(len, facts))} facts" in card and f"drawings of {len(table.concepts)} concepts" in card
    )
    for title, fields in (("edits", schema.EDITS.names), ("images", schema.IMAGES.names)):
        section = card.split(f"### `{title}.parquet`")[1].split("\n## ")[0].split("\n### ")[0]
        assert re.findall(r"(?m)^\| `(\w+)` \|", section) == fields
    kinds = card.split("Kinds of locality probes:")[1].split("\n\n")[0]
    assert re.findall(r"`(\w+)` \(", kinds) == list(schema.LOCALITY_KINDS)
