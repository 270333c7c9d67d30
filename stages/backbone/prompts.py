"""Queries and the prompts that they become: embedded, padded to one length, with the spans that keys are means over.

Where the template puts the picture first, all prompts about one picture begin alike, up to the picture's last token. Such a batch
has its padding between that beginning and the rest, so that the model runs the beginning once (`Prompts.shared`). Otherwise
prompts are padded on the left. Either way they end, and answers begin, in one column.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stages.backbone.adapters.base import Adapter, ImageFeatures

SPANS = ("prompt", "question", "image", "last")


@dataclass(frozen=True)
class Query:
    """A question about a picture, or about none."""

    question: str
    image_id: str | None


@dataclass
class Prompts:
    """A padded batch of B prompts of P positions. `shared` has the number of columns that rows begin with in common, and for each
    row the first row that begins as it does; None where no two rows do.
    """

    embeds: torch.Tensor  # [B, P, D]
    mask: torch.Tensor  # [B, P] bool: True on real positions
    positions: torch.Tensor  # [B, P] or, with several position axes, [axes, B, P]
    spans: dict[str, torch.Tensor]  # name → [B, P] bool
    shared: tuple[int, Sequence[int]] | None = None

    def select(self, rows: torch.Tensor | slice) -> "Prompts":
        """Some rows of the batch."""
        spans, shared = {name: span[rows] for name, span in self.spans.items()}, None
        if self.shared is not None:
            columns, owners = self.shared
            shared = columns, torch.tensor(list(owners))[rows].tolist()
        return Prompts(self.embeds[rows], self.mask[rows], self.positions[..., rows, :], spans, shared)

    def split(self) -> tuple["Prompts", "Prompts", torch.Tensor]:
        """What rows begin with, once each; the rest of all rows, whose mask has all columns; and which beginning [B] each has."""
        columns, owners = self.shared
        numbers = {owner: number for number, owner in enumerate(dict.fromkeys(owners))}
        groups = torch.tensor([numbers[owner] for owner in owners])
        firsts = torch.tensor([owners.index(owner) for owner in numbers])
        spans = {name: span[firsts, :columns] for name, span in self.spans.items()}
        positions = self.positions[..., firsts, :columns]
        begin = Prompts(self.embeds[firsts, :columns], self.mask[firsts, :columns], positions, spans)
        spans = {name: span[:, columns:] for name, span in self.spans.items()}
        rest = Prompts(self.embeds[:, columns:], self.mask, self.positions[..., columns:], spans)
        return begin, rest, groups


@dataclass(frozen=True)
class Told:
    """One prompt's tokens, and where in its text the question stands."""

    ids: Sequence[int]
    places: Sequence[tuple[int, int]]
    question: tuple[int, int]


def tokens(adapter: Adapter, tokenizer: Any, query: Query, picture: ImageFeatures | None) -> Told:
    """A query's tokens; the picture's stand where the template says, the question in one piece with its surroundings, as the
    model met it in training.
    """
    head, tail = adapter.template.split("{question}")
    before, after = adapter.image_delimiters
    image = before + adapter.image_token * len(picture.features) + after if picture else ""
    begin = head.replace("{image}", image)
    text = begin + query.question + tail.replace("{image}", image)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return Told(encoded.input_ids, encoded.offset_mapping, (len(begin), len(begin) + len(query.question)))


def beginnings(
    adapter: Adapter, queries: Sequence[Query], prompts: Sequence[Told], pictures: Sequence[ImageFeatures | None]
) -> tuple[int, list[int]] | None:
    """The `shared` of a batch: None where attention is not causal, a query has no picture, beginnings differ in length, or no two
    are alike.
    """
    if type(adapter).order is not Adapter.order or any(picture is None for picture in pictures):
        return None
    ends = {len(one.ids) - list(one.ids)[::-1].index(adapter.image_id) for one in prompts}
    if len(ends) > 1:
        return None
    columns, owners = ends.pop(), {}
    keys = [
        (q.image_id, q.question if adapter.reads_question else "", tuple(one.ids[:columns]))
        for q, one in zip(queries, prompts, strict=True)
    ]
    found = [owners.setdefault(key, row) for row, key in enumerate(keys)]
    return (columns, found) if len(owners) < len(found) else None


def embed(
    adapter: Adapter, tokenizer: Any, padding: int, queries: Sequence[Query], pictures: Sequence[ImageFeatures | None]
) -> Prompts:
    """A batch of queries with their pictures' features; `padding` is the token of columns that are not real."""
    told = [tokens(adapter, tokenizer, query, picture) for query, picture in zip(queries, pictures, strict=True)]
    shared = beginnings(adapter, queries, told, pictures)
    length, start = max(len(one.ids) for one in told), shared[0] if shared else 0
    adapter.fits(length)
    ids = torch.full((len(told), length), padding)
    spans = {name: torch.zeros(len(told), length, dtype=torch.bool) for name in SPANS}
    for row, one in enumerate(told):
        pad, (begin, end) = length - len(one.ids), one.question
        columns = torch.tensor([*range(start), *range(start + pad, length)])
        ids[row, columns] = torch.tensor(one.ids)
        spans["prompt"][row, columns] = True
        spans["question"][row, columns] = torch.tensor([first < end and last > begin for first, last in one.places])
        spans["last"][row, -1] = True
    spans["image"] = (ids == adapter.image_id) & spans["prompt"] & ~spans["question"]
    positions = adapter.positions(ids, spans["prompt"], [picture and picture.grid for picture in pictures])
    embeds = adapter.embed(ids)
    if spans["image"].any():
        features = torch.cat([picture.features for picture in pictures if picture is not None])
        embeds = embeds.masked_scatter(spans["image"][..., None].to(embeds.device), features.to(embeds))
    return Prompts(embeds, spans["prompt"], positions, spans, shared)
