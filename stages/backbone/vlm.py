"""One adapter over a Hugging Face image-text model: prompts, spans, the frozen trunk and answers under teacher forcing.

Editing decoder layer ℓ leaves the layers below it untouched: the trunk runs once per query (`prefill`, `extend`), and what an
edit changes runs from the hidden states that enter ℓ (`tail`). Prompts are left-padded: answers start in one column.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import DynamicCache

from stages.backbone import checkpoints
from stages.backbone.adapters import adapt
from stages.backbone.adapters.base import Adapter, ImageFeatures, capped
from stages.backbone.prompts import Prompts, Query, embed
from stages.backbone.stand_ins import LastPositions, PassThrough, branch_off
from stages.params import UserError

ROOM = 2**30  # bytes of keys and values that a forward may make


@dataclass
class Trunk:
    """What the frozen layers say of a batch of prompts."""

    prompts: Prompts
    hidden: torch.Tensor | None  # [B, P, D]: the states that enter layer ℓ, where they were kept
    inputs: torch.Tensor | None  # [B, P, D]: the edited linear map's input, likewise
    final: torch.Tensor  # [B, D]: the last prompt position's, ready for the language head
    cache: DynamicCache
    deep: dict[int, torch.Tensor] = field(default_factory=dict)  # other layers' `inputs` likewise, of those that were asked for

    def select(self, rows: torch.Tensor) -> "Trunk":
        """The part of the batch that the indices `rows` name, with keys and values of its own."""
        part, deep = self.prompts.select(rows), {layer: inputs[rows] for layer, inputs in self.deep.items()}
        return Trunk(part, self.hidden[rows], self.inputs[rows], self.final[rows], branch_off(self.cache, rows), deep)


class Backbone:
    """A frozen vision-language model with one editable linear map, `adapter.linear` of `layers[layer]`.

    A picture's tokens are computed once per image id (and question, where the architecture's features depend on it). The model
    may sit on accelerators, in a short floating-point type. Masks, positions, spans and trunk states are on the CPU all the same;
    logits stay where the head sits. Logits and φ are float32, and so are the inputs of what replaces the edited linear map.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, layer: int, fingerprint: str, adapter: Adapter):
        self.model, self.tokenizer, self.adapter = model.eval().requires_grad_(False), tokenizer, adapter
        self.decoder, self.layer, self.fingerprint = adapter.decoder, layer, fingerprint
        if not 0 <= layer < len(self.decoder.layers):
            raise UserError(f"layer: {layer} is not a decoder layer; allowed: 0..{len(self.decoder.layers) - 1}")
        self.edited = self.linear(layer)
        for entrance in (self.decoder, adapter.embed):
            entrance.register_forward_pre_hook(self._enter, with_kwargs=True)
        self.end = tokenizer.convert_tokens_to_ids(adapter.end)
        self._rows_fixed = False  # while what replaces the edited map counts on the rows of one batch
        self.unread = 0  # leading positions at which the edited map does not run, while only later ones are read
        self._images: dict[str, Image.Image] = {}
        self._features: dict[tuple[str, str], ImageFeatures] = {}

    @classmethod
    def open(cls, folder: Path, layer: int | None) -> "Backbone":
        """Open what the `backbone` stage left in `folder`: weights, or the pointer to a checkpoint. Without a `layer`, the
        adapter's own is edited.
        """
        loaded = checkpoints.load(folder, layer)
        adapter = adapt(loaded.model, loaded.tokenizer, loaded.process, loaded.prompt)
        layer = adapter.last_layer(loaded.model.config) if layer is None else layer
        return cls(loaded.model, loaded.tokenizer, layer, f"{loaded.digest[:16]}-{layer}", adapter)

    def _enter(self, _module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Move what the decoder or its embedding is given to where its weights are."""
        device = self.device
        moved = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
        return tuple(a.to(device) if isinstance(a, torch.Tensor) else a for a in args), moved

    def head(self, states: torch.Tensor) -> torch.Tensor:
        """Logits [..., V] of final hidden states [..., D], in float32 where the head sits; differentiable."""
        head = self.adapter.head
        return capped(head(states.to(head.weight.device)).float(), self.adapter.softcap)

    @property
    def device(self) -> torch.device:
        """Where the decoder's input goes."""
        return self.adapter.embed.weight.device

    @property
    def positions_at_once(self) -> int:
        """How many positions one forward may have, all rows together: what keeps its keys and values within `ROOM` bytes."""
        config = self.decoder.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return max(1, ROOM // (2 * len(self.decoder.layers) * heads * width * self.adapter.embed.weight.element_size()))

    @property
    def weight(self) -> torch.Tensor:
        """The edited linear map's weight [out, D] in float32, where the map sits: what an edit starts from."""
        return self.edited.weight.detach().float()

    @property
    def bias(self) -> torch.Tensor | None:
        """The edited linear map's bias [out] likewise, None where it has none."""
        return None if self.edited.bias is None else self.edited.bias.detach().float()

    def add_pictures(self, pictures: Mapping[str, Image.Image]) -> None:
        """Make pictures known by their ids; their tokens are computed when a query first shows them."""
        self._images.update(pictures)

    @contextlib.contextmanager
    def bypassing_image_cache(self) -> Iterator[None]:
        """While open, pictures' tokens are computed anew, and forgotten on leaving: for edits of what makes them."""
        kept, self._features = self._features, {}
        try:
            yield
        finally:
            self._features = kept

    def image_features(self, queries: Sequence[Query]) -> list[ImageFeatures | None]:
        """The tokens of each query's picture, None where it has none; differentiable in what is added to the frozen weights. They
        must not depend on what else is shown, down to the last digit of a sum: pictures are shown one by one.
        """
        keys = [None if q.image_id is None else (q.image_id, q.question if self.adapter.reads_question else "") for q in queries]
        for key in dict.fromkeys(keys):
            if key is not None and key not in self._features:
                self._features[key] = self.adapter.show([self._images[key[0]]], [key[1]])[0]
        return [key and self._features[key] for key in keys]

    def prompts(self, queries: Sequence[Query]) -> Prompts:
        """Embed a batch of queries (see `stages.backbone.prompts`)."""
        return embed(self.adapter, self.tokenizer, self.end, queries, self.image_features(queries))

    def answer_ids(self, answer: str) -> list[int]:
        """Tokens of an answer with its end token."""
        return [*self.tokenizer(self.adapter.answer_prefix + answer, add_special_tokens=False).input_ids, self.end]

    @contextlib.contextmanager
    def _watch(self, keep: bool, layers: Sequence[int] = ()) -> Iterator[dict[str | int, torch.Tensor]]:
        """Record, to `keep`, what enters layer ℓ (`hidden`) and the edited map (`inputs`; by number in other `layers`)."""
        seen: dict[str | int, torch.Tensor] = {}
        if not keep:
            yield seen
            return

        def entering(_module: nn.Module, args: tuple, kwargs: dict) -> None:
            seen["hidden"] = (args[0] if args else kwargs["hidden_states"]).cpu()

        def feeding(_module: nn.Module, args: tuple, name: str | int = "inputs") -> None:
            seen[name] = args[0].cpu()

        hooks = [
            self.decoder.layers[self.layer].register_forward_pre_hook(entering, with_kwargs=True),
            self.edited.register_forward_pre_hook(feeding),
            *(self.linear(layer).register_forward_pre_hook(partial(feeding, name=layer)) for layer in layers),
        ]
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()
        for name in seen.keys() - {"hidden"}:  # OPT flattens batch and positions there
            seen[name] = seen[name].reshape(*seen["hidden"].shape[:2], -1)

    def linear(self, layer: int) -> nn.Linear:
        """The linear map of a decoder layer that would be edited there."""
        return self.decoder.layers[layer].get_submodule(self.adapter.linear)

    @torch.no_grad()
    def prefill(self, prompts: Prompts, past: DynamicCache | None = None, keep: bool = True, layers: Sequence[int] = ()) -> Trunk:
        """Run the model over a batch of prompts, keeping keys and values for `extend`.

        They may follow on `past`, whose positions are then the first columns of `prompts.mask`; it is extended in place. What
        prompts have in common (`Prompts.shared`) runs once. With `keep`, hidden states and edited inputs are kept too, the latter
        also of other `layers`.
        """
        if prompts.shared is not None and past is None and not self._rows_fixed:
            begin, rest, groups = prompts.split()
            first = self.prefill(begin, None, keep, layers)
            then = self.prefill(rest, branch_off(first.cache, groups), keep, layers)

            def whole(begin: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
                return torch.cat([begin[groups], end], 1)

            if keep:
                then.hidden, then.inputs = whole(first.hidden, then.hidden), whole(first.inputs, then.inputs)
                then.deep = {layer: whole(first.deep[layer], inputs) for layer, inputs in then.deep.items()}
            return replace(then, prompts=prompts)
        cache = DynamicCache(config=self.decoder.config) if past is None else past
        new = prompts.embeds.shape[1]
        with self._watch(keep, layers) as seen:
            out = self.decoder(
                inputs_embeds=prompts.embeds,
                attention_mask=self.adapter.attention(prompts.mask.to(self.device), prompts.mask.shape[1])[:, :, -new:],
                position_ids=prompts.positions,
                past_key_values=cache,
                use_cache=True,
            )
        deep = {layer: seen[layer] for layer in layers if layer in seen}
        return Trunk(prompts, seen.get("hidden"), seen.get("inputs"), out.last_hidden_state[:, -1], cache, deep)

    @torch.no_grad()
    def extend(
        self, trunk: Trunk, ids: torch.Tensor, branches: torch.Tensor | None = None, keep: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Teacher-force `ids` [B, A] after the prompts: hidden states and edited inputs [B, A, D], final states [B, A + 1, D].

        `branches` [B, A] number the tokens: those of one number follow the prompt and do not see others; 0 is padding. The first
        final state is the prompt's last. The cache is left as `prefill` made it. Without `keep`, only final states are given.
        """
        past, answered = trunk.prompts.mask, ids.shape[1]
        if not answered:
            none = trunk.final.new_zeros(len(ids), 0, trunk.final.shape[-1]).cpu()
            return none, none if trunk.inputs is None else trunk.inputs[:, :0], trunk.final[:, None]
        branches = torch.ones_like(ids) if branches is None else branches
        mask = torch.cat([past, branches > 0], 1).to(self.device)
        with self._watch(keep) as seen:
            out = self.decoder(
                inputs_embeds=self.adapter.embed(ids),
                attention_mask=self.adapter.attention(mask, past.shape[1], branches.to(self.device))[:, :, -answered:],
                position_ids=branched(trunk.prompts.positions, branches),
                past_key_values=branch_off(trunk.cache),
                use_cache=True,
            )
        return seen.get("hidden"), seen.get("inputs"), torch.cat([trunk.final[:, None], out.last_hidden_state], 1)

    @torch.no_grad()
    def greedy(self, trunk: Trunk, limit: int) -> list[list[int]]:
        """Greedy answers of the unedited model, at most `limit` tokens each, with the end token where it was reached."""
        token = self.head(trunk.final).argmax(-1).cpu()
        answers = [[first] for first in token.tolist()]
        rows, cache = torch.arange(len(token)), branch_off(trunk.cache)
        for told in range(1, limit):
            going = token != self.end
            if not going.any():
                break
            if not going.all():  # answered rows cost nothing more
                rows, token = rows[going], token[going]
                cache.batch_select_indices(going.nonzero()[:, 0].to(self.device))
            past = trunk.prompts.mask[rows]
            out = self.decoder(
                inputs_embeds=self.adapter.embed(token[:, None]),
                attention_mask=torch.cat([past, past.new_ones(len(rows), told)], 1).long(),
                position_ids=following(trunk.prompts.positions[..., rows, :], told)[..., -1:],
                past_key_values=cache,
                use_cache=True,
            )
            token = self.head(out.last_hidden_state[:, -1]).argmax(-1).cpu()
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

        handle, before = self.edited.register_forward_hook(hook), self._rows_fixed
        self._rows_fixed = True
        try:
            yield
        finally:
            self._rows_fixed = before
            handle.remove()

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

    @contextlib.contextmanager
    def reading_last(self, count: int, length: int) -> Iterator[None]:
        """While open, the last decoder layer computes outputs at the last `count` of `length` positions alone."""
        layers, end = self.decoder.layers, len(self.decoder.layers) - 1
        whole, unread = layers[end], self.unread
        layers[end] = LastPositions(whole, count)
        if any(part is self.edited for part in whole.modules()):
            self.unread = max(0, length - count)
        try:
            yield
        finally:
            layers[end], self.unread = whole, unread

    def tail(
        self, hidden: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, last: int, branches: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Final hidden states [B, last, D] of the last `last` positions, from the states [B, T, D] that enter layer ℓ.

        `positions` [..., B, P] are the prompt's (see `Prompts`); the T - P answer tokens follow on, numbered by `branches` as
        `extend` has them. Differentiable with respect to whatever replaces the edited linear map.
        """
        prompt, device = positions.shape[-1], self.device
        mask, positions = mask.to(device), positions.to(device)
        branches = torch.ones_like(mask[:, prompt:], dtype=torch.long) if branches is None else branches.to(device)
        width = self.adapter.embed.weight.shape[1]  # not the hidden size where the decoder projects its embeddings
        with self.reading_last(last, hidden.shape[1]), self.from_layer(hidden.to(self.edited.weight.device)):
            out = self.decoder(
                inputs_embeds=hidden.new_zeros(*hidden.shape[:2], width, device=device),
                attention_mask=self.adapter.attention(mask, prompt, branches),
                position_ids=torch.cat([positions, branched(positions, branches)], -1),
                use_cache=False,
            )
        return out.last_hidden_state[:, -last:]


def following(positions: torch.Tensor, count: int) -> torch.Tensor:
    """Position ids [..., B, count] of answer tokens: they go on from the prompt's last."""
    return positions[..., -1:] + 1 + torch.arange(count, device=positions.device)


def branched(positions: torch.Tensor, branches: torch.Tensor) -> torch.Tensor:
    """Position ids [..., B, A] of answer tokens in `branches` [B, A] that each go on from the prompt's last."""
    same = branches[:, None, :] == branches[:, :, None]
    return positions[..., -1:] + same.tril().sum(-1)


def mean_over(states: torch.Tensor, span: torch.Tensor) -> torch.Tensor:
    """φ: the mean of `states` [B, T, D] over `span` [B, T] in float32; NaN where a span is empty."""
    states, weight = states.float(), span.float()[..., None]
    return (states * weight).sum(1) / weight.sum(1).masked_fill(weight.sum(1) == 0, float("nan"))
