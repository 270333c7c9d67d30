"""`LlavaForConditionalGeneration` from parts that arrive with pip: EfficientNet-Lite0 and SmolLM2-135M-Instruct.

The language model is dequantised from a 4-bit GGUF file; the projector starts at zero and is trained by `stages.backbone.train`.
"""

from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerBase,
)

from stages.backbone.tower import EfficientNetLiteConfig

IMAGE_TOKEN = "<empty_output>"  # a reserved token of SmolLM2's vocabulary that no text uses: no resized embeddings
TEMPLATE = "<|im_start|>user\n{image}{question}<|im_end|>\n<|im_start|>assistant\n"
END = "<|im_end|>"
PROMPT = {"template": TEMPLATE, "marks": ("", ""), "end": END}


def build(assets: Path) -> tuple[LlavaForConditionalGeneration, PreTrainedTokenizerBase]:
    """The untrained model in float32 and its tokenizer, from `data/assets`."""
    gguf = next((assets / "smollm2").glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(assets / "smollm2", gguf_file=gguf)
    language = AutoModelForCausalLM.from_pretrained(assets / "smollm2", gguf_file=gguf, dtype=torch.float32)
    vision = EfficientNetLiteConfig()
    keep = {k: v for k, v in language.config.to_dict().items() if k not in ("quantization_config", "architectures")}
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**keep),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=vision.grid**2,
        projector_hidden_act="gelu",
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    tower = torch.load(assets / "efficientnet-lite0.pth", weights_only=True)
    model.model.vision_tower.net.load_state_dict({name: weight for name, weight in tower.items() if not name.startswith("_fc.")})
    for parameter in model.model.multi_modal_projector.parameters():
        torch.nn.init.zeros_(parameter)
    tokenizer.pad_token = tokenizer.eos_token = END
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = tokenizer.eos_token_id
    return model.eval(), tokenizer
