"""The interface every editor implements, and the optimisation loop that they share.

An editor is a module of `stages/editing/editors`: `Settings`, a dataclass of its hyper-parameters (`stages.params.entry` fields),
and `edit(backbone, request, settings) -> Edit`. One that learns from the train split also has `fit` (see
`stages.editing.fitting`); its `edit` takes what that returned as a fourth argument. Three flags say more. `STOCHASTIC = True`:
edits depend on `settings["seed"]`, and are repeated with every seed. `SEQUENTIAL = True`: an edit can go on from another, in a
sequence without a codebook. `MEMORY_BASED = True`: both are then kept. The backbone's own weights are never written to: hooks
apply an `Edit`.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from stages.backbone.vlm import Backbone, Query

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
                stack.enter_context(backbone.bypassing_image_cache())
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


def attempt(make: Callable[[], Edit]) -> Edit:
    """The edit that `make` makes; one that diverges (FloatingPointError) changes nothing and is marked."""
    try:
        return make()
    except FloatingPointError:
        return Edit(loss=float("nan"), diverged=True)
