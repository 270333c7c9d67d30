"""`Blip2ForConditionalGeneration`: 32 query tokens of a small Q-Former, over the tower's feature tokens, into SmolLM2.

The Q-Former starts by reading names: each query learns to stand for one token of the pictured thing's name. That needs no
language model, and leaves it little to learn.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import Blip2QFormerConfig, PreTrainedTokenizerBase

from stages.backbone.blip2_lite import Blip2LiteConfig, Blip2LiteForConditionalGeneration
from stages.backbone.parts import END, IMAGE_TOKEN, fill_tower, language_model
from stages.backbone.tower import EfficientNetLiteConfig, EfficientNetLiteTower

CONNECTOR = ("query_tokens", "qformer.", "language_projection.")
QUERIES = 32
SPELLED = 8  # tokens of a name that the queries spell, QUERIES // SPELLED times over
TEMPERATURE = 0.05  # of the cosine similarity to token embeddings
STEPS, BATCH, LR = 800, 64, 1e-3  # of the reading of names


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


def start(
    model: Blip2LiteForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    bank: torch.Tensor,
    names: Sequence[str],
    seed: int,
) -> None:
    """Teach the Q-Former to spell names: query j's output is nearest, by cosine, to the embedding of the name's token j."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    table = model.get_input_embeddings().weight.detach()
    spelled = [tokenizer(name).input_ids[:SPELLED] for name in names]
    end = tokenizer.convert_tokens_to_ids(END)
    spelled = torch.tensor([ids + [end] * (SPELLED - len(ids)) for ids in spelled])
    known, labels = spelled.unique(return_inverse=True)
    known = F.normalize(table[known], dim=1)
    torch.nn.init.normal_(model.query_tokens, std=0.5)
    trained = [p.requires_grad_(True) for name, p in model.named_parameters() if name.startswith(CONNECTOR)]
    optimiser = torch.optim.AdamW(trained, lr=LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LR, total_steps=STEPS, pct_start=0.1)
    vendors, views, concepts = bank.shape[:3]
    for _ in (bar := tqdm(range(STEPS), desc="reading names", mininterval=10)):
        drawn = [torch.from_numpy(rng.integers(n, size=BATCH)) for n in (vendors, views, concepts)]
        shown = connect(model, bank[drawn[0], drawn[1], drawn[2]].float())
        similar = F.normalize(shown, dim=-1) @ known.T / TEMPERATURE
        wanted = labels[drawn[2]].repeat(1, QUERIES // SPELLED)
        loss = F.cross_entropy(similar.flatten(0, 1), wanted.flatten(), label_smoothing=0.05)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        right = float((similar.argmax(-1) == wanted).float().mean())
        bar.set_postfix(loss=f"{loss.item():.2f}", right=f"{right:.2f}", refresh=False)
    with torch.no_grad():
        gain = table.norm(dim=1).mean() / shown.norm(dim=-1).mean()
        model.language_projection.weight.mul_(gain)
        model.language_projection.bias.mul_(gain)
    model.requires_grad_(False)
