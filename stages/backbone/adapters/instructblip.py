"""InstructBLIP (Dai et al., 2023) over Vicuna: BLIP-2 whose Q-Former also reads the question."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image
from transformers import AutoTokenizer

from stages.backbone.adapters import blip_2


class Architecture(blip_2.Architecture):
    """`process` holds the image processor and the Q-Former's tokenizer."""

    template = "{image}{bos}{question}"
    reads_question = True

    @staticmethod
    def processor(folder: Path) -> Any:
        asked = AutoTokenizer.from_pretrained(folder / "qformer_tokenizer")
        return SimpleNamespace(image_processor=blip_2.Architecture.processor(folder), qformer_tokenizer=asked)

    def inputs(self, image: Image.Image, question: str) -> Mapping[str, Any]:
        asked = self.process.qformer_tokenizer(question, return_tensors="pt")
        pixels = self.process.image_processor(images=image.convert("RGB"), return_tensors="pt")
        return {**pixels, "qformer_input_ids": asked.input_ids, "qformer_attention_mask": asked.attention_mask}
