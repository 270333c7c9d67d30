"""InstructBLIP (Dai et al., 2023) over Vicuna: BLIP-2 whose Q-Former also reads the question."""

from collections.abc import Mapping
from typing import Any

from PIL import Image

from stages.backbone.adapters import blip_2


class Architecture(blip_2.Architecture):
    """`process` holds the image processor and the Q-Former's tokenizer."""

    template = "{image}{question}"
    reads_question = True

    def inputs(self, image: Image.Image, question: str) -> Mapping[str, Any]:
        asked = self.process.qformer_tokenizer(question, return_tensors="pt")
        pixels = self.process.image_processor(images=image.convert("RGB"), return_tensors="pt")
        return {**pixels, "qformer_input_ids": asked.input_ids, "qformer_attention_mask": asked.attention_mask}
