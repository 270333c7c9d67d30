"""Typed, validated view of params.yaml, and the few rules every stage shares (errors, seeds, atomic files).

Importing this module is cheap on purpose: the names of editors, sources and backbone families are found by
looking at file names, so a wrong params.yaml stops a stage before any model library is loaded.
"""

import errno
import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

T = TypeVar("T")
# A check takes (key, value, stages folder) and returns the value for the dataclass, or raises UserError.
Check = Callable[[str, Any, Path], Any]

STAGES = Path(__file__).parent
SPANS = ("prompt", "question", "image", "last", "teacher_forced")
STRATEGIES = ("balanced", "constant", "positive", "negative", "mean")
DISTANCES = ("euclidean", "cosine")
NEGATIVES = ("black", "white", "noise", "random", "nearest", "other_question")
ROUTERS = ("never", "always", "codebook", "own", "oracle")
# Modules of stages/editing that serve the editors and are none themselves.
NOT_EDITORS = ("editor", "transform", "codebook", "trace", "full", "fitting", "sentences", "partial")
# What the system says when the fault is the user's disk or rights, not the program's.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


class UserError(Exception):
    """A mistake the user can mend; its text is one line: the key, its value, what is allowed."""


def refuse(key: str, value: Any, allowed: str) -> UserError:
    return UserError(f"{key}: {value!r} is not allowed; allowed: {allowed}")


def number(low: float = -math.inf, high: float = math.inf, *, above: float = -math.inf, whole: bool = False) -> Check:
    """A finite number in [low, high] and > above; `whole` asks for an int."""
    words = ["a whole number" if whole else "a number"]
    if math.isfinite(low):
        words.append(f"from {low} to {high}" if math.isfinite(high) else f">= {low}")
    if math.isfinite(above):
        words.append(f"> {above}")

    def check(key: str, value: Any, stages: Path) -> float | int:
        right_type = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not (right_type and math.isfinite(value) and low <= value <= high and value > above):
            raise refuse(key, value, " ".join(words))
        return int(value) if whole else float(value)

    return check


count = partial(number, whole=True)


def one_of(*allowed: str) -> Check:
    def check(key: str, value: Any, stages: Path) -> str:
        if value not in allowed:
            raise refuse(key, value, ", ".join(allowed))
        return value

    return check


def _module_of(folder: str, *others: str) -> Check:
    """The name of a module in stages/<folder>, with hyphens or underscores, that is none of `others`."""

    def check(key: str, value: Any, stages: Path) -> str:
        found = {path.stem for path in (stages / folder).glob("*.py")} - {"__init__", "__main__", *others}
        if not isinstance(value, str) or value.replace("-", "_") not in found:
            raise refuse(key, value, ", ".join(sorted(found)) or f"nothing: no module in stages/{folder}")
        return value

    return check


def entry(check: Check, **default: Any) -> Any:
    """A dataclass field that is read from params.yaml through `check`."""
    return field(metadata={"check": check}, **default)


@dataclass(frozen=True)
class Key:
    """Which positions' hidden states are averaged into the key φ(x) (§2)."""

    span: str = entry(one_of(*SPANS))


@dataclass(frozen=True)
class Radius:
    """How far an edit reaches (§2); balanced: alpha · d⁺ + (1 - alpha) · d⁻."""

    strategy: str = entry(one_of(*STRATEGIES))
    alpha: float = entry(number(0, 1))
    epsilon: float = entry(number(above=0))
    distance: str = entry(one_of(*DISTANCES))
    positives: int = entry(count(1, 3))
    negative: str = entry(one_of(*NEGATIVES))


@dataclass(frozen=True)
class Metrics:
    """The paired bootstrap over edits: number of resamples and the level of the interval (§3)."""

    resamples: int = entry(count(1))
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
class Backbone:
    """A vision-language model. `layer` counts decoder layers from 0; opening the model checks its bound."""

    name: str
    family: str = entry(_module_of("backbone/families"))
    layer: int = entry(count(0))
    evaluated: int = entry(count(1))
    texts_evaluated: int = entry(count(1))
    train: Train = entry(lambda key, value, stages: read_section(Train, key, value, stages))


@dataclass(frozen=True)
class Dataset:
    """A set of edits: edits in each split, probes of each locality kind for each edit (§4); the rest is the source's own."""

    name: str
    source: str = entry(_module_of("okedit/sources"))
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
        allowed = [f.name for c in (self, cls) for f in fields(c) if f.name not in ("name", "own")]
        _expect(f"datasets.{self.name}.", self.own, allowed, [])
        return read_section(cls, f"datasets.{self.name}", self.own, STAGES)


@dataclass(frozen=True)
class Method:
    """An editor, its router and its hyper-parameters: `hyper` holds the entries that only the editor knows (see `settings`).

    `key` and `radius` are the global sections under the method's own entries.
    """

    name: str
    key: Key
    radius: Radius
    editor: str = entry(_module_of("editing", *NOT_EDITORS))
    router: str = entry(one_of(*ROUTERS))
    hyper: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, cls: type[T]) -> T:
        """The hyper-parameters as an editor's `Settings`, a dataclass of `entry` fields; UserError names a wrong one."""
        return read_section(cls, f"methods.{self.name}", self.hyper, STAGES)


@dataclass(frozen=True)
class Params:
    """All of params.yaml. The look-ups by name raise a UserError that lists the names there are."""

    seed: int
    threads: int
    key: Key
    radius: Radius
    metrics: Metrics
    sight: Sight
    backbones: Mapping[str, Backbone]
    datasets: Mapping[str, Dataset]
    methods: Mapping[str, Method]
    seeds: Mapping[str, int]

    def backbone(self, name: str) -> Backbone:
        return _pick("backbone", self.backbones, name)

    def dataset(self, name: str) -> Dataset:
        return _pick("dataset", self.datasets, name)

    def method(self, name: str) -> Method:
        return _pick("method", self.methods, name)


def load(path: str | Path = "params.yaml", stages: Path = STAGES) -> Params:
    """Read and validate the whole file; any fault is a UserError. Modules are looked up under `stages`."""
    raw = _parse(Path(path))
    names = [f.name for f in fields(Params)]
    _expect("", raw, names, names)
    key = read_section(Key, "key", raw["key"], stages)
    radius = read_section(Radius, "radius", raw["radius"], stages)

    def method(at: str, value: Any, name: str) -> Method:
        own = _mapping(at, value)
        own_key = read_section(Key, f"{at}.key", own.get("key", {}), stages, base=key)
        own_radius = read_section(Radius, f"{at}.radius", own.get("radius", {}), stages, base=radius)
        common = {k: v for k, v in own.items() if k in ("editor", "router")}
        hyper = {k: v for k, v in own.items() if k not in ("editor", "router", "key", "radius")}
        return read_section(Method, at, common, stages, name=name, key=own_key, radius=own_radius, hyper=hyper)

    def seed(at: str, value: Any, name: str = "") -> int:
        return count(0, 2**32 - 1)(at, value, stages)

    return Params(
        seed=seed("seed", raw["seed"]),
        threads=count(1, 1024)("threads", raw["threads"], stages),
        key=key,
        radius=radius,
        metrics=read_section(Metrics, "metrics", raw["metrics"], stages),
        sight=read_section(Sight, "sight", raw["sight"], stages),
        backbones=_axis("backbones", raw, partial(read_section, Backbone, stages=stages)),
        datasets=_axis("datasets", raw, partial(read_section, Dataset, stages=stages)),
        methods=_axis("methods", raw, method),
        seeds=_axis("seeds", raw, seed),
    )


def _parse(path: Path) -> Mapping[str, Any]:
    try:
        return _mapping(str(path), YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    except YAMLError as error:
        marked = isinstance(error, MarkedYAMLError) and error.problem_mark
        where = f"line {error.problem_mark.line + 1}: {error.problem}" if marked else str(error)
        raise UserError(f"{path}: not valid YAML: {where}") from error


def _mapping(at: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise refuse(at, value, "a section of `key: value` lines")
    return value


def _expect(at: str, section: Mapping[str, Any], allowed: list[str], needed: list[str]) -> None:
    for name in section:
        if name not in allowed:
            raise UserError(f"{at}{name}: {section[name]!r}: unknown key; allowed: {', '.join(allowed)}")
    for name in needed:
        if name not in section:
            raise UserError(f"{at}{name}: missing; needed: {', '.join(needed)}")


def read_section(cls: type[T], at: str, value: Any, stages: Path, *, base: T | None = None, **given: Any) -> T:
    """Read the section `value` into `cls`; what it leaves out comes from `base` or the field's default, and what it has
    besides goes to the field `own`, if there is one."""
    section, names = _mapping(at, value), [f.name for f in fields(cls)]
    checked = {f.name: f for f in fields(cls) if "check" in f.metadata}
    needed = [name for name, f in checked.items() if base is None and f.default is MISSING]
    if "own" in names:
        given["own"] = {name: entry for name, entry in section.items() if name not in checked}
    _expect(f"{at}.", section, [*given.get("own", ()), *(n for n in names if n != "name")], needed)
    present = [f for name, f in checked.items() if name in section]
    read = {f.name: f.metadata["check"](f"{at}.{f.name}", section[f.name], stages) for f in present}
    return replace(base, **read) if base is not None else cls(**given, **read)


def _axis(axis: str, raw: Mapping[str, Any], read: Callable[..., T]) -> dict[str, T]:
    """One entry a name. Names become parts of file names such as <dataset>-<backbone>-<method>.parquet, so
    only a backbone, in the middle, may have a hyphen: every file name then has one reading."""
    section = _mapping(axis, raw[axis])
    hyphen = "-" if axis == "backbones" else ""
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
