"""The interface every editor implements, and the optimisation loop that they share.

An editor is a module of this folder: `Settings`, a dataclass of its hyper-parameters (`stages.params.entry` fields), and
`edit(backbone, request, settings) -> Edit`. One that learns from the train split also has `fit` (see `stages.editing.fitting`);
its `edit` takes what that returned as a fourth argument. One whose edits depend on `settings["seed"]` says so by `RANDOM = True`,
and is repeated with every seed. `GOES_ON = True` says that an edit can go on from another, in a sequence without a codebook, and
`BESIDE = True` that both are then kept. The backbone's own weights are never written to: hooks apply an `Edit`.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from stages.backbone.vlm import Backbone, Prompts, Query, following
from stages.editing.vocabulary import target_loss

# (inputs [B, T, D], unedited outputs [B, T, out], prompt [B, P]) → outputs of the edited linear map
Output = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
# inputs [..., in] of a linear map → what is added to its outputs [..., out]
Added = Callable[[torch.Tensor], torch.Tensor]
# (queries, hidden [B, P, D] that enter layer ℓ, mask [B, P], positions [..., B, P]) → [B] bool
Fires = Callable[[Sequence[Query], torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Request:
    """One edit to make: a query and its new answer, in words and as the frozen trunk sees them.

    The trunk's part is the prompt followed by all but the last of the target's A tokens: `hidden` [1, T, D] enters layer ℓ;
    `mask` [1, T] and `prompt` [1, P] mark real positions, `positions` [..., 1, P] are the prompt's; `target` [1, A] ends with
    the end token. `start` is an earlier edit that this one goes on from, in a sequence.
    """

    hidden: torch.Tensor
    mask: torch.Tensor
    prompt: torch.Tensor
    positions: torch.Tensor
    target: torch.Tensor
    query: Query
    answer: str
    start: "Edit | None" = None


@dataclass(frozen=True)
class Edit:
    """What an editor made of a request.

    `output` replaces the output of the edited linear map; `added` adds to the outputs of other linear maps; `prefix` holds
    tokens that stand before every prompt. An edit with none of them changes nothing. `fires` is the editor's own router, where
    it has one. `recall` gives the edit that a query goes to, where an editor keeps those of a sequence beside each other.
    `steps` and `loss` describe the optimisation, `reached` says whether it ended on an exact match of the target, `diverged`
    that the method failed in numbers: such an edit changes nothing.
    """

    output: Output | None = None
    added: Mapping[nn.Module, Added] = field(default_factory=dict)
    prefix: tuple[int, ...] = ()
    fires: Fires | None = None
    recall: "Callable[[Query], Edit] | None" = None
    steps: int = 0
    loss: float = 0.0
    reached: bool = False
    diverged: bool = False

    @property
    def changes_nothing(self) -> bool:
        return self.output is None and not self.added and not self.prefix

    def within_tail(self, backbone: Backbone) -> bool:
        """Whether the states that enter layer ℓ are the unedited model's, so that `backbone.tail` gives all that changes."""
        above = {part for layer in backbone.decoder.layers[backbone.layer :] for part in layer.modules()}
        return not self.prefix and all(part in above for part in self.added)

    @contextlib.contextmanager
    def applied(self, backbone: Backbone, prompt: torch.Tensor | None = None) -> Iterator[None]:
        """Apply the edit to every row of a batch whose prompt positions are `prompt` [B, P], which only `output` needs.

        The backbone is restored on leaving, also by an error.
        """
        with contextlib.ExitStack() as stack:
            if self.output is not None:
                replaced = lambda inputs, unedited: self.output(inputs, unedited, prompt)  # noqa: E731
                stack.enter_context(backbone.replaced(replaced, len(prompt)))
            for part, add in self.added.items():
                hook = part.register_forward_hook(lambda _part, args, out, add=add: out + add(args[0].float()).to(out.dtype))
                stack.callback(hook.remove)
            decoder = set(backbone.decoder.modules()) if self.added else set()
            if any(part not in decoder for part in self.added):
                stack.enter_context(backbone.shown_afresh())
            yield


def linear_maps(part: nn.Module, *endings: str) -> list[nn.Linear]:
    """The linear maps inside `part` whose names end so; all of them where no ending is given."""
    named = [(name, m) for name, m in part.named_modules() if isinstance(m, nn.Linear)]
    return [m for name, m in named if not endings or name.endswith(endings)]


def zero_difference(one: nn.Linear) -> torch.Tensor:
    """No difference yet from a linear map's weight [out, in]: float32, where the map sits."""
    return torch.zeros(one.out_features, one.in_features, device=one.weight.device)


@dataclass(frozen=True)
class Difference:
    """What is added to a linear map's outputs when its weight differs by `delta` [out, in]."""

    delta: torch.Tensor

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        return F.linear(inputs, self.delta)


def differences(maps: Sequence[nn.Linear], deltas: Iterable[torch.Tensor]) -> dict[nn.Module, Difference]:
    """The `Difference` of each map."""
    return {one: Difference(delta) for one, delta in zip(maps, deltas, strict=True)}


def module_of(name: str) -> ModuleType:
    """The editor's module, `stages.editing.<name>`."""
    return importlib.import_module(f"stages.editing.{name.replace('-', '_')}")


def load_editor(name: str) -> Callable[..., Edit]:
    """The `edit` function of an editor."""
    return module_of(name).edit


def attempt(make: Callable[[], Edit]) -> Edit:
    """The edit that `make` makes; one that diverges (FloatingPointError) changes nothing and is marked."""
    try:
        return make()
    except FloatingPointError:
        return Edit(loss=float("nan"), diverged=True)


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
