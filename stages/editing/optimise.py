"""The optimisation that editors share: gradient descent on the loss of several requests side by side.

Each row of a batch has parameters of its own. Nothing that one row does reaches another, so that an edit ends where it would end
alone; what rows share is one pass over the frozen weights. A row leaves when it is done.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from stages.backbone.prompts import Prompts
from stages.backbone.stand_ins import Enough
from stages.backbone.vlm import Backbone, following
from stages.editing.chunked_loss import target_losses
from stages.editing.edits import DIVERGED, Edit, Request

Tensors = Sequence[torch.Tensor]
NOISE = 1e-5  # by so much, relatively, sums of float32 may differ
Stop = Callable[[float, float], bool]  # (least lead of the target's tokens over the runner-up in logits, loss) → enough?


@dataclass(frozen=True)
class Batch:
    """Requests side by side: prompts padded on the left, targets on the right. Shapes are those of `Request` with B rows; `real`
    [B, A] marks tokens of the targets.
    """

    requests: Sequence[Request]
    hidden: torch.Tensor
    mask: torch.Tensor
    prompt: torch.Tensor
    positions: torch.Tensor
    target: torch.Tensor
    real: torch.Tensor

    @classmethod
    def of(cls, requests: Sequence[Request], device: torch.device) -> "Batch":
        """The batch on a device."""
        prompts, answers = (
            max(part.shape[1] for part in parts) for parts in ([r.prompt for r in requests], [r.target for r in requests])
        )
        first, rows = requests[0], len(requests)
        hidden = first.hidden.new_zeros(rows, prompts + answers - 1, first.hidden.shape[2])
        mask, prompt, real = (torch.zeros(rows, n, dtype=torch.bool) for n in (hidden.shape[1], prompts, answers))
        positions = first.positions.new_zeros(*first.positions.shape[:-2], rows, prompts)
        target = first.target.new_zeros(rows, answers)
        for i, one in enumerate(requests):
            start, length = prompts - one.prompt.shape[1], one.target.shape[1]
            within = slice(start, start + one.hidden.shape[1])
            hidden[i, within], mask[i, within], prompt[i, start:] = one.hidden[0], one.mask[0], one.prompt[0]
            positions[..., i, start:], target[i, :length], real[i, :length] = one.positions[..., 0, :], one.target[0], True
        return cls(requests, *(part.to(device) for part in (hidden, mask, prompt, positions, target, real)))


def answer_states(backbone: Backbone, prompts: Prompts, ids: torch.Tensor, real: torch.Tensor | None = None) -> torch.Tensor:
    """Final hidden states [B, A, D] that predict the tokens `ids` [B, A], of which `real` ones count, by the whole decoder;
    differentiable.
    """
    fed, device = ids[:, :-1], backbone.device
    seen = torch.ones_like(fed, dtype=torch.bool) if real is None else real[:, 1:]
    mask = torch.cat([prompts.mask.to(device), seen.to(device)], 1)
    with backbone.reading_last(ids.shape[1], mask.shape[1]):
        out = backbone.decoder(
            inputs_embeds=torch.cat([prompts.embeds, backbone.adapter.embed(fed)], 1),
            attention_mask=backbone.adapter.attention(mask, prompts.mask.shape[1]),
            position_ids=torch.cat([prompts.positions, following(prompts.positions, fed.shape[1])], -1),
            use_cache=False,
        )
    return out.last_hidden_state[:, -ids.shape[1] :]


def judge(backbone: Backbone, batch: Batch, edit: Edit, prompts: Prompts | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each row under an edit without a prefix: the mean cross-entropy [B] of its target, differentiable, and by how many
    logits the target's tokens lead the runner-up at least [B]: where that is above 0, greedy decoding gives the target.

    Layers ≥ ℓ alone run where they do; else all of them over the embedded `prompts`.
    """
    with edit.applied(backbone, batch.prompt):
        if edit.within_tail(backbone):
            states = backbone.tail(batch.hidden, batch.mask, batch.positions, batch.target.shape[1])
        else:
            prompts = prompts or backbone.prompts([request.query for request in batch.requests])
            states = answer_states(backbone, prompts, batch.target, batch.real)
    target, real = batch.target[batch.real], batch.real.to(states.device)
    losses, logits = target_losses(backbone.adapter.head, states[real], target, backbone.adapter.softcap)
    rows = torch.nonzero(real)[:, 0].to(losses.device)
    totals = losses.new_zeros(len(real)).index_add(0, rows, losses)
    wanted = logits.gather(1, target[:, None].to(logits.device))
    lead = (wanted - logits.scatter(1, target[:, None].to(logits.device), -torch.inf).amax(1, keepdim=True))[:, 0]
    leads = lead.new_full((len(real),), torch.inf).scatter_reduce(0, rows, lead, "amin")
    return totals / real.sum(1).to(losses.device), leads


class Remembered(nn.Module):
    """Stands for a module that is asked the same again and again: it runs once for each length of its input, and the answer has
    no gradient to lose.
    """

    def __init__(self, part: nn.Module):
        super().__init__()
        self.part, self.answers = part, {}

    def forward(self, *args: object, **kwargs: object) -> object:
        given = kwargs.get("hidden_states", args[0] if args else None)
        if given.shape not in self.answers:
            try:
                self.answers[given.shape] = self.part(*args, **kwargs)
            except Enough as end:  # all that was asked for were keys and values
                self.answers[given.shape] = end
        answer = self.answers[given.shape]
        if isinstance(answer, Enough):
            raise answer
        return answer


@contextlib.contextmanager
def remembering(backbone: Backbone, edit: Edit) -> Iterator[None]:
    """While open, what no edit changes between layer ℓ and the first edited map runs once: whole layers, then the edited layer's
    attention and the maps into its MLP that stay as they are. All states that enter must stay the same.
    """
    if not edit.within_tail(backbone):
        yield
        return
    layers, changed = backbone.decoder.layers, {*edit.added, *([backbone.edited] if edit.output is not None else [])}
    stands: list[tuple[nn.Module, str, nn.Module]] = []
    for number in range(backbone.layer, len(layers)):
        layer = layers[number]
        if not changed.isdisjoint(layer.modules()):
            stands += _unchanged(layer, changed)
            break
        stands.append((layers, str(number), layer))
    for parent, name, part in stands:
        setattr(parent, name, Remembered(part))
    try:
        yield
    finally:
        for parent, name, part in stands:
            setattr(parent, name, part)


def _unchanged(layer: nn.Module, changed: set[nn.Module]) -> list[tuple[nn.Module, str, nn.Module]]:
    """The parts of a layer that run before its first changed map, as (parent, name, part)."""
    attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", layer)
    if attention is None or not changed.isdisjoint(attention.modules()):
        return []
    inward = [(mlp, name, getattr(mlp, name)) for name in ("gate_proj", "up_proj") if hasattr(mlp, name)]
    return [(layer, "self_attn", attention), *(one for one in inward if changed.isdisjoint(one[2].modules()))]


def optimise(
    backbone: Backbone,
    requests: Sequence[Request],
    build: Callable[[Tensors], Edit],
    begun: Sequence[Tensors],
    *,
    lr: float,
    steps: int,
    stop: Stop,
) -> list[Edit]:
    """Minimise each target's cross-entropy with Adam over its own tensors, which begin as `begun[row]`: the edits, in the
    requests' order. `build` makes an edit of tensors that have a row a request, or of those of one request. `stop(lead, loss)` is
    asked before every step of a row.

    An edit has the number of `steps` that were taken, its `loss`, and whether greedy decoding gives the target (`reached`). One
    whose loss is not finite, or ends higher than it began, has diverged.
    """
    parameters = [torch.stack(list(parts)).requires_grad_() for parts in zip(*begun, strict=True)]
    optimiser, going, step = _adam(parameters, lr), list(range(len(requests))), 0
    first: dict[int, float] = {}
    made: dict[int, Edit] = {}
    while going:
        batch, edit = Batch.of([requests[i] for i in going], backbone.device), build(parameters)
        fixed = not edit.within_tail(backbone) and not edit.changes_image_features(backbone)
        prompts = backbone.prompts([request.query for request in batch.requests]) if fixed else None
        with remembering(backbone, edit):
            keep = list(range(len(going)))
            while keep and len(keep) == len(going):
                losses, leads = judge(backbone, batch, edit, prompts)
                for row, (loss, lead) in enumerate(zip(losses.tolist(), leads.tolist(), strict=True)):
                    begin = first.setdefault(going[row], loss)
                    if not math.isfinite(loss):
                        made[going[row]] = DIVERGED
                    elif step == steps or stop(lead, loss):
                        own = build([parameter.detach()[row].clone() for parameter in parameters])
                        ended = replace(own, steps=step, loss=loss, reached=lead > 0)
                        made[going[row]] = DIVERGED if loss > begin * (1 + NOISE) else ended
                keep = [row for row, number in enumerate(going) if number not in made]
                if keep:
                    rows = torch.tensor(keep, device=losses.device)
                    gradients = torch.autograd.grad(losses.index_select(0, rows).sum(), parameters)
                    for parameter, gradient in zip(parameters, gradients, strict=True):
                        parameter.grad = gradient.contiguous()  # a fused step reads memory as it lies
                    optimiser.step()
                step += 1
        going = [going[row] for row in keep]
        parameters, optimiser = _narrowed(parameters, optimiser, keep, lr)
    return [made[i] for i in range(len(requests))]


def _adam(parameters: Tensors, lr: float) -> torch.optim.Adam:
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)  # one pass over a weight instead of eight
    return torch.optim.Adam(parameters, lr=lr, fused=fused)


def _narrowed(
    parameters: Tensors, optimiser: torch.optim.Adam, keep: Sequence[int], lr: float
) -> tuple[list[torch.Tensor], torch.optim.Adam]:
    """The parameters of some rows, and an optimiser that goes on where theirs was."""
    some = [parameter.detach()[list(keep)].requires_grad_() for parameter in parameters]
    narrowed = _adam(some, lr)
    for old, new in zip(parameters, some, strict=True):
        state = optimiser.state.get(old, {})
        narrowed.state[new] = {k: v[list(keep)] if v.shape == old.shape else v for k, v in state.items()}
    return some, narrowed


def leads_by(margin: float) -> Stop:
    """Stop when every target token leads the runner-up by `margin` logits: greedy decoding gives the target, not by a hair."""
    return lambda lead, _loss: lead >= margin
