"""SERAC with a scope classifier that also sees the picture, as MSCKE has it (Zeng et al., ICCV 2025, arXiv 2411.12790).

The memory and the counterfactual model are SERAC's (`stages.editing.editors.serac`). The multimodal scope classifier compares an
edit and a query by their questions and by their pictures: exp(−a·‖f(z) − f(x)‖² − b·‖g(z) − g(x)‖²), in scope from the method's
threshold on (one half). f is MiniLM over questions, g what the connector makes of a picture, a mean over its tokens. a and b are
learnt: the binary cross-entropy of pairs of a train edit and one of its queries, with all its queries in scope (other pictures
among them) inside, and others outside, those that ask the edit's own question about another picture among them. Of the
embedded set's 300 train edits 11 queries each make 3,300 pairs, of which 1,800 are inside.

In a sequence a query goes to the edit in the memory that the classifier finds most similar, the latest of equal ones.

What differs from the paper:

- It extracts features of both by an encoder of its own, trains what fuses them, and has the edit's answer read too. Here, as in
  SERAC here, no more than the weight of each is learnt: the train edits have few phrasings and pictures, which a linear map in
  that place learns by heart.
- A query without a picture has a feature of zeros in its place, as the mean of no token; distances between pictures are in units
  of the train edits' pictures' deviation, so that a and b begin at the same 1.
- Queries of one edit are all the queries that the classifier learns from: none pairs two edits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from stages.backbone.vlm import Backbone, Query
from stages.editing import full_forward, sentences
from stages.editing.editors import lora
from stages.editing.editors.serac import SAME, fit_counterfactual, reminder
from stages.editing.edits import Edit, Request, linear_maps
from stages.editing.fitting import Example
from stages.sections import Hyper, count, entry, number

STOCHASTIC = True  # what `serac` trains begins at random, by `settings.seed`
SEQUENTIAL = True  # an edit can go on from what another left
MEMORY_BASED = True  # in a sequence all edits are kept
ROUTES = True  # its edits have `scores`
PARTS = {"scope": ("scope_lr", "scope_steps"), "counterfactual": ("lr", "steps", "rank", "scale")}  # learnt apart
OUTSIDE = ("near_image", "far_image", "other_question", "unrelated", "text_only")  # kinds that are out of the edit's scope

LEAST = 1e-3  # least deviation of pictures, as a share of their norm: below it they are all alike


@dataclass(frozen=True)
class Settings(Hyper):
    """Learning rate and steps of the scope classifier's two factors, then of the counterfactual model, and rank and scale of the
    latter's updates.
    """

    scope_lr: float = entry(number(above=0), default=1e-2)
    scope_steps: int = entry(count(0), default=200)
    lr: float = entry(number(above=0), default=1e-5)
    steps: int = entry(count(0), default=50000)
    rank: int = entry(count(1), default=8)
    scale: float = entry(number(above=0), default=32.0)


@dataclass(frozen=True)
class Classifier:
    """The scope classifier: `factors` [2] of question and picture, and the deviation `unit` [] of pictures."""

    backbone: Backbone
    factors: torch.Tensor
    unit: torch.Tensor

    def features(self, queries: Sequence[Query]) -> tuple[torch.Tensor, torch.Tensor]:
        """f [N, E] and g [N, D] of queries, the latter in units of the deviation."""
        return sentences.embed([query.question for query in queries]), pictures_of(self.backbone, queries) / self.unit

    def __call__(self, edits: Sequence[torch.Tensor], queries: Sequence[torch.Tensor]) -> torch.Tensor:
        """[B]: how much edits and queries are alike, from features of each, [B, ...] or [...]."""
        apart = [(one - other).square().sum(-1) for one, other in zip(edits, queries, strict=True)]
        return (-(torch.stack(apart, -1) * self.factors).sum(-1)).exp()


@dataclass(frozen=True)
class Memory:
    """Edits beside each other, and the features [N, E] and [N, D] of their queries."""

    classifier: Classifier
    keys: tuple[torch.Tensor, torch.Tensor]
    edits: tuple[Edit, ...]

    def __call__(self, query: Query) -> Edit:
        similar = self.classifier(self.keys, self.classifier.features([query]))
        return self.edits[int((similar > similar.max() - SAME).nonzero()[-1])]


@torch.no_grad()
def pictures_of(backbone: Backbone, queries: Sequence[Query]) -> torch.Tensor:
    """[N, D]: what the connector makes of each query's picture, a mean over its tokens; zeros where there is none."""
    shown = backbone.image_features(queries)
    none = torch.zeros(backbone.adapter.embed.weight.shape[1])
    return torch.stack([none, *(none if one is None else one.features.float().mean(0) for one in shown)])[1:]


def fit(
    backbone: Backbone, examples: Sequence[Example], settings: Settings, checkpoint: Path, part: str
) -> dict[str, torch.Tensor] | list[torch.Tensor]:
    """One of the `PARTS`: the classifier's numbers, or the counterfactual model's updates, A and B of each map in turn."""
    if part == "scope":
        return fit_scope(backbone, examples, settings)
    return fit_counterfactual(backbone, examples, settings, checkpoint)


def pairs_of(examples: Sequence[Example]) -> list[tuple[Query, Query, float]]:
    """Train edits, queries of theirs, and whether each is inside."""
    pairs = []
    for example in examples:
        asked = Query(example.row["question"], example.row["image_id"])
        inside = [(i, 1.0) for i in example.in_scope if example.probes[i].kind != "edit"]
        outside = [(i, 0.0) for i in example.of(*OUTSIDE)]
        pairs += [(asked, example.probes[i].query, aim) for i, aim in inside + outside]
    return pairs


def deviation(backbone: Backbone, queries: Sequence[Query]) -> torch.Tensor:
    """[]: the root mean square distance of the queries' pictures from their mean, not less than `LEAST` of their norm; 1 where
    none shows any.
    """
    shown = pictures_of(backbone, list({query.image_id: query for query in queries if query.image_id is not None}.values()))
    if not len(shown):
        return torch.ones(())
    apart, norm = ((part.square().sum(-1).mean()).sqrt() for part in (shown - shown.mean(0), shown))
    return apart.clamp(min=LEAST * norm) if norm > 0 else torch.ones(())


def fit_scope(backbone: Backbone, examples: Sequence[Example], settings: Settings) -> dict[str, torch.Tensor]:
    """Minimise the binary cross-entropy of all pairs over the two factors."""
    pairs = pairs_of(examples)
    queries = list(dict.fromkeys(query for edit, asked, _ in pairs for query in (edit, asked)))
    classifier = Classifier(backbone, torch.ones(2, requires_grad=True), deviation(backbone, [edit for edit, *_ in pairs]))
    place, features = {query: i for i, query in enumerate(queries)}, classifier.features(queries)
    first, second = ([part[[place[pair[k]] for pair in pairs]] for part in features] for k in (0, 1))
    inside = torch.tensor([aim for _, _, aim in pairs])
    optimiser = torch.optim.Adam([classifier.factors], lr=settings.scope_lr)
    for _ in range(settings.scope_steps):
        likely = classifier(first, second).clamp(1e-6, 1 - 1e-6)
        (classifier.factors.grad,) = torch.autograd.grad(F.binary_cross_entropy(likely, inside), [classifier.factors])
        optimiser.step()
        with torch.no_grad():
            classifier.factors.clamp_(min=0)
    return {"factors": classifier.factors.detach(), "unit": classifier.unit}


def edit(backbone: Backbone, request: Request, settings: Settings, fitted: Mapping[str, Any]) -> Edit:
    """Put the edit in the memory, behind those that are there: no training, and the router is the scope classifier."""
    classifier = Classifier(backbone, **fitted["scope"])
    keys = classifier.features([request.query])

    def scores(queries: Sequence[Query], *_states: torch.Tensor) -> torch.Tensor:
        return classifier(keys, classifier.features(queries))

    maps = linear_maps(backbone.decoder, *lora.PROJECTIONS)
    added = lora.updates(maps, fitted["counterfactual"], settings.scale / settings.rank)
    made = Edit(added=added, prefix=reminder(backbone, request.query.question, request.answer), scores=scores)
    alone, before = full_forward.measured(backbone, request, made), request.start.recall if request.start else None
    if before is None:
        return replace(alone, recall=Memory(classifier, keys, (alone,)))
    whole = tuple(torch.cat(pair) for pair in zip(before.keys, keys, strict=True))
    return replace(alone, recall=Memory(classifier, whole, (*before.edits, alone)))
