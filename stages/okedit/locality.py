"""Locality probes of sources with photos (design §4): other pictures and questions of the edit's own split.

What is true of another photo is not known for the edit's question: such a probe has the answer "", and what counts is that the
unedited model's own answer stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.backbone.corpus import text_questions
from stages.okedit.images import Looks
from stages.okedit.schema import SPLITS

Probe = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A question about a photo, and its true answer."""

    image_id: str
    question: str
    answer: str


@dataclass(frozen=True)
class Pool:
    """All questions of one split."""

    asked: Sequence[Asked]
    looks: Looks

    def same_question(self, own: Asked, near: int, far: int, rng: np.random.Generator) -> list[Probe]:
        """The edit's question about the photos most like its own, and about random others.

        The next most alike after the near ones is left for a sample.
        """
        others = sorted({a.image_id for a in self.asked} - {own.image_id})
        ranked = self.looks.nearest(own.image_id, others) if near and others else others
        rest = ranked[near + 1 :] if near else ranked
        chosen = [("near_image", i) for i in ranked[:near]]
        chosen += [("far_image", rest[i]) for i in rng.permutation(len(rest))[:far]]
        return [probe(kind, image_id, own.question, "") for kind, image_id in chosen]

    def other_question(self, own: Asked, count: int, rng: np.random.Generator) -> list[Probe]:
        """Other questions about the edit's photo."""
        found = [a for a in self.asked if a.image_id == own.image_id and a.question != own.question]
        return [probe("other_question", a.image_id, a.question, a.answer) for a in draw(found, count, rng)]

    def unrelated(self, own: Asked, count: int, rng: np.random.Generator) -> list[Probe]:
        """Other questions about other photos."""
        found = [a for a in self.asked if a.image_id != own.image_id and a.question != own.question]
        return [probe("unrelated", a.image_id, a.question, a.answer) for a in draw(found, count, rng)]


def probe(kind: str, image_id: str | None, question: str, answer: str) -> Probe:
    """One probe as the schema has it."""
    return {"kind": kind, "image_id": image_id, "question": question, "answer": answer}


def open_questions(assets: Path, split: str) -> list[Probe]:
    """A split's third of the questions of NQ-open that no backbone was trained on, as probes without a picture."""
    asked = dict(reversed(text_questions(assets)[1]))  # some are asked twice
    listed = [probe("text_only", None, question, answers[0]) for question, answers in asked.items()]
    return listed[SPLITS.index(split) :: len(SPLITS)]


def draw(found: Sequence[Any], count: int, rng: np.random.Generator) -> list[Any]:
    """At most `count` of them, in random order."""
    return [found[i] for i in rng.permutation(len(found))[:count]]
