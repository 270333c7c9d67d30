"""The interface every editor implements, and the optimisation loop that they share.

An editor is a module of `stages/editing/editors`: `Settings`, a dataclass of its hyper-parameters (a `stages.sections.Hyper` with
`entry` fields), and `edit(backbone, request, settings) -> Edit`. One that learns from the train split also has `fit` (see
`stages.editing.fitting`); its `edit` takes what that returned as a fourth argument. Four flags say more. `STOCHASTIC = True`:
edits depend on `settings.seed`, and are repeated with every seed. `SEQUENTIAL = True`: an edit can go on from another, in a
sequence without a codebook. `MEMORY_BASED = True`: both are then kept. `ROUTES = True`: edits have `scores` for `router:
builtin`. The backbone's own weights are never written to: hooks apply an `Edit`.

An editor that can make several edits side by side also has `edit_batch(backbone, requests, settings) -> list[Edit]`, where
`settings` has one entry a request, alike but for the seed. Each of its edits must be the one that `edit` makes alone.
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
# (queries, hidden [B, P, D] that enter layer ℓ, mask [B, P], positions [..., B, P]) → [B] float
Scores = Callable[[Sequence[Query], torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


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
    tokens that stand before every prompt. An edit with none of them changes nothing. `scores` is the editor's own router, where
    it has one: the higher, the more a query is one for the edit. `recall` gives the edit that a query goes to, where an editor
    keeps those of a sequence beside each other. `steps` and `loss` describe the optimisation, `reached` says whether it ended on
    an exact match of the target, `diverged` that the method failed in numbers: such an edit changes nothing.
    """

    output: Output | None = None
    added: Mapping[nn.Module, Added] = field(default_factory=dict)
    prefix: tuple[int, ...] = ()
    scores: Scores | None = None
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

    def changes_image_features(self, backbone: Backbone) -> bool:
        """Whether pictures' tokens are others under the edit."""
        decoder = set(backbone.decoder.modules()) if self.added else set()
        return any(part not in decoder for part in self.added)

    @contextlib.contextmanager
    def applied(self, backbone: Backbone, prompt: torch.Tensor | None = None) -> Iterator[None]:
        """Apply the edit to every row of a batch whose prompt positions are `prompt` [B, P], which only `output` needs.

        The backbone is restored on leaving, also by an error.
        """
        with contextlib.ExitStack() as stack:
            if self.output is not None:
                stack.enter_context(
                    backbone.replaced(
                        lambda inputs, unedited: self.output(inputs, unedited, prompt[:, backbone.unread :]), len(prompt)
                    )
                )
            for part, add in self.added.items():
                hook = part.register_forward_hook(lambda _part, args, out, add=add: out + add(args[0].float()).to(out.dtype))
                stack.callback(hook.remove)
            if self.changes_image_features(backbone):
                stack.enter_context(backbone.bypassing_image_cache())
            yield


DIVERGED = Edit(loss=float("nan"), diverged=True)


def linear_maps(part: nn.Module, *endings: str) -> list[nn.Linear]:
    """The linear maps inside `part` whose names end so; all of them where no ending is given."""
    named = [(name, m) for name, m in part.named_modules() if isinstance(m, nn.Linear)]
    return [m for name, m in named if not endings or name.endswith(endings)]


def zero_difference(one: nn.Linear) -> torch.Tensor:
    """No difference yet from a linear map's weight [out, in]: float32, where the map sits."""
    return torch.zeros(one.out_features, one.in_features, device=one.weight.device)


def linear(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The outputs [..., out] of inputs [..., in] under a weight [out, in], or under one a row of the batch, [B, out, in]."""
    if weight.dim() == 2:
        return F.linear(inputs, weight)
    rows = inputs.reshape(len(weight), -1, inputs.shape[-1])  # OPT flattens batch and positions
    return torch.bmm(rows, weight.mT).reshape(*inputs.shape[:-1], -1)


@dataclass(frozen=True)
class Difference:
    """What is added to a linear map's outputs when its weight differs by `delta` [out, in], or [B, out, in]: one a row."""

    delta: torch.Tensor

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        return linear(inputs, self.delta)


def differences(maps: Sequence[nn.Linear], deltas: Iterable[torch.Tensor]) -> dict[nn.Module, Difference]:
    """The `Difference` of each map."""
    return {one: Difference(delta) for one, delta in zip(maps, deltas, strict=True)}


def attempt(make: Callable[[], Edit]) -> Edit:
    """The edit that `make` makes; one that diverges (FloatingPointError) changes nothing and is marked."""
    try:
        return make()
    except FloatingPointError:
        return DIVERGED


def together(edits: Sequence[Edit], rows: Sequence[int]) -> Edit:
    """One edit for a batch whose rows belong to several edits: the first `rows[0]` to the first edit, and so on. None of them has
    a prefix.
    """
    merged: list[tuple[Edit, int]] = []
    for edit, count in zip(edits, rows, strict=True):
        if merged and merged[-1][0] is edit:
            merged[-1] = edit, merged[-1][1] + count
        else:
            merged.append((edit, count))
    if len(merged) == 1:
        return merged[0][0]
    edits, rows = zip(*merged, strict=True)

    def output(inputs: torch.Tensor, unedited: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        parts = zip(edits, inputs.split(rows), unedited.split(rows), prompt.split(rows), strict=True)
        return torch.cat([old if edit.output is None else edit.output(new, old, seen) for edit, new, old, seen in parts])

    def adding(part: nn.Module) -> Added:
        def add(inputs: torch.Tensor) -> torch.Tensor:
            each = len(inputs) // sum(rows)  # OPT flattens batch and positions
            pairs = zip(edits, inputs.split([count * each for count in rows]), strict=True)
            return torch.cat([edit.added[part](some) if part in edit.added else nothing(part, some) for edit, some in pairs])

        return add

    def nothing(part: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.new_zeros(*inputs.shape[:-1], part.out_features)

    parts = dict.fromkeys(part for edit in edits for part in edit.added)
    return Edit(output if any(edit.output for edit in edits) else None, {part: adding(part) for part in parts})
