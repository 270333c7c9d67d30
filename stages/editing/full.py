"""Edits that reach below layer ℓ, or stand before the prompt: all their probes run through the whole model again.

A prefix, such as demonstrations in context, is the same for all probes of an edit. It runs once; every probe attends to its
keys and values, so that a trace costs about one forward over the probes.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from transformers import DynamicCache

from stages.backbone.vlm import Backbone, Prompts, Query, Trunk
from stages.editing.editor import Edit, Request

POSITIONS = 8192  # in one batch: bounds the memory of keys and values


@torch.no_grad()
def logits(backbone: Backbone, edit: Edit, queries: Sequence[Query], answers: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Logits [N, A, V] of the edited model under teacher forcing of each of `answers` [N, A], one answer a query."""
    with edit.applied(backbone):
        past, prompts = before(backbone, edit.prefix), backbone.prompts(queries)
        size = max(1, POSITIONS // (len(edit.prefix) + prompts.mask.shape[1]))
        found: list[list[torch.Tensor]] = [[] for _ in answers]
        for start in range(0, len(queries), size):
            rows = slice(start, start + size)
            trunk = begin(backbone, part(prompts, rows), past)
            for one, ids in zip(found, answers, strict=True):
                one.append(forced(backbone, trunk, ids[rows]))
    return [torch.cat(one) for one in found]


def measured(backbone: Backbone, request: Request, edit: Edit) -> Edit:
    """The edit with the request's `loss` under it and whether it is `reached`."""
    found, target = logits(backbone, edit, [request.query], [request.target])[0][0], request.target[0]
    reached = bool((found.argmax(-1) == target).all())
    return replace(edit, loss=F.cross_entropy(found, target).item(), reached=reached)


def part(prompts: Prompts, rows: slice) -> Prompts:
    """Some rows of a batch."""
    spans = {name: span[rows] for name, span in prompts.spans.items()}
    return Prompts(prompts.embeds[rows], prompts.mask[rows], prompts.positions[..., rows, :], spans)


def before(backbone: Backbone, prefix: Sequence[int]) -> DynamicCache | None:
    """Keys and values [1, K] of the prefix's tokens, None where there are none."""
    if not prefix:
        return None
    return backbone.prefill(prefixed(backbone, None, prefix)).cache


def begin(backbone: Backbone, prompts: Prompts, past: DynamicCache | None) -> Trunk:
    """`prefill`, after the K positions of `past` where there are some."""
    if past is None:
        return backbone.prefill(prompts)
    rows, length = len(prompts.mask), past.get_seq_length()
    cache = copy.deepcopy(past)
    cache.batch_repeat_interleave(rows)
    mask = torch.cat([prompts.mask.new_ones(rows, length), prompts.mask], 1)
    return backbone.prefill(replace(prompts, mask=mask, positions=prompts.positions + length), cache)


def forced(backbone: Backbone, trunk: Trunk, ids: torch.Tensor) -> torch.Tensor:
    """Logits [B, A, V] of an answer `ids` [B, A] after a trunk that has run."""
    if ids.shape[1] == 1:
        return trunk.logits[:, None]
    return backbone.extend(trunk, ids[:, :-1])[-1]


def prefixed(backbone: Backbone, prompts: Prompts | None, prefix: Sequence[int]) -> Prompts:
    """Prompts of P positions with K tokens before each, as a batch of K + P positions; without prompts, the prefix alone."""
    ids = torch.tensor([list(prefix)], device=backbone.model.device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    positions = backbone.adapter.positions(ids, mask, [None])
    alone = Prompts(backbone.adapter.embed(ids), mask, positions, {"prompt": mask})
    if prompts is None:
        return alone
    rows = len(prompts.mask)
    behind = prompts.positions + len(prefix)
    return Prompts(
        torch.cat([alone.embeds.expand(rows, -1, -1), prompts.embeds], 1),
        torch.cat([mask.expand(rows, -1), prompts.mask], 1),
        torch.cat([positions.expand(*behind.shape[:-1], -1), behind], -1),
        {name: F.pad(span, (len(prefix), 0)) for name, span in prompts.spans.items()},
    )
