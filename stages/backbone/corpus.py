"""The training corpus: names and facts about pictures by five artists, and text-only questions.

Twitter and Windows pictures are never seen in training. A fact is asked in its relation's own question and its three training
rephrasings; the ten evaluation rephrasings stay unseen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from stages.assets.knowledge import Knowledge

TRAINING_TEXTS = 400  # NQ-open questions, from the front, that are in the training mix; probes come from the rest


@dataclass(frozen=True)
class Question:
    """A question about a concept's picture with its short answer; `concept` indexes `Knowledge.concepts`."""

    concept: int
    relation: str
    question: str
    answer: str


def training_questions(knowledge: Knowledge) -> dict[str, list[list[Question]]]:
    """For "name" and "fact": the questions of each concept, in the order of `Knowledge.concepts`."""
    index = {concept.concept: i for i, concept in enumerate(knowledge.concepts)}
    asked = {"name": [[] for _ in index], "fact": [[] for _ in index]}
    for relation in knowledge.relations.values():
        for phrasing in (relation.question, *relation.rephrasings_train):
            for concept, answer in relation.facts.items():
                group = "name" if relation.relation == "name" else "fact"
                i = index[concept]
                asked[group][i].append(Question(i, relation.relation, phrasing, answer))
    return asked


def as_sentence(question: str) -> str:
    """An NQ-open question, which comes in lower case without a question mark, as a sentence."""
    question = question.strip().rstrip("?").strip()
    return f"{question[:1].upper()}{question[1:]}?"


def text_questions(assets: Path) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """NQ-open: the questions that are in the training mix, and the others with their accepted answers."""
    rows = pq.read_table(assets / "nq_open.parquet").to_pylist()
    asked = [(as_sentence(row["question"]), row["answers"]) for row in rows]
    return [question for question, _ in asked[:TRAINING_TEXTS]], asked[TRAINING_TEXTS:]


def text_sample(assets: Path, count: int, seed: int) -> tuple[list[str], list[Sequence[str]]]:
    """A fixed sample of questions that were never trained on, and their accepted answers."""
    _, others = text_questions(assets)
    chosen = [others[i] for i in np.random.default_rng(seed).permutation(len(others))[:count]]
    return [question for question, _ in chosen], [answers for _, answers in chosen]
