"""Cross-entropy of a few tokens over a large vocabulary, in one pass over the language head's weight.

Behind a frozen trunk the head is most of an optimisation step, and reading its weight is most of the head: once for the logits
and once more for the gradient. Here each block of the vocabulary serves both while it is in the CPU's cache; the softmax's
denominator is carried along, as in Cut Your Losses in Large-Vocabulary Language Models (Wijmans et al., ICLR 2025).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from stages.backbone.adapters.base import capped

BLOCK = 2048  # rows of the head's weight at a time


class _OnePass(torch.autograd.Function):
    """(losses [A], logits [A, V]) of states [A, D]; only the losses have a gradient, and only that of the states."""

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        size = BLOCK if weight.device.type == "cpu" else len(weight)  # an accelerator has no such cache to stay in
        biases = [None] * len(weight.split(size)) if bias is None else bias.split(size)
        top, total, mean, logits = -torch.inf, 0.0, 0.0, []  # the softmax's maximum and denominator; Σ exp(logit − top)·row
        for rows, shift in zip(weight.split(size), biases, strict=True):
            part = F.linear(states, rows, shift).float()
            now = part.amax(1, keepdim=True).clamp(min=top)
            mass, shrink = (part - now).exp(), (top - now).exp()
            total = total * shrink + mass.sum(1, keepdim=True)
            mean = mean * shrink + (mass.to(rows.dtype) @ rows).float()
            top = now
            logits.append(part)
        whole = torch.cat(logits, 1)
        losses = (top + total.log() - whole.gather(1, target[:, None]))[:, 0]
        ctx.save_for_backward(mean / total - weight[target].float())
        ctx.mark_non_differentiable(whole)
        return losses, whole

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor, _logits: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return slope[:, None] * gradient, None, None, None


def target_losses(
    head: nn.Linear, states: torch.Tensor, target: torch.Tensor, cap: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The cross-entropy [A] of each of the tokens `target` [A] under the language head of final states [A, D], and the logits
    [A, V], which have no gradient: float32, where the head sits. The head itself is frozen. Where it has a `cap`, logits are
    bent, and all of them are kept for the gradient.
    """
    weight, bias = head.weight.detach(), None if head.bias is None else head.bias.detach()
    if cap is not None:
        logits = capped(F.linear(states.to(weight), weight, bias).float(), cap)
        return F.cross_entropy(logits, target.to(weight.device), reduction="none"), logits.detach()
    return _OnePass.apply(states.to(weight), weight, bias, target.to(weight.device))
