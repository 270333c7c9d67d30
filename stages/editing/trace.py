"""What the frozen trunk says of an edit's queries, and what an edit does to them: the rows of a trace.

The trunk's part is the same for every method and radius. It is computed once per (backbone, layer, edit) and cached by content.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from stages.backbone import vlm
from stages.backbone.vlm import SPANS, Backbone, Query, Trunk, mean_over
from stages.editing import full
from stages.editing.editor import Edit, Request
from stages.params import write_atomically

ANSWER_LIMIT = 12  # tokens of a greedy answer
SHORT = 5  # an answer of more tokens, its end among them, runs apart from the many short ones
TOP = 10
ALL = slice(None)
GENERALITY = ("edit", "text_generality", "image_generality", "joint_generality")


@dataclass(frozen=True)
class Probe:
    """One evaluation query: what is expected after the edit, and what was true before it ("" where nothing is)."""

    kind: str
    question: str
    image_id: str | None
    expected: str
    truth: str

    @property
    def is_sample(self) -> bool:
        """Samples locate the radius; they carry distances and no outcome."""
        return self.kind.startswith("sample_")

    @property
    def query(self) -> Query:
        """What the model is asked."""
        return Query(self.question, self.image_id)

    @property
    def must_change(self) -> bool:
        """Whether the edit must change the answer, rather than leave it."""
        return self.kind in GENERALITY or self.kind.startswith("hop")


def probes_of(row: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> list[Probe]:
    """All queries of one OKEDIT row, the edit first and its samples last."""
    question, image, target, truth = row["question"], row["image_id"], row["target"], row["answer"]
    probes = [Probe("edit", question, image, target, truth)]
    probes += [Probe("text_generality", q, image, target, truth) for q in row["rephrasings"]]
    probes += [Probe("image_generality", question, i, target, truth) for i in row["generality_image_ids"]]
    pairs = list(zip(row["rephrasings"], row["generality_image_ids"], strict=False))[::2]
    probes += [Probe("joint_generality", q, i, target, truth) for q, i in pairs]
    probes += [Probe(p["kind"], p["question"], p["image_id"], p["answer"], p["answer"]) for p in row["locality"]]
    probes += [Probe(f"hop{h['n']}", h["question"], h["image_id"], h["answer_after"], h["answer_before"]) for h in row["hops"]]
    probes += [Probe("black_image", question, s["image_id"], "", "") for s in samples if s["kind"] == "sample_black"]
    return probes + [Probe(s["kind"], s["question"], s["image_id"], "", "") for s in samples]


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
    path = cache / f"{hashlib.sha256((code_digest() + text).encode()).hexdigest()[:24]}.pt"
    if path.exists():
        with torch.serialization.safe_globals([States, Candidates]):
            return torch.load(path, weights_only=True)
    states = run_trunk(backbone, row, probes)
    cache.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as temporary:
        torch.save(states, temporary)
    return states


def code_digest(*more: str) -> str:
    """A digest of the modules that decide what the trunk says, and of `more` modules of this folder: stale records are
    never reused.
    """
    editing, backbone = Path(__file__).parent, Path(vlm.__file__).parent
    sources = [editing / "trace.py", *(editing / f"{name}.py" for name in more)]
    sources += [backbone / "tower.py", backbone / "vlm.py", *sorted((backbone / "adapters").glob("*.py"))]
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in sources)).hexdigest()


def request_of(states: States, row: Mapping[str, Any]) -> Request:
    """The edit to make: the row's first probe with its target."""
    length = int(states.target.real[0].sum())
    hidden = torch.cat([states.hidden[:1], states.target.hidden[:1, : length - 1]], 1)
    mask = torch.cat([states.mask[:1], torch.ones(1, length - 1, dtype=torch.bool)], 1)
    query, ids = Query(row["question"], row["image_id"]), states.target.ids[:1, :length]
    return Request(hidden, mask, states.mask[:1], states.positions[..., :1, :], ids, query, row["target"])


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
        finals = full.finals(backbone, edit, [p.query for p in probes if not p.is_sample], [c.ids for c in candidates])
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

    An edit whose model is not finite has `diverged`: it counts as none, here as in `stages.editing.editor.attempt`.
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


def normalise(answer: str) -> str:
    """The form in which answers are compared: lower case, stripped."""
    return answer.strip().lower()
