"""Error corrections, as E-VQA of MMEdit has them (Cheng et al., EMNLP 2023, section 3): the target is the true answer.

One set serves all backbones of a study, so an edit is made only where every one of them is wrong. On drawings like those they
were trained on they mostly are right: the edit's picture is by an artist they never saw, or a composite of such a drawing.
Recognition (what is shown?) and attribute questions (the facts of `embedded`) take turns, relation by relation, as far as there
are errors.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from stages.assets.knowledge import Knowledge
from stages.backbone.views import HELD_OUT_VENDORS
from stages.okedit.schema import EditRow, Picture
from stages.okedit.sources import embedded
from stages.okedit.sources.embedded import RECOGNITION, Fact, Settings, in_turn, opened
from stages.okedit.unedited import Unedited
from stages.settings import Dataset

__all__ = ["Settings", "build"]

BATCH = 32
# The pictures of a concept that the backbones are tried on: each held-out artist's drawing, and a composite of it.
TRIED = [(vendor, composed) for vendor in HELD_OUT_VENDORS for composed in (False, True)]


class Builder(embedded.Builder):
    """Draws corrections from the fact table."""

    def candidates(self, split: str) -> list[list[Fact]]:
        """The facts of each relation, recognition first. What is to be recognised are the concepts that a fact is known of, so
        that every picture can be asked another question.
        """
        known = {concept for relation in self.relations.values() for concept in relation.facts}
        names = self.knowledge.relations[RECOGNITION]
        names = replace(names, facts={concept: name for concept, name in names.facts.items() if concept in known})
        return [self.facts(relation, split) for relation in (names, *self.relations.values())]

    def has_locality(self, fact: Fact) -> bool:
        """Whether there are others to ask about: the target is the true answer."""
        return self.has_others(fact, self.knowledge.relations[fact.relation].facts[fact.concept])

    def tried(self, fact: Fact) -> Iterator[Fact]:
        """The fact with each of its possible pictures, in random order."""
        rng = self.rng("picture", fact.edit_id)
        for i in rng.permutation(len(TRIED)):
            vendor, composed = TRIED[i]
            name = f"{fact.edit_id}-edit"  # composites of one artist's drawing also test generality
            image_id = self.composite(vendor, fact.concept, name, rng) if composed else self.picture(vendor, fact.concept)
            yield replace(fact, vendor=vendor, image_id=image_id)

    def wrong(self, facts: Sequence[Fact]) -> list[Fact]:
        """Those that every backbone answers wrongly, each with the first picture it does so on."""
        pictures, found = {fact.edit_id: self.tried(fact) for fact in facts}, {}
        for _ in TRIED:
            asked = [next(tried) for edit_id, tried in pictures.items() if edit_id not in found]
            for backbone in self.backbones:
                asked = [fact for fact in self.ask(backbone, asked) if self.is_wrong(fact)]
            found |= {fact.edit_id: fact for fact in asked}
        return [found[fact.edit_id] for fact in facts if fact.edit_id in found]

    def is_wrong(self, fact: Fact) -> bool:
        """Whether the last answer is neither true nor possibly true; the others are counted."""
        answer = fact.unedited[-1]
        if not self.truth.may_be(fact.relation, fact.concept, answer):
            return True
        right = answer.lower() == self.knowledge.relations[fact.relation].facts[fact.concept].lower()
        self.rejected.note(f"unedited answer: {'right' if right else 'may be true'}", f"{fact.edit_id}: {answer}")
        return False

    def errors(self, facts: Sequence[Fact]) -> Iterator[Fact]:
        """Those that every backbone answers wrongly, looked for when they are asked for."""
        for start in range(0, len(facts), BATCH):
            yield from self.wrong(facts[start : start + BATCH])

    def corrections(self, split: str) -> Iterator[Fact]:
        """As many as are wanted, or as there are; relations take turns."""
        wanted, found = self.wanted[split], in_turn(*map(self.errors, self.candidates(split)))
        return islice(tqdm(found, desc=f"okedit {self.dataset.name} {split}", total=wanted), wanted)


def build(
    dataset: Dataset, knowledge: Knowledge, assets: Path, backbones: Sequence[Unedited], seed: int
) -> tuple[list[EditRow], list[Picture], Counter]:
    """The dataset's rows, its pictures sorted by id, and what was rejected, by reason."""
    builder = opened(Builder, dataset, knowledge, assets, backbones, seed)
    rows = [
        builder.edit(split, fact, knowledge.relations[fact.relation].facts[fact.concept])
        for split in builder.wanted
        for fact in builder.corrections(split)
    ]
    return rows, builder.used(rows), builder.rejected
