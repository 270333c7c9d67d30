"""SERAC (Mitchell et al., ICML 2022, section 3): edits stay in a memory; a scope classifier sends a query that one of them covers
to a counterfactual model, which reads that edit before the query. The base model answers all others.

- The scope classifier g is the paper's embedding variant (section 3.2): exp(−‖f(z) − f(x)‖²) of edit and query, in scope from
  the method's threshold on (the paper: one half). f is MiniLM times a number that is learnt on pairs of train edits. The encoder
  stays frozen, and no more is learnt: the train edits have few phrasings, and a linear map in that place learns them by heart,
  and leaves more of others outside.
- The counterfactual model h is smaller than the base model in what it trains: low-rank updates of every layer of the language
  model. It is trained on the train edits' queries in scope to answer y after "q y" (section 3.3).

In a sequence a query goes to the edit in the memory that g finds most similar, the latest of equal ones.

As in the multimodal SERAC of MMEdit (Cheng et al., EMNLP 2023), the classifier reads text alone, so that it cannot tell two
pictures apart under one question, and the counterfactual model also sees the picture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from stages.backbone.vlm import Backbone, Prompts, Query
from stages.editing import full_forward, sentences
from stages.editing.chunked_loss import target_losses
from stages.editing.editors import lora
from stages.editing.edits import Edit, Request, linear_maps
from stages.editing.fitting import Example, learn
from stages.editing.optimise import answer_states
from stages.sections import Hyper, count, entry, number

STOCHASTIC = True  # an edit depends on the seed
SEQUENTIAL = True  # an edit can go on from what another left
MEMORY_BASED = True  # in a sequence all edits are kept
ROUTES = True  # its edits have `scores`
PARTS = {"scope": ("scope_lr", "scope_steps"), "counterfactual": ("lr", "steps", "rank", "scale")}  # learnt apart
OUTSIDE = ("other_question", "unrelated", "text_only")  # kinds whose question is another than the edit's
SAME = 1e-5  # two embeddings of one question may differ by so much, with what is embedded beside them
ROWS = 3  # queries in scope a step of training


@dataclass(frozen=True)
class Settings(Hyper):
    """Learning rate and steps of the scope classifier's factor, then of the counterfactual model, and rank and scale of the
    latter's updates.
    """

    scope_lr: float = entry(number(above=0), default=1e-2)
    scope_steps: int = entry(count(0), default=200)
    lr: float = entry(number(above=0), default=1e-5)
    steps: int = entry(count(0), default=50000)
    rank: int = entry(count(1), default=8)
    scale: float = entry(number(above=0), default=32.0)


@dataclass(frozen=True)
class Memory:
    """Edits beside each other, and the embeddings [N, E] of their questions."""

    keys: torch.Tensor
    edits: tuple[Edit, ...]

    def __call__(self, query: Query) -> Edit:
        similar = self.keys @ sentences.embed([query.question])[0]
        return self.edits[int((similar > similar.max() - SAME).nonzero()[-1])]


def fit(
    backbone: Backbone, examples: Sequence[Example], settings: Settings, checkpoint: Path, part: str
) -> torch.Tensor | list[torch.Tensor]:
    """One of the `PARTS`: the classifier's factor [], or the counterfactual model's updates, A and B of each map in turn."""
    if part == "scope":
        return fit_scope(examples, settings)
    return fit_counterfactual(backbone, examples, settings, checkpoint)


def fit_scope(examples: Sequence[Example], settings: Settings) -> torch.Tensor:
    """Minimise the binary cross-entropy of pairs (edit's question, query's question): rephrasings inside, other questions not."""
    pairs = [(e.row["question"], q, 1.0) for e in examples for q in e.row["rephrasings_train"]]
    pairs += [(e.row["question"], e.probes[i].question, 0.0) for e in examples for i in e.of(*OUTSIDE)]
    texts = sorted({text for edit, query, _ in pairs for text in (edit, query)})
    at, vectors = {text: i for i, text in enumerate(texts)}, sentences.embed(texts)
    first, second = (vectors[[at[pair[k]] for pair in pairs]] for k in (0, 1))
    inside = torch.tensor([pair[2] for pair in pairs])
    scope = torch.ones(()).requires_grad_()
    optimiser = torch.optim.Adam([scope], lr=settings.scope_lr)
    for _ in range(settings.scope_steps):
        likely = similarity(scope, first, second).clamp(1e-6, 1 - 1e-6)
        (scope.grad,) = torch.autograd.grad(F.binary_cross_entropy(likely, inside), [scope])
        optimiser.step()
    return scope.detach()


def similarity(scope: torch.Tensor, edits: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """[B]: exp(−‖f(z) − f(x)‖²) of embeddings [B, E] or [E]; f multiplies by the root of `scope`."""
    return (-scope * (edits - queries).square().sum(-1)).exp()


def fit_counterfactual(
    backbone: Backbone, examples: Sequence[Example], settings: Settings, checkpoint: Path
) -> list[torch.Tensor]:
    """Minimise the target's cross-entropy after the edit, over queries in scope of one train edit a step."""
    maps = linear_maps(backbone.decoder, *lora.PROJECTIONS)
    trained = nn.ParameterList(lora.untrained(maps, settings.rank, settings.seed))
    added = lora.updates(maps, trained, settings.scale / settings.rank)

    def loss_of(step: int) -> torch.Tensor:
        rng = np.random.default_rng([settings.seed, step])
        example = examples[rng.integers(len(examples))]
        rows = rng.choice(example.in_scope, min(ROWS, len(example.in_scope)), replace=False)
        prompts, ids = told(backbone, example, rows)
        with Edit(added=added).applied(backbone):
            states = answer_states(backbone, prompts, ids)
        head, cap = backbone.adapter.head, backbone.adapter.softcap
        return target_losses(head, states.flatten(0, 1), ids.flatten(), cap)[0].mean()

    learn(trained, [{"params": list(trained), "lr": settings.lr}], loss_of, settings.steps, checkpoint)
    return [tensor.detach() for tensor in trained]


def told(backbone: Backbone, example: Example, rows: Sequence[int]) -> tuple[Prompts, torch.Tensor]:
    """The prompts of some of a train edit's probes after the edit, and its target [B, A]."""
    queries = [example.probes[i].query for i in rows]
    before = reminder(backbone, example.row["question"], example.row["target"])
    ids = torch.tensor(backbone.answer_ids(example.row["target"]))
    return full_forward.prefixed(backbone, backbone.prompts(queries), before), ids.expand(len(queries), -1)


def reminder(backbone: Backbone, question: str, answer: str) -> tuple[int, ...]:
    """The edit as the counterfactual model reads it before a query."""
    return tuple(backbone.tokenizer(f"{question} {answer}\n", add_special_tokens=False).input_ids)


def edit(backbone: Backbone, request: Request, settings: Settings, fitted: Mapping[str, Any]) -> Edit:
    """Put the edit in the memory, behind those that are there: no training, and the router is the scope classifier."""
    key, scope = sentences.embed([request.query.question])[0], fitted["scope"]

    def scores(queries: Sequence[Query], *_states: torch.Tensor) -> torch.Tensor:
        return similarity(scope, key, sentences.embed([q.question for q in queries]))

    maps = linear_maps(backbone.decoder, *lora.PROJECTIONS)
    added = lora.updates(maps, fitted["counterfactual"], settings.scale / settings.rank)
    made = Edit(added=added, prefix=reminder(backbone, request.query.question, request.answer), scores=scores)
    alone, before = full_forward.measured(backbone, request, made), request.start.recall if request.start else None
    keys, edits = (key[None], (alone,)) if before is None else (torch.cat([before.keys, key[None]]), (*before.edits, alone))
    return replace(alone, recall=Memory(keys, edits))
