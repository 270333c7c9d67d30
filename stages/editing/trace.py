"""What edits do to their queries: the rows of a trace."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from stages.backbone.vlm import Backbone
from stages.editing import full_forward
from stages.editing.edits import DIVERGED, Edit, together
from stages.editing.probes import Probe, normalise
from stages.editing.trunk import SHORT, TOP, Candidates, States, answer_hidden, by_length, columns_of, ranked, read

Outcomes = tuple[torch.Tensor, torch.Tensor]  # argmax [N, 1 + W] and top ten [N, 1 + W, 10] of the final states


@dataclass(frozen=True)
class Trial:
    """An edit, and the queries of a row that are asked under it."""

    row: Mapping[str, Any]
    probes: Sequence[Probe]
    states: States
    edit: Edit


def tail_logits(backbone: Backbone, states: States, edit: Edit, candidates: Candidates, rows: Sequence[int]) -> torch.Tensor:
    """Logits [rows, A, V] of some probes under teacher forcing of `candidates`, from layer ℓ on; differentiable."""
    rows, used = list(rows), int(candidates.real[rows].sum(1).max())
    hidden = torch.cat([states.hidden[rows], answer_hidden(states, candidates, rows)[:, : used - 1]], 1)
    mask = torch.cat([states.mask[rows], candidates.real[rows, 1:used]], 1)
    with edit.applied(backbone, states.mask[rows]):
        return backbone.head(backbone.tail(hidden, mask, states.positions[..., rows, :], used))


@torch.no_grad()
def outcomes(backbone: Backbone, trials: Sequence[Trial]) -> list[Outcomes | None]:
    """What each edited model says at every place of its probes' answers; None where a logit is not finite.

    Edits of layers ≥ ℓ share forwards of at most `backbone.positions_at_once` positions.
    """
    shapes = [one.states.branches.shape for one in trials]
    says = [torch.full((n, 1 + w), -1) for n, w in shapes], [torch.full((n, 1 + w, TOP), -1) for n, w in shapes]
    broken = set()

    def take(number: int, rows: torch.Tensor, final: torch.Tensor) -> None:
        one, width = trials[number], final.shape[1]
        branches, truth = one.states.branches[rows, : width - 1], one.states.truth
        places = [truth.places[row, truth.real[row]].tolist() for row in rows.tolist()]
        try:
            wanted = ranked([one.probes[row] for row in rows.tolist()], places, branches)
            found = read(backbone, final, columns_of(branches), wanted)
        except FloatingPointError:
            broken.add(number)
            return
        for whole, part in zip(says, found, strict=True):
            whole[number][rows, :width] = part

    behind = [number for number, one in enumerate(trials) if one.edit.within_tail(backbone)]
    for pieces in packed(backbone, trials, behind):
        for (number, rows), final in zip(pieces, tail_finals(backbone, trials, pieces), strict=True):
            take(number, rows, final)
    for number in set(range(len(trials))) - set(behind):
        one = trials[number]
        queries = [probe.query for probe in one.probes if not probe.is_sample]
        final = full_forward.finals(backbone, one.edit, queries, one.states.tokens, one.states.branches)
        take(number, torch.arange(len(queries)), final)
    return [None if number in broken else pair for number, pair in enumerate(zip(*says, strict=True))]


Piece = tuple[int, torch.Tensor]  # the number of an edit, and some of its rows


def packed(backbone: Backbone, trials: Sequence[Trial], numbers: Sequence[int]) -> Iterator[list[Piece]]:
    """The rows of some edits in forwards that memory has room for, rows with few answer tokens and with many apart."""
    limit = backbone.positions_at_once
    for many in (False, True):
        together, room = [], limit
        for number in numbers:
            states = trials[number].states
            for rows in by_length(states.branches):
                used = int((states.branches[rows] > 0).sum(1).max())
                if (used > SHORT) != many:
                    continue
                width = states.hidden.shape[1] + used
                for part in rows.split(max(1, limit // width)):
                    if together and len(part) * width > room:
                        yield together
                        together, room = [], limit
                    together.append((number, part))
                    room -= len(part) * width
        if together:
            yield together


def tail_finals(backbone: Backbone, trials: Sequence[Trial], pieces: Sequence[Piece]) -> list[torch.Tensor]:
    """Final states [rows, 1 + W, D] of each piece, from layer ℓ on, in one forward."""
    some = [(trials[number].states, rows) for number, rows in pieces]
    widths = [int((states.branches[rows] > 0).sum(1).max()) for states, rows in some]
    prompt, answer = max(states.hidden.shape[1] for states, _ in some), max(widths)

    def beside(parts: Sequence[torch.Tensor], left: bool, dim: int) -> torch.Tensor:
        """Tensors of several lengths along `dim` (from the end) in one, padded."""
        pads = [(prompt if left else answer) - part.shape[dim] for part in parts]
        places = [(0, 0) * (-1 - dim) + ((pad, 0) if left else (0, pad)) for pad in pads]
        return torch.cat([F.pad(part, place) for part, place in zip(parts, places, strict=True)], dim - 1)

    hidden = beside([states.hidden[rows] for states, rows in some], True, -2)
    fed = beside([states.fed[rows, :width] for (states, rows), width in zip(some, widths, strict=True)], False, -2)
    mask = beside([states.mask[rows] for states, rows in some], True, -1)
    positions = beside([states.positions[..., rows, :] for states, rows in some], True, -1)
    branches = beside([states.branches[rows, :width] for (states, rows), width in zip(some, widths, strict=True)], False, -1)
    counts = [len(rows) for _, rows in pieces]
    edit = together([trials[number].edit for number, _ in pieces], counts)
    with edit.applied(backbone, mask):
        mask = torch.cat([mask, branches > 0], 1)
        final = backbone.tail(torch.cat([hidden, fed], 1), mask, positions, 1 + answer, branches)
    return [part[:, : 1 + width] for part, width in zip(final.split(counts), widths, strict=True)]


def exact(argmax: torch.Tensor, candidates: Candidates) -> np.ndarray:
    """[N] bool: greedy decoding gives the candidate (its end token included) iff it is the argmax at every position
    (design §3).
    """
    return ((argmax == candidates.ids) | ~candidates.real).all(1).numpy()


def accuracy(argmax: torch.Tensor, reference: torch.Tensor, candidates: Candidates, end: int) -> np.ndarray:
    """[N] share of the candidate's tokens, end token excluded, at which `argmax` equals `reference`."""
    counted = candidates.real & (candidates.ids != end)
    counted |= candidates.real & ~counted.any(1, keepdim=True)
    return (((argmax == reference) & counted).sum(1) / counted.sum(1)).numpy()


def trace_edit(
    backbone: Backbone, row: Mapping[str, Any], probes: Sequence[Probe], states: States, edit: Edit
) -> list[dict[str, Any]]:
    """The rows of one edit's trace (see `trace_edits`)."""
    return trace_edits(backbone, [Trial(row, probes, states, edit)])[0]


def trace_edits(backbone: Backbone, trials: Sequence[Trial]) -> list[list[dict[str, Any]]]:
    """The rows of each edit's trace: outcomes with the edit off and on, its own router's `score`, distances to its key.

    An edit whose model is not finite has `diverged`: it counts as none, here as in `stages.editing.edits.attempt`.
    """
    found = dict.fromkeys(range(len(trials)))
    changing = [number for number, one in enumerate(trials) if not one.edit.changes_nothing]
    for number, says in zip(changing, outcomes(backbone, [trials[number] for number in changing]), strict=True):
        found[number] = says or "diverged"
    traced = []
    for number, one in enumerate(trials):
        says, states = found[number], one.states
        if says == "diverged":
            nothing = replace(DIVERGED, steps=one.edit.steps, loss=one.edit.loss)
            one, says = replace(one, edit=nothing), None
        kinds = states.target, states.same, states.truth
        if says is None:
            traced.append(rows_of(backbone, one, [kind.argmax for kind in kinds], states.top))
        else:
            argmax, best = says
            told = [argmax.gather(1, kind.places).masked_fill(~kind.real, -1) for kind in kinds]
            places = states.truth.places[..., None].expand(-1, -1, best.shape[-1])
            traced.append(rows_of(backbone, one, told, best.gather(1, places)))
    return traced


def rows_of(backbone: Backbone, trial: Trial, told: Sequence[torch.Tensor], top: torch.Tensor) -> list[dict[str, Any]]:
    """The rows of one edit's trace, of what its model says [N, A] at the tokens of target, own and true answer, and of its top
    ten at those of the true one.
    """
    row, probes, states, edit = trial.row, trial.probes, trial.states, trial.edit
    (target, same, truth), n = told, len(states.answers)
    score = [float("nan")] * n
    if edit.scores is not None:
        queries = [probe.query for probe in probes[:n]]
        score = edit.scores(queries, states.hidden, states.mask, states.positions).tolist()
    target_off, target_on = (exact(argmax, states.target) for argmax in (states.target.argmax, target))
    same_on = exact(same, states.same)
    aims = states.target.ids
    hit_off, hit_on = (accuracy(argmax, aims, states.target, backbone.end) for argmax in (states.target.argmax, target))
    agreed = accuracy(truth, states.truth.argmax, states.truth, backbone.end)
    overlap = (top[..., :, None] == states.top[..., None, :]).any(-1).float().mean(-1)
    counted = states.truth.real.float()
    top10 = ((overlap * counted).sum(1) / counted.sum(1)).numpy()
    distances = distances_to_key(states.phi, states.key)
    rows = []
    for i, probe in enumerate(probes):
        wants = probe.must_change
        common = {
            "split": row["split"], "edit_id": row["edit_id"], "relation": row["relation"], "concept": row["concept"],
            "probe": i, "kind": probe.kind, "question": probe.question, "image_id": probe.image_id,
            "expected": probe.expected,
        }  # fmt: skip
        if i < n:
            result = {
                "answer_off": states.answers[i],
                "target_off": bool(target_off[i]), "target_on": bool(target_on[i]), "same_on": bool(same_on[i]),
                "tf_off": float(hit_off[i]) if wants else 1.0, "tf_on": float(hit_on[i] if wants else agreed[i]),
                "top10_on": float("nan") if wants else float(top10[i]),
                "correct_off": bool(probe.truth) and normalise(states.answers[i]) == normalise(probe.truth),
                "score": float(score[i]),
            }  # fmt: skip
        else:
            nan = float("nan")
            result = {
                "answer_off": "", "target_off": False, "target_on": False, "same_on": False,
                "tf_off": nan, "tf_on": nan, "top10_on": nan, "correct_off": False, "score": nan,
            }  # fmt: skip
        ended = {"steps": edit.steps, "loss": edit.loss, "diverged": edit.diverged}
        rows.append(common | result | {name: float(d[i]) for name, d in distances.items()} | ended)
    return rows


def distances_to_key(phi: Mapping[str, torch.Tensor], key: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """`euclidean_<span>` and `cosine_<span>` [queries]: distance of every query's φ [queries, D] to a key [D], span by span."""
    result = {}
    for span, vectors in phi.items():
        result[f"euclidean_{span}"] = (vectors - key[span]).norm(dim=1).numpy()
        result[f"cosine_{span}"] = (1 - F.cosine_similarity(vectors, key[span][None])).clamp(min=0).numpy()
    return result
