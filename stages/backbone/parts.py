"""The pretrained parts that the embedded backbones share: SmolLM2-135M-Instruct, EfficientNet-Lite0, and how they are asked."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from stages.backbone.tower import EfficientNetLiteTower

IMAGE_TOKEN = "<empty_output>"  # a reserved token of SmolLM2's vocabulary that no text uses: no resized embeddings
TEMPLATE = "<|im_start|>user\n{image}{question}<|im_end|>\n<|im_start|>assistant\n"
END = "<|im_end|>"
PROMPT = {"template": TEMPLATE, "image_delimiters": ("", ""), "end": END}


def language_model(assets: Path) -> tuple[LlamaForCausalLM, LlamaConfig, PreTrainedTokenizerBase]:
    """SmolLM2 in float32, dequantised from its 4-bit GGUF file, its plain configuration and its tokenizer."""
    gguf = next((assets / "smollm2").glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(assets / "smollm2", gguf_file=gguf, trust_remote_code=False)
    tokenizer.pad_token = tokenizer.eos_token = END
    model = AutoModelForCausalLM.from_pretrained(assets / "smollm2", gguf_file=gguf, dtype=torch.float32, trust_remote_code=False)
    keep = {k: v for k, v in model.config.to_dict().items() if k not in ("quantization_config", "architectures")}
    return model, LlamaConfig(**keep), tokenizer


def fill_tower(tower: EfficientNetLiteTower, assets: Path) -> EfficientNetLiteTower:
    """Give a tower its ImageNet weights."""
    state = torch.load(assets / "efficientnet-lite0.pth", weights_only=True)
    tower.net.load_state_dict({name: weight for name, weight in state.items() if not name.startswith("_fc.")})
    return tower.eval()
