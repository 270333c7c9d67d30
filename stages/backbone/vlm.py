"""One adapter over a Hugging Face image-text model: prompts, spans, the frozen trunk and answers under teacher forcing.

Editing decoder layer ℓ leaves the layers below it untouched: the trunk runs once per query (`prefill`, `extend`), and what an
edit changes runs from the hidden states that enter ℓ (`tail`). Prompts are left-padded: answers start in one column.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import DynamicCache

from stages.backbone import checkpoints
from stages.backbone.adapters import adapt
from stages.backbone.adapters.base import Adapter, ImageFeatures
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
    positions: torch.Tensor  # [B, P] or, with several position axes, [axes, B, P]
    spans: dict[str, torch.Tensor]  # name → [B, P] bool


@dataclass
class Trunk:
    """What the frozen layers say of a batch of prompts."""

    prompts: Prompts
    hidden: torch.Tensor  # [B, P, D]: the states that enter layer ℓ
    inputs: torch.Tensor  # [B, P, D]: the edited linear map's input
    final: torch.Tensor  # [B, D]: the last prompt position's, ready for the language head
    cache: DynamicCache

    def select(self, rows: torch.Tensor) -> "Trunk":
        """The part of the batch that the indices `rows` name, with keys and values of its own."""
        asked, cache = self.prompts, copy.deepcopy(self.cache)
        cache.batch_select_indices(rows)
        spans = {name: span[rows] for name, span in asked.spans.items()}
        part = Prompts(asked.embeds[rows], asked.mask[rows], asked.positions[..., rows, :], spans)
        return Trunk(part, self.hidden[rows], self.inputs[rows], self.final[rows], cache)


class PassThrough(nn.Module):
    """Stands for a frozen layer whose output is already known."""

    def forward(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        return hidden_states


class Backbone:
    """A frozen vision-language model with one editable linear map, `adapter.linear` of `layers[layer]`.

    A picture's tokens are computed once per image id (and question, where the architecture's features depend on it).

    The model may sit on accelerators, in a short floating-point type. Masks, positions, spans, trunk states and logits are on the
    CPU all the same, logits and φ in float32. What replaces the edited linear map gets float32 inputs where that map sits.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, layer: int, fingerprint: str, adapter: Adapter):
        self.model, self.tokenizer, self.adapter = model.eval().requires_grad_(False), tokenizer, adapter
        self.decoder, self.layer, self.fingerprint = adapter.decoder, layer, fingerprint
        if not 0 <= layer < len(self.decoder.layers):
            raise UserError(f"layer: {layer} is not a decoder layer; allowed: 0..{len(self.decoder.layers) - 1}")
        self.edited: nn.Linear = self.decoder.layers[layer].get_submodule(adapter.linear)
        for entrance in (self.decoder, adapter.embed):
            entrance.register_forward_pre_hook(self._enter, with_kwargs=True)
        self.end = tokenizer.convert_tokens_to_ids(adapter.end)
        self._images: dict[str, Image.Image] = {}
        self._shown: dict[tuple[str, str], ImageFeatures] = {}

    @classmethod
    def open(cls, folder: Path, layer: int | None) -> "Backbone":
        """Open what the `backbone` stage left in `folder`: weights, or the pointer to a checkpoint. Without a `layer`, the
        adapter's own is edited.
        """
        loaded = checkpoints.load(folder, layer)
        adapter = adapt(loaded.model, loaded.tokenizer, loaded.process, loaded.prompt)
        layer = adapter.last_layer(loaded.model.config) if layer is None else layer
        return cls(loaded.model, loaded.tokenizer, layer, f"{loaded.digest[:16]}-{layer}", adapter)

    # -- devices ------------------------------------------------------------------------------------------------------------

    def _enter(self, _module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Move what the decoder or its embedding is given to where its weights are."""
        device = self.adapter.embed.weight.device
        moved = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
        return tuple(a.to(device) if isinstance(a, torch.Tensor) else a for a in args), moved

    def head(self, states: torch.Tensor) -> torch.Tensor:
        """Logits [..., V] of final hidden states [..., D], in float32 on the CPU; differentiable."""
        head = self.adapter.head
        return head(states.to(head.weight.device)).float().cpu()

    @property
    def weight(self) -> torch.Tensor:
        """The edited linear map's weight [out, D] in float32, where the map sits: what an edit starts from."""
        return self.edited.weight.detach().float()

    @property
    def bias(self) -> torch.Tensor | None:
        """The edited linear map's bias [out] likewise, None where it has none."""
        return None if self.edited.bias is None else self.edited.bias.detach().float()

    # -- prompts ------------------------------------------------------------------------------------------------------------

    def add_pictures(self, pictures: Mapping[str, Image.Image]) -> None:
        """Make pictures known by their ids; their tokens are computed when a query first shows them."""
        self._images.update(pictures)

    @contextlib.contextmanager
    def bypassing_image_cache(self) -> Iterator[None]:
        """While open, pictures' tokens are computed anew, and forgotten on leaving: for edits of what makes them."""
        kept, self._shown = self._shown, {}
        try:
            yield
        finally:
            self._shown = kept

    def show(self, queries: Sequence[Query], batch: int = 32) -> list[ImageFeatures | None]:
        """The tokens of each query's picture, None where it has none; differentiable in what is added to the frozen weights."""
        keys = [None if q.image_id is None else (q.image_id, q.question if self.adapter.reads_question else "") for q in queries]
        new = [key for key in dict.fromkeys(keys) if key is not None and key not in self._shown]
        for start in range(0, len(new), batch):
            part = new[start : start + batch]
            shown = self.adapter.show([self._images[i] for i, _ in part], [question for _, question in part])
            self._shown.update(zip(part, shown, strict=True))
        return [key and self._shown[key] for key in keys]

    def prompts(self, queries: Sequence[Query]) -> Prompts:
        """Embed a batch of queries; the picture's tokens stand where the template says, the question in one piece with its
        surroundings, as the model met it in training.
        """
        head, tail = self.adapter.template.split("{question}")
        shown, told = self.show(queries), []
        for query, picture in zip(queries, shown, strict=True):
            before, after = self.adapter.image_delimiters
            image = before + self.adapter.image_token * len(picture.features) + after if picture else ""
            begin = head.replace("{image}", image)
            text = begin + query.question + tail.replace("{image}", image)
            tokens = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            told.append((tokens.input_ids, tokens.offset_mapping, len(begin), len(begin) + len(query.question)))
        length = max(len(ids) for ids, *_ in told)
        ids = torch.full((len(told), length), self.end)
        spans = {name: torch.zeros(len(told), length, dtype=torch.bool) for name in SPANS}
        for row, (tokens, places, begin, end) in enumerate(told):
            start = length - len(tokens)
            ids[row, start:] = torch.tensor(tokens)
            spans["prompt"][row, start:] = True
            spans["question"][row, start:] = torch.tensor([first < end and last > begin for first, last in places])
            spans["last"][row, -1] = True
        spans["image"] = (ids == self.adapter.image_id) & spans["prompt"] & ~spans["question"]
        positions = self.adapter.positions(ids, spans["prompt"], [picture and picture.grid for picture in shown])
        embeds = self.adapter.embed(ids)
        if spans["image"].any():
            features = torch.cat([picture.features for picture in shown if picture is not None])
            embeds = embeds.masked_scatter(spans["image"][..., None].to(embeds.device), features.to(embeds))
        return Prompts(embeds, spans["prompt"], positions, spans)

    def answer_ids(self, answer: str) -> list[int]:
        """Tokens of an answer with its end token."""
        return [*self.tokenizer(self.adapter.answer_prefix + answer, add_special_tokens=False).input_ids, self.end]

    # -- the trunk, once ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _watch(self) -> Iterator[dict[str, torch.Tensor]]:
        """Record the states entering layer ℓ (`hidden`) and the edited linear map's input (`inputs`)."""
        seen: dict[str, torch.Tensor] = {}

        def entering(_module: nn.Module, args: tuple, kwargs: dict) -> None:
            seen["hidden"] = (args[0] if args else kwargs["hidden_states"]).cpu()

        def feeding(_module: nn.Module, args: tuple) -> None:
            seen["inputs"] = args[0].cpu().reshape(*seen["hidden"].shape[:2], -1)  # OPT flattens batch and positions here

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
    def prefill(self, prompts: Prompts, past: DynamicCache | None = None) -> Trunk:
        """Run the model over a batch of prompts, keeping keys and values for `extend`.

        They may follow on `past`, whose positions are then the first columns of `prompts.mask`; it is extended in place.
        """
        cache = DynamicCache(config=self.decoder.config) if past is None else past
        asked = prompts.embeds.shape[1]
        with self._watch() as seen:
            out = self.decoder(
                inputs_embeds=prompts.embeds,
                attention_mask=self.adapter.attention(prompts.mask, prompts.mask.shape[1])[:, :, -asked:],
                position_ids=prompts.positions,
                past_key_values=cache,
                use_cache=True,
            )
        return Trunk(prompts, seen["hidden"], seen["inputs"], out.last_hidden_state[:, -1], cache)

    @torch.no_grad()
    def extend(
        self, trunk: Trunk, ids: torch.Tensor, widths: Sequence[int] = ()
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Teacher-force `ids` [B, A] after the prompts: hidden states and edited inputs [B, A, D], final states [B, A + 1, D].

        `widths` split the A tokens into branches that each follow the prompt and do not see each other. The first final state is
        the prompt's last. The cache is left as `prefill` made it.
        """
        past, answered = trunk.prompts.mask, ids.shape[1]
        if not answered:
            return trunk.hidden[:, :0], trunk.inputs[:, :0], trunk.final[:, None]
        mask = torch.cat([past, torch.ones_like(ids, dtype=torch.bool)], 1)
        with self._watch() as seen:
            out = self.decoder(
                inputs_embeds=self.adapter.embed(ids),
                attention_mask=self.adapter.attention(mask, past.shape[1], widths)[:, :, -answered:],
                position_ids=branched(trunk.prompts.positions, widths or (answered,)),
                past_key_values=trunk.cache,
                use_cache=True,
            )
        trunk.cache.crop(-answered)
        return seen["hidden"], seen["inputs"], torch.cat([trunk.final[:, None], out.last_hidden_state], 1)

    @torch.no_grad()
    def greedy(self, trunk: Trunk, limit: int) -> list[list[int]]:
        """Greedy answers of the unedited model, at most `limit` tokens each, with the end token where it was reached."""
        token = self.head(trunk.final).argmax(-1)
        answers = [[first] for first in token.tolist()]
        rows, cache = torch.arange(len(token)), copy.deepcopy(trunk.cache)
        for told in range(1, limit):
            going = token != self.end
            if not going.any():
                break
            if not going.all():  # answered rows cost nothing more
                rows, token = rows[going], token[going]
                cache.batch_select_indices(going.nonzero()[:, 0])
            past = trunk.prompts.mask[rows]
            out = self.decoder(
                inputs_embeds=self.adapter.embed(token[:, None]),
                attention_mask=torch.cat([past, past.new_ones(len(rows), told)], 1).long(),
                position_ids=following(trunk.prompts.positions[..., rows, :], told)[..., -1:],
                past_key_values=cache,
                use_cache=True,
            )
            token = self.head(out.last_hidden_state[:, -1]).argmax(-1)
            for row, said in zip(rows.tolist(), token.tolist(), strict=True):
                answers[row].append(said)
        return answers

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, without its end token."""
        return self.tokenizer.decode([i for i in ids if i != self.end]).strip()

    @contextlib.contextmanager
    def replaced(self, output: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], rows: int) -> Iterator[None]:
        """While open, the edited linear map gives `output(inputs [B, T, D], unedited [B, T, out])`, all three in float32 where
        the map sits; `rows` is B.
        """

        def hook(_module: nn.Module, args: tuple[torch.Tensor], unedited: torch.Tensor) -> torch.Tensor:
            inputs, flat = args[0].reshape(rows, -1, args[0].shape[-1]), unedited.shape
            changed = output(inputs.float(), unedited.reshape(rows, inputs.shape[1], -1).float())
            return changed.reshape(flat).to(unedited.dtype)

        handle = self.edited.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    # -- from layer ℓ on ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def from_layer(self, hidden: torch.Tensor) -> Iterator[None]:
        """While open, the layers below ℓ pass through and `hidden` enters layer ℓ, whatever the decoder is given."""
        layers = self.decoder.layers
        frozen = [layers[i] for i in range(self.layer)]

        def inject(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            return (hidden, *args[1:]), {k: v for k, v in kwargs.items() if k != "hidden_states"}

        hook = layers[self.layer].register_forward_pre_hook(inject, with_kwargs=True)
        for i in range(self.layer):
            layers[i] = PassThrough()
        try:
            yield
        finally:
            hook.remove()
            for i, module in enumerate(frozen):
                layers[i] = module

    def tail(
        self, hidden: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, last: int, widths: Sequence[int] = ()
    ) -> torch.Tensor:
        """Final hidden states [B, last, D] of the last `last` positions, from the states [B, T, D] that enter layer ℓ.

        `positions` [..., B, P] are the prompt's (see `Prompts`); the T - P answer tokens follow on, in branches of `widths` as
        `extend` has them. Differentiable with respect to whatever replaces the edited linear map.
        """
        prompt = positions.shape[-1]
        width = self.adapter.embed.weight.shape[1]  # not the hidden size where the decoder projects its embeddings
        with self.from_layer(hidden.to(self.edited.weight.device)):
            out = self.decoder(
                inputs_embeds=hidden.new_zeros(*hidden.shape[:2], width),
                attention_mask=self.adapter.attention(mask, prompt, widths),
                position_ids=torch.cat([positions, branched(positions, widths or (hidden.shape[1] - prompt,))], -1),
                use_cache=False,
            )
        return out.last_hidden_state[:, -last:]


def following(positions: torch.Tensor, count: int) -> torch.Tensor:
    """Position ids [..., B, count] of answer tokens: they go on from the prompt's last."""
    return positions[..., -1:] + 1 + torch.arange(count, device=positions.device)


def branched(positions: torch.Tensor, widths: Sequence[int]) -> torch.Tensor:
    """Position ids [..., B, sum of widths] of branches that each go on from the prompt's last."""
    return torch.cat([following(positions, width) for width in widths], -1)


def mean_over(states: torch.Tensor, span: torch.Tensor) -> torch.Tensor:
    """φ: the mean of `states` [B, T, D] over `span` [B, T] in float32; NaN where a span is empty."""
    states, weight = states.float(), span.float()[..., None]
    return (states * weight).sum(1) / weight.sum(1).masked_fill(weight.sum(1) == 0, float("nan"))
