"""The optimisation that editors share: the loss of a request under an edit, and gradient descent on it."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from stages.backbone.vlm import Backbone, Prompts, following
from stages.editing.chunked_loss import target_loss
from stages.editing.edits import Edit, Request


def answer_states(backbone: Backbone, prompts: Prompts, ids: torch.Tensor) -> torch.Tensor:
    """Final hidden states [B, A, D] that predict the tokens `ids` [B, A], by the whole decoder; differentiable."""
    told = ids[:, :-1]
    mask = torch.cat([prompts.mask, torch.ones_like(told, dtype=torch.bool)], 1)
    out = backbone.decoder(
        inputs_embeds=torch.cat([prompts.embeds, backbone.adapter.embed(told)], 1),
        attention_mask=backbone.adapter.attention(mask, prompts.mask.shape[1]),
        position_ids=torch.cat([prompts.positions, following(prompts.positions, told.shape[1])], -1),
        use_cache=False,
    )
    return out.last_hidden_state[:, -ids.shape[1] :]


def request_loss(backbone: Backbone, request: Request, edit: Edit) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy [] of the target under an edit without a prefix, differentiable, and the logits [A, V] of its tokens, which
    have no gradient. Layers ≥ ℓ alone run where they do.
    """
    with edit.applied(backbone, request.prompt):
        if edit.within_tail(backbone):
            states = backbone.tail(request.hidden, request.mask, request.positions, request.target.shape[1])
        else:
            states = answer_states(backbone, backbone.prompts([request.query]), request.target)
    return target_loss(backbone.adapter.head, states[0], request.target[0])


class Remembered(nn.Module):
    """Stands for a module that is asked the same again and again: it runs once, and the answer has no gradient to lose."""

    def __init__(self, part: nn.Module):
        super().__init__()
        self.part, self.answers = part, []

    def forward(self, *args: object, **kwargs: object) -> object:
        if not self.answers:
            self.answers.append(self.part(*args, **kwargs))
        return self.answers[0]


@contextlib.contextmanager
def attending_once(backbone: Backbone, edit: Edit) -> Iterator[None]:
    """While open, the edited map's layer attends only once, to states that stay the same, where the edit changes nothing before
    that.
    """
    layer = backbone.decoder.layers[backbone.layer]
    attention = getattr(layer, "self_attn", None)
    own = attention is not None and any(part is backbone.edited for part in layer.modules())
    if not own or not edit.within_tail(backbone) or any(part in edit.added for part in attention.modules()):
        yield
        return
    layer.self_attn = Remembered(attention)
    try:
        yield
    finally:
        layer.self_attn = attention


def optimise(
    backbone: Backbone,
    request: Request,
    edit: Edit,
    parameters: Sequence[torch.Tensor],
    *,
    lr: float,
    steps: int,
    stop: Callable[[torch.Tensor, float], bool],
) -> dict[str, Any]:
    """Minimise the target's cross-entropy over `parameters`, which `edit` reads, with Adam; `stop(logits [A, V], loss)` is asked
    before every step.

    Returns the number of `steps` taken, the `loss` and whether greedy decoding gives the target (`reached`).

    Raises FloatingPointError when the loss is not finite or ends higher than it began.
    """
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)  # one pass over a weight instead of eight
    optimiser = torch.optim.Adam(parameters, lr=lr, fused=fused)
    target, first = request.target[0], None
    with attending_once(backbone, edit):
        for step in range(steps + 1):
            loss, logits = request_loss(backbone, request, edit)
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss.item()} after {step} steps")
            first = loss.item() if first is None else first
            if step == steps or stop(logits, loss.item()):
                break
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient
            optimiser.step()
    if loss.item() > first:
        raise FloatingPointError(f"the loss rose from {first} to {loss.item()} in {step} steps")
    for parameter in parameters:
        parameter.requires_grad_(False)
    return {"steps": step, "loss": loss.item(), "reached": bool((logits.argmax(-1) == target).all())}


def exact_with_margin(target: torch.Tensor, margin: float) -> Callable[[torch.Tensor, float], bool]:
    """Stop when every target token leads the runner-up by `margin` logits: greedy decoding gives the target, not by a hair."""

    def stop(logits: torch.Tensor, _loss: float) -> bool:
        wanted = logits.gather(1, target[:, None])[:, 0]
        others = logits.scatter(1, target[:, None], float("-inf")).amax(1)
        return bool((wanted - others >= margin).all())

    return stop
