"""What an assembled backbone in `data/backbones/<name>/` and a checkpoint's folder are made of, known without opening a model:
importing this loads no model library. Whatever is cut, foreign or broken is a UserError that names the file.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from stages import code
from stages.params import UserError, within
from stages.sections import read_json, readable

POINTER = "checkpoint.json"
READ = ("*.json", "*.txt", "*.model", "*.jinja")  # the small files a checkpoint is read from
SAMPLE = 4096  # bytes of each tensor that enter the digest
HEADER = 100_000_000  # bytes of a safetensors header: its library reads no longer one
LAYERS = 1000  # more decoder layers than any model has
LIBRARY = "the code that transformers has itself"
AGAIN, DOWNLOAD = "`./study repro` makes it again", "download it again"


@dataclass(frozen=True)
class Pointer:
    """A resolved checkpoint: `revision` is a commit of the hub, None for a folder."""

    checkpoint: str
    revision: str | None
    dtype: str
    device_map: str
    quantization: str
    template: str | None
    digest: str
    architecture: str | None = None  # the configuration's `model_type`; unknown to pointers of earlier versions
    layers: int | None = None  # decoder layers; likewise

    @property
    def how(self) -> str:
        """A digest of the checkpoint and of how it is loaded."""
        how = json.dumps([self.digest, self.dtype, self.quantization, self.template])
        return hashlib.sha256(how.encode()).hexdigest()


def read(folder: Path) -> Pointer | None:
    """What an assembled backbone points to, None where it is embedded; UserError where it is not there or cannot be read."""
    if (path := folder / POINTER).exists():
        found, known = read_json(path, AGAIN), {field.name: field for field in fields(Pointer)}
        texts = [name for name in ("checkpoint", "dtype", "device_map", "quantization", "digest") if name in found]
        if len(texts) < 5 or not known.keys() >= found.keys() or not all(isinstance(found[name], str) for name in texts):
            raise UserError(f"backbone: {path} is no pointer to a checkpoint; {AGAIN}")
        return Pointer(**{"revision": None, "template": None} | found)
    if not (folder / "config.json").exists():
        raise UserError(f"backbone: {folder} holds no checkpoint; run the `backbone` stage first")
    return None


def adapters(folder: Path) -> list[str]:
    """The modules that say how an assembled backbone's architecture is edited."""
    found = read(folder)
    if found is not None:
        return code.adapters(found.architecture)
    return code.adapters(read_json(folder / "config.json", AGAIN).get("model_type"))


def weights(folder: Path) -> str:
    """A digest of an embedded backbone's weights; UserError where they are missing."""
    with readable(path := folder / "model.safetensors", AGAIN), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(folder: Path, layer: int | None) -> str:
    """The `fingerprint` that `Backbone.open` gives an assembled backbone, without loading it; UserError for a layer that it has
    not.
    """
    pointer = read(folder)
    if layer is None:
        from stages.backbone import checkpoints  # which layer is the last, its libraries know

        layer = checkpoints.last_layer(folder, pointer)
    within(depth(folder), folder.name, {f"backbones.{folder.name}.layer": layer})
    return f"{(weights(folder) if pointer is None else pointer.how)[:16]}-{layer}"


def depth(folder: Path) -> int | None:
    """How many decoder layers an assembled backbone has, None where its configuration or pointer does not say."""
    if (pointer := read(folder)) is not None:
        return pointer.layers
    text = read_json(folder / "config.json", AGAIN).get("text_config")
    found = text.get("num_hidden_layers") if isinstance(text, Mapping) else None
    return found if isinstance(found, int) else None


# -- files ------------------------------------------------------------------------------------------------------------------


def check_code(folder: Path) -> None:
    """UserError for a checkpoint's folder that asks for code of its own or of others, or whose small files cannot be read."""
    for path in _small(folder):
        if path.suffix != ".json":
            continue
        for key, value in _entries(read_json(path, DOWNLOAD)):
            if key == "auto_map" and not isinstance(value, int | None):  # as a word of a vocabulary it has a number
                raise UserError(f"{path}: auto_map: the checkpoint asks to run its own code; allowed: {LIBRARY}")
            if str(key).endswith("attn_implementation") and "/" in str(value):
                raise UserError(f"{path}: {key}: the checkpoint asks to run code of the hub; allowed: {LIBRARY}")
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{folder}: adapter_config.json: an adapter to another model; allowed: a whole model, the adapter merged")


def _entries(value: Any) -> Iterator[tuple[Any, Any]]:
    """All keys in an object, however deep, with what they hold."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield from one.items()
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def _small(folder: Path) -> list[Path]:
    found = {path for pattern in READ for path in folder.rglob(pattern) if path.is_file()}
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, as its index lists them."""
    index, names = folder / "model.safetensors.index.json", ["model.safetensors"]
    if index.exists():
        listed = read_json(index, DOWNLOAD).get("weight_map")
        names = list(listed.values()) if isinstance(listed, dict) else []
        if not names or not all(isinstance(name, str) and name and Path(name).name == name for name in names):
            raise UserError(f"{index}: weight_map: needed: for each weight the name of a file beside it; {DOWNLOAD}")
        names = sorted(set(names))
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        do = "download it again, or save it as safetensors with `save_pretrained`"
        raise UserError(f"checkpoint: {folder} holds no {missing[0]}; {do}")
    return [folder / name for name in names]


def header(path: Path, remedy: str = DOWNLOAD) -> tuple[int, dict[str, Any]]:
    """The length of a safetensors header and what it says of each tensor; UserError for a file that is cut, empty or foreign."""
    broken = UserError(f"{path}: cut, or no safetensors file; {remedy}")
    try:
        with path.open("rb") as file:
            size, length = path.stat().st_size, int.from_bytes(file.read(8), "little")
            if not 0 < length <= min(size - 8, HEADER):
                raise broken
            said = json.loads(file.read(length))
        held = {name: one for name, one in said.items() if name != "__metadata__"}
        ends = [one["data_offsets"] for one in held.values()]
        whole = all(type(n) is int and n >= 0 for one in held.values() for n in [*one["shape"], *one["data_offsets"]])
        if not whole or not all(len(one) == 2 and one[0] <= one[1] for one in ends):
            raise broken
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}; {remedy}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise broken from None
    if max([end for _, end in ends], default=0) != size - 8 - length:
        raise broken
    return length, held


def tensors(path: Path) -> Iterator[tuple[tuple[int, ...], int]]:
    """Shape and place in the file, in bytes, of every tensor of a safetensors file, by its header alone."""
    length, held = header(path)
    for name in sorted(held):
        yield tuple(held[name]["shape"]), 8 + length + held[name]["data_offsets"][0]


def digest(folder: Path) -> str:
    """A digest of a checkpoint's files that reads little of the weights (see the text of `stages.backbone.checkpoints`)."""
    result = hashlib.sha256()
    for path in _small(folder):
        result.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode() + path.read_bytes())
    for path in weight_files(folder):
        result.update(f"{path.name} {path.stat().st_size}\n".encode())
        places = [start for _, start in tensors(path)]
        with path.open("rb") as file:
            result.update(file.read(8 + int.from_bytes(file.read(8), "little")))
            for start in places:
                file.seek(start)
                result.update(file.read(SAMPLE))
    return result.hexdigest()
