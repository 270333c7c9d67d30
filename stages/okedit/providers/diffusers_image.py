"""Pictures from a text-to-image pipeline that `diffusers` loads."""

import io
import json
from dataclasses import dataclass
from typing import Any

import torch

from stages.okedit.providers.base import Cached, Provider
from stages.okedit.settings import text
from stages.params import UserError
from stages.sections import count, entry, number


@dataclass(frozen=True)
class Settings:
    """`model` is a folder or a hub's name; `size` is in pixels, a multiple of 8."""

    model: str = entry(text())
    steps: int = entry(count(1), default=30)
    guidance: float = entry(number(0), default=7.5)
    size: int = entry(count(8), default=512)

    def open(self, at: str) -> Provider:
        """The provider; the pipeline is loaded when the first picture is not in the cache."""
        return Cached(Diffusers(at, self))


class Diffusers:
    """Draws one picture a prompt."""

    def __init__(self, at: str, settings: Settings):
        self.at, self.settings = at, settings
        s = settings
        self.identity = json.dumps(["diffusers", s.model, s.steps, s.guidance, s.size])
        self._pipeline: Any = None

    def _load(self) -> Any:
        try:
            from diffusers import AutoPipelineForText2Image
        except ImportError:
            raise UserError(f"{self.at}.provider: 'diffusers' needs the package of that name; see requirements.txt") from None
        try:
            pipeline = AutoPipelineForText2Image.from_pretrained(self.settings.model, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.at}.model: {self.settings.model!r} cannot be loaded: {error}") from None
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")

    def make(self, prompt: str, seed: int, name: str) -> bytes:
        """A PNG of size × size pixels; the noise comes from `seed` alone, drawn on the CPU."""
        self._pipeline = self._pipeline or self._load()
        s = self.settings
        drawn = self._pipeline(
            prompt, num_inference_steps=s.steps, guidance_scale=s.guidance, height=s.size, width=s.size,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]  # fmt: skip
        buffer = io.BytesIO()
        drawn.save(buffer, "PNG")
        return buffer.getvalue()
