"""Pictures: composites of a drawn concept, and which concepts or photos look alike."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from stages.backbone.parts import fill_tower
from stages.backbone.tower import EfficientNetLiteConfig, EfficientNetLiteTower, flatten, preprocess
from stages.backbone.views import read_image
from stages.backbone.vlm import Backbone

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
    """Which concepts look alike to a vision tower: cosine similarity of mean features, within one artist's drawings.

    The tower is ImageNet's (`open`), whatever backbones there are: one that was tuned to name the concepts tells even those apart
    that look alike.
    """

    def __init__(self, tower: torch.nn.Module, emoji: Path, code_points: Sequence[str]):
        self.tower, self.emoji, self.code_points = tower, emoji, code_points
        self._known: dict[tuple[str, int], torch.Tensor] = {}

    @classmethod
    def open(cls, assets: Path, code_points: Sequence[str]) -> "Neighbours":
        """With the tower and the drawings of data/assets."""
        tower = fill_tower(EfficientNetLiteTower(EfficientNetLiteConfig()), assets)
        return cls(tower, assets / "emoji", code_points)

    @torch.no_grad()
    def features(self, vendor: str, concepts: Sequence[int], batch: int = 32) -> torch.Tensor:
        """[concepts, channels]; the tower sees each picture once."""
        new = [c for c in concepts if (vendor, c) not in self._known]
        for start in range(0, len(new), batch):
            part = new[start : start + batch]
            pictures = [read_image(self.emoji, vendor, self.code_points[c]) for c in part]
            pooled = self.tower(preprocess(pictures, self.tower.config.image_size)).last_hidden_state.mean(1)
            self._known.update(zip(((vendor, c) for c in part), pooled, strict=True))
        return torch.stack([self._known[vendor, c] for c in concepts])

    def nearest(self, vendor: str, concept: int, among: Sequence[int]) -> list[int]:
        """`among`, nearest first; features are centred on their mean over `among`."""
        others, own = self.features(vendor, among), self.features(vendor, [concept])
        return [among[i] for i in by_similarity(own, others)]


class Looks:
    """Which photos look alike to a backbone: cosine similarity of the mean image features that its language model receives."""

    def __init__(self, backbone: Backbone, picture: Callable[[str], Image.Image]):
        """`picture` decodes a photo by its id."""
        self.adapter, self.picture = backbone.adapter, picture
        self._known: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def feature(self, image_id: str) -> torch.Tensor:
        """[D]; the tower sees each photo once."""
        if image_id not in self._known:
            self._known[image_id] = self.adapter.show([self.picture(image_id)], [""])[0].features.float().mean(0).cpu()
        return self._known[image_id]

    def nearest(self, image_id: str, among: Sequence[str]) -> list[str]:
        """`among`, nearest first; features are centred on their mean over `among`."""
        others = torch.stack([self.feature(i) for i in among])
        return [among[i] for i in by_similarity(self.feature(image_id)[None], others)]


def by_similarity(own: torch.Tensor, others: torch.Tensor) -> list[int]:
    """Indices of `others` [N, D], nearest to `own` [1, D] first, after centring on the mean of `others`."""
    similarity = torch.nn.functional.cosine_similarity(others - others.mean(0), own - others.mean(0))
    return similarity.argsort(descending=True, stable=True).tolist()
