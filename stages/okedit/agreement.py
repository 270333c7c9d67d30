"""Does a generated picture show what it should? By CLIP's similarity, or by the edited model's own answer before the edit."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from stages.backbone.vlm import Query
from stages.okedit.settings import text
from stages.okedit.unedited import Unedited
from stages.okedit.validate import normal
from stages.params import UserError
from stages.sections import entry, number

# (picture, question, answer) → whether they agree.
Agrees = Callable[[Image.Image, str, str], bool]


@dataclass(frozen=True)
class Clip:
    """CLIP (Radford et al., 2021): cosine similarity of the picture and "question answer" is at least `threshold`."""

    model: str = entry(text())
    threshold: float = entry(number(-1, 1), default=0.22)

    def open(self, at: str, backbones: Sequence[Unedited]) -> Agrees:
        """Load the model; UserError names `at`.model when that fails."""
        from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

        try:
            model = CLIPModel.from_pretrained(self.model, trust_remote_code=False).eval()
            tokenizer = AutoTokenizer.from_pretrained(self.model, trust_remote_code=False)
            processor = CLIPImageProcessorPil.from_pretrained(self.model, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{at}.model: {self.model!r} cannot be loaded: {error}") from None

        @torch.no_grad()
        def agrees(image: Image.Image, question: str, answer: str) -> bool:
            words = tokenizer(f"{question} {answer}", return_tensors="pt", truncation=True)
            seen = model(**words, **processor(image, return_tensors="pt"))
            return float(torch.nn.functional.cosine_similarity(seen.text_embeds, seen.image_embeds)) >= self.threshold

        return agrees


@dataclass(frozen=True)
class OwnAnswer:
    """Some backbone answers the question about the picture as it should be answered."""

    def open(self, at: str, backbones: Sequence[Unedited]) -> Agrees:
        """Nothing is loaded."""

        def agrees(image: Image.Image, question: str, answer: str) -> bool:
            name = f"agreement/{hashlib.sha256(image.tobytes()).hexdigest()}"
            asked = [Query(question, name)], {name: image}
            return any(normal(b.answers(*asked)[0]) == normal(answer) for b in backbones)

        return agrees


AGREEMENT = {"clip": Clip, "backbone": OwnAnswer}
