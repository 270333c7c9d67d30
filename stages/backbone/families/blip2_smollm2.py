"""`Blip2ForConditionalGeneration`: 32 query tokens of a small Q-Former, over the tower's feature tokens, into SmolLM2.

The Q-Former starts by learning which tokens the language model is to read for each concept. That needs no language model, and
leaves it little to learn.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import Blip2QFormerConfig, PreTrainedTokenizerBase

from stages.backbone.blip2_lite import Blip2LiteConfig, Blip2LiteForConditionalGeneration
from stages.backbone.parts import IMAGE_TOKEN, fill_tower, language_model
from stages.backbone.start import deviation
from stages.backbone.tower import EfficientNetLiteConfig, EfficientNetLiteTower

LAYERS = 30  # of SmolLM2's decoder
CONNECTOR = ("query_tokens", "qformer.", "language_projection.")
QUERIES = 32
TEMPERATURE = 0.05  # of the cosine similarity to a concept's tokens
STEPS, BATCH, LR = 3000, 64, 1e-3  # of the start
NOISE = 0.2  # on the features, in standard deviations of each channel


def build(assets: Path) -> tuple[Blip2LiteForConditionalGeneration, PreTrainedTokenizerBase]:
    """The untrained model in float32 and its tokenizer, from `data/assets`."""
    language, text, tokenizer = language_model(assets)
    config = Blip2LiteConfig(
        vision_config=EfficientNetLiteConfig().to_dict(),
        qformer_config=Blip2QFormerConfig(
            hidden_size=256, num_hidden_layers=4, num_attention_heads=8, intermediate_size=1024, cross_attention_frequency=1,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, vocab_size=1, max_position_embeddings=1,
        ).to_dict(),
        text_config=text.to_dict(),
        num_query_tokens=QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        tie_word_embeddings=True,
    )  # fmt: skip
    model = Blip2LiteForConditionalGeneration(config)
    model.language_model.load_state_dict(language.state_dict())
    model.language_model.tie_weights()
    fill_tower(tower(model), assets)
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = tokenizer.eos_token_id
    return model.eval(), tokenizer


def tower(model: Blip2LiteForConditionalGeneration) -> EfficientNetLiteTower:
    """The vision tower inside the model."""
    return model.vision_model


def connect(model: Blip2LiteForConditionalGeneration, features: torch.Tensor) -> torch.Tensor:
    """Feature tokens [B, 16, 1280] → what the language model reads [B, 32, D]."""
    queries = model.query_tokens.expand(len(features), -1, -1)
    read = model.qformer(query_embeds=queries, encoder_hidden_states=features, return_dict=True).last_hidden_state
    return model.language_projection(read)


def start(model: Blip2LiteForConditionalGeneration, wanted: torch.Tensor, bank: torch.Tensor, seed: int) -> None:
    """Teach the Q-Former to make the `wanted` tokens [C, tokens, D] of a concept from its pictures in a `feature_bank`.

    Of all concepts' tokens at its place, a query's output is to be nearest to its own concept's, both taken off the mean over
    concepts; and it is to be as large.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    wanted = wanted[:, torch.arange(QUERIES) * wanted.shape[1] // QUERIES]
    mean = wanted.mean(0)
    known, variance = F.normalize(wanted - mean, dim=-1), (wanted - mean).pow(2).mean()
    torch.nn.init.normal_(model.query_tokens, std=0.5)
    trained = [p.requires_grad_(True) for name, p in model.named_parameters() if name.startswith(CONNECTOR)]
    optimiser = torch.optim.AdamW(trained, lr=LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LR, total_steps=STEPS, pct_start=0.1)
    vendors, views, concepts = bank.shape[:3]
    noise = NOISE * deviation(bank)
    for _ in (bar := tqdm(range(STEPS), desc="reading pictures", mininterval=10)):
        drawn = [torch.from_numpy(rng.integers(n, size=BATCH)) for n in (vendors, views, concepts)]
        pictures = bank[drawn[0], drawn[1], drawn[2]].float()
        made = connect(model, pictures + noise * torch.randn_like(pictures))
        similar = torch.einsum("bqd,cqd->bqc", F.normalize(made - mean, dim=-1), known) / TEMPERATURE
        labels = drawn[2][:, None].expand(-1, QUERIES)
        told_apart = F.cross_entropy(similar.flatten(0, 1), labels.flatten(), label_smoothing=0.05)
        missed = (made - wanted[drawn[2]]).pow(2).mean() / variance
        optimiser.zero_grad(set_to_none=True)
        (told_apart + missed).backward()
        optimiser.step()
        schedule.step()
        right = float((similar.argmax(-1) == labels).float().mean())
        bar.set_postfix(missed=f"{missed.item():.2f}", right=f"{right:.2f}", refresh=False)
    model.requires_grad_(False)
