"""The training corpus: names and facts about pictures by five vendors, and text-only questions.

Twitter and Windows pictures are never seen in training. A fact is asked in its relation's own question and its three training
rephrasings; the ten evaluation rephrasings stay unseen.
"""

from dataclasses import dataclass

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
