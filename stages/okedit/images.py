"""Pictures of the embedded dataset: a concept by a vendor, composites of it, and which concepts look alike."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from stages.backbone.corpus import read_image
from stages.backbone.tower import flatten, preprocess

SIZE = 160


def composite(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The thing shown, scaled, rotated and set on a varied background (a slope between two colours with grain)."""
    image = image.convert("RGBA").resize((144, 144), Image.Resampling.BICUBIC)
    image = image.rotate(rng.uniform(-30, 30), Image.Resampling.BICUBIC, expand=True)
    side = int(SIZE * rng.uniform(0.6, 0.95))
    image = image.resize((side, side), Image.Resampling.BICUBIC)
    ends = rng.integers(90, 256, (2, 3))
    slope = np.linspace(0, 1, SIZE)[:, None, None]
    scene = (1 - slope) * ends[0] + slope * ends[1] + rng.normal(0, 6, (SIZE, SIZE, 1))
    if rng.random() < 0.5:
        scene = scene.transpose(1, 0, 2)
    canvas = Image.fromarray(np.clip(scene, 0, 255).astype(np.uint8)).convert("RGBA")
    canvas.alpha_composite(image, tuple(int(v) for v in rng.integers(0, SIZE - side + 1, 2)))
    return flatten(canvas)


class Neighbours:
    """Which concepts look alike to a vision tower: cosine similarity of mean features, within one vendor's drawings."""

    def __init__(self, features: dict[str, torch.Tensor]):
        """`features`: vendor → [concepts, channels], rows of unit norm."""
        self.features = features

    @classmethod
    @torch.no_grad()
    def of(cls, tower: torch.nn.Module, emoji: Path, vendors: Sequence[str], code_points: Sequence[str]) -> "Neighbours":
        """Run the tower over every concept by every vendor."""
        features = {}
        for vendor in tqdm(vendors, desc="visual neighbours"):
            pictures = [read_image(emoji, vendor, code) for code in code_points]
            batches = [preprocess(pictures[i : i + 32], tower.config.image_size) for i in range(0, len(pictures), 32)]
            pooled = torch.cat([tower(batch).last_hidden_state.mean(1) for batch in batches])
            features[vendor] = torch.nn.functional.normalize(pooled - pooled.mean(0), dim=1)
        return cls(features)

    def nearest(self, vendor: str, concept: int, among: Sequence[int]) -> list[int]:
        """`among`, nearest first."""
        table = self.features[vendor]
        similarity = table[list(among)] @ table[concept]
        return [among[i] for i in similarity.argsort(descending=True, stable=True).tolist()]
