"""InstructBLIP (Dai et al., 2023) over Vicuna: BLIP-2 whose Q-Former also reads the question."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image
from transformers import AutoTokenizer

from stages.backbone.adapters import blip_2
from stages.backbone.tower import flatten


class Architecture(blip_2.Architecture):
    """`process` holds the image processor and the Q-Former's tokenizer. The prompt is that of the paper's appendix for VQA."""

    template = "{image}{bos}Question: {question} Short answer:"
    reads_question = True

    @staticmethod
    def processor(folder: Path) -> Any:
        asked = AutoTokenizer.from_pretrained(folder / "qformer_tokenizer", trust_remote_code=False)
        return SimpleNamespace(image_processor=blip_2.Architecture.processor(folder), qformer_tokenizer=asked)

    def inputs(self, image: Image.Image, question: str) -> Mapping[str, Any]:
        asked = self.process.qformer_tokenizer(question, return_tensors="pt")
        pixels = self.process.image_processor(images=flatten(image), return_tensors="pt")
        return {**pixels, "qformer_input_ids": asked.input_ids, "qformer_attention_mask": asked.attention_mask}
