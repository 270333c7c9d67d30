"""The sections of params.yaml as dataclasses: every entry with the check of its value.

Importing this module is cheap on purpose: the names of editors, sources and backbone families are found by looking at file names.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from stages.sections import (
    UserError,
    count,
    counts,
    counts_of,
    entry,
    expect,
    module_of,
    module_text,
    number,
    one_of,
    read_section,
    refuse,
    some_of,
    template_text,
    text,
    texts,
)

T = TypeVar("T")

STAGES = Path(__file__).parent
PROMPT_SPANS = ("prompt", "question", "image", "last")
SPANS = (*PROMPT_SPANS, "teacher_forced")
CONNECTOR = "connector"
STRATEGIES = ("balanced", "constant", "positive", "negative", "mean")
WEIGHED = ("balanced", "mean")  # strategies that α has a part in
DEV = "dev"
DRAWS = 100_000  # of a bootstrap or a permutation test, times edits, are in memory at once
COMBINATIONS = 1000  # of hyper-parameters that a method may choose from
TOWER = "tower"
DISTANCES = ("euclidean", "cosine")
POSITIVES = 3  # rephrasings for training an edit has
VIEWS = 3  # views of its picture
NEGATIVES = ("black", "white", "noise", "random", "nearest", "other_question")
DTYPES = ("float32", "bfloat16", "float16")
DEVICE_MAPS = ("auto", "cpu", "cuda")
DEVICES = ("cpu", "cuda")
QUANTIZATIONS = ("none", "8bit")
ROUTERS = ("never", "always", "codebook", "builtin", "oracle")
# Kinds of probes of which an edit has several.
PROBES = (
    "text_generality", "image_generality", "joint_generality", "near_image", "far_image", "other_question", "unrelated",
    "text_only",
)  # fmt: skip


@dataclass(frozen=True)
class Key:
    """Which positions' hidden states are averaged into the key φ(x) (§2): a span of the edited layer's, or one of `keys`."""

    span: str = entry(text)


@dataclass(frozen=True)
class Place:
    """Where another key is read: `where` is `connector`, what enters the decoder, or a decoder layer, whose edited linear map's
    input it is; and the positions that it is the mean of.
    """

    where: str | int = entry(count(0, word=CONNECTOR))
    span: str = entry(one_of(*PROMPT_SPANS))


@dataclass(frozen=True)
class Radius:
    """How far an edit reaches (§2); balanced: alpha · d⁺ + (1 - alpha) · d⁻."""

    strategy: str = entry(one_of(*STRATEGIES))
    alpha: float | str = entry(number(0, 1, word=DEV))  # DEV: chosen on dev edits
    epsilon: float | str = entry(number(above=0, word=DEV))  # likewise
    distance: str = entry(one_of(*DISTANCES))
    positives: int = entry(count(1, POSITIVES))
    negative: tuple[str, ...] = entry(some_of(*NEGATIVES))


@dataclass(frozen=True)
class Metrics:
    """The paired bootstrap over edits: number of resamples and the level of the interval (§3); permutations of paired tests."""

    resamples: int = entry(count(1, DRAWS))
    permutations: int = entry(count(1, DRAWS))
    level: float = entry(number(0.5, 0.999))


@dataclass(frozen=True)
class VisionTower:
    """The one tuning of the vision tower that the embedded backbones share (§5)."""

    views: int = entry(count(1))
    steps: int = entry(count(1))
    batch: int = entry(count(2))
    lr: float = entry(number(above=0))


SAMPLINGS = ("concept", "fact")


@dataclass(frozen=True)
class Train:
    """One training of a connector and a low-rank adapter (§5)."""

    family: str = entry(module_of("backbone/families"))
    init_from: str = entry(text)  # tower, or a training before this one
    steps: int = entry(count(1))
    batch: int = entry(count(1))
    sampling: str = entry(one_of(*SAMPLINGS))
    texts: int = entry(count(0))
    lr: float = entry(number(above=0))
    lora_rank: int = entry(count(1))
    feature_noise: float = entry(number(0))
    warmup: float = entry(number(0, 1))

    def depth(self, stages: Path = STAGES) -> int | None:
        """How many decoder layers its model has, as its family's module says in a line LAYERS = …; None where it does not."""
        found = re.search(r"^LAYERS = (\d+)", module_text("backbone/families", self.family, stages), re.M)
        return int(found[1]) if found else None


@dataclass(frozen=True)
class Accuracy:
    """How much each backbone is asked when it is measured on what it sees and knows."""

    evaluated: int = entry(count(1))
    texts_evaluated: int = entry(count(1))


@dataclass(frozen=True)
class Embedded:
    """A vision-language model built from parts. `layer` counts decoder layers from 0; opening the model checks its bound."""

    name: str
    training: str = entry(text)  # an entry of that section: its family and its weights
    layer: int = entry(count(0))


@dataclass(frozen=True)
class Checkpoint:
    """A vision-language model of the hub or in a folder; without a `layer` the architecture's own is edited (§2)."""

    name: str
    checkpoint: str = entry(text)
    revision: str = entry(text, default="main")
    dtype: str = entry(one_of(*DTYPES), default="bfloat16")
    device_map: str = entry(one_of(*DEVICE_MAPS), default="auto")
    quantization: str = entry(one_of(*QUANTIZATIONS), default="none")
    template: str | None = entry(template_text, default=None)
    layer: int | None = entry(count(0), default=None)


Backbone = Embedded | Checkpoint


@dataclass(frozen=True)
class Dataset:
    """A set of edits: edits in each split, probes of each locality kind for each edit (§4); the rest is the source's own."""

    name: str
    source: str = entry(module_of("okedit/sources"))
    test: int = entry(count(1))
    dev: int = entry(count(0))
    train: int = entry(count(0))
    near: int = entry(count(0), default=0)
    far: int = entry(count(0), default=0)
    other_question: int = entry(count(0), default=0)
    unrelated: int = entry(count(0), default=0)
    text_only: int = entry(count(0), default=0)
    own: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, cls: type[T]) -> T:
        """`own` as the source's `Settings`, a dataclass of `entry` fields; UserError names a wrong one."""
        known = [f.name for c in (self, cls) for f in fields(c) if "check" in f.metadata]
        expect(f"datasets.{self.name}.", self.own, known, [])
        return read_section(cls, f"datasets.{self.name}", self.own, STAGES)


@dataclass(frozen=True)
class Edits:
    """How many edits of each dataset are made, and of its train edits learnt from, at most: the first of each split. `probes`:
    how many of each kind an edit is asked, the first ones; all of a kind that is left out.
    """

    test: int = entry(count(1))
    dev: int = entry(count(0))
    train: int = entry(count(0))
    probes: Mapping[str, int] = entry(counts_of(*PROBES), default_factory=dict)


@dataclass(frozen=True)
class Sequence:
    """Editing one model many times over: how many edits, and how many where each goes on from another; their orders, after how
    many all is tested, and probes of each kind. `datasets`, `backbones` and `methods`: of which, and by which. Rollouts, which
    make every order's edits anew, are `shared_elsewhere` long and have `orders_elsewhere` but for the first dataset and backbone.
    """

    datasets: tuple[str, ...] = entry(texts)
    backbones: tuple[str, ...] = entry(texts)
    methods: tuple[str, ...] = entry(texts)
    edits: int = entry(count(1))
    shared: int = entry(count(1))
    shared_elsewhere: int = entry(count(1))
    orders: int = entry(count(1))
    orders_elsewhere: int = entry(count(1))
    at: tuple[int, ...] = entry(counts(1))
    probes: int = entry(count(1))

    def rollouts(self, dataset: str, backbone: str) -> tuple[int, int]:
        """How many edits go on from each other there, and in how many orders."""
        if (dataset, backbone) == (self.datasets[0], self.backbones[0]):
            return self.shared, self.orders
        return min(self.shared, self.shared_elsewhere), min(self.orders, self.orders_elsewhere)


@dataclass(frozen=True)
class Layers:
    """BalancEdit at other depths: the decoder layers, how many test edits, and how many probes of each kind."""

    at: tuple[int, ...] = entry(counts(0))
    test: int = entry(count(1))
    probes: int = entry(count(1))


@dataclass(frozen=True)
class Method:
    """An editor, its router and the editor's own hyper-parameters.

    `key`, `radius` and `sequence` are the global sections under the method's own entries. `threshold` is that of a `builtin`
    router, `published` the value of the scope's number in the method's paper or official code; a random method is repeated with
    the first `seeds`, all where there is no number. `scope` says how far its edits reach behind a codebook. Where it has another
    method's `edits`, it makes none.
    """

    name: str
    key: Key
    radius: Radius
    sequence: Sequence
    editor: str = entry(module_of("editing/editors", has="class Settings"))
    router: str = entry(one_of(*ROUTERS))
    threshold: float | str = entry(number(word=DEV), default=DEV)
    published: float | None = entry(number(), default=None)
    seeds: int | None = entry(count(1), default=None)
    scope: str = entry(module_of("scoring/scopes"), default="ball")
    edits: str | None = None
    hyper: Mapping[str, Any] = field(default_factory=dict)

    @property
    def made_as(self) -> str:
        """The method whose edits these are."""
        return self.edits or self.name

    @property
    def number(self) -> str | None:
        """The name of the number that decides how far the method's edits reach: alpha, epsilon or threshold; None without one."""
        if self.router == "builtin":
            return "threshold"
        if self.router != "codebook":
            return None
        return "alpha" if self.radius.strategy in WEIGHED else "epsilon" if self.radius.strategy == "constant" else None

    @property
    def number_value(self) -> float | str | None:
        """That number, `dev` where it is to be chosen on dev edits."""
        if self.number is None:
            return None
        return self.threshold if self.number == "threshold" else getattr(self.radius, self.number)

    def grid(self, cls: type[T]) -> list[T]:
        """All combinations of the hyper-parameters, of which a list holds several values to choose from, as an editor's
        `Settings`, a dataclass of `entry` fields; UserError names a wrong one.
        """
        at, several = f"methods.{self.name}", {k: v if isinstance(v, list) else [v] for k, v in self.hyper.items()}
        for name in (name for name, values in several.items() if not values):
            raise refuse(f"{at}.{name}", [], "a value, or a list of at least one")
        if (number := math.prod(map(len, several.values()))) > COMBINATIONS:
            raise UserError(f"{at}: {number} combinations to choose from; allowed: at most {COMBINATIONS}")
        return [read_section(cls, at, dict(zip(several, one, strict=True)), STAGES) for one in product(*several.values())]
