"""Augmented views of the training artists' pictures, and what the tower's early blocks make of them, computed once.

A view changes the drawing style as much as one artist differs from another: outline, flat areas of few colours, shifted hues,
grey, besides place, size, tilt and background. What is shown stays the same.
"""

import hashlib
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter
from tqdm import tqdm

from stages.backbone.tower import EfficientNetLiteTower, flatten, preprocess
from stages.params import write_atomically

SEEN_VENDORS = ("Appl", "Goog", "FB", "Sams", "Joy")
HELD_OUT_VENDORS = ("Twtr", "Wind")
SIDE = 160  # pixels of a view


def read_image(emoji: Path, vendor: str, code_point: str) -> Image.Image:
    """One artist's 72×72 picture, as it comes."""
    return Image.open(io.BytesIO((emoji / vendor / f"{code_point}.png").read_bytes()))


def augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A random view [SIDE × SIDE] of a picture with transparent ground."""
    image = image.convert("RGBA").resize((144, 144), Image.Resampling.BICUBIC)
    if rng.random() < 0.3:
        image = outlined(image, int(rng.choice([3, 5, 7])), int(rng.integers(0, 80)))
    image = image.rotate(rng.uniform(-30, 30), Image.Resampling.BICUBIC)
    size = int(144 * rng.uniform(0.6, 1.1))
    image = image.resize((size, max(24, int(size * math.exp(rng.normal(0, 0.1))))), Image.Resampling.BICUBIC)
    background = tuple(int(v) for v in (rng.integers(90, 256, 3) if rng.random() < 0.5 else (255, 255, 255)))
    canvas = Image.new("RGBA", (SIDE, SIDE), (*background, 255))
    room = [SIDE - side for side in image.size]
    canvas.alpha_composite(image.crop((0, 0, SIDE, SIDE)), tuple(int(rng.uniform(0, max(r, 1))) for r in room))
    view = flatten(canvas)
    if rng.random() < 0.4:
        view = hue_shifted(view, int(rng.normal(0, 12)))
    for effect, spread in ((ImageEnhance.Color, 0.5), (ImageEnhance.Contrast, 0.3), (ImageEnhance.Brightness, 0.2)):
        view = effect(view).enhance(float(np.clip(1 + rng.normal(0, spread), 0.0, 2.0)))
    return restyled(view, rng)


def outlined(image: Image.Image, width: int, grey: int) -> Image.Image:
    """A dark contour of `width` pixels around what is drawn."""
    contour = Image.new("RGBA", image.size, (grey, grey, grey, 255))
    contour.putalpha(image.getchannel("A").filter(ImageFilter.MaxFilter(width)))
    contour.alpha_composite(image)
    return contour


def hue_shifted(view: Image.Image, steps: int) -> Image.Image:
    """All hues turned by `steps` of 256."""
    hue, saturation, value = view.convert("HSV").split()
    turned = hue.point([(level + steps) % 256 for level in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


def restyled(view: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Blurred, sharpened, of few flat colours, or grey; most views stay as they are."""
    style = rng.random()
    if style < 0.12:
        return view.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2.0)))
    if style < 0.24:
        return view.filter(ImageFilter.EDGE_ENHANCE_MORE)
    if style < 0.42:
        return view.quantize(int(rng.integers(4, 12))).convert("RGB")
    if style < 0.50:
        return view.convert("L").convert("RGB")
    return view


@torch.no_grad()
def early_bank(
    tower: EfficientNetLiteTower, emoji: Path, code_points: Sequence[str], views: int, seed: int, cache: Path
) -> torch.Tensor:
    """Early states of every seen artist's picture: [artist, 1 + views, concept, 40, S / 8, S / 8] in float16; view 0 is the
    picture as it comes. Kept under `cache` by what it is made of.
    """
    made_from = hashlib.sha256(repr((list(code_points), views, seed, tower.config.image_size)).encode())
    for source in (Path(__file__), Path(__file__).with_name("tower.py")):
        made_from.update(source.read_bytes())
    path = cache / f"early-{made_from.hexdigest()[:16]}.pt"
    if path.exists():
        return torch.load(path, weights_only=True, mmap=True)
    rng, bank = np.random.default_rng(seed), []
    for vendor in (bar := tqdm(SEEN_VENDORS, desc="early states")):
        pictures = [read_image(emoji, vendor, code) for code in code_points]
        for view in range(1 + views):
            bar.set_postfix(vendor=vendor, view=view)
            shown = [augment(p, rng) for p in pictures] if view else pictures
            batches = [preprocess(shown[i : i + 32], tower.config.image_size) for i in range(0, len(shown), 32)]
            bank.append(torch.cat([tower.early(batch).half() for batch in batches]))
    stacked = torch.stack(bank).unflatten(0, (len(SEEN_VENDORS), 1 + views))
    with write_atomically(path) as temporary:
        torch.save(stacked, temporary)
    return stacked


@torch.no_grad()
def feature_bank(tower: EfficientNetLiteTower, early: torch.Tensor, batch: int = 256) -> torch.Tensor:
    """Feature tokens [artist, view, concept, tokens, channels] in float16 of an `early_bank`."""
    flat = early.flatten(0, 2)
    parts = [tower.late(flat[i : i + batch].float()).half() for i in tqdm(range(0, len(flat), batch), desc="tower features")]
    return torch.cat(parts).unflatten(0, early.shape[:3])
