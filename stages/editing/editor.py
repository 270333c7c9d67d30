"""The interface every editor implements, and the optimisation loop that they share.

An editor is a module with one function, `edit(backbone, request, settings) -> Edit`. It reads the frozen backbone and returns
an `Edit`, whose `output` replaces the output of the edited linear map while the edit is applied. The backbone's own weights
are never written to.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from stages.backbone.vlm import Backbone

Output = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Request:
    """One edit to make, as the frozen trunk sees it: the prompt followed by all but the last of the target's A tokens.

    `hidden` [1, T, D] enters layer ℓ; `mask` [1, T] and `prompt` [1, P] mark real positions, `positions` [..., 1, P] are the
    prompt's; `target` [1, A] ends with the end token.
    """

    hidden: torch.Tensor
    mask: torch.Tensor
    prompt: torch.Tensor
    positions: torch.Tensor
    target: torch.Tensor


@dataclass(frozen=True)
class Edit:
    """A transformation of the edited linear map: `output(inputs [B, T, D], prompt [B, T]) → [B, T, out]`; None changes nothing.

    `steps` and `loss` describe the optimisation; `reached` says whether it ended on an exact match of the target.
    """

    output: Output | None
    steps: int = 0
    loss: float = 0.0
    reached: bool = False

    @contextlib.contextmanager
    def applied(self, backbone: Backbone, prompt: torch.Tensor) -> Iterator[None]:
        """Apply the edit to every row of a batch whose prompt positions are `prompt` [B, T]; the backbone is restored
        on leaving.
        """
        if self.output is None:
            yield
            return
        with backbone.replaced(lambda inputs, _unedited: self.output(inputs, prompt), len(prompt)):
            yield


def load_editor(name: str) -> Callable[[Backbone, Request, Mapping[str, Any]], Edit]:
    """The `edit` function of the module `stages.editing.<name>`."""
    return importlib.import_module(f"stages.editing.{name}").edit


def optimise(
    backbone: Backbone,
    request: Request,
    parameter: torch.Tensor,
    output: Output,
    *,
    lr: float,
    steps: int,
    stop: Callable[[torch.Tensor, float], bool],
) -> tuple[int, float, bool]:
    """Minimise the target's cross-entropy over `parameter` with Adam; `stop(logits [A, V], loss)` is asked before every step.

    Returns the number of steps taken, the loss and whether greedy decoding gives the target.

    Raises FloatingPointError when the loss is not finite.
    """
    optimiser = torch.optim.Adam([parameter], lr=lr)
    candidate, target = Edit(output), request.target[0]
    for step in range(steps + 1):
        with candidate.applied(backbone, request.prompt):
            states = backbone.tail(request.hidden, request.mask, request.positions, len(target))
        logits = backbone.head(states)[0]
        loss = F.cross_entropy(logits, target)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} after {step} steps")
        if step == steps or stop(logits.detach(), loss.item()):
            break
        (parameter.grad,) = torch.autograd.grad(loss, [parameter])
        optimiser.step()
    return step, loss.item(), bool((logits.argmax(-1) == target).all())


def exact_with_margin(target: torch.Tensor, margin: float) -> Callable[[torch.Tensor, float], bool]:
    """Stop when every target token leads the runner-up by `margin` logits: greedy decoding gives the target, not by a hair."""

    def stop(logits: torch.Tensor, _loss: float) -> bool:
        wanted = logits.gather(1, target[:, None])[:, 0]
        others = logits.scatter(1, target[:, None], float("-inf")).amax(1)
        return bool((wanted - others >= margin).all())

    return stop
