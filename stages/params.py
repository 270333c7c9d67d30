"""Typed, validated view of params.yaml, and the few rules every stage shares (errors, seeds, atomic files).

Importing this module is cheap on purpose: the names of editors, sources and backbone families are found by
looking at file names, so a wrong params.yaml stops a stage before any model library is loaded.
"""

import errno
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from stages.sections import (
    UserError,
    count,
    entries,
    expect,
    mapping,
    module_text,
    number,
    one_of,
    parse,
    read_section,
    refuse,
    texts,
)
from stages.settings import (
    DEV,
    DEVICES,
    SPANS,
    STAGES,
    TOWER,
    Accuracy,
    Backbone,
    Checkpoint,
    Dataset,
    Edits,
    Embedded,
    Key,
    Layers,
    Method,
    Metrics,
    Place,
    Radius,
    Sequence,
    Train,
    VisionTower,
)

T = TypeVar("T")

# MKL's reproducible mode: on one machine a product has the same digits on every run, however memory happens to be aligned.
os.environ.setdefault("MKL_CBWR", "AUTO")

# What the system says when the fault is the user's disk or rights, not the program's.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EEXIST)


@dataclass(frozen=True)
class Params:
    """All of params.yaml. The look-ups by name raise a UserError that lists the names there are."""

    seed: int
    threads: int
    device: str
    workers: int
    batch: int
    cache: float
    key: Key
    keys: Mapping[str, Place]  # those that traces hold beside the edited layer's
    radius: Radius
    metrics: Metrics
    vision_tower: VisionTower
    training: Mapping[str, Train]
    accuracy: Accuracy
    backbones: Mapping[str, Backbone]
    edited: Mapping[str, Backbone]  # those of them that every method edits
    datasets: Mapping[str, Dataset]
    edits: Edits
    methods: Mapping[str, Method]
    scopes: Mapping[str, Method]  # methods that have another's edits
    sequence: Sequence
    layers: Layers
    seeds: Mapping[str, int]

    def backbone(self, name: str) -> Backbone:
        return _pick("backbone", self.backbones, name)

    def trained(self, name: str) -> Train:
        return _pick("training", self.training, name)

    def dataset(self, name: str) -> Dataset:
        return _pick("dataset", self.datasets, name)

    @property
    def compared(self) -> Mapping[str, Method]:
        """All methods: those that make edits, and those that reach otherwise with another's."""
        return {**self.methods, **self.scopes}

    def method(self, name: str) -> Method:
        return _pick("method", self.compared, name)

    def is_ours(self, method: Method) -> bool:
        """Whether it is BalancEdit with the key and the radius of the global sections, and no cross with another's."""
        own = (method.editor, method.router, method.key, method.radius, method.scope, method.edits)
        return own == ("balancedit", "codebook", self.key, self.radius, "ball", None)


def load(path: str | Path = "params.yaml", stages: Path = STAGES) -> Params:
    """Read and validate the whole file; any fault is a UserError. Modules are looked up under `stages`."""
    raw = parse(Path(path))
    names = [f.name for f in fields(Params)]
    expect("", raw, names, names)
    keys = entries("keys", raw["keys"], partial(read_section, Place, stages=stages))
    for name in set(keys) & set(SPANS):
        raise refuse("keys: the name", name, f"another than {', '.join(SPANS)}, the edited layer's own")
    key = read_section(Key, "key", raw["key"], stages)
    one_of(*SPANS, *keys)("key.span", key.span, stages)
    radius = read_section(Radius, "radius", raw["radius"], stages)

    def method(at: str, value: Any, name: str) -> Method:
        own = mapping(at, value)
        own_key = read_section(Key, f"{at}.key", own.get("key", {}), stages, base=key)
        one_of(*SPANS, *keys)(f"{at}.key.span", own_key.span, stages)
        own_radius = read_section(Radius, f"{at}.radius", own.get("radius", {}), stages, base=radius)
        length = mapping(f"{at}.sequence", own.get("sequence", {}))
        expect(f"{at}.sequence.", length, ["shared"], [])  # samples are made for as many edits as the section says
        own_sequence = read_section(Sequence, f"{at}.sequence", length, stages, base=sequence)
        sections = {"key": own_key, "radius": own_radius, "sequence": own_sequence}
        common = {k: v for k, v in own.items() if k in ("editor", "router", "threshold", "published", "seeds", "scope")}
        hyper = {k: v for k, v in own.items() if k not in (*common, *sections)}
        found = read_section(Method, at, common, stages, name=name, **sections, hyper=hyper)
        if found.router == "builtin" and "\nROUTES = True" not in module_text("editing/editors", found.editor, stages):
            raise refuse(f"{at}.router", "builtin", f"another: {found.editor} has no router of its own")
        return found

    def sharing(at: str, value: Any, name: str) -> Method:
        own = mapping(at, value)
        expect(f"{at}.", own, ["edits", "key", "published", "radius", "scope"], ["edits"])
        base = methods[one_of(*methods)(f"{at}.edits", own["edits"], stages)]
        if base.router != "codebook":
            raise refuse(f"{at}.edits", base.name, ", ".join(m.name for m in methods.values() if m.router == "codebook"))
        if name in methods:
            raise refuse("scopes: the name", name, "another than those of methods")
        reach = {k: v for k, v in own.items() if k != "edits"} | {"editor": base.editor, "router": base.router}
        return replace(method(at, reach, name), edits=base.name, hyper=base.hyper, seeds=base.seeds)

    def backbone(at: str, value: Any, name: str) -> Backbone:
        if "checkpoint" in mapping(at, value):
            return read_section(Checkpoint, at, value, stages, name=name)
        if "training" not in value:
            raise UserError(f"{at}: needed: training (embedded: and layer) or checkpoint (a real one)")
        one_of(*training)(f"{at}.training", value["training"], stages)
        return read_section(Embedded, at, value, stages, name=name)

    trained: dict[str, Train] = {}

    def train(at: str, value: Any, name: str) -> Train:
        trained[name] = one = read_section(Train, at, value, stages)
        before = one_of(TOWER, *list(trained)[:-1])(f"{at}.init_from", one.init_from, stages)
        if before != TOWER and one.lora_rank != (rank := trained[before].lora_rank):
            raise refuse(f"{at}.lora_rank", one.lora_rank, f"{rank}, that of {before}, which it starts from")
        return one

    def seed(at: str, value: Any, name: str = "") -> int:
        found = count(0, 2**32 - 1)(at, value, stages)
        if name and name != (first := taken.setdefault(found, name)):
            raise refuse(at, found, f"another value than that of {first}")
        return found

    taken: dict[int, str] = {}

    training = _axis("training", raw, train)
    backbones = _axis("backbones", raw, backbone)
    edited = {one_of(*backbones)("edited", name, stages): backbones[name] for name in texts("edited", raw["edited"], stages)}
    edits = read_section(Edits, "edits", raw["edits"], stages)
    datasets = _axis("datasets", raw, partial(read_section, Dataset, stages=stages))
    sequence = read_section(Sequence, "sequence", raw["sequence"], stages)
    methods = _axis("methods", raw, method)
    scopes = entries("scopes", raw["scopes"], sharing, name=True)
    without = [d.name for d in datasets.values() if not min(d.dev, edits.dev)]
    for one in [*methods.values(), *scopes.values()]:
        if one.number_value == DEV and without:
            at = {"alpha": "radius.alpha", "epsilon": "radius.epsilon", "threshold": f"methods.{one.name}.threshold"}[one.number]
            raise UserError(f"{at}: {DEV!r} needs dev edits of {', '.join(without)}; allowed: a number")
    layers = read_section(Layers, "layers", raw["layers"], stages)
    asked = where(keys)
    for name, one in backbones.items():
        if isinstance(one, Embedded) and (depth := training[one.training].depth(stages)) is not None:
            within(depth, name, {f"backbones.{name}.layer": one.layer})
            within(depth, name, {**asked, "layers.at": max(layers.at)} if name in edited else {})
    for axis, known in (("datasets", datasets), ("backbones", edited), ("methods", {**methods, **scopes})):
        for one in getattr(sequence, axis):
            one_of(*known)(f"sequence.{axis}", one, stages)

    return Params(
        seed=seed("seed", raw["seed"]),
        threads=count(1, 1024)("threads", raw["threads"], stages),
        device=one_of(*DEVICES)("device", raw["device"], stages),
        workers=count(1, 1024)("workers", raw["workers"], stages),
        batch=count(1)("batch", raw["batch"], stages),
        cache=number(0)("cache", raw["cache"], stages),
        key=key,
        keys=keys,
        radius=radius,
        metrics=read_section(Metrics, "metrics", raw["metrics"], stages),
        vision_tower=read_section(VisionTower, "vision_tower", raw["vision_tower"], stages),
        training=training,
        accuracy=read_section(Accuracy, "accuracy", raw["accuracy"], stages),
        backbones=backbones,
        edited=edited,
        datasets=datasets,
        edits=edits,
        methods=methods,
        scopes=scopes,
        sequence=sequence,
        layers=layers,
        seeds=_axis("seeds", raw, seed),
    )


def where(keys: Mapping[str, Place]) -> dict[str, int | str]:
    """Where each of `keys` is read, by its place in params.yaml."""
    return {f"keys.{name}.where": place.where for name, place in keys.items()}


def _axis(axis: str, raw: Mapping[str, Any], read: Callable[..., T]) -> dict[str, T]:
    """One entry a name. Names become parts of file names such as <dataset>-<backbone>-<method>.parquet, so
    only a backbone, in the middle, may have a hyphen: every file name then has one reading."""
    if not (found := entries(axis, raw[axis], read, "-" if axis in ("backbones", "training") else "", name=True)):
        raise refuse(axis, {}, "at least one entry")
    return found


def within(depth: int | None, backbone: str, asked: Mapping[str, int | str | None]) -> None:
    """UserError for a key of params.yaml that asks for a decoder layer which a backbone of so many does not have; nothing where
    their number is not known.
    """
    for key, layer in asked.items():
        if depth is not None and isinstance(layer, int) and not 0 <= layer < depth:
            raise refuse(key, layer, f"0 to {depth - 1}, the decoder layers of {backbone}")


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
    except Exception as error:
        full = "No space left on device" in str(error)  # as libraries say it that write by themselves
        if full or isinstance(error, OSError) and error.errno in UNWRITABLE:
            raise UserError(f"{path}: cannot be written: {error}") from error
        raise
    finally:
        with suppress(OSError):  # what cannot be written may not be removed either: the line above says why
            temporary.unlink(missing_ok=True)


def _refused(line: str) -> NoReturn:
    print("error: " + " ".join(line.split()), file=sys.stderr)
    sys.exit(2)


def run(main: Callable[[], None]) -> None:
    """Run a stage's main(): a UserError ends in one line on stderr and exit 2, Ctrl-C in one and exit 130."""
    try:
        main()
    except UserError as error:
        _refused(str(error))
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        _refused(f"{error.filename or 'a file'}: cannot be written: {error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
