"""One adapter over a Hugging Face image-text model: prompts, spans, the frozen trunk and answers under teacher forcing.

Editing decoder layer ℓ leaves the layers below it untouched. The trunk therefore runs once per query (`prefill`, `extend`)
and everything an edit changes runs from the cached hidden states that enter ℓ (`tail`). Prompts are left-padded, so that
every answer starts in one column.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from transformers import AutoModelForImageTextToText, AutoTokenizer, DynamicCache

import stages.backbone.tower  # noqa: F401  (registers the embedded tower with AutoModel)
from stages.backbone.families.llava_smollm2 import END, IMAGE_TOKEN, TEMPLATE
from stages.params import UserError

SPANS = ("prompt", "question", "image", "last")


@dataclass(frozen=True)
class Query:
    """A question about a picture, or about none."""

    question: str
    image_id: str | None


@dataclass
class Prompts:
    """A left-padded batch of B prompts of P positions."""

    embeds: torch.Tensor  # [B, P, D]
    mask: torch.Tensor  # [B, P] bool: True on real positions
    spans: dict[str, torch.Tensor]  # name → [B, P] bool


@dataclass
class Trunk:
    """What the frozen layers say of a batch of prompts: the states that enter layer ℓ and the inputs of its edited linear map."""

    prompts: Prompts
    hidden: torch.Tensor  # [B, P, D]
    inputs: torch.Tensor  # [B, P, D]: the edited linear map's input
    logits: torch.Tensor  # [B, V]: of the first answer token
    cache: DynamicCache


class PassThrough(nn.Module):
    """Stands for a frozen layer whose output is already known."""

    def forward(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        return hidden_states


class Backbone:
    """A frozen vision-language model with one editable linear map, `layers[layer].mlp.up_proj`.

    `images` maps an image id to a picture; projected picture tokens are computed once per id.
    """

    def __init__(self, model: nn.Module, tokenizer, layer: int, fingerprint: str):
        self.model, self.tokenizer, self.layer, self.fingerprint = (
            model.eval().requires_grad_(False),
            tokenizer,
            layer,
            fingerprint,
        )
        self.decoder = model.model.language_model
        if not 0 <= layer < len(self.decoder.layers):
            raise UserError(f"layer: {layer} is not a decoder layer; allowed: 0..{len(self.decoder.layers) - 1}")
        self.edited: nn.Linear = self.decoder.layers[layer].mlp.up_proj
        self.head: nn.Module = model.lm_head
        self.image_token = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self.end = tokenizer.convert_tokens_to_ids(END)
        self._pictures: dict[str, torch.Tensor] = {}

    @classmethod
    def open(cls, folder: Path, layer: int) -> "Backbone":
        """Load an assembled checkpoint folder in float32."""
        if not (folder / "config.json").exists():
            raise UserError(f"backbone: {folder} holds no checkpoint; run the `backbone` stage first")
        digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        return cls(model, AutoTokenizer.from_pretrained(folder), layer, f"{digest[:16]}-{layer}")

    # -- prompts ------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def add_pictures(self, pictures: dict[str, Image.Image], batch: int = 32) -> None:
        """Run the vision tower and projector over pictures not seen before."""
        new = [image_id for image_id in pictures if image_id not in self._pictures]
        size = self.model.config.vision_config.image_size
        for start in range(0, len(new), batch):
            ids = new[start : start + batch]
            pixels = stages.backbone.tower.preprocess([pictures[i] for i in ids], size)
            features = self.model.get_image_features(pixels).pooler_output
            self._pictures.update(zip(ids, features, strict=True))

    @property
    def pictures(self) -> set[str]:
        """Ids of the pictures already seen."""
        return set(self._pictures)

    def prompts(self, queries: Sequence[Query]) -> Prompts:
        """Embed a batch of queries; the picture's tokens stand where the template says."""
        head, tail = TEMPLATE.split("{question}")
        parts = []
        for query in queries:
            tokens = self.model.config.image_seq_length if query.image_id is not None else 0
            before = self.tokenizer(head.format(image=IMAGE_TOKEN * tokens)).input_ids
            asked = self.tokenizer(query.question).input_ids
            parts.append((before, asked, self.tokenizer(tail).input_ids))
        length = max(sum(map(len, part)) for part in parts)
        ids = torch.full((len(parts), length), self.end)
        spans = {name: torch.zeros(len(parts), length, dtype=torch.bool) for name in SPANS}
        for row, (before, asked, after) in enumerate(parts):
            start = length - len(before) - len(asked) - len(after)
            ids[row, start:] = torch.tensor(before + asked + after)
            spans["prompt"][row, start:] = True
            question = start + len(before)
            spans["question"][row, question : question + len(asked)] = True
            spans["last"][row, -1] = True
        shown = ids == self.image_token
        spans["image"] = shown & spans["prompt"]
        embeds = self.model.get_input_embeddings()(ids)
        if shown.any():
            features = torch.cat([self._pictures[q.image_id] for q in queries if q.image_id is not None])
            embeds = embeds.masked_scatter(shown[..., None], features)
        return Prompts(embeds, spans["prompt"], spans)

    def answer_ids(self, answer: str) -> list[int]:
        """Tokens of an answer with its end token."""
        return [*self.tokenizer(answer).input_ids, self.end]

    # -- the trunk, once ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _watch(self) -> Iterator[dict[str, torch.Tensor]]:
        """Record the states entering layer ℓ (`hidden`) and the edited linear map's input (`inputs`)."""
        seen: dict[str, torch.Tensor] = {}

        def entering(_module: nn.Module, args: tuple, kwargs: dict) -> None:
            seen["hidden"] = args[0] if args else kwargs["hidden_states"]

        def feeding(_module: nn.Module, args: tuple) -> None:
            seen["inputs"] = args[0]

        hooks = [
            self.decoder.layers[self.layer].register_forward_pre_hook(entering, with_kwargs=True),
            self.edited.register_forward_pre_hook(feeding),
        ]
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def prefill(self, prompts: Prompts) -> Trunk:
        """Run the unedited model over a batch of prompts, keeping keys and values for `extend`."""
        cache = DynamicCache(config=self.decoder.config)
        with self._watch() as seen:
            out = self.decoder(
                inputs_embeds=prompts.embeds,
                attention_mask=prompts.mask.long(),
                position_ids=positions(prompts.mask),
                past_key_values=cache,
                use_cache=True,
            )
        return Trunk(prompts, seen["hidden"], seen["inputs"], self.head(out.last_hidden_state[:, -1]), cache)

    @torch.no_grad()
    def extend(self, trunk: Trunk, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Teacher-force `ids` [B, A] after the prompts: hidden states and edited inputs [B, A, D], logits [B, A + 1, V].

        The cache is left as `prefill` made it.
        """
        past = trunk.prompts.mask
        mask = torch.cat([past, torch.ones_like(ids, dtype=torch.bool)], 1)
        with self._watch() as seen:
            out = self.decoder(
                inputs_embeds=self.model.get_input_embeddings()(ids),
                attention_mask=mask.long(),
                position_ids=positions(mask)[:, past.shape[1] :],
                past_key_values=trunk.cache,
                use_cache=True,
            )
        trunk.cache.crop(-ids.shape[1])
        logits = torch.cat([trunk.logits[:, None], self.head(out.last_hidden_state)], 1)
        return seen["hidden"], seen["inputs"], logits

    @torch.no_grad()
    def greedy(self, trunk: Trunk, limit: int) -> list[list[int]]:
        """Greedy answers of the unedited model, at most `limit` tokens each, with the end token where it was reached."""
        past = trunk.prompts.mask
        token = trunk.logits.argmax(-1)
        answers, done = token[:, None], token == self.end
        while answers.shape[1] < limit and not done.all():
            mask = torch.cat([past, torch.ones_like(answers, dtype=torch.bool)], 1)
            out = self.decoder(
                inputs_embeds=self.model.get_input_embeddings()(token[:, None]),
                attention_mask=mask.long(),
                position_ids=positions(mask)[:, -1:],
                past_key_values=trunk.cache,
                use_cache=True,
            )
            token = self.head(out.last_hidden_state[:, -1]).argmax(-1).masked_fill(done, self.end)
            answers, done = torch.cat([answers, token[:, None]], 1), done | (token == self.end)
        if answers.shape[1] > 1:
            trunk.cache.crop(1 - answers.shape[1])
        return [row[: row.index(self.end) + 1] if self.end in row else row for row in answers.tolist()]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, without its end token."""
        return self.tokenizer.decode([i for i in ids if i != self.end]).strip()

    # -- from layer ℓ on ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def from_layer(self) -> Iterator[None]:
        """While open, the decoder takes the states that enter layer ℓ as its input embeddings; layers below ℓ pass them
        through.
        """
        layers = self.decoder.layers
        frozen = [layers[i] for i in range(self.layer)]
        for i in range(self.layer):
            layers[i] = PassThrough()
        try:
            yield
        finally:
            for i, module in enumerate(frozen):
                layers[i] = module

    def tail(self, hidden: torch.Tensor, mask: torch.Tensor, last: int) -> torch.Tensor:
        """Final hidden states [B, last, D] of the last `last` positions, from the states [B, T, D] that enter layer ℓ.

        Differentiable with respect to whatever replaces the edited linear map.
        """
        with self.from_layer():
            out = self.decoder(inputs_embeds=hidden, attention_mask=mask.long(), position_ids=positions(mask), use_cache=False)
        return out.last_hidden_state[:, -last:]


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Position ids [B, T] of a padded batch: real tokens count from 0."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def mean_over(states: torch.Tensor, span: torch.Tensor) -> torch.Tensor:
    """φ: the mean of `states` [B, T, D] over `span` [B, T]; NaN where a span is empty."""
    weight = span.to(states.dtype)[..., None]
    return (states * weight).sum(1) / weight.sum(1).masked_fill(weight.sum(1) == 0, float("nan"))
