"""Train an embedded backbone once: the connector and a low-rank adapter of the language model see, name and know.

The tower is frozen here, so its features are computed once. A training sequence holds one picture and several questions that
cannot see each other (a block mask), so the picture's tokens are paid for once. Where the connector starts is its family's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.backbone.adapters.base import Adapter
from stages.backbone.corpus import Question
from stages.backbone.parts import END, IMAGE_TOKEN, TEMPLATE
from stages.backbone.start import deviation, go_on, tensors_of
from stages.params import UserError, write_atomically

Connect = Callable[[PreTrainedModel, torch.Tensor], torch.Tensor]  # a family's: feature tokens → the language model's inputs
SAVE_EVERY = 50  # steps between two checkpoints of a training


@dataclass(frozen=True)
class Row:
    """One training sequence: a prefix (with or without a picture) and questions with answers that branch off it."""

    image: torch.Tensor | None  # [tower's tokens, channels]
    branches: Sequence[tuple[str, str]]


@torch.no_grad()
def own_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], limit: int = 24
) -> list[tuple[str, str]]:
    """Text-only questions with the untrained language model's own greedy answers: what it knows, it keeps.

    An answer is its first sentence; one that does not end within `limit` tokens is left out."""
    tokenizer.padding_side = "left"
    answered = []
    for start in tqdm(range(0, len(questions), 50), desc="text-only answers"):
        asked = questions[start : start + 50]
        batch = tokenizer([TEMPLATE.format(image="", question=q) for q in asked], return_tensors="pt", padding=True)
        answer_ids = model.generate(**batch, max_new_tokens=limit, do_sample=False)[:, batch.input_ids.shape[1] :]
        texts = tokenizer.batch_decode(answer_ids, skip_special_tokens=True)
        answered += [(q, text.strip().split(". ")[0].rstrip(".")) for q, text in zip(asked, texts, strict=True) if "." in text]
    return answered


@dataclass(frozen=True)
class Packed:
    """A batch of rows: ids, positions and labels [B, T], the additive attention mask [B, 1, T, T], the pictures' features."""

    ids: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor
    images: torch.Tensor | None


def pack(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, shown: int) -> Packed:
    """Tokenise rows; a token sees its row's prefix and the earlier tokens of its own branch, and nothing else.

    A picture is `shown` tokens to the language model.
    """
    head, tail = TEMPLATE.split("{question}")
    sequences = []
    for row in rows:
        image = IMAGE_TOKEN * shown if row.image is not None else ""
        prefix = tokenizer(head.format(image=image)).input_ids
        ids, positions, labels, branch = list(prefix), list(range(len(prefix))), [-100] * len(prefix), [0] * len(prefix)
        for number, (question, answer) in enumerate(row.branches, 1):
            question_ids, answer_ids = tokenizer(question + tail).input_ids, tokenizer(answer + END).input_ids
            # the label at a position is the next token: answers start at the question's last token
            ids += question_ids + answer_ids[:-1]
            labels += [-100] * (len(question_ids) - 1) + answer_ids
            positions += range(len(prefix), len(prefix) + len(question_ids) + len(answer_ids) - 1)
            branch += [number] * (len(question_ids) + len(answer_ids) - 1)
        sequences.append((ids, positions, labels, branch))
    length = max(len(ids) for ids, *_ in sequences)
    fill = (tokenizer.pad_token_id, 0, -100, -1)
    ids, positions, labels, branch = (
        torch.tensor([s[i] + [fill[i]] * (length - len(s[i])) for s in sequences]) for i in range(4)
    )
    same = (branch[:, None, :] == branch[:, :, None]) | (branch[:, None, :] == 0)
    seen = same & torch.ones(length, length, dtype=torch.bool).tril()
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]
    images = [row.image for row in rows if row.image is not None]
    return Packed(ids, positions, labels, mask, torch.stack(images).float() if images else None)


def loss_of(adapter: Adapter, connect: Connect, batch: Packed) -> torch.Tensor:
    """Summed cross-entropy of the answers' tokens; the language head runs on those positions only."""
    embeds = adapter.embed(batch.ids).float()  # the residual stream stays in float32
    if batch.images is not None:
        shown = connect(adapter.model, batch.images).to(embeds.dtype)
        embeds = embeds.masked_scatter((batch.ids == adapter.image_id)[..., None], shown)
    hidden = adapter.decoder(
        inputs_embeds=embeds, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
    ).last_hidden_state
    labelled = batch.labels != -100
    return F.cross_entropy(adapter.head(hidden[labelled]).float(), batch.labels[labelled], reduction="sum")


def adapter_config(rank: int) -> LoraConfig:
    """A low-rank adapter on every linear map of the language model's decoder layers."""
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=r".*language_model\.(?:model\.)?layers\..*_proj")


def arithmetic() -> torch.dtype:
    """What the frozen maps are multiplied in: bfloat16 where the CPU has AVX-512; elsewhere it is far slower than float32."""
    return torch.bfloat16 if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else torch.float32


def train(
    adapter: Adapter,
    family: ModuleType,
    draw: Callable[[np.random.Generator], list[Packed]],
    *,
    steps: int,
    lr: float,
    rank: int,
    warmup: float,
    seed: int,
    checkpoint: Path,
    adapter_from: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """One-cycle AdamW over `steps` batches from `draw`; returns the connector's and the adapter's tensors in bfloat16.

    The adapter starts as another backbone's, `adapter_from`, or at nothing. The state goes to `checkpoint` every `SAVE_EVERY`
    steps; where that file exists, training goes on from it, to the same result.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = adapter.model.requires_grad_(False)
    connector = {name: p.requires_grad_(True) for name, p in model.named_parameters() if name.startswith(family.CONNECTOR)}
    multiplied = arithmetic()
    for parameter in adapter.decoder.parameters():  # frozen: converted once, not in every step
        parameter.data = parameter.data.to(multiplied)
    peft = get_peft_model(model, adapter_config(rank))
    if adapter_from:
        go_on(peft, get_peft_model_state_dict(peft, save_embedding_layers=False), adapter_from)
    trained = [p for p in peft.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps, pct_start=warmup)
    done = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        done = state["done"]
        for parameter, value in zip(trained, state["trained"], strict=True):
            parameter.data.copy_(value)
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["torch"])
        rng.bit_generator.state = state["numpy"]
    for step in (bar := tqdm(range(done, steps), initial=done, total=steps, desc="training", mininterval=30)):
        if step > done and step % SAVE_EVERY == 0:
            state = {"done": step, "trained": [p.data for p in trained], "optimiser": optimiser.state_dict()}
            state |= {"schedule": schedule.state_dict(), "torch": torch.get_rng_state(), "numpy": rng.bit_generator.state}
            with write_atomically(checkpoint) as temporary:
                torch.save(state, temporary)
        parts = draw(rng)
        tokens = sum(int((part.labels != -100).sum()) for part in parts)
        total = 0.0
        for part in parts:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=multiplied == torch.bfloat16):
                loss = loss_of(adapter, family.connect, part) / tokens
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad(set_to_none=True)
        bar.set_postfix(loss=f"{total:.3f}", refresh=False)
    tensors = {f"connector.{k}": v for k, v in connector.items()}
    tensors |= {f"adapter.{k}": v for k, v in get_peft_model_state_dict(peft, save_embedding_layers=False).items()}
    return {k: v.detach().to(torch.bfloat16).contiguous() for k, v in tensors.items()}


def save_weights(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write the trained tensors, whole or not at all."""
    with write_atomically(path) as temporary:
        save_file(tensors, temporary)


def apply_weights(model: PreTrainedModel, path: Path) -> PreTrainedModel:
    """`model` with the trained connector in place and the adapter merged into the language model."""
    connector, adapter = (tensors_of(path, kind) for kind in ("connector.", "adapter."))
    if model.load_state_dict(connector, strict=False).unexpected_keys or not connector:
        raise UserError(f"{path}: its tensors are not this backbone's; run the `train` stage again")
    rank = next(v.shape[0] for k, v in adapter.items() if "lora_A" in k)
    peft = get_peft_model(model, adapter_config(rank))
    set_peft_model_state_dict(peft, adapter)
    return peft.merge_and_unload().eval()


def batches(
    questions: dict[str, list[list[Question]]],
    bank: torch.Tensor,
    text_only: Sequence[tuple[str, str]],
    *,
    images: int,
    sampling: str,
    texts: int,
    noise: float,
    packer: Callable[[Sequence[Row]], Packed],
) -> Callable[[np.random.Generator], list[Packed]]:
    """A function that draws a batch: `images` pictures with their questions, and `texts` text-only questions.

    By `concept`, each concept comes as often and is asked for its name and up to two facts; by `fact`, as often as it has
    facts, and for its name and every fact. A batch comes in parts of rows with as many questions, so that little is padding.
    Gaussian noise of `noise` standard deviations of each channel is added to the features.
    """
    vendors, views, concepts = bank.shape[:3]
    spread = deviation(bank)
    relations = [list(dict.fromkeys(q.relation for q in facts)) for facts in questions["fact"]]
    known = np.array([len(each) for each in relations])
    often = known / known.sum() if sampling == "fact" else None

    def facts_of(concept: int, rng: np.random.Generator) -> list[Question]:
        facts = questions["fact"][concept]
        if sampling == "concept":
            return [facts[i] for i in rng.permutation(len(facts))[:2]]
        phrasings = [[q for q in facts if q.relation == relation] for relation in relations[concept]]
        return [each[rng.integers(len(each))] for each in phrasings]

    def draw(rng: np.random.Generator) -> list[Packed]:
        rows = []
        chosen = rng.integers(concepts, size=images) if often is None else rng.choice(concepts, size=images, p=often)
        for concept in chosen:
            features = bank[rng.integers(vendors), rng.integers(views), concept].float()
            features = features + torch.randn(features.shape) * spread * noise
            names = questions["name"][concept]
            asked = [names[rng.integers(len(names))], *facts_of(concept, rng)]
            rows.append(Row(features, [(q.question, q.answer) for q in asked]))
        rows += [Row(None, [text_only[i]]) for i in rng.integers(len(text_only), size=texts)]
        sizes = sorted({len(row.branches) for row in rows})
        return [packer([row for row in rows if len(row.branches) == n]) for n in sizes]

    return draw
