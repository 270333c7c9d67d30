"""What a backbone sees and knows: greedy exact match on names and facts, per artist, and what its language model still knows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from stages.assets.knowledge import Knowledge
from stages.backbone.views import SEEN_VENDORS, read_image
from stages.backbone.vlm import Backbone, Query


def answers_exactly(backbone: Backbone, queries: Sequence[Query], answers: Sequence[str], batch: int = 32) -> np.ndarray:
    """[n] bool: the greedy answer is the given one, in lower case (design §3)."""
    right = []
    for start in range(0, len(queries), batch):
        trunk = backbone.prefill(backbone.prompts(queries[start : start + batch]))
        wanted = answers[start : start + batch]
        limit = 2 + max(len(backbone.answer_ids(answer)) for answer in wanted)  # capitals may take more tokens
        given = [backbone.decode(ids).lower() for ids in backbone.greedy(trunk, limit)]
        right += [answer == expected.lower() for answer, expected in zip(given, wanted, strict=True)]
    return np.array(right)


COLUMNS = ["backbone", "task", "vendor", "split", "accuracy", "n"]
TEXT_TOKENS = 24  # of a greedy answer to an open question


def knows(backbone: Backbone, questions: Sequence[str], answers: Sequence[Sequence[str]], batch: int = 32) -> np.ndarray:
    """[n] bool: the greedy answer to a text-only question contains one of its accepted answers, in lower case."""
    right = []
    for start in range(0, len(questions), batch):
        trunk = backbone.prefill(backbone.prompts([Query(question, None) for question in questions[start : start + batch]]))
        given = [backbone.decode(ids).lower() for ids in backbone.greedy(trunk, TEXT_TOKENS)]
        accepted = answers[start : start + batch]
        right += [any(a.lower() in text for a in allowed) for text, allowed in zip(given, accepted, strict=True)]
    return np.array(right)


def accuracy_table(
    backbone: Backbone,
    name: str,
    knowledge: Knowledge,
    emoji: Path,
    sample: int,
    seed: int,
    vendors: Sequence[str],
) -> pd.DataFrame:
    """Accuracy on `sample` names and `sample` facts an artist of `vendors`, the same for every artist; each relation's own
    question is asked.
    """
    concepts = {c.concept: c for c in knowledge.concepts}
    asked = {"naming": [], "facts": []}
    for relation in knowledge.relations.values():
        task = "naming" if relation.relation == "name" else "facts"
        asked[task] += [(concept, relation.question, answer) for concept, answer in relation.facts.items()]
    rows = []
    for task, items in asked.items():
        chosen = np.random.default_rng(seed).permutation(len(items))[:sample]
        items = [items[i] for i in chosen]
        for vendor in tqdm(vendors, desc=f"{name}: {task}"):
            ids = {c: f"{vendor}/{concepts[c].code_point}" for c, _, _ in items}
            backbone.add_pictures({i: read_image(emoji, vendor, concepts[c].code_point) for c, i in ids.items()})
            right = answers_exactly(backbone, [Query(q, ids[c]) for c, q, _ in items], [a for _, _, a in items])
            split = "seen" if vendor in SEEN_VENDORS else "held-out"
            rows.append((name, task, vendor, split, round(float(right.mean()), 4), len(items)))
    return pd.DataFrame(rows, columns=COLUMNS)


def text_row(backbone: Backbone, name: str, questions: Sequence[str], answers: Sequence[Sequence[str]]) -> pd.DataFrame:
    """The share of text-only questions that `backbone` answers, as one row of an `accuracy_table` without an artist."""
    right = knows(backbone, questions, answers)
    return pd.DataFrame([(name, "text_only", "none", "text", round(float(right.mean()), 4), len(right))], columns=COLUMNS)
