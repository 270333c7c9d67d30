"""SERAC (Mitchell et al., ICML 2022, section 3): edits stay in a memory; a scope classifier sends a query that one of them covers
to a counterfactual model, which reads that edit before the query. The base model answers all others.

- The scope classifier g is the paper's embedding variant (section 3.2): exp(−‖f(z) − f(x)‖²) of edit and query, in scope above
  one half. f is MiniLM followed by a linear map that is learnt on pairs of train edits; the encoder stays frozen.
- The counterfactual model h is smaller than the base model in what it trains: a copy of the linear maps of decoder layers ≥ ℓ,
  over the frozen layers below. It is trained on the train edits' queries in scope to answer y after "q y" (section 3.3).

As in the multimodal SERAC of MMEdit (Cheng et al., EMNLP 2023), the classifier reads text alone, so that it cannot tell two
pictures apart under one question, and the counterfactual model also sees the picture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from stages.backbone.vlm import Backbone, Query
from stages.editing import full, sentences
from stages.editing.editor import Edit, Request, differences, linear_maps, zero_difference
from stages.editing.fitting import Example, learn
from stages.sections import count, entry, number

RANDOM = True  # an edit depends on the seed
OUTSIDE = ("other_question", "unrelated", "text_only")  # kinds whose question is another than the edit's
ROWS = 3  # queries in scope a step of training


@dataclass(frozen=True)
class Settings:
    """Learning rate and steps of the scope classifier's linear map, then of the counterfactual model."""

    scope_lr: float = entry(number(above=0), default=1e-2)
    scope_steps: int = entry(count(0), default=200)
    lr: float = entry(number(above=0), default=1e-5)
    steps: int = entry(count(0), default=50000)


def fit(backbone: Backbone, examples: Sequence[Example], settings: Mapping[str, Any], checkpoint: Path) -> dict[str, Any]:
    """The classifier's map [E, E] and the counterfactual model's differences from the layers ≥ ℓ."""
    return {
        "scope": fit_scope(examples, settings),
        "counterfactual": fit_counterfactual(backbone, examples, settings, checkpoint),
    }


def fit_scope(examples: Sequence[Example], settings: Mapping[str, Any]) -> torch.Tensor:
    """Minimise the binary cross-entropy of pairs (edit's question, query's question): rephrasings inside, other questions not."""
    pairs = [(e.row["question"], q, 1.0) for e in examples for q in e.row["rephrasings_train"]]
    pairs += [(e.row["question"], e.probes[i].question, 0.0) for e in examples for i in e.of(*OUTSIDE)]
    texts = sorted({text for edit, query, _ in pairs for text in (edit, query)})
    at, vectors = {text: i for i, text in enumerate(texts)}, sentences.embed(texts)
    first, second = (vectors[[at[pair[k]] for pair in pairs]] for k in (0, 1))
    inside = torch.tensor([pair[2] for pair in pairs])
    scope = torch.eye(vectors.shape[1]).requires_grad_()
    optimiser = torch.optim.Adam([scope], lr=settings["scope_lr"])
    for _ in range(settings["scope_steps"]):
        likely = similarity(scope, first, second).clamp(1e-6, 1 - 1e-6)
        (scope.grad,) = torch.autograd.grad(F.binary_cross_entropy(likely, inside), [scope])
        optimiser.step()
    return scope.detach()


def similarity(scope: torch.Tensor, edits: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """[B]: exp(−‖f(z) − f(x)‖²) of embeddings [B, E] or [E]."""
    return (-F.linear(edits - queries, scope).square().sum(-1)).exp()


def upper_maps(backbone: Backbone) -> list[nn.Linear]:
    """The linear maps of the layers ≥ ℓ."""
    return [m for layer in backbone.decoder.layers[backbone.layer :] for m in linear_maps(layer)]


def fit_counterfactual(
    backbone: Backbone, examples: Sequence[Example], settings: Mapping[str, Any], checkpoint: Path
) -> list[torch.Tensor]:
    """Minimise the target's cross-entropy after the edit, over queries in scope of one train edit a step."""
    maps = upper_maps(backbone)
    deltas = nn.ParameterList([zero_difference(m) for m in maps])
    read = [trunk_of(backbone, example) for example in examples]

    def loss_of(step: int) -> torch.Tensor:
        rng = np.random.default_rng([settings["seed"], step])
        hidden, mask, positions, ids = read[rng.integers(len(read))]
        rows = rng.choice(len(hidden), min(ROWS, len(hidden)), replace=False)
        with Edit(added=differences(maps, deltas)).applied(backbone):
            states = backbone.tail(hidden[rows], mask[rows], positions[..., rows, :], len(ids))
        return F.cross_entropy(backbone.head(states).flatten(0, 1), ids.repeat(len(rows)))

    learn(deltas, [{"params": list(deltas), "lr": settings["lr"]}], loss_of, settings["steps"], checkpoint)
    return [delta.detach() for delta in deltas]


@torch.no_grad()
def trunk_of(backbone: Backbone, example: Example) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The states that enter layer ℓ [B, T, D] of the queries in scope after the edit, mask, prompt positions, target [A]."""
    queries = [example.probes[i].query for i in example.in_scope]
    ids = torch.tensor(backbone.answer_ids(example.row["target"]))
    before = reminder(backbone, example.row["question"], example.row["target"])
    trunk = backbone.prefill(full.prefixed(backbone, backbone.prompts(queries), before))
    told = ids[:-1].expand(len(queries), -1)
    hidden = torch.cat([trunk.hidden, backbone.extend(trunk, told)[0]], 1) if len(ids) > 1 else trunk.hidden
    mask = torch.cat([trunk.prompts.mask, torch.ones_like(told, dtype=torch.bool)], 1)
    return hidden, mask, trunk.prompts.positions, ids


def reminder(backbone: Backbone, question: str, answer: str) -> tuple[int, ...]:
    """The edit as the counterfactual model reads it before a query."""
    return tuple(backbone.tokenizer(f"{question} {answer}\n", add_special_tokens=False).input_ids)


def edit(backbone: Backbone, request: Request, settings: Mapping[str, Any], fitted: Mapping[str, Any]) -> Edit:
    """Put the edit in the memory: no training, and the router is the scope classifier."""
    key, scope = sentences.embed([request.query.question])[0], fitted["scope"]

    def fires(queries: Sequence[Query], *_states: torch.Tensor) -> torch.Tensor:
        return similarity(scope, key, sentences.embed([q.question for q in queries])) > 0.5

    added = differences(upper_maps(backbone), fitted["counterfactual"])
    made = Edit(added=added, prefix=reminder(backbone, request.query.question, request.answer), fires=fires)
    return full.measured(backbone, request, made)
