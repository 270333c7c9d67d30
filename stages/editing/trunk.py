"""What the frozen trunk says of an edit's queries: the states that enter the edited layer, keys, and the unedited answers.

It is the same for every method and radius. It is computed once per (backbone, layer, edit) and cached by content.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from stages.backbone.prompts import SPANS, Query
from stages.backbone.vlm import Backbone, Trunk, mean_over
from stages.editing.edits import Request
from stages.editing.probes import GENERALITY, POSITIVE, Probe
from stages.settings import CONNECTOR, Place

ANSWER_LIMIT = 12  # tokens of a greedy answer
READ = 256  # positions that the language head reads at a time
SHORT = 8  # more answer tokens than this make a probe run apart from the many that have fewer
TOP = 10


@dataclass
class Candidates:
    """One answer per outcome probe, teacher-forced by the unedited model: A tokens at most, padded on the right.

    `places` are the columns of the final states [N, 1 + W, D] (see `States`) that predict its tokens.
    """

    ids: torch.Tensor  # [N, A] the answer with its end token
    real: torch.Tensor  # [N, A] bool
    places: torch.Tensor  # [N, A]
    argmax: torch.Tensor  # [N, A] of the unedited model, -1 where nothing is real


@dataclass
class States:
    """All that the frozen trunk says of one edit's queries; the first N of them have outcomes, the rest are samples.

    Answers follow a prompt as branches that do not see each other; answers that are equal share one. All their tokens but the
    last are fed to the model, W columns at most. Final states have one column more, the first: the prompt's last position.
    """

    hidden: torch.Tensor  # [N, P, D]
    mask: torch.Tensor  # [N, P]
    positions: torch.Tensor  # [..., N, P]
    tokens: torch.Tensor  # [N, W] that are fed
    fed: torch.Tensor  # [N, W, D] states that enter layer ℓ
    branches: torch.Tensor  # [N, W] numbers of the branches, 0 where nothing is fed
    phi: dict[str, torch.Tensor]  # span or name of a key → [queries, D], NaN where it does not exist; the edit's own is the first
    answers: list[str]  # N greedy answers of the unedited model
    target: Candidates  # what the edit wants: the target, for hops their answer after the edit
    same: Candidates  # the unedited model's own greedy answer
    truth: Candidates  # the true answer of what must stay; where there is none, the unedited model's own
    top: torch.Tensor  # [N, A, 10]: of the unedited model over `truth`, -1 where nothing is real

    @property
    def key(self) -> dict[str, torch.Tensor]:
        """span → φ [D] of the first query: the key of the edit that it asks for."""
        return {span: vectors[0] for span, vectors in self.phi.items()}


def select(states: States, rows: Sequence[int]) -> States:
    """What the trunk says of some of the queries that have outcomes."""
    chosen = torch.tensor(list(rows))

    def part(one: Candidates) -> Candidates:
        return Candidates(one.ids[chosen], one.real[chosen], one.places[chosen], one.argmax[chosen])

    phi = {span: vectors[chosen] for span, vectors in states.phi.items()}
    candidates = [part(one) for one in (states.target, states.same, states.truth)]
    answers, positions = [states.answers[row] for row in rows], states.positions[..., chosen, :]
    prompts = states.hidden[chosen], states.mask[chosen], positions
    fed = states.tokens[chosen], states.fed[chosen], states.branches[chosen]
    return States(*prompts, *fed, phi, answers, *candidates, states.top[chosen])


@dataclass(frozen=True)
class Reading:
    """What the trunk says of one query: of its prompt, and of the answers that branch off it."""

    hidden: torch.Tensor  # [p, D]
    positions: torch.Tensor  # [..., p]
    tokens: Sequence[int]  # w of them
    fed: torch.Tensor  # [w, D]
    branches: Sequence[int]  # w of them
    answers: Sequence[Sequence[int]]  # the target, the unedited model's own and the true one
    places: Sequence[Sequence[int]]  # of each answer's tokens
    argmax: torch.Tensor  # [1 + w]
    best: torch.Tensor  # [1 + w, 10]
    phi: dict[str, torch.Tensor]  # span → [D]


def run_trunk(
    backbone: Backbone, row: Mapping[str, Any], probes: Sequence[Probe], keys: Mapping[str, Place] = MappingProxyType({})
) -> States:
    """The unedited model over all queries of an edit, whose pictures must have been added to the backbone. `keys` are those that
    are read beside the edited layer's.
    """
    layers = sorted({key.where for key in keys.values()} - {CONNECTOR})
    found: dict[int, Reading] = {}
    for shown in (True, False):  # prompts with a picture and without differ much in length
        some = [i for i, probe in enumerate(probes) if (probe.image_id is not None) == shown]
        if not some:
            continue
        prompts = backbone.prompts([probes[i].query for i in some])
        size = max(1, backbone.positions_at_once // prompts.mask.shape[1])
        for start in range(0, len(some), size):
            rows = some[start : start + size]
            trunk = backbone.prefill(prompts.select(slice(start, start + size)), layers=layers)
            found |= zip(rows, readings(backbone, trunk, [probes[i] for i in rows], row["target"], keys), strict=True)
    return gathered(backbone, [found[i] for i in range(len(probes))], sum(not p.is_sample for p in probes))


@torch.no_grad()
def readings(backbone: Backbone, trunk: Trunk, probes: Sequence[Probe], target: str, keys: Mapping[str, Place]) -> list[Reading]:
    """What the trunk says of some queries, whose prompts it has read."""
    wanted = []
    for probe, own in zip(probes, backbone.greedy(trunk, ANSWER_LIMIT), strict=True):
        aim = backbone.answer_ids(probe.expected if probe.must_change else target)
        # The truth is asked of nothing that the edit must reach, and the target of no sample that it must not.
        true = backbone.answer_ids(probe.truth) if probe.truth and probe.kind not in GENERALITY else own
        wanted.append((own if probe.is_sample and not must_reach(probe) else aim, own, true))
    laid = [lay_out(answers) for answers in wanted]
    fed, branches = padded([ids for ids, _, _ in laid], backbone.end)[0], padded([numbers for _, numbers, _ in laid], 0)[0]
    hidden, inputs, final = extended(backbone, trunk, fed, branches)
    argmax, best = read(backbone, final, columns_of(branches), ranked(probes, [places[2] for _, _, places in laid], branches))
    phi = {span: mean_over(trunk.inputs, trunk.prompts.spans[span]) for span in SPANS}
    for name, key in keys.items():
        read_at = trunk.prompts.embeds.cpu() if key.where == CONNECTOR else trunk.deep[key.where]
        phi[name] = mean_over(read_at, trunk.prompts.spans[key.span])
    # The authors' released code averages over the gold answer too: the target where the edit must reach, elsewhere the truth.
    gold = torch.zeros_like(branches, dtype=torch.bool)
    for one, probe, (_, _, places) in zip(gold, probes, laid, strict=True):
        one[[column - 1 for column in places[0 if must_reach(probe) else 2][1:]]] = True
    phi["teacher_forced"] = mean_over(torch.cat([trunk.inputs, inputs], 1), torch.cat([trunk.prompts.mask, gold], 1))
    found = []
    for i, (answers, (ids, numbers, places)) in enumerate(zip(wanted, laid, strict=True)):
        mask, width = trunk.prompts.mask[i], len(ids)
        prompt = trunk.hidden[i][mask], trunk.prompts.positions[..., i, :][..., mask]
        says = argmax[i, : width + 1], best[i, : width + 1], {span: vectors[i] for span, vectors in phi.items()}
        found.append(Reading(*prompt, ids, hidden[i, :width], numbers, answers, places, *says))
    return found


def must_reach(probe: Probe) -> bool:
    """Whether the edit must give its target here: its queries, and its positive samples."""
    return probe.kind in GENERALITY or probe.kind in POSITIVE


def lay_out(answers: Sequence[Sequence[int]]) -> tuple[list[int], list[int], list[list[int]]]:
    """Answers to one prompt side by side: the tokens that are fed, the number of each one's branch from 1, and of each answer the
    columns of the final states that predict its tokens. Equal answers share a branch.
    """
    fed, branches, columns = [], [], {}
    for ids in map(tuple, answers):
        if ids not in columns:
            columns[ids] = [0, *range(len(fed) + 1, len(fed) + len(ids))]
            fed += ids[:-1]
            branches += [len(columns)] * (len(ids) - 1)
    return fed, branches, [columns[tuple(ids)] for ids in answers]


def columns_of(branches: torch.Tensor) -> torch.Tensor:
    """[N, 1 + W] bool: which final states predict a token, of `branches` [N, W]."""
    return torch.cat([torch.ones_like(branches[:, :1], dtype=torch.bool), branches > 0], 1)


def extended(backbone: Backbone, trunk: Trunk, fed: torch.Tensor, branches: torch.Tensor) -> list[torch.Tensor]:
    """`Backbone.extend` over the tokens `fed` [N, W]: hidden states and edited inputs [N, W, D], final states [N, 1 + W, D], zero
    where nothing is fed.
    """
    like = trunk.hidden, trunk.inputs, trunk.final
    whole = [one.new_zeros(len(fed), fed.shape[1] + more, one.shape[-1]) for one, more in zip(like, (0, 0, 1), strict=True)]
    for rows in by_length(branches):
        used = int((branches[rows] > 0).sum(1).max())
        part = trunk if len(rows) == len(fed) else trunk.select(rows)
        for all_rows, states in zip(whole, backbone.extend(part, fed[rows, :used], branches[rows, :used]), strict=True):
            all_rows[rows.to(all_rows.device), : states.shape[1]] = states
    return whole


def by_length(branches: torch.Tensor) -> list[torch.Tensor]:
    """The rows of `branches` [N, W], those with few answer tokens and those with many apart, so that little is padded."""
    many = (branches > 0).sum(1) > SHORT
    return [rows for rows in (torch.nonzero(~many)[:, 0], torch.nonzero(many)[:, 0]) if len(rows)]


def padded(answers: Sequence[Sequence[int]], fill: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists of numbers as [N, A], padded on the right, and which of them are real."""
    lengths = torch.tensor([len(answer) for answer in answers])
    width = int(lengths.max())
    ids = torch.tensor([[*answer, *[fill] * (width - len(answer))] for answer in answers], dtype=torch.long)
    return ids, torch.arange(width)[None] < lengths[:, None]


def gathered(backbone: Backbone, found: Sequence[Reading], outcomes: int) -> States:
    """The readings of an edit's queries in one; the first `outcomes` with all that their outcomes need."""
    some, branches = found[:outcomes], padded([one.branches for one in found[:outcomes]], 0)[0]
    width, first = max(len(one.hidden) for one in some), some[0]
    hidden = first.hidden.new_zeros(len(some), width, first.hidden.shape[1])
    fed, mask = hidden.new_zeros(*branches.shape, hidden.shape[2]), torch.zeros(len(some), width, dtype=torch.bool)
    positions = first.positions.new_zeros(*first.positions.shape[:-1], len(some), width)
    for i, one in enumerate(some):
        real = slice(width - len(one.hidden), None)
        hidden[i, real], mask[i, real], positions[..., i, real] = one.hidden, True, one.positions
        fed[i, : len(one.fed)] = one.fed

    def candidates(which: int) -> Candidates:
        ids, real = padded([one.answers[which] for one in some], backbone.end)
        places = padded([one.places[which] for one in some], 0)[0]
        return Candidates(ids, real, places, padded([one.argmax[list(one.places[which])].tolist() for one in some], -1)[0])

    target, same, truth = (candidates(which) for which in range(3))
    top = torch.full((*truth.ids.shape, TOP), -1)
    for i, one in enumerate(some):
        top[i, : len(one.places[2])] = one.best[list(one.places[2])]
    phi = {span: torch.stack([one.phi[span] for one in found]) for span in found[0].phi}
    answers = [backbone.decode(one.answers[1]) for one in some]
    tokens = padded([one.tokens for one in some], backbone.end)[0]
    return States(hidden, mask, positions, tokens, fed, branches, phi, answers, target, same, truth, top)


def ranked(probes: Sequence[Probe], places: Sequence[Sequence[int]], branches: torch.Tensor) -> torch.Tensor:
    """[N, 1 + W] bool: the columns whose top ten is asked for: those of the true answer of what must stay as it is."""
    found = torch.zeros(len(branches), 1 + branches.shape[1], dtype=torch.bool)
    for row, probe, columns in zip(found, probes, places, strict=True):
        row[list(columns)] = not probe.must_change
    return found


def read(backbone: Backbone, final: torch.Tensor, real: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """argmax [N, A] of the final states [N, A, D], -1 where nothing is `real`, and the top ten [N, A, 10] where they are
    `wanted`, else -1.

    Raises FloatingPointError when a logit is not finite.
    """
    argmax, best = torch.full(real.shape, -1), torch.full((*real.shape, TOP), -1)
    said, tops, asked = [], [], wanted[real]
    for states, some in zip(final[real.to(final.device)].split(READ), asked.split(READ), strict=True):
        logits = backbone.head(states)
        if not torch.isfinite(logits.sum()):
            raise FloatingPointError("the model's logits are not finite")
        said.append(logits.argmax(-1).cpu())
        tops.append(logits[some.to(logits.device)].topk(TOP).indices.cpu())
    argmax[real], best[real & wanted] = torch.cat(said), torch.cat(tops)
    return argmax, best


def answer_hidden(states: States, candidates: Candidates, rows: Sequence[int]) -> torch.Tensor:
    """The states [rows, A - 1, D] that enter layer ℓ at an answer's tokens but the last; what is not real holds any."""
    columns = (candidates.places[rows, 1:] - 1).clamp(min=0)
    return torch.gather(states.fed[rows], 1, columns[..., None].expand(-1, -1, states.fed.shape[-1]))


def request_of(states: States, row: Mapping[str, Any]) -> Request:
    """The edit to make: the row's first probe with its target."""
    length = int(states.target.real[0].sum())
    hidden = torch.cat([states.hidden[:1], answer_hidden(states, states.target, [0])[:, : length - 1]], 1)
    mask = torch.cat([states.mask[:1], torch.ones(1, length - 1, dtype=torch.bool)], 1)
    query, ids = Query(row["question"], row["image_id"]), states.target.ids[:1, :length]
    return Request(hidden, mask, states.mask[:1], states.positions[..., :1, :], ids, query, row["target"])
