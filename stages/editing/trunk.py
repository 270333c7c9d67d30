"""What the frozen trunk says of an edit's queries: the states that enter the edited layer, keys, and the unedited answers.

It is the same for every method and radius. It is computed once per (backbone, layer, edit) and cached by content.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from stages.backbone.vlm import SPANS, Backbone, Query, Trunk, mean_over
from stages.editing import code
from stages.editing.edits import Request
from stages.editing.probes import GENERALITY, Probe
from stages.params import write_atomically

ANSWER_LIMIT = 12  # tokens of a greedy answer
SHORT = 5  # an answer of more tokens, its end among them, runs apart from the many short ones
TOP = 10


@dataclass
class Candidates:
    """One answer per outcome probe, teacher-forced by the unedited model: A tokens at most, padded on the right."""

    ids: torch.Tensor  # [N, A] the answer with its end token
    real: torch.Tensor  # [N, A] bool
    hidden: torch.Tensor  # [N, A - 1, D] states that enter layer ℓ
    argmax: torch.Tensor  # [N, A] of the unedited model, -1 where nothing is real


@dataclass
class States:
    """All that the frozen trunk says of one edit's queries; the first N of them have outcomes, the rest are samples."""

    hidden: torch.Tensor  # [N, P, D]
    mask: torch.Tensor  # [N, P]
    positions: torch.Tensor  # [..., N, P]
    phi: dict[str, torch.Tensor]  # span → [queries, D], NaN where the span does not exist; the edit's own is the first
    answers: list[str]  # N greedy answers of the unedited model
    target: Candidates  # what the edit wants: the target, for hops their answer after the edit
    same: Candidates  # the unedited model's own greedy answer
    truth: Candidates  # the true answer, where there is none the unedited model's own
    top: torch.Tensor  # [N, A, 10]: of the unedited model over `truth`

    @property
    def key(self) -> dict[str, torch.Tensor]:
        """span → φ [D] of the first query: the key of the edit that it asks for."""
        return {span: vectors[0] for span, vectors in self.phi.items()}


def select(states: States, rows: Sequence[int]) -> States:
    """What the trunk says of some of the queries that have outcomes."""
    chosen = torch.tensor(list(rows))

    def part(one: Candidates) -> Candidates:
        return Candidates(one.ids[chosen], one.real[chosen], one.hidden[chosen], one.argmax[chosen])

    phi = {span: vectors[chosen] for span, vectors in states.phi.items()}
    candidates = [part(one) for one in (states.target, states.same, states.truth)]
    answers = [states.answers[row] for row in rows]
    positions = states.positions[..., chosen, :]
    return States(states.hidden[chosen], states.mask[chosen], positions, phi, answers, *candidates, states.top[chosen])


@torch.no_grad()
def run_trunk(backbone: Backbone, row: Mapping[str, Any], probes: Sequence[Probe]) -> States:
    """The unedited model over all queries of an edit; their pictures must have been added to the backbone."""
    trunk = backbone.prefill(backbone.prompts([Query(p.question, p.image_id) for p in probes]))
    greedy = backbone.greedy(trunk, ANSWER_LIMIT)
    wanted = [backbone.answer_ids(p.expected if p.must_change else row["target"]) for p in probes]
    truths = [backbone.answer_ids(p.truth) if p.truth else ids for p, ids in zip(probes, greedy, strict=True)]
    candidates = [padded(answers, backbone.end) for answers in (wanted, greedy, truths)]
    parts = list(zip(candidates, *forced(backbone, trunk, candidates), strict=True))
    reads = [read(backbone, torch.cat([trunk.final[:, None], after], 1), real) for (_, real), _, _, after in parts]

    phi = {span: mean_over(trunk.inputs, trunk.prompts.spans[span]) for span in SPANS}
    # The authors' released code averages over the gold answer too: the target where the edit must reach, elsewhere the truth.
    leaked, _, true = (
        mean_over(torch.cat([trunk.inputs, fed], 1), torch.cat([trunk.prompts.mask, real[:, 1:]], 1))
        for (_, real), _, fed, _ in parts
    )
    reached = torch.tensor([p.kind in GENERALITY or p.kind == "sample_positive" for p in probes])[:, None]
    phi["teacher_forced"] = torch.where(reached, leaked, true)
    n = sum(not p.is_sample for p in probes)
    target, same, truth = (
        Candidates(ids[:n], real[:n], entering[:n], argmax[:n])
        for ((ids, real), entering, _, _), (argmax, _) in zip(parts, reads, strict=True)
    )
    answers = [backbone.decode(ids) for ids in greedy[:n]]
    mask, positions = trunk.prompts.mask[:n], trunk.prompts.positions[..., :n, :]
    return States(trunk.hidden[:n], mask, positions, phi, answers, target, same, truth, reads[2][1][:n])


def forced(backbone: Backbone, trunk: Trunk, candidates: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[list[torch.Tensor]]:
    """`Backbone.extend` over the candidates [N, A]: lists of hidden states, edited inputs and final states [N, A - 1, D].

    A few probes have much longer answers than the rest: they run by themselves, and what only pads a row is zero.
    """
    lengths = torch.stack([real[:, 1:].sum(1) for _, real in candidates])
    long = lengths.max(0).values > SHORT
    kinds = (trunk.hidden, trunk.inputs, trunk.final)
    parts = [[like.new_zeros(*ids[:, 1:].shape, like.shape[-1]) for ids, _ in candidates] for like in kinds]
    for rows in (torch.nonzero(~long)[:, 0], torch.nonzero(long)[:, 0]):
        if not len(rows):
            continue
        widths = lengths[:, rows].max(1).values.tolist()
        told = torch.cat([ids[rows, :width] for (ids, _), width in zip(candidates, widths, strict=True)], 1)
        hidden, inputs, final = backbone.extend(trunk.select(rows), told, widths)
        for part, states in zip(parts, (hidden, inputs, final[:, 1:]), strict=True):
            for whole, after, width in zip(part, states.split(widths, 1), widths, strict=True):
                whole[rows, :width] = after
    return parts


def padded(answers: Sequence[Sequence[int]], end: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Answers' tokens [N, A], padded on the right, and which of them are real."""
    lengths = torch.tensor([len(answer) for answer in answers])
    width = int(lengths.max())
    ids = torch.tensor([[*answer, *[end] * (width - len(answer))] for answer in answers])
    return ids, torch.arange(width)[None] < lengths[:, None]


def read(backbone: Backbone, final: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """argmax [N, A] and top ten [N, A, 10] of the final states [N, A, D], -1 where nothing is real.

    Raises FloatingPointError when a logit is not finite.
    """
    logits = backbone.head(final[real])
    if not torch.isfinite(logits).all():
        raise FloatingPointError("the model's logits are not finite")
    best = torch.full((*real.shape, TOP), -1)
    best[real] = logits.topk(TOP).indices
    argmax = torch.full(real.shape, -1)
    argmax[real] = logits.argmax(-1)
    return argmax, best


def cached_trunk(
    backbone: Backbone, row: Mapping[str, Any], probes: Sequence[Probe], pictures: Mapping[str, str], cache: Path
) -> States:
    """`run_trunk`, kept under `cache` by the content of the backbone, the queries, the pictures' digests and the code
    that computes it.
    """
    shown = {p.image_id: pictures[p.image_id] for p in probes if p.image_id is not None}
    text = json.dumps([backbone.fingerprint, row["target"], [asdict(p) for p in probes], shown], sort_keys=True)
    path = cache / f"{hashlib.sha256((code.digest(__name__) + text).encode()).hexdigest()[:24]}.pt"
    if path.exists():
        with torch.serialization.safe_globals([States, Candidates]):
            return torch.load(path, weights_only=True)
    states = run_trunk(backbone, row, probes)
    cache.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as temporary:
        torch.save(states, temporary)
    return states


def request_of(states: States, row: Mapping[str, Any]) -> Request:
    """The edit to make: the row's first probe with its target."""
    length = int(states.target.real[0].sum())
    hidden = torch.cat([states.hidden[:1], states.target.hidden[:1, : length - 1]], 1)
    mask = torch.cat([states.mask[:1], torch.ones(1, length - 1, dtype=torch.bool)], 1)
    query, ids = Query(row["question"], row["image_id"]), states.target.ids[:1, :length]
    return Request(hidden, mask, states.mask[:1], states.positions[..., :1, :], ids, query, row["target"])
