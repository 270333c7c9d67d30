"""The default source: facts of this study about concepts that seven artists drew (design §5).

Concepts are split, not edits: no test concept occurs in dev or train. Two concepts of one natural name count as one.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
from tqdm import tqdm

from stages.assets.knowledge import Knowledge, Relation
from stages.backbone.corpus import text_questions
from stages.backbone.views import HELD_OUT_VENDORS, SEEN_VENDORS, read_image
from stages.backbone.vlm import Backbone, Query
from stages.okedit.agreement import unedited_answers
from stages.okedit.images import Neighbours, composite
from stages.okedit.locality import draw, probe
from stages.okedit.schema import EditRow, Picture, decode, encode
from stages.okedit.splits import split_of
from stages.okedit.truth import Truth, same
from stages.okedit.validate import Tally
from stages.params import UserError, derive_seed
from stages.settings import Dataset

VENDORS = (*SEEN_VENDORS, *HELD_OUT_VENDORS)
COMPOSITES = 4


@dataclass(frozen=True)
class Settings:
    """This source has no entries of its own."""


@dataclass(frozen=True)
class Fact:
    """What an edit is about; `unedited` holds the backbones' answers before it, once they have been asked about the picture."""

    relation: str
    concept: str
    edit_id: str
    vendor: str = ""
    image_id: str = ""
    unedited: tuple[str, ...] = ()


@dataclass
class Builder:
    """Draws edits and their probes from the fact table; everything random follows from `seed` and the edit's own name."""

    knowledge: Knowledge
    dataset: Dataset
    assets: Path
    seed: int
    neighbours: Neighbours
    backbones: Sequence[Backbone]
    pictures: dict[str, Picture] = field(default_factory=dict)
    rejected: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        concepts = self.knowledge.concepts
        self.index = {c.concept: i for i, c in enumerate(concepts)}
        self.name = {c.concept: c.name for c in concepts}
        self.code = {c.concept: c.code_point for c in concepts}
        self.relations = {r.relation: r for r in self.knowledge.relations.values() if r.relation != "name"}
        self.truth = Truth(self.knowledge)
        self.text_only = [probe("text_only", None, q, answers[0]) for q, answers in text_questions(self.assets)[1]]
        self.wanted = {"test": self.dataset.test, "dev": self.dataset.dev, "train": self.dataset.train}
        self.splits = split_of({self.name[c] for r in self.relations.values() for c in r.facts}, self.wanted, self.seed)

    def rng(self, *names: str) -> np.random.Generator:
        """The random numbers of one purpose."""
        return np.random.default_rng(derive_seed(self.seed, self.dataset.name, *names))

    # -- which edits --------------------------------------------------------------------------------------------------------

    def facts(self, relation: Relation, split: str) -> list[Fact]:
        """A split's facts of one relation in random order, one concept of a natural name."""
        by_name = {self.name[c]: c for c in relation.facts if self.splits.get(self.name[c]) == split}
        listed = [Fact(relation.relation, c, f"{relation.relation}-{self.code[c]}") for c in sorted(by_name.values())]
        return draw(listed, len(listed), self.rng("choose", split, relation.relation))

    def choose(self) -> dict[str, list[Fact]]:
        """Split → the facts to edit, each with its picture; relations take turns, and so do the artists seen in training."""
        chosen = {}
        for split, n in self.wanted.items():
            listed = list(in_turn(*(self.facts(r, split) for r in self.relations.values())))
            if len(listed) < n:
                raise UserError(
                    f"datasets.{self.dataset.name}.{split}: {n} is more than the facts there are; allowed: up to {len(listed)}"
                )
            chosen[split] = listed[:n]
        return {
            split: [self.pictured(fact, SEEN_VENDORS[i % len(SEEN_VENDORS)]) for i, fact in enumerate(facts)]
            for split, facts in chosen.items()
        }

    def pictured(self, fact: Fact, vendor: str) -> Fact:
        """The fact with one artist's picture."""
        return replace(fact, vendor=vendor, image_id=self.picture(vendor, fact.concept))

    def ask(self, backbone: Backbone, facts: Sequence[Fact]) -> list[Fact]:
        """The facts with what a backbone answers to their questions before any edit."""
        shown = {f.image_id: self.pictures[f.image_id].png for f in facts}
        backbone.add_pictures({image_id: decode(image_id, png) for image_id, png in shown.items()})
        answers = unedited_answers(backbone, [Query(self.knowledge.relations[f.relation].question, f.image_id) for f in facts])
        return [replace(f, unedited=(*f.unedited, answer)) for f, answer in zip(facts, answers, strict=True)]

    # -- one edit -----------------------------------------------------------------------------------------------------------

    def picture(self, vendor: str, concept: str) -> str:
        """Pack one artist's picture of a concept; its id."""
        image_id = f"{vendor}/{self.code[concept]}"
        if image_id not in self.pictures:
            png = (self.assets / "emoji" / f"{image_id}.png").read_bytes()
            self.pictures[image_id] = Picture(image_id, vendor, concept, png)
        return image_id

    def composite(self, vendor: str, concept: str, name: str, rng: np.random.Generator) -> str:
        """Pack a scaled, rotated picture by one artist on a varied background; its id."""
        image_id = f"{vendor}/{self.code[concept]}/{name}"
        image = composite(read_image(self.assets / "emoji", vendor, self.code[concept]), rng)
        self.pictures[image_id] = Picture(image_id, vendor, concept, encode(image))
        return image_id

    def target(self, fact: Fact, rng: np.random.Generator) -> str:
        """A false answer of the true answer's type that no backbone already gives. It is drawn from what the first does not give,
        and again where another does: with one more backbone to edit, most targets stay.
        """
        pool = set(self.relations[fact.relation].facts.values()) - self.truth.own(fact.relation, fact.concept)
        first, others, allowed = fact.unedited[:1], fact.unedited[1:], []
        for answer in sorted(pool):
            if self.truth.may_be(fact.relation, fact.concept, answer):
                self.rejected.note("target: may be true", f"{fact.edit_id}: {answer}")
            elif not self.is_given(answer, first, fact):
                allowed.append(answer)
        while allowed:
            drawn = allowed.pop(rng.integers(len(allowed)))
            if not self.is_given(drawn, others, fact):
                return drawn
        raise UserError(f"{fact.relation}: no counterfactual answer is left for {fact.concept!r}")

    def is_given(self, answer: str, unedited: Sequence[str], fact: Fact) -> bool:
        """Whether a backbone gives this answer before the edit; such an answer is counted."""
        found = any(same(answer, one) for one in unedited)
        if found:
            self.rejected.note("target: is the unedited answer", f"{fact.edit_id}: {answer}")
        return found

    def same_question(self, fact: Fact, target: str, rng: np.random.Generator) -> list[dict]:
        """The edit's question about the concepts most like its own in its artist's drawings, and about random others; one of a
        natural name, none whose answer is the target.
        """
        relation, own = self.knowledge.relations[fact.relation], self.name[fact.concept]
        others = [self.index[c] for c, a in relation.facts.items() if self.name[c] != own and a != target]
        by_name: dict[str, str] = {}
        for i in self.neighbours.nearest(fact.vendor, self.index[fact.concept], others):
            by_name.setdefault(self.knowledge.concepts[i].name, self.knowledge.concepts[i].concept)
        ranked = list(by_name.values())
        shown = [("near_image", fact.vendor, c) for c in ranked[: self.dataset.near]]
        rest = draw(ranked[self.dataset.near + 1 :], self.dataset.far, rng)  # the next nearest is left for a sample
        shown += [("far_image", str(rng.choice(SEEN_VENDORS)), c) for c in rest]
        return [probe(kind, self.picture(vendor, c), relation.question, relation.facts[c]) for kind, vendor, c in shown]

    def locality(self, fact: Fact, target: str, rng: np.random.Generator) -> list[dict]:
        """All locality probes of an edit (design §4), each with its own true answer."""
        probes = self.same_question(fact, target, rng)
        asked = [
            probe("other_question", fact.image_id, r.question, r.facts[fact.concept])
            for r in self.knowledge.relations.values()
            if r.relation != fact.relation and fact.concept in r.facts
        ]
        probes += draw(asked, self.dataset.other_question, rng)
        for _ in range(self.dataset.unrelated):
            other = self.relations[str(rng.choice([r for r in self.relations if r != fact.relation]))]
            shown = str(rng.choice([c for c in other.facts if self.name[c] != self.name[fact.concept]]))
            image_id = self.picture(str(rng.choice(SEEN_VENDORS)), shown)
            probes.append(probe("unrelated", image_id, other.question, other.facts[shown]))
        probes += draw(self.text_only, self.dataset.text_only, rng)
        return [*probes, probe("no_image", None, self.knowledge.relations[fact.relation].question, "")]

    def edit(self, split: str, fact: Fact, target: str | None = None) -> EditRow:
        """One edit with all its probes; the target is a counterfactual one where none is given."""
        rng = self.rng(fact.edit_id)
        relation = self.knowledge.relations[fact.relation]
        answer = relation.facts[fact.concept]
        target = target or self.target(fact, rng)
        drawn = [self.picture(v, fact.concept) for v in VENDORS if v != fact.vendor]
        drawn += [self.composite(str(v), fact.concept, fact.edit_id, rng) for v in rng.permutation(VENDORS)[:COMPOSITES]]
        return EditRow(
            edit_id=fact.edit_id,
            split=split,
            relation=fact.relation,
            concept=fact.concept,
            question=relation.question,
            image_id=fact.image_id,
            answer=answer,
            target=target,
            rephrasings_train=relation.rephrasings_train,
            rephrasings=relation.rephrasings,
            generality_image_ids=drawn,
            locality=self.locality(fact, target, rng),
            hops=[
                {
                    "n": hop.n, "question": hop.question, "image_id": fact.image_id,
                    "answer_before": hop.answers[answer], "answer_after": hop.answers[target],
                }
                for hop in relation.hops
                if hop.answers[answer] != hop.answers[target]  # else it cannot show the edit
            ],
            unedited=fact.unedited,
        )  # fmt: skip

    def used(self, rows: Sequence[EditRow]) -> list[Picture]:
        """The pictures that the rows show, sorted by id."""
        return [self.pictures[i] for i in sorted(set().union(*(row.shown() for row in rows)))]


def in_turn(*queues: Iterable[Fact]) -> Iterator[Fact]:
    """The first of each queue, then the second of each, to the end of the longest."""
    return (fact for turn in zip_longest(*queues) for fact in turn if fact is not None)


def opened(
    cls: type[Builder], dataset: Dataset, knowledge: Knowledge, assets: Path, backbones: Sequence[Backbone], seed: int
) -> Builder:
    """A builder whose neighbours are ImageNet's."""
    neighbours = Neighbours.open(assets, [c.code_point for c in knowledge.concepts])
    return cls(knowledge, dataset, assets, seed, neighbours, backbones)


def build(
    dataset: Dataset, knowledge: Knowledge, assets: Path, backbones: Sequence[Backbone], seed: int
) -> tuple[list[EditRow], list[Picture], Counter]:
    """The dataset's rows, its pictures sorted by id, and what was rejected, by reason."""
    builder = opened(Builder, dataset, knowledge, assets, backbones, seed)
    rows = []
    for split, facts in builder.choose().items():
        for backbone in backbones:
            facts = builder.ask(backbone, facts)
        rows += [builder.edit(split, fact) for fact in tqdm(facts, desc=f"okedit {dataset.name} {split}")]
    return rows, builder.used(rows), builder.rejected
