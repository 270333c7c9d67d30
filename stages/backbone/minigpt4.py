"""MiniGPT-4 (Zhu et al., 2023) put together from its published pieces, as a BLIP-2 over LLaMA.

    python -m stages.backbone.minigpt4 --blip2 FOLDER --vicuna FOLDER --projection prerained_minigpt4_7b.pth --out FOLDER

MiniGPT-4 is the vision tower, query tokens and Q-Former of BLIP-2 FLAN-T5-XXL, a Vicuna, and one linear map between them, which
is all that its checkpoint holds (`llama_proj` under `model`). Every weight is checked by name and shape. The result is a usual
checkpoint folder; making it takes about as much memory as it has weights (18 GB with Vicuna-7B in float16: estimated, not
measured).
"""

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, Blip2Config, Blip2ForConditionalGeneration

from stages.backbone.checkpoints import OWN, PROMPT, tried
from stages.backbone.pointer import DOWNLOAD, check_code, header, weight_files
from stages.params import UserError, run

SEEING = ("vision_model.", "qformer.", "query_tokens")  # of BLIP-2; its T5 and its own projection are left
BUFFERS = ("rotary_emb.inv_freq", "position_ids")  # saved by older versions of the library, computed by today's
PROJECTION = {"llama_proj.weight": "language_projection.weight", "llama_proj.bias": "language_projection.bias"}
# Vicuna's unknown token marks the picture's place: its tokenizer spells unknown characters in bytes, so no text has it. Answers
# were trained to end in "###", which after a word is the tokens "##" and "#": the first of them ends an answer.
PROMPT_OF = {
    "template": "{bos}###Human: {image}{question} ###Assistant: ",
    "image_delimiters": ["<Img>", "</Img> "],
    "end": "##",
}


def assemble(blip2: Path, vicuna: Path, projection: Path, out: Path) -> None:
    """Write the checkpoint folder `out`; UserError names the first piece or weight that is missing, unknown or misshapen."""
    for folder in (blip2, vicuna):
        if not (folder / "config.json").exists():
            raise UserError(f"minigpt4: {folder} holds no config.json; needed: a folder as `save_pretrained` leaves it")
        check_code(folder)
    tokenizer = _read(vicuna, AutoTokenizer)
    end = tokenizer.convert_tokens_to_ids(PROMPT_OF["end"])
    if tokenizer.unk_token_id is None or end in (None, tokenizer.unk_token_id):
        raise UserError(f"minigpt4: {vicuna}: its tokenizer has no unknown token or no {PROMPT_OF['end']!r}; needed: a LLaMA's")
    seeing, language = _read(blip2, AutoConfig), _read(vicuna, AutoConfig)
    process = _read(blip2, AutoImageProcessor, backend="pil")
    config = Blip2Config(
        vision_config=seeing.vision_config.to_dict(),
        qformer_config=seeing.qformer_config.to_dict(),
        text_config=language.to_dict(),
        num_query_tokens=seeing.num_query_tokens,
        image_token_index=tokenizer.unk_token_id,
    )
    with torch.device("meta"):
        model = Blip2ForConditionalGeneration(config)
    weights = read_weights(blip2, SEEING)
    weights |= {f"language_model.{name}": tensor for name, tensor in read_weights(vicuna).items()}
    weights |= read_projection(projection)
    weights = {name: tensor for name, tensor in weights.items() if not name.endswith(BUFFERS)}
    check(weights, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    model.load_state_dict(weights, assign=True)
    unfinished = out.with_name(f"{out.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    process.save_pretrained(unfinished)
    (unfinished / PROMPT).write_text(json.dumps(PROMPT_OF, indent=2))
    shutil.rmtree(out, ignore_errors=True)
    unfinished.rename(out)


def _read(folder: Path, kind: Any, **how: Any) -> Any:
    """A configuration, tokenizer or image processor of a piece; UserError where transformers cannot read it."""
    said = f"minigpt4: {folder}: transformers cannot read its {kind.__name__.removeprefix('Auto')}"
    return tried(said, DOWNLOAD, lambda: kind.from_pretrained(folder, **how, **OWN))


def read_weights(folder: Path, beginnings: tuple[str, ...] = ("",)) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint folder whose names begin so, from safetensors or, where it has none, `pytorch_model*.bin`."""
    pickled = sorted(folder.glob("pytorch_model*.bin"))
    if pickled and not list(folder.glob("*.safetensors")):
        return {name: tensor for path in pickled for name, tensor in _load(path).items() if name.startswith(beginnings)}
    found = {}
    for path in weight_files(folder):
        header(path)
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys() if name.startswith(beginnings)}  # noqa: SIM118
    return found


def read_projection(path: Path) -> dict[str, torch.Tensor]:
    """The linear map of MiniGPT-4's checkpoint under its name in BLIP-2; other weights there are refused."""
    held = _load(path).get("model")
    if not isinstance(held, Mapping):
        raise UserError(f"minigpt4: {path} holds no `model`; needed: MiniGPT-4's checkpoint, such as prerained_minigpt4_7b.pth")
    if held.keys() != PROJECTION.keys():
        raise UserError(f"minigpt4: {path}: weights {', '.join(sorted(held))}; needed: {', '.join(PROJECTION)}, and no others")
    return {PROJECTION[name]: tensor for name, tensor in held.items()}


def _load(path: Path) -> dict[str, Any]:
    """A file of `torch.save`, read as weights alone: no code in it is run."""
    if not path.exists():
        raise UserError(f"minigpt4: {path} is missing")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises whatever its unpickler meets in a broken or foreign file
        raise UserError(f"minigpt4: {path} is no file of weights: {error}") from None


def check(weights: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse weights that are not exactly the ones that the model has, by name and shape."""
    faults = [f"{name} is missing" for name in sorted(shapes.keys() - weights.keys())]
    faults += [f"{name} is unexpected" for name in sorted(weights.keys() - shapes.keys())]
    for name in sorted(shapes.keys() & weights.keys()):
        if (shape := tuple(weights[name].shape)) != shapes[name]:
            faults.append(f"{name} has shape {list(shape)}, not {list(shapes[name])}")
    if faults:
        raise UserError(f"minigpt4: {len(faults)} weights do not fit, first: {faults[0]}; do the pieces belong together?")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.backbone.minigpt4", description="Put MiniGPT-4 together.")
    parser.add_argument("--blip2", type=Path, required=True, help="BLIP-2 FLAN-T5-XXL, for its vision tower and Q-Former")
    parser.add_argument("--vicuna", type=Path, required=True, help="Vicuna-7B")
    parser.add_argument("--projection", type=Path, required=True, help="MiniGPT-4's checkpoint, prerained_minigpt4_7b.pth")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    given = parser.parse_args()
    assemble(given.blip2, given.vicuna, given.projection, given.out)
    print(f"[minigpt4] {given.blip2}, {given.vicuna} and {given.projection} -> {given.out}")


if __name__ == "__main__":
    run(main)
