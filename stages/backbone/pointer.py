"""What an assembled backbone in `data/backbones/<name>/` is made of, known without opening it: importing this loads no model
library.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from stages import code
from stages.params import UserError

POINTER = "checkpoint.json"


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

    @property
    def how(self) -> str:
        """A digest of the checkpoint and of how it is loaded."""
        how = json.dumps([self.digest, self.dtype, self.quantization, self.template])
        return hashlib.sha256(how.encode()).hexdigest()


def read(folder: Path) -> Pointer | None:
    """What an assembled backbone points to, None where it is embedded; UserError where it is not there."""
    if (folder / POINTER).exists():
        return Pointer(**json.loads((folder / POINTER).read_text()))
    if not (folder / "config.json").exists():
        raise UserError(f"backbone: {folder} holds no checkpoint; run the `backbone` stage first")
    return None


def adapters(folder: Path) -> list[str]:
    """The modules that say how an assembled backbone's architecture is edited."""
    found = read(folder)
    if found is not None:
        return code.adapters(found.architecture)
    return code.adapters(json.loads((folder / "config.json").read_text()).get("model_type"))


def weights(folder: Path) -> str:
    """A digest of an embedded backbone's weights."""
    with (folder / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(folder: Path, layer: int | None) -> str:
    """The `fingerprint` that `Backbone.open` gives an assembled backbone, without loading it."""
    pointer = read(folder)
    if layer is None:
        from stages.backbone import checkpoints  # which layer is the last, its libraries know

        layer = checkpoints.last_layer(folder, pointer)
    return f"{(weights(folder) if pointer is None else pointer.how)[:16]}-{layer}"
