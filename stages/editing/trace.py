"""What an edit does to its queries: the rows of a trace."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from stages.backbone.vlm import Backbone
from stages.editing import full_forward
from stages.editing.edits import Edit
from stages.editing.probes import Probe, normalise
from stages.editing.trunk import Candidates, States, read

ALL = slice(None)


def tail_logits(backbone: Backbone, states: States, edit: Edit, candidates: Candidates, rows: Any = ALL) -> torch.Tensor:
    """Logits [N, A, V] under teacher forcing of `candidates`, from layer ℓ on; differentiable. `rows` index the N probes."""
    hidden = torch.cat([states.hidden, candidates.hidden], 1)[rows]
    mask = torch.cat([states.mask, candidates.real[:, 1:]], 1)[rows]
    with edit.applied(backbone, states.mask[rows]):
        return backbone.head(backbone.tail(hidden, mask, states.positions[..., rows, :], candidates.ids.shape[1]))


@torch.no_grad()
def outcomes(backbone: Backbone, probes: Sequence[Probe], states: States, edit: Edit) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The edited model under teacher forcing: argmax [N, A] over `target`, `same` and `truth`, and the top ten over `truth`.

    Raises FloatingPointError when a logit is not finite.
    """
    candidates = (states.target, states.same, states.truth)
    if edit.changes_nothing:
        return [c.argmax for c in candidates], states.top
    if edit.within_tail(backbone):
        finals = tail_finals(backbone, states, edit, candidates)
    else:
        finals = full_forward.finals(backbone, edit, [p.query for p in probes if not p.is_sample], [c.ids for c in candidates])
    reads = [read(backbone, final, c.real) for c, final in zip(candidates, finals, strict=True)]
    return [argmax for argmax, _ in reads], reads[2][1]


def tail_finals(backbone: Backbone, states: States, edit: Edit, candidates: Sequence[Candidates]) -> list[torch.Tensor]:
    """Final states [N, A, D] of each set of candidates, from layer ℓ on, in one pass: the sets branch off one prompt."""
    widths = [c.hidden.shape[1] for c in candidates]
    hidden = torch.cat([states.hidden, *(c.hidden for c in candidates)], 1)
    mask = torch.cat([states.mask, *(c.real[:, 1:] for c in candidates)], 1)
    with edit.applied(backbone, states.mask):
        final = backbone.tail(hidden, mask, states.positions, 1 + sum(widths), widths)
    return [torch.cat([final[:, :1], after], 1) for after in final[:, 1:].split(widths, 1)]


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
    """The rows of one edit's trace: outcomes with the edit off and on, whether its own router `fires`, distances to its key.

    An edit whose model is not finite has `diverged`: it counts as none, here as in `stages.editing.edits.attempt`.
    """
    n = len(states.answers)
    try:
        (target, same, truth), top = outcomes(backbone, probes, states, edit)
    except FloatingPointError:
        return trace_edit(backbone, row, probes, states, Edit(steps=edit.steps, loss=edit.loss, diverged=True))
    fires = [True] * n
    if edit.fires is not None:
        asked = [p.query for p in probes[:n]]
        fires = edit.fires(asked, states.hidden, states.mask, states.positions).tolist()
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
                "fires": bool(fires[i]),
            }  # fmt: skip
        else:
            nan = float("nan")
            result = {
                "answer_off": "", "target_off": False, "target_on": False, "same_on": False,
                "tf_off": nan, "tf_on": nan, "top10_on": nan, "correct_off": False, "fires": False,
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
