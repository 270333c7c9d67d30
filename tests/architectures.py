"""A tiny checkpoint with random weights of every architecture, and the way in that a real one takes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from ruamel.yaml import YAML

from stages.backbone.blip2_lite import Blip2LiteConfig, Blip2LiteForConditionalGeneration
from stages.backbone.checkpoints import PROMPT, point
from stages.backbone.tower import EfficientNetLiteConfig
from stages.backbone.vlm import Backbone
from stages.params import load

LLAMA = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "initializer_range": 0.2,
}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2}
NORMAL = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
PICTURES = {
    "red": Image.new("RGB", (28, 28), (200, 30, 30)),
    "noise": Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 56, 3), dtype=np.uint8)),
}
MARKS = (
    "<image>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<fake_token_around_image>", "<global-img>",
    "<end_of_utterance>", "<|begin_of_text|>", "<bos>", "<eos>",
)  # fmt: skip


def llava(ids: Callable[[str], int], size: int) -> tuple:
    vision = hf.CLIPVisionConfig(**VISION, image_size=28, patch_size=14, projection_dim=32)
    text = hf.LlamaConfig(**LLAMA, vocab_size=size)
    config = hf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=ids("<image>"), image_seq_length=4)
    side = {"height": 28, "width": 28}
    return hf.LlavaForConditionalGeneration(config), hf.CLIPImageProcessorPil(size=side, crop_size=side, **NORMAL)


def blip_2(ids: Callable[[str], int], size: int, text: hf.PretrainedConfig | None = None) -> tuple:
    text = text or hf.OPTConfig(
        hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_hidden_layers=4, num_attention_heads=4, vocab_size=size,
        max_position_embeddings=512, init_std=0.2, do_layer_norm_before=True,
    )  # fmt: skip
    config = hf.Blip2Config(
        vision_config=hf.Blip2VisionConfig(**VISION, image_size=28, patch_size=14),
        qformer_config=hf.Blip2QFormerConfig(**LLAMA_LIKE_QFORMER), text_config=text, num_query_tokens=8,
        image_token_index=ids("<image>"),
    )  # fmt: skip
    return hf.Blip2ForConditionalGeneration(config), hf.BlipImageProcessorPil(size={"height": 28, "width": 28}, **NORMAL)


LLAMA_LIKE_QFORMER = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "encoder_hidden_size": 32,
    "vocab_size": 120, "initializer_range": 0.2,
}  # fmt: skip


def blip_2_llama(ids: Callable[[str], int], size: int) -> tuple:
    return blip_2(ids, size, hf.LlamaConfig(**LLAMA, vocab_size=size))


def blip_2_lite(ids: Callable[[str], int], size: int) -> tuple:
    config = Blip2LiteConfig(
        vision_config=EfficientNetLiteConfig(image_size=64, grid=2).to_dict(),
        qformer_config=hf.Blip2QFormerConfig(**LLAMA_LIKE_QFORMER).to_dict(),
        text_config=hf.LlamaConfig(**LLAMA, vocab_size=size).to_dict(), num_query_tokens=8, image_token_index=ids("<image>"),
    )  # fmt: skip
    return Blip2LiteForConditionalGeneration(config), None


def instructblip(ids: Callable[[str], int], size: int) -> tuple:
    config = hf.InstructBlipConfig(
        vision_config=hf.InstructBlipVisionConfig(**VISION, image_size=28, patch_size=14),
        qformer_config=hf.InstructBlipQFormerConfig(**LLAMA_LIKE_QFORMER), text_config=hf.LlamaConfig(**LLAMA, vocab_size=size),
        num_query_tokens=8, image_token_index=ids("<image>"),
    )  # fmt: skip
    return hf.InstructBlipForConditionalGeneration(config), hf.BlipImageProcessorPil(size={"height": 28, "width": 28}, **NORMAL)


def llava_onevision(ids: Callable[[str], int], size: int) -> tuple:
    pins = [[28, 28], [28, 56]]
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**VISION_PLAIN, image_size=28, patch_size=14),
        text_config=hf.Qwen2Config(**LLAMA, vocab_size=size), image_token_index=ids("<image>"), image_grid_pinpoints=pins,
    )  # fmt: skip
    process = hf.LlavaOnevisionImageProcessorPil(size={"height": 28, "width": 28}, image_grid_pinpoints=pins, **NORMAL)
    return hf.LlavaOnevisionForConditionalGeneration(config), process


VISION_PLAIN = {k: v for k, v in VISION.items() if k != "initializer_range"}


def qwen(kind: str, ids: Callable[[str], int], size: int) -> tuple:
    text = LLAMA | {
        "vocab_size": size,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
    }
    shared = {"image_token_id": ids("<image>"), "vision_start_token_id": ids("<|vision_start|>"), "text_config": text}
    process = hf.Qwen2VLImageProcessorPil(
        patch_size=14, merge_size=2, size={"shortest_edge": 28 * 28, "longest_edge": 56 * 56}, **NORMAL
    )
    if kind == "2":
        vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 14}
        return hf.Qwen2VLForConditionalGeneration(hf.Qwen2VLConfig(vision_config=vision, **shared)), process
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 14, "out_hidden_size": 32,
        "window_size": 56, "fullatt_block_indexes": [1],
    }  # fmt: skip
    return hf.Qwen2_5_VLForConditionalGeneration(hf.Qwen2_5_VLConfig(vision_config=vision, **shared)), process


def idefics3(kind: str, ids: Callable[[str], int], size: int) -> tuple:
    text = hf.LlamaConfig(**LLAMA, vocab_size=size, pad_token_id=ids("<eos>"))
    vision = VISION_PLAIN | {"image_size": 28, "patch_size": 14}
    config, model = {
        "idefics3": (hf.Idefics3Config, hf.Idefics3ForConditionalGeneration),
        "smolvlm": (hf.SmolVLMConfig, hf.SmolVLMForConditionalGeneration),
    }[kind]
    made = config(
        vision_config=vision, text_config=text, scale_factor=2, image_token_id=ids("<image>"), pad_token_id=ids("<eos>")
    )
    process = {"idefics3": hf.Idefics3ImageProcessorPil, "smolvlm": hf.SmolVLMImageProcessorPil}[kind]
    return model(made), process(size={"longest_edge": 28}, max_image_size={"longest_edge": 28}, **NORMAL)


def paligemma(ids: Callable[[str], int], size: int) -> tuple:
    config = hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(**VISION_PLAIN, image_size=28, patch_size=14, projection_dim=32),
        text_config=hf.GemmaConfig(**LLAMA, vocab_size=size, head_dim=8, hidden_activation="gelu_pytorch_tanh"),
        image_token_index=ids("<image>"), projection_dim=32,
    )  # fmt: skip
    return hf.PaliGemmaForConditionalGeneration(config), hf.SiglipImageProcessorPil(size={"height": 28, "width": 28}, **NORMAL)


def paligemma_2(ids: Callable[[str], int], size: int) -> tuple:
    config = hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(**VISION_PLAIN, image_size=28, patch_size=14, projection_dim=32),
        text_config=hf.Gemma2Config(
            **LLAMA, vocab_size=size, head_dim=8, query_pre_attn_scalar=8, final_logit_softcapping=10.0, sliding_window=512,
        ),
        image_token_index=ids("<image>"), projection_dim=32,
    )  # fmt: skip
    return hf.PaliGemmaForConditionalGeneration(config), hf.SiglipImageProcessorPil(size={"height": 28, "width": 28}, **NORMAL)


ARCHITECTURES = {
    "llava": llava, "blip_2-opt": blip_2, "blip_2-llama": blip_2_llama, "blip_2_lite": blip_2_lite, "instructblip": instructblip,
    "llava_onevision": llava_onevision, "qwen2_vl": lambda *a: qwen("2", *a), "qwen2_5_vl": lambda *a: qwen("2.5", *a),
    "idefics3": lambda *a: idefics3("idefics3", *a), "smolvlm": lambda *a: idefics3("smolvlm", *a), "paligemma": paligemma,
    "paligemma_2": paligemma_2,
}  # fmt: skip


def save_checkpoint(architecture: str, words: hf.PreTrainedTokenizerFast, folder: Path) -> Path:
    """A checkpoint's folder as the hub has it: weights, tokenizer and processor, of random weights."""
    torch.manual_seed(0)
    model, process = ARCHITECTURES[architecture](words.convert_tokens_to_ids, len(words))
    for name, parameter in model.named_parameters():
        # Fifty convolutions of such weights would blow rounding up: the convolutional tower keeps its own start.
        if parameter.ndim > 1 and not (architecture == "blip_2_lite" and "vision" in name):
            parameter.data.normal_(0, 0.2)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    if architecture == "blip_2_lite":  # embedded: what it is asked through is known, and its tower takes pictures by itself
        (folder / PROMPT).write_text("{}")
    else:
        process.save_pretrained(folder)
    if architecture == "instructblip":
        words.save_pretrained(folder / "qformer_tokenizer")
    return folder


def open_checkpoint(folder: Path, at: Path, **entry: Any) -> Backbone:
    """The way of a real checkpoint: an entry of params.yaml, the pointer that the stage leaves in `at`, the backbone."""
    if (folder / PROMPT).exists():
        opened = Backbone.open(folder, 2)
    else:
        raw = YAML(typ="safe").load(Path("params.yaml"))
        raw["backbones"]["real"] = {"checkpoint": str(folder), "dtype": "float32", "device_map": "cpu", "layer": 2} | entry
        YAML().dump(raw, at / "params.yaml")
        settings = load(at / "params.yaml").backbone("real")
        point(settings, at / "backbone")
        opened = Backbone.open(at / "backbone", settings.layer)
    opened.add_pictures(PICTURES)
    return opened
