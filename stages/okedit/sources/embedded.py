"""The default source: facts of this study about concepts that seven vendors drew (design §5).

Concepts are split, not edits: no test concept occurs in dev or train. Two concepts of one natural name count as one.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from stages.assets.knowledge import Knowledge, Relation
from stages.backbone.corpus import text_questions
from stages.backbone.views import HELD_OUT_VENDORS, SEEN_VENDORS, read_image
from stages.backbone.vlm import Backbone
from stages.okedit.agreement import unedited_answer
from stages.okedit.images import Neighbours, composite
from stages.okedit.schema import EditRow, Picture, decode, encode
from stages.params import Dataset, UserError, derive_seed

VENDORS = (*SEEN_VENDORS, *HELD_OUT_VENDORS)
COMPOSITES = 4


@dataclass(frozen=True)
class Settings:
    """This source has no entries of its own."""


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
    rejected: Counter = field(default_factory=Counter)

    def __post_init__(self) -> None:
        concepts = self.knowledge.concepts
        self.index = {c.concept: i for i, c in enumerate(concepts)}
        self.name = {c.concept: c.name for c in concepts}
        self.relations = {r.relation: r for r in self.knowledge.relations.values() if r.relation != "name"}
        self.text_only = [(question, answers[0]) for question, answers in text_questions(self.assets)[1]]

    # -- splits -------------------------------------------------------------------------------------------------------------

    def split_concepts(self) -> dict[str, str]:
        """Natural name → split, in proportion to the edits wanted of each."""
        wanted = {"test": self.dataset.test, "dev": self.dataset.dev, "train": self.dataset.train}
        names = sorted({self.name[c] for r in self.relations.values() for c in r.facts})
        order = np.random.default_rng(derive_seed(self.seed, "split")).permutation(len(names))
        bounds = np.cumsum([round(len(names) * n / sum(wanted.values())) for n in wanted.values()])
        splits = list(wanted)
        return {
            names[j]: splits[min(int(np.searchsorted(bounds, i, side="right")), len(splits) - 1)] for i, j in enumerate(order)
        }

    def choose(self) -> list[tuple[str, str, str]]:
        """(split, relation, concept) of every edit: relations take turns, one concept of a name at a time."""
        split_of = self.split_concepts()
        chosen = []
        for split, wanted in (("test", self.dataset.test), ("dev", self.dataset.dev), ("train", self.dataset.train)):
            rng = np.random.default_rng(derive_seed(self.seed, "choose", split))
            queues = {}
            for relation in self.relations.values():
                by_name = {self.name[c]: c for c in relation.facts if split_of[self.name[c]] == split}
                facts = sorted(by_name.values())
                queues[relation.relation] = [facts[i] for i in rng.permutation(len(facts))]
            picked = []
            while len(picked) < wanted and any(queues.values()):
                for relation, queue in queues.items():
                    if queue and len(picked) < wanted:
                        picked.append((split, relation, queue.pop()))
            if len(picked) < wanted:
                raise UserError(
                    f"datasets.{self.dataset.name}.{split}: {wanted} is more than the facts there are; "
                    f"allowed: up to {len(picked)}"
                )
            chosen += picked
        return chosen

    # -- one edit -----------------------------------------------------------------------------------------------------------

    def picture(self, vendor: str, concept: str) -> str:
        """Pack one vendor's picture of a concept; its id."""
        code = self.knowledge.concepts[self.index[concept]].code_point
        image_id = f"{vendor}/{code}"
        if image_id not in self.pictures:
            png = (self.assets / "emoji" / vendor / f"{code}.png").read_bytes()
            self.pictures[image_id] = Picture(image_id, vendor, concept, png)
        return image_id

    def composites(self, edit_id: str, concept: str, rng: np.random.Generator) -> list[str]:
        """Pack scaled, rotated pictures of a concept by different vendors on varied backgrounds; their ids."""
        code, ids = self.knowledge.concepts[self.index[concept]].code_point, []
        for vendor in rng.permutation(VENDORS)[:COMPOSITES]:
            image_id = f"{vendor}/{code}/{edit_id}"
            image = composite(read_image(self.assets / "emoji", vendor, code), rng)
            self.pictures[image_id] = Picture(image_id, str(vendor), concept, encode(image))
            ids.append(image_id)
        return ids

    def unedited(self, backbone: Backbone, question: str, image_id: str) -> str:
        """A backbone's greedy answer before any edit."""
        picture = self.pictures[image_id]
        return unedited_answer(backbone, question, image_id, decode(image_id, picture.png))

    def target(self, relation: Relation, concept: str, image_id: str, rng: np.random.Generator) -> str:
        """A false answer of the true answer's type that no backbone already gives."""
        said = {self.unedited(b, relation.question, image_id).lower() for b in self.backbones}
        pool = sorted(set(relation.facts.values()) - {relation.facts[concept]})
        allowed = [answer for answer in pool if answer.lower() not in said]
        self.rejected["target is the unedited answer"] += len(pool) - len(allowed)
        if not allowed:
            raise UserError(f"{relation.relation}: no counterfactual answer is left for {concept!r}")
        return allowed[rng.integers(len(allowed))]

    def locality(
        self, relation: Relation, concept: str, vendor: str, image_id: str, target: str, rng: np.random.Generator
    ) -> list[dict]:
        """All locality probes of an edit (design §4), each with its own true answer."""
        others = [c for c, a in relation.facts.items() if self.name[c] != self.name[concept] and a != target]
        ranked = [
            self.knowledge.concepts[i].concept
            for i in self.neighbours.nearest(vendor, self.index[concept], [self.index[c] for c in others])
        ]
        near, rest = ranked[: self.dataset.near], ranked[self.dataset.near + 1 :]  # the next nearest is left for a sample
        far = [rest[i] for i in rng.permutation(len(rest))[: self.dataset.far]]
        probes = [
            {
                "kind": "near_image",
                "image_id": self.picture(vendor, c),
                "question": relation.question,
                "answer": relation.facts[c],
            }
            for c in near
        ]
        probes += [
            {
                "kind": "far_image",
                "image_id": self.picture(str(rng.choice(SEEN_VENDORS)), c),
                "question": relation.question,
                "answer": relation.facts[c],
            }
            for c in far
        ]
        asked = [
            (r.question, r.facts[concept])
            for r in self.knowledge.relations.values()
            if r.relation != relation.relation and concept in r.facts
        ]
        probes += [
            {"kind": "other_question", "image_id": image_id, "question": asked[i][0], "answer": asked[i][1]}
            for i in rng.permutation(len(asked))[: self.dataset.other_question]
        ]
        for _ in range(self.dataset.unrelated):
            other = self.relations[str(rng.choice([r for r in self.relations if r != relation.relation]))]
            shown = str(rng.choice([c for c in other.facts if self.name[c] != self.name[concept]]))
            picture = self.picture(str(rng.choice(SEEN_VENDORS)), shown)
            probes.append({"kind": "unrelated", "image_id": picture, "question": other.question, "answer": other.facts[shown]})
        for i in rng.permutation(len(self.text_only))[: self.dataset.text_only]:
            question, answer = self.text_only[i]
            probes.append({"kind": "text_only", "image_id": None, "question": question, "answer": answer})
        return [*probes, {"kind": "no_image", "image_id": None, "question": relation.question, "answer": ""}]

    def edit(self, split: str, relation_name: str, concept: str) -> EditRow:
        """One edit with all its probes."""
        edit_id = f"{relation_name}-{self.knowledge.concepts[self.index[concept]].code_point}"
        rng = np.random.default_rng(derive_seed(self.seed, self.dataset.name, edit_id))
        relation, vendor = self.relations[relation_name], str(rng.choice(SEEN_VENDORS))
        image_id, answer = self.picture(vendor, concept), relation.facts[concept]
        target = self.target(relation, concept, image_id, rng)
        drawn = [self.picture(v, concept) for v in VENDORS if v != vendor]
        return EditRow(
            edit_id=edit_id,
            split=split,
            relation=relation_name,
            concept=concept,
            question=relation.question,
            image_id=image_id,
            answer=answer,
            target=target,
            rephrasings_train=relation.rephrasings_train,
            rephrasings=relation.rephrasings,
            generality_image_ids=[*drawn, *self.composites(edit_id, concept, rng)],
            locality=self.locality(relation, concept, vendor, image_id, target, rng),
            hops=[
                {
                    "n": hop.n, "question": hop.question, "image_id": image_id,
                    "answer_before": hop.answers[answer], "answer_after": hop.answers[target],
                }
                for hop in relation.hops
                if hop.answers[answer] != hop.answers[target]  # else it cannot show the edit
            ],
        )  # fmt: skip


def build(
    dataset: Dataset, knowledge: Knowledge, assets: Path, backbones: Sequence[Backbone], seed: int
) -> tuple[list[EditRow], list[Picture], Counter]:
    """The dataset's rows, its pictures sorted by id, and what was rejected, by reason."""
    tower = backbones[0].model.model.vision_tower
    codes = [c.code_point for c in knowledge.concepts]
    neighbours = Neighbours(tower, assets / "emoji", codes)
    builder = Builder(knowledge, dataset, assets, seed, neighbours, backbones)
    rows = [builder.edit(*choice) for choice in tqdm(builder.choose(), desc=f"okedit {dataset.name}")]
    return rows, [builder.pictures[i] for i in sorted(builder.pictures)], builder.rejected
