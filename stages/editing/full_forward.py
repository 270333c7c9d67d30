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
from stages.editing.edits import Edit, Request

POSITIONS = 8192  # in one batch: bounds the memory of keys and values


@torch.no_grad()
def finals(backbone: Backbone, edit: Edit, queries: Sequence[Query], answers: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Final states [N, A, D] of the edited model under teacher forcing of each of `answers` [N, A], one answer a query."""
    widths = [ids.shape[1] - 1 for ids in answers]
    told = torch.cat([ids[:, :-1] for ids in answers], 1)
    with edit.applied(backbone):
        past, prompts = before(backbone, edit.prefix), backbone.prompts(queries)
        size = max(1, POSITIONS // (len(edit.prefix) + prompts.mask.shape[1]))
        found = []
        for start in range(0, len(queries), size):
            rows = slice(start, start + size)
            trunk = begin(backbone, part(prompts, rows), past)
            found.append(backbone.extend(trunk, told[rows], widths)[-1])
    final = torch.cat(found)
    return [torch.cat([final[:, :1], after], 1) for after in final[:, 1:].split(widths, 1)]


def measured(backbone: Backbone, request: Request, edit: Edit) -> Edit:
    """The edit with the request's `loss` under it and whether it is `reached`."""
    found = backbone.head(finals(backbone, edit, [request.query], [request.target])[0])[0]
    target = request.target[0]
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


def prefixed(backbone: Backbone, prompts: Prompts | None, prefix: Sequence[int]) -> Prompts:
    """Prompts of P positions with K tokens before each, as a batch of K + P positions; without prompts, the prefix alone."""
    ids = torch.tensor([list(prefix)])
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
