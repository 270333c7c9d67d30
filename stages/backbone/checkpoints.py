"""Real checkpoints: found by hub id or folder, checked before they are loaded, and named downstream by a small pointer.

`data/backbones/<name>/` holds an embedded backbone's weights or, for a real checkpoint, `checkpoint.json` alone: which checkpoint
at which commit, how it is loaded, and a digest. The digest spares every stage the reading of all weights: it covers the small
files (configuration, tokenizer, processor) whole, and of a weight file the size, the header and the first 4 KiB of each tensor.
"""

import importlib.util
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub as hub
import torch
from huggingface_hub import errors
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, BitsAndBytesConfig, PretrainedConfig

import stages.backbone.blip2_lite  # noqa: F401  (registers the embedded tower and BLIP-2 with AutoModel)
from stages.backbone import pointer as pointers
from stages.backbone.adapters import architecture
from stages.backbone.adapters.base import FORMERLY
from stages.backbone.adapters.base import PROMPT as SAID
from stages.backbone.pointer import (
    AGAIN,
    DOWNLOAD,
    LAYERS,
    POINTER,
    Pointer,
    check_code,
    digest,
    tensors,
    weight_files,
)
from stages.params import UserError, within, write_atomically
from stages.sections import read_json, refuse, template_text
from stages.settings import STAGES, Checkpoint

T = TypeVar("T")
PROMPT = "prompt.json"  # what of the adapter's prompt differs for this checkpoint
SIZES = {"float32": 4, "bfloat16": 2, "float16": 2, "8bit": 1}
ROOM = 1.1  # of the weights' size: what loading takes besides
OWN = {"trust_remote_code": False}  # no checkpoint runs code of its own, and nobody is asked whether it may


@dataclass(frozen=True)
class Loaded:
    """A model with what it is asked through; `process` is None for embedded backbones, `digest` names weights and prompt."""

    model: nn.Module
    tokenizer: Any
    process: Any
    prompt: Mapping[str, Any]
    digest: str


def point(settings: Checkpoint, folder: Path) -> Pointer:
    """Resolve a checkpoint, download it where it comes from the hub, check that it can be edited, and leave its pointer in
    `folder`; nothing is copied. Raises UserError for whatever is missing or does not fit.
    """
    found = locate(settings.checkpoint, settings.revision)
    revision = None if is_folder(settings.checkpoint) else found.name
    check(settings, found)
    how = (settings.dtype, settings.device_map, settings.quantization, settings.template)
    config = _config(settings.checkpoint, found)
    layers = config.get_text_config().num_hidden_layers
    pointer = Pointer(settings.checkpoint, revision, *how, digest(found), config.model_type, layers)
    with write_atomically(folder / POINTER) as temporary:
        temporary.write_text(json.dumps(asdict(pointer), indent=2) + "\n")
    return pointer


def load(folder: Path, layer: int | None) -> Loaded:
    """Load an assembled backbone: an embedded one in float32, a real checkpoint as its pointer says. What is edited in `layer`
    stays unquantised.
    """
    if (pointer := pointers.read(folder)) is not None:
        return _follow(pointer, folder.name, layer)
    within(pointers.depth(folder), folder.name, {f"backbones.{folder.name}.layer": layer})
    pointers.header(folder / "model.safetensors", AGAIN)
    prompt, whole = read_prompt(folder / PROMPT, AGAIN), pointers.weights(folder)

    def parts() -> tuple[nn.Module, Any]:
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, **OWN)
        return model, AutoTokenizer.from_pretrained(folder, **OWN)

    model, tokenizer = tried(f"backbone: {folder} cannot be loaded", AGAIN, parts)
    return Loaded(model, tokenizer, None, prompt, whole)


def last_layer(folder: Path, pointer: Pointer | None) -> int:
    """The layer of an assembled backbone that is edited where none is named."""
    found = folder if pointer is None else locate(pointer.checkpoint, pointer.revision, cached=True)
    config = _config(str(found) if pointer is None else pointer.checkpoint, found)
    return architecture(config).last_layer(config)


def _follow(pointer: Pointer, backbone: str, layer: int | None) -> Loaded:
    name = pointer.checkpoint
    found = locate(name, pointer.revision, cached=True)
    if digest(found) != pointer.digest:
        raise UserError(f"checkpoint: {name!r} has changed since the `backbone` stage read it; run `dvc repro -f` of that stage")
    check(pointer, found)
    config = _config(name, found)
    adapter = architecture(config)
    within(config.get_text_config().num_hidden_layers, backbone, {f"backbones.{backbone}.layer": layer})
    prompt = read_prompt(found / PROMPT, DOWNLOAD) if (found / PROMPT).exists() else {}
    quantised = {}
    if pointer.quantization == "8bit":
        edited = adapter.last_layer(config) if layer is None else layer
        kept = [rf".*\.layers\.{edited}\.(mlp\.up_proj|fc2)", "lm_head"]
        quantised["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    how = {"dtype": getattr(torch, pointer.dtype), "device_map": pointer.device_map, "use_safetensors": True, **quantised, **OWN}
    said, do = f"checkpoint: {name!r} cannot be loaded", "download it again, or take a machine with more memory"
    opening = AutoModelForImageTextToText.from_pretrained
    model, loading = tried(said, do, lambda: opening(found, output_loading_info=True, **how))
    if loading["missing_keys"] or loading["mismatched_keys"]:
        lacks = sorted(map(str, [*loading["missing_keys"], *loading["mismatched_keys"]]))
        raise UserError(
            f"checkpoint: {name!r} lacks {len(lacks)} weights of its architecture, first {lacks[0]}; download it again"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UserError(
            f"checkpoint: {name!r} does not fit into memory whole; allowed: quantization 8bit, or a machine with more"
        )
    prompt |= {} if pointer.template is None else {"template": pointer.template}
    return Loaded(model, AutoTokenizer.from_pretrained(found, **OWN), adapter.processor(found), prompt, pointer.how)


# -- finding ----------------------------------------------------------------------------------------------------------------


def is_folder(checkpoint: str) -> bool:
    """Whether a checkpoint names a folder rather than a model of the hub."""
    return checkpoint.startswith(("/", ".", "~")) or os.path.isdir(checkpoint)  # which no name is too long for


def locate(checkpoint: str, revision: str | None, cached: bool = False) -> Path:
    """The folder of a checkpoint; one of the hub is downloaded unless it must be `cached`. UserError says what to do."""
    if is_folder(checkpoint):
        folder = Path(os.path.expanduser(checkpoint))
        if not os.path.isdir(folder):
            raise UserError(
                f"checkpoint: no folder {checkpoint!r}; give the path of a checkpoint's folder, or a model of the hub"
            )
        return folder
    try:
        files = [*pointers.READ, "model*.safetensors"]
        return Path(hub.snapshot_download(checkpoint, revision=revision, allow_patterns=files, local_files_only=cached))
    except errors.HFValidationError:
        raise UserError(f"checkpoint: {checkpoint!r} is not allowed; allowed: a folder, or owner/name of the hub") from None
    except errors.GatedRepoError:
        do = "ask for access on its page of the hub, then run `hf auth login` or set HF_TOKEN"
        raise UserError(f"checkpoint: {checkpoint!r} is gated (401 or 403); {do}") from None
    except errors.RevisionNotFoundError:
        raise UserError(
            f"revision: {revision!r} of {checkpoint!r} does not exist; allowed: a branch, tag or commit of it"
        ) from None
    except errors.RepositoryNotFoundError:
        do = "check the name; for a private model run `hf auth login` or set HF_TOKEN"
        raise UserError(f"checkpoint: the hub shows no {checkpoint!r} (401 or 404); {do}") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        if cached:
            raise UserError(f"checkpoint: {checkpoint!r} has left the hub's cache; run the `backbone` stage again") from None
        closed = hub.constants.HF_HUB_OFFLINE
        why = "HF_HUB_OFFLINE=1 keeps it from the hub; run once with HF_HUB_OFFLINE=0" if closed else "the hub cannot be reached"
        raise UserError(f"checkpoint: {checkpoint!r} is neither a folder nor in the hub's cache, and {why}") from None
    except errors.HfHubHTTPError as error:
        raise UserError(f"checkpoint: {checkpoint!r}: the hub says: {error}") from None


# -- checking ---------------------------------------------------------------------------------------------------------------


def check(settings: Checkpoint | Pointer, folder: Path) -> None:
    """Whether the checkpoint in `folder` has all its files, an adapter, and room; raises UserError before any weight is read."""
    name = settings.checkpoint
    if not (folder / "config.json").exists():
        raise UserError(f"checkpoint: {name!r} holds no config.json; needed: a folder as `save_pretrained` leaves it")
    check_code(folder)
    config = _config(name, folder)
    adapter, layers = architecture(config), config.get_text_config().num_hidden_layers
    if type(layers) is not int or not 0 < layers <= LAYERS:
        raise refuse(f"{folder / 'config.json'}: num_hidden_layers", layers, f"a whole number from 1 to {LAYERS}")
    if isinstance(settings, Checkpoint):
        within(layers, settings.name, {f"backbones.{settings.name}.layer": settings.layer})
    if (folder / PROMPT).exists():
        read_prompt(folder / PROMPT, DOWNLOAD)
    said, do = f"checkpoint: {name!r} holds no %s that transformers can read", DOWNLOAD
    tokenizer = tried(said % "tokenizer", do, lambda: AutoTokenizer.from_pretrained(folder, **OWN))
    tried(said % "image processor", do, lambda: adapter.processor(folder))
    token = getattr(config, "image_token_id", None)
    if type(token) is not int or not 0 <= token < len(tokenizer) or tokenizer.convert_ids_to_tokens(token) is None:
        raise UserError(f"checkpoint: {name!r} has no image token that config and tokenizer agree on; take a later revision")
    if settings.quantization == "8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("quantization: '8bit' needs bitsandbytes; run `pip install bitsandbytes` in .venv, or set it to none")
    needed, free, where = memory_needed(settings, folder), *memory_free(settings.device_map)
    if needed > free:
        sizes = f"{needed / 2**30:.1f} GiB as {settings.dtype} (quantization {settings.quantization}), {free / 2**30:.1f} GiB"
        do = "take a larger machine, a shorter dtype, or quantization 8bit"
        raise UserError(f"checkpoint: {name!r} needs about {sizes} of {where} are free; {do}")


def first_line(error: Exception) -> str:
    """What a library says, without the page that may follow."""
    return (str(error).strip() or type(error).__name__).split("\n")[0][:300]


def tried(said: str, do: str, what: Callable[[], T]) -> T:
    """What a library makes of a checkpoint's files: it raises whatever it meets in broken ones, which is a UserError here."""
    try:
        return what()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{said}: {first_line(error)}; {do}") from error


def _config(name: str, folder: Path) -> PretrainedConfig:
    """A checkpoint's configuration; UserError where it is none."""
    read_json(folder / "config.json", DOWNLOAD)
    said = f"checkpoint: {name!r}: transformers cannot read its config.json"
    return tried(said, "take another checkpoint, or download it again", lambda: AutoConfig.from_pretrained(folder, **OWN))


def read_prompt(path: Path, remedy: str) -> dict[str, Any]:
    """What of an adapter's prompt a file says differently; UserError for an entry that is none."""
    found = read_json(path, remedy)
    for key, value in found.items():
        at, name = f"{path}: {key}", FORMERLY.get(key, key)
        if name not in SAID:
            raise UserError(f"{at}: {value!r}: unknown key; allowed: {', '.join(SAID)}")
        if name == "template":
            template_text(at, value, STAGES)
        elif name == "image_delimiters":
            if not isinstance(value, list) or len(value) != 2 or not all(isinstance(one, str) for one in value):
                raise refuse(at, value, "a list of two texts")
        elif not isinstance(value, str) and not (name == "end" and value is None):
            raise refuse(at, value, "a text")
    return found


def memory_needed(settings: Checkpoint | Pointer, folder: Path) -> float:
    """An estimate, in bytes, of what the loaded weights take."""
    each = SIZES["8bit" if settings.quantization == "8bit" else settings.dtype]
    return ROOM * each * sum(math.prod(shape) for path in weight_files(folder) for shape, _ in tensors(path))


def memory_free(device_map: str) -> tuple[float, str]:
    """Bytes that are free where a model would go, and what they are of."""
    cards = torch.cuda.device_count()
    if device_map == "cuda" and not cards:
        raise UserError("device_map: 'cuda' is not allowed: PyTorch sees no GPU here; allowed: auto, cpu")
    if device_map != "cpu" and cards:
        used = range(cards if device_map == "auto" else 1)
        return float(sum(torch.cuda.mem_get_info(card)[0] for card in used)), "GPU memory"
    meminfo = Path("/proc/meminfo")  # Linux also says what its file cache would give back
    for line in meminfo.read_text().splitlines() if meminfo.exists() else ():
        if line.startswith("MemAvailable:"):
            return float(line.split()[1]) * 1024, "memory"
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")), "memory"
