"""Typed, validated view of params.yaml, and the few rules every stage shares (errors, seeds, atomic files).

Importing this module is cheap on purpose: the names of editors, sources and backbone families are found by
looking at file names, so a wrong params.yaml stops a stage before any model library is loaded.
"""

import errno
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from stages.sections import (
    UserError,
    count,
    entry,
    expect,
    mapping,
    module_of,
    number,
    one_of,
    read_section,
    refuse,
    template_text,
    text,
)

T = TypeVar("T")

STAGES = Path(__file__).parent
SPANS = ("prompt", "question", "image", "last", "teacher_forced")
STRATEGIES = ("balanced", "constant", "positive", "negative", "mean")
DEV = "dev"
DISTANCES = ("euclidean", "cosine")
NEGATIVES = ("black", "white", "noise", "random", "nearest", "other_question")
DTYPES = ("float32", "bfloat16", "float16")
DEVICE_MAPS = ("auto", "cpu", "cuda")
QUANTIZATIONS = ("none", "8bit")
ROUTERS = ("never", "always", "codebook", "own", "oracle")
# Modules of stages/editing that serve the editors and are none themselves.
NOT_EDITORS = ("editor", "transform", "codebook", "trace", "full", "fitting", "sentences", "partial", "cell", "tuning")
# What the system says when the fault is the user's disk or rights, not the program's.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


@dataclass(frozen=True)
class Key:
    """Which positions' hidden states are averaged into the key φ(x) (§2)."""

    span: str = entry(one_of(*SPANS))


@dataclass(frozen=True)
class Radius:
    """How far an edit reaches (§2); balanced: alpha · d⁺ + (1 - alpha) · d⁻."""

    strategy: str = entry(one_of(*STRATEGIES))
    alpha: float | str = entry(number(0, 1, word=DEV))  # DEV: chosen on dev edits
    epsilon: float = entry(number(above=0))
    distance: str = entry(one_of(*DISTANCES))
    positives: int = entry(count(1, 3))
    negative: str = entry(one_of(*NEGATIVES))


@dataclass(frozen=True)
class Metrics:
    """The paired bootstrap over edits: number of resamples and the level of the interval (§3); permutations of paired tests."""

    resamples: int = entry(count(1))
    permutations: int = entry(count(1))
    level: float = entry(number(0.5, 0.999))


@dataclass(frozen=True)
class Sight:
    """The one tuning of the vision tower that the embedded backbones share (§5)."""

    views: int = entry(count(1))
    steps: int = entry(count(1))
    batch: int = entry(count(2))
    lr: float = entry(number(above=0))


@dataclass(frozen=True)
class Train:
    """One training of a backbone's connector and low-rank adapter (§5)."""

    steps: int = entry(count(1))
    batch: int = entry(count(1))
    texts: int = entry(count(0))
    lr: float = entry(number(above=0))
    lora_rank: int = entry(count(1))
    feature_noise: float = entry(number(0))
    warmup: float = entry(number(0, 1))


@dataclass(frozen=True)
class Accuracy:
    """How much each backbone is asked when it is measured on what it sees and knows."""

    evaluated: int = entry(count(1))
    texts_evaluated: int = entry(count(1))


@dataclass(frozen=True)
class Embedded:
    """A vision-language model built from parts. `layer` counts decoder layers from 0; opening the model checks its bound."""

    name: str
    family: str = entry(module_of("backbone/families"))
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
        expect(f"datasets.{self.name}.", self.own, [f.name for c in (self, cls) for f in fields(c)][1:], [])
        return read_section(cls, f"datasets.{self.name}", self.own, STAGES)


@dataclass(frozen=True)
class Edits:
    """How many edits of each dataset are made, at most: the first of each split."""

    test: int = entry(count(1))
    dev: int = entry(count(0))


@dataclass(frozen=True)
class Method:
    """An editor, its router and the editor's own hyper-parameters.

    `key` and `radius` are the global sections under the method's own entries.
    """

    name: str
    key: Key
    radius: Radius
    editor: str = entry(module_of("editing", *NOT_EDITORS))
    router: str = entry(one_of(*ROUTERS))
    hyper: Mapping[str, Any] = field(default_factory=dict)

    def grid(self, cls: type[T]) -> list[T]:
        """All combinations of the hyper-parameters, of which a list holds several values to choose from, as an editor's
        `Settings`, a dataclass of `entry` fields; UserError names a wrong one.
        """
        at, several = f"methods.{self.name}", {k: v if isinstance(v, list) else [v] for k, v in self.hyper.items()}
        for name in (name for name, values in several.items() if not values):
            raise refuse(f"{at}.{name}", [], "a value, or a list of at least one")
        return [read_section(cls, at, dict(zip(several, one, strict=True)), STAGES) for one in product(*several.values())]


@dataclass(frozen=True)
class Params:
    """All of params.yaml. The look-ups by name raise a UserError that lists the names there are."""

    seed: int
    threads: int
    key: Key
    radius: Radius
    metrics: Metrics
    sight: Sight
    training: Mapping[str, Train]
    accuracy: Accuracy
    backbones: Mapping[str, Backbone]
    datasets: Mapping[str, Dataset]
    edits: Edits
    methods: Mapping[str, Method]
    seeds: Mapping[str, int]

    def backbone(self, name: str) -> Backbone:
        return _pick("backbone", self.backbones, name)

    def trained(self, name: str) -> Train:
        return _pick("training", self.training, name)

    def dataset(self, name: str) -> Dataset:
        return _pick("dataset", self.datasets, name)

    def method(self, name: str) -> Method:
        return _pick("method", self.methods, name)

    def is_ours(self, method: Method) -> bool:
        """Whether it is BalancEdit with the key and the radius of the global sections, and no cross with another's."""
        own = (method.editor, method.router, method.key, method.radius)
        return own == ("balancedit", "codebook", self.key, self.radius)


def load(path: str | Path = "params.yaml", stages: Path = STAGES) -> Params:
    """Read and validate the whole file; any fault is a UserError. Modules are looked up under `stages`."""
    raw = _parse(Path(path))
    names = [f.name for f in fields(Params)]
    expect("", raw, names, names)
    key = read_section(Key, "key", raw["key"], stages)
    radius = read_section(Radius, "radius", raw["radius"], stages)

    def method(at: str, value: Any, name: str) -> Method:
        own = mapping(at, value)
        own_key = read_section(Key, f"{at}.key", own.get("key", {}), stages, base=key)
        own_radius = read_section(Radius, f"{at}.radius", own.get("radius", {}), stages, base=radius)
        common = {k: v for k, v in own.items() if k in ("editor", "router")}
        hyper = {k: v for k, v in own.items() if k not in ("editor", "router", "key", "radius")}
        return read_section(Method, at, common, stages, name=name, key=own_key, radius=own_radius, hyper=hyper)

    def backbone(at: str, value: Any, name: str) -> Backbone:
        if "checkpoint" in mapping(at, value):
            return read_section(Checkpoint, at, value, stages, name=name)
        if "family" not in value:
            raise UserError(f"{at}: needed: family (embedded: and layer) or checkpoint (a real one)")
        return read_section(Embedded, at, value, stages, name=name)

    def train(at: str, value: Any, name: str) -> Train:
        return read_section(Train, at, value, stages)

    def seed(at: str, value: Any, name: str = "") -> int:
        return count(0, 2**32 - 1)(at, value, stages)

    edits = read_section(Edits, "edits", raw["edits"], stages)
    datasets = _axis("datasets", raw, partial(read_section, Dataset, stages=stages))
    if radius.alpha == DEV and (without := [d.name for d in datasets.values() if not min(d.dev, edits.dev)]):
        raise UserError(f"radius.alpha: {DEV!r} needs dev edits of {', '.join(without)}; allowed: a number from 0 to 1")

    return Params(
        seed=seed("seed", raw["seed"]),
        threads=count(1, 1024)("threads", raw["threads"], stages),
        key=key,
        radius=radius,
        metrics=read_section(Metrics, "metrics", raw["metrics"], stages),
        sight=read_section(Sight, "sight", raw["sight"], stages),
        training=_axis("training", raw, train),
        accuracy=read_section(Accuracy, "accuracy", raw["accuracy"], stages),
        backbones=_axis("backbones", raw, backbone),
        datasets=datasets,
        edits=edits,
        methods=_axis("methods", raw, method),
        seeds=_axis("seeds", raw, seed),
    )


def _parse(path: Path) -> Mapping[str, Any]:
    try:
        return mapping(str(path), YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    except YAMLError as error:
        marked = isinstance(error, MarkedYAMLError) and error.problem_mark
        where = f"line {error.problem_mark.line + 1}: {error.problem}" if marked else str(error)
        raise UserError(f"{path}: not valid YAML: {where}") from error


def _axis(axis: str, raw: Mapping[str, Any], read: Callable[..., T]) -> dict[str, T]:
    """One entry a name. Names become parts of file names such as <dataset>-<backbone>-<method>.parquet, so
    only a backbone, in the middle, may have a hyphen: every file name then has one reading."""
    section = mapping(axis, raw[axis])
    hyphen = "-" if axis in ("backbones", "training") else ""
    for name in section:
        if not re.fullmatch(rf"[a-z0-9][a-z0-9_{hyphen}]*", str(name)):
            allowed = "lower-case letters, digits, _" + (" and -" if hyphen else "")
            raise refuse(f"{axis}: the name", name, allowed)
    if not section:
        raise refuse(axis, {}, "at least one entry")
    return {str(name): read(f"{axis}.{name}", value, name=str(name)) for name, value in section.items()}


def _pick(kind: str, axis: Mapping[str, T], name: str) -> T:
    if name not in axis:
        raise refuse(kind, name, ", ".join(axis))
    return axis[name]


def derive_seed(root: int, *names: str) -> int:
    """A 32-bit seed for one purpose, from the root seed and the purpose's names; equal on every machine."""
    return int.from_bytes(hashlib.sha256(json.dumps([root, *names]).encode()).digest()[:4], "big")


@contextmanager
def write_atomically(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling (same ending) to write a file to; it replaces `path` if the block succeeds.

    A full disk or missing rights end in a UserError; whatever goes wrong, the old `path` stays as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno in UNWRITABLE:
            raise UserError(f"{path}: cannot be written: {error}") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def run(main: Callable[[], None]) -> None:
    """Run a stage's main(): a UserError ends in one line on stderr and exit 2, Ctrl-C in one and exit 130."""
    try:
        main()
    except UserError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
