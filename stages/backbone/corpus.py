"""The training corpus: names and facts about pictures by five vendors, and text-only questions.

Twitter and Windows pictures are never seen in training. A fact is asked in its relation's own question and its three training
rephrasings; the ten evaluation rephrasings stay unseen.
"""

import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter
from torch import nn
from tqdm import tqdm

from stages.assets.knowledge import Knowledge
from stages.backbone.tower import flatten, preprocess

SEEN_VENDORS = ("Appl", "Goog", "FB", "Sams", "Joy")
HELD_OUT_VENDORS = ("Twtr", "Wind")
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


def read_image(emoji: Path, vendor: str, code_point: str) -> Image.Image:
    """One vendor's 72×72 picture, as it comes."""
    return Image.open(io.BytesIO((emoji / vendor / f"{code_point}.png").read_bytes()))


def augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A random view: background, place, size, tilt, colour, contrast, outline or blur vary; the thing shown stays."""
    image = image.convert("RGBA").resize((144, 144), Image.Resampling.BICUBIC)
    image = image.rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC)
    size = int(144 * rng.uniform(0.7, 1.1))
    image = image.resize((size, max(24, int(size * math.exp(rng.normal(0, 0.08))))), Image.Resampling.BICUBIC)
    background = tuple(int(v) for v in (rng.integers(120, 256, 3) if rng.random() < 0.5 else (255, 255, 255)))
    canvas = Image.new("RGBA", (160, 160), (*background, 255))
    room = [160 - side for side in image.size]
    canvas.alpha_composite(image.crop((0, 0, 160, 160)), tuple(int(rng.uniform(0, max(r, 1))) for r in room))
    view = flatten(canvas)
    for effect, spread in ((ImageEnhance.Color, 0.5), (ImageEnhance.Contrast, 0.3), (ImageEnhance.Brightness, 0.2)):
        view = effect(view).enhance(float(np.clip(1 + rng.normal(0, spread), 0.0, 2.0)))
    style = rng.random()
    if style < 0.15:
        view = view.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2.0)))
    elif style < 0.30:
        view = view.filter(ImageFilter.EDGE_ENHANCE_MORE)
    elif style < 0.45:
        view = view.quantize(int(rng.integers(4, 12))).convert("RGB")  # flat areas of few colours, as older sets draw
    return view


@torch.no_grad()
def feature_bank(tower: nn.Module, emoji: Path, code_points: list[str], views: int, seed: int) -> torch.Tensor:
    """Tower features of every seen vendor's picture: [vendor, 1 + views, concept, tokens, channels] in float16; view 0
    is clean.
    """
    rng, size = np.random.default_rng(seed), tower.config.image_size
    bank = []
    for vendor in tqdm(SEEN_VENDORS, desc="tower features"):
        pictures = [read_image(emoji, vendor, code) for code in code_points]
        for view in range(1 + views):
            shown = [augment(p, rng) for p in pictures] if view else pictures
            batches = [preprocess(shown[i : i + 32], size) for i in range(0, len(shown), 32)]
            bank.append(torch.cat([tower(batch).last_hidden_state.half() for batch in batches]))
    return torch.stack(bank).unflatten(0, (len(SEEN_VENDORS), 1 + views))


def as_sentence(question: str) -> str:
    """An NQ-open question, which comes in lower case without a question mark, as a sentence."""
    question = question.strip().rstrip("?").strip()
    return f"{question[:1].upper()}{question[1:]}?"
