"""The default source: facts of this study about concepts that seven artists drew (design §5).

Concepts are split, not edits: no probe of a test edit shows a concept that one of a dev or train edit shows. Two concepts of one
natural name count as one.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from stages.assets.knowledge import Knowledge, Relation
from stages.backbone.views import HELD_OUT_VENDORS, SEEN_VENDORS, read_image
from stages.backbone.vlm import Query
from stages.okedit.images import Neighbours, composite
from stages.okedit.locality import draw, open_questions, probe
from stages.okedit.positives import positives
from stages.okedit.schema import EditRow, Picture, decode, encode
from stages.okedit.splits import dealt
from stages.okedit.truth import Truth, same
from stages.okedit.unedited import Unedited
from stages.okedit.validate import Tally
from stages.params import UserError, derive_seed
from stages.settings import Dataset

T = TypeVar("T")

VENDORS = (*SEEN_VENDORS, *HELD_OUT_VENDORS)
COMPOSITES = 4
RECOGNITION = "name"  # the relation that asks what is shown


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
    backbones: Sequence[Unedited]
    pictures: dict[str, Picture] = field(default_factory=dict)
    rejected: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        concepts = self.knowledge.concepts
        self.index = {c.concept: i for i, c in enumerate(concepts)}
        self.name = {c.concept: c.name for c in concepts}
        self.code = {c.concept: c.code_point for c in concepts}
        self.relations = {r.relation: r for r in self.knowledge.relations.values() if r.relation != RECOGNITION}
        self.truth, self.positives = Truth(self.knowledge), positives(self.knowledge)
        self.wanted = {"test": self.dataset.test, "dev": self.dataset.dev, "train": self.dataset.train}
        self.text_only = {split: open_questions(self.assets, split) for split in self.wanted}
        groups = {r.relation: {self.name[c] for c in r.facts} for r in self.knowledge.relations.values()}
        each = 1 + self.dataset.near + 1 + self.dataset.far  # its own, near ones, one for a sample, far ones
        self.splits = dealt(groups, self.wanted, each, self.seed)

    def rng(self, *names: str) -> np.random.Generator:
        """The random numbers of one purpose."""
        return np.random.default_rng(derive_seed(self.seed, self.dataset.name, *names))

    # -- which edits --------------------------------------------------------------------------------------------------------

    def facts(self, relation: Relation, split: str) -> list[Fact]:
        """A split's facts of one relation in random order, one concept of a natural name; those that cannot be edited for want of
        other concepts to ask about are counted.
        """
        by_name = {self.name[c]: c for c in self.shown(relation, split)}
        listed = [Fact(relation.relation, c, f"{relation.relation}-{self.code[c]}") for c in sorted(by_name.values())]
        found = []
        for fact in draw(listed, len(listed), self.rng("choose", split, relation.relation)):
            if self.has_locality(fact):
                found.append(fact)
            else:
                self.rejected.note("fact: too few other concepts in its split", fact.edit_id)
        return found

    def shown(self, relation: Relation, split: str) -> list[str]:
        """The concepts that a split may ask a relation's question about."""
        return [c for c in relation.facts if self.splits[self.name[c]] == split]

    def others(self, fact: Fact, target: str) -> list[str]:
        """What else the edit's question can be asked about in its split, where the target is no true answer."""
        relation, own = self.knowledge.relations[fact.relation], self.name[fact.concept]
        listed = self.shown(relation, self.splits[own])
        return [c for c in listed if self.name[c] != own and relation.facts[c] != target]

    def has_others(self, fact: Fact, target: str) -> bool:
        """Whether there are near concepts, one for a sample, and a far one where any is wanted: several artists drew it."""
        names = {self.name[c] for c in self.others(fact, target)}
        return len(names) >= self.dataset.near + 1 + min(self.dataset.far, 1)

    def has_locality(self, fact: Fact) -> bool:
        """Whether there are others to ask about under more targets than backbones can rule out by giving one."""
        answers = sorted(set(self.relations[fact.relation].facts.values()))
        fit = (a for a in answers if not self.truth.may_be(fact.relation, fact.concept, a) and self.has_others(fact, a))
        return len(list(islice(fit, len(self.backbones) + 1))) > len(self.backbones)

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

    def ask(self, backbone: Unedited, facts: Sequence[Fact]) -> list[Fact]:
        """The facts with what a backbone answers to their questions before any edit."""
        shown = {f.image_id: decode(f.image_id, self.pictures[f.image_id].png) for f in facts}
        queries = [Query(self.knowledge.relations[f.relation].question, f.image_id) for f in facts]
        answers = backbone.answers(queries, shown)
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
        """A false answer of the true answer's type that no backbone already gives and that leaves others to ask about.

        It is drawn from what the first does not give, and again where another does: with one more backbone, most targets stay.
        """
        pool = set(self.relations[fact.relation].facts.values()) - self.truth.own(fact.relation, fact.concept)
        first, others, allowed = fact.unedited[:1], fact.unedited[1:], []
        for answer in sorted(pool):
            if self.truth.may_be(fact.relation, fact.concept, answer):
                self.rejected.note("target: may be true", f"{fact.edit_id}: {answer}")
            elif not self.has_others(fact, answer):
                self.rejected.note("target: too few other concepts in its split", f"{fact.edit_id}: {answer}")
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
        """The edit's question about the concepts most like its own in its artist's drawings, and about random others by random
        artists, which take turns; one of a natural name, none whose answer is the target.
        """
        relation, near = self.knowledge.relations[fact.relation], self.dataset.near
        others = [self.index[c] for c in self.others(fact, target)]
        by_name: dict[str, str] = {}
        for i in self.neighbours.nearest(fact.vendor, self.index[fact.concept], others):
            by_name.setdefault(self.knowledge.concepts[i].name, self.knowledge.concepts[i].concept)
        ranked = list(by_name.values())
        rest = draw(ranked[near + 1 :], len(ranked), rng)  # the next nearest is left for a sample
        drawings = in_turn(*([(str(v), c) for v in rng.permutation(SEEN_VENDORS)] for c in rest))
        shown = [("near_image", fact.vendor, c) for c in ranked[:near]]
        shown += [("far_image", *drawing) for drawing in islice(drawings, self.dataset.far)]
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
        probes += self.unrelated(fact, rng)
        probes += draw(self.text_only[self.splits[self.name[fact.concept]]], self.dataset.text_only, rng)
        return [*probes, probe("no_image", None, self.knowledge.relations[fact.relation].question, "")]

    def unrelated(self, fact: Fact, rng: np.random.Generator) -> list[dict]:
        """Questions of other relations about other concepts of the split, by random artists."""
        own, asked = self.name[fact.concept], {}
        for name in self.relations.keys() - {fact.relation}:
            if listed := [c for c in self.shown(self.relations[name], self.splits[own]) if self.name[c] != own]:
                asked[name] = listed
        probes = []
        for _ in range(self.dataset.unrelated if asked else 0):
            relation = self.relations[str(rng.choice(sorted(asked)))]
            shown = str(rng.choice(asked[relation.relation]))
            image_id = self.picture(str(rng.choice(SEEN_VENDORS)), shown)
            probes.append(probe("unrelated", image_id, relation.question, relation.facts[shown]))
        return probes

    def edit(self, split: str, fact: Fact, target: str | None = None) -> EditRow:
        """One edit with all its probes; the target is a counterfactual one where none is given."""
        rng = self.rng(fact.edit_id)
        relation = self.knowledge.relations[fact.relation]
        answer = relation.facts[fact.concept]
        target = target or self.target(fact, rng)
        by = rng.permutation(VENDORS)[:COMPOSITES].tolist()
        drawn = {v: self.picture(v, fact.concept) for v in VENDORS if v != fact.vendor}
        composed = {v: self.composite(v, fact.concept, fact.edit_id, rng) for v in by}
        listed = self.rng(fact.edit_id, "order").permutation(VENDORS).tolist()
        seen, unseen = (
            [*in_turn(*([made[v] for v in listed if v in made and v in some] for made in (drawn, composed)))]
            for some in (SEEN_VENDORS, HELD_OUT_VENDORS)
        )
        return EditRow(
            edit_id=fact.edit_id,
            split=split,
            relation=fact.relation,
            concept=fact.concept,
            question=relation.question,
            image_id=fact.image_id,
            answer=answer,
            target=target,
            rephrasings_train=self.positives[fact.relation],
            rephrasings=relation.rephrasings,
            generality_image_ids=spread(seen, unseen),
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


def in_turn(*queues: Iterable[T]) -> Iterator[T]:
    """The first of each queue, then the second of each, to the end of the longest; no more is taken of each than is asked for."""
    return (one for turn in zip_longest(*queues) for one in turn if one is not None)


def spread(*groups: Sequence[T]) -> list[T]:
    """All of them, so that among the first few every group has about its share, and one of few its first early on."""
    placed = [((i + 0.25) / len(group), number, one) for number, group in enumerate(groups) for i, one in enumerate(group)]
    return [one for *_, one in sorted(placed, key=lambda place: place[:2])]


def opened(
    cls: type[Builder], dataset: Dataset, knowledge: Knowledge, assets: Path, backbones: Sequence[Unedited], seed: int
) -> Builder:
    """A builder whose neighbours are ImageNet's."""
    neighbours = Neighbours.open(assets, [c.code_point for c in knowledge.concepts])
    return cls(knowledge, dataset, assets, seed, neighbours, backbones)


def build(
    dataset: Dataset, knowledge: Knowledge, assets: Path, backbones: Sequence[Unedited], seed: int
) -> tuple[list[EditRow], list[Picture], Counter]:
    """The dataset's rows, its pictures sorted by id, and what was rejected, by reason."""
    builder = opened(Builder, dataset, knowledge, assets, backbones, seed)
    rows = []
    for split, facts in builder.choose().items():
        for backbone in backbones:
            facts = builder.ask(backbone, facts)
        rows += [builder.edit(split, fact) for fact in tqdm(facts, desc=f"okedit {dataset.name} {split}")]
    return rows, builder.used(rows), builder.rejected
