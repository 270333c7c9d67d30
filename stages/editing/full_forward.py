"""Edits that reach below layer ℓ, or stand before the prompt: all their probes run through the whole model again.

A prefix, such as demonstrations in context, is the same for all probes of an edit. It runs once; every probe attends to its
keys and values, so that a trace costs about one forward over the probes.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from transformers import DynamicCache

from stages.backbone.prompts import Prompts, Query
from stages.backbone.stand_ins import branch_off
from stages.backbone.vlm import Backbone, Trunk
from stages.editing.edits import Edit, Request
from stages.editing.trunk import SHORT


@torch.no_grad()
def finals(backbone: Backbone, edit: Edit, queries: Sequence[Query], fed: torch.Tensor, branches: torch.Tensor) -> torch.Tensor:
    """Final states [N, 1 + W, D] of the edited model under teacher forcing of the tokens `fed` [N, W], in `branches` [N, W] as
    `Backbone.extend` has them: the prompt's last and those of the tokens.
    """
    kinds = [(query.image_id is not None, count > SHORT) for query, count in zip(queries, (branches > 0).sum(1), strict=True)]
    found = {}
    with edit.applied(backbone):
        past = before(backbone, edit.prefix)
        for kind in dict.fromkeys(kinds):  # what differs much in length would be padded much
            rows = [i for i, one in enumerate(kinds) if one == kind]
            prompts = backbone.prompts([queries[i] for i in rows])
            size = max(1, backbone.positions_at_once // (len(edit.prefix) + prompts.mask.shape[1]))
            for start in range(0, len(rows), size):
                part, some = prompts.select(slice(start, start + size)), rows[start : start + size]
                used = int((branches[some] > 0).sum(1).max())
                with backbone.reading_last(1, part.mask.shape[1]):
                    trunk = begin(backbone, part, past)
                final = backbone.extend(trunk, fed[some, :used], branches[some, :used], keep=False)[-1]
                found |= zip(some, F.pad(final, (0, 0, 0, fed.shape[1] - used)), strict=True)
    return torch.stack([found[i] for i in range(len(queries))])


def measured(backbone: Backbone, request: Request, edit: Edit) -> Edit:
    """The edit with the request's `loss` under it and whether it is `reached`."""
    target, fed = request.target[0], request.target[:, :-1]
    found = backbone.head(finals(backbone, edit, [request.query], fed, torch.ones_like(fed)))[0].cpu()
    reached = bool((found.argmax(-1) == target).all())
    return replace(edit, loss=F.cross_entropy(found, target).item(), reached=reached)


def before(backbone: Backbone, prefix: Sequence[int]) -> DynamicCache | None:
    """Keys and values [1, K] of the prefix's tokens, None where there are none."""
    if not prefix:
        return None
    return backbone.prefill(prefixed(backbone, None, prefix), keep=False).cache


def begin(backbone: Backbone, prompts: Prompts, past: DynamicCache | None) -> Trunk:
    """`prefill`, after the K positions of `past` where there are some."""
    if past is None:
        return backbone.prefill(prompts, keep=False)
    rows, length = len(prompts.mask), past.get_seq_length()
    cache = branch_off(past, torch.zeros(rows, dtype=torch.long))
    mask = torch.cat([prompts.mask.new_ones(rows, length), prompts.mask], 1)
    return backbone.prefill(replace(prompts, mask=mask, positions=prompts.positions + length), cache, keep=False)


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
