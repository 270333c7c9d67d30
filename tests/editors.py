"""Every editor on the tiny backbone: settings under which it reaches its target, what it learns from, and the edit it makes."""

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from stages.backbone.vlm import Backbone, Query
from stages.editing.editors import module_of
from stages.editing.edits import Edit
from stages.editing.fitting import Example, fitted
from stages.editing.trunk import States, request_of
from stages.sections import Hyper
from tests.rows import ROW

TRAIN = [
    ROW | {"edit_id": "t0", "question": "Tell me?", "image_id": "noise", "target": "cat", "rephrasings_train": ["Say it."]},
    ROW | {"edit_id": "t1", "question": "Which one?", "image_id": "red", "target": "dog", "rephrasings_train": ["Pick one."]},
]  # fmt: skip
ONE_MAP = {
    "balancedit": {"lr": 0.01, "steps": 50, "margin": 0.1, "rank": 0},
    "finetune": {"part": "layer", "layers": 1, "lr": 0.01, "steps": 50, "loss": 0.05},
    "grace": {"lr": 1.0, "steps": 100, "margin": 0.1, "replace": "all", "seed": 0},
}
SETTINGS = ONE_MAP | {
    "base": {},
    "lora": {"rank": 4, "scale": 8.0, "lr": 0.01, "steps": 60, "margin": 0.1, "seed": 0},
    "ike": {"demonstrations": 1, "seed": 0},
    "mend": {
        "layers": 2, "rank": 8, "edit_lr": 1e-3, "lr": 1e-4, "lr_lr": 1e-3, "c_edit": 1.0, "c_loc": 1.0, "steps": 3, "seed": 0,
    },
    "serac": {"scope_lr": 0.01, "scope_steps": 20, "rank": 2, "scale": 4.0, "lr": 1e-3, "steps": 3, "seed": 0},
    "wise": {
        "alpha": 5.0, "beta": 20.0, "gamma": 10.0, "mask": 0.5, "bound": 1.0, "lr": 0.1, "steps": 150, "seed": 0,
    },
    "ultraedit": {"layers": 3, "lr": 0.1, "seed": 0},
    "memoir": {"share": 0.5, "lr": 1.0, "steps": 60, "seed": 0},
    "serac_mm": {"scope_lr": 0.01, "scope_steps": 20, "rank": 2, "scale": 4.0, "lr": 1e-3, "steps": 3, "seed": 0},
    "alphaedit": {"preserve": 10.0, "ridge": 1e-2, "lr": 0.1, "steps": 60, "decay": 0.0, "clamp": 5.0, "seed": 0},
}  # fmt: skip
PARTS = {"finetune-last": {"part": "last"}, "finetune-connector": {"part": "connector", "lr": 0.1, "steps": 150}}
EVERY = [*SETTINGS, *PARTS]


def settings_of(name: str, **changes: object) -> Hyper:
    """An editor's settings of `SETTINGS` or `PARTS`, with changes."""
    editor = name.split("-")[0]
    return module_of(editor).Settings(**SETTINGS[editor] | PARTS.get(name, {}) | changes)


def bits(backbone: Backbone) -> dict[str, bytes]:
    """Every weight, byte by byte."""
    return {name: tensor.numpy().tobytes() for name, tensor in backbone.model.state_dict().items()}


def letters(texts: list[str]) -> torch.Tensor:
    """An embedding to check by hand: how often each of 26 letters occurs, as a unit vector."""
    counts = torch.tensor([[float(text.lower().count(chr(97 + i))) for i in range(26)] for text in texts])
    return F.normalize(counts, dim=-1)


def made(name: str, backbone: Backbone, examples: list[Example], states: States, tmp_path: Path) -> Edit:
    """The edit of ROW by an editor, fitted first where it learns."""
    editor = module_of(name.split("-")[0])
    settings = SETTINGS[name.split("-")[0]] | PARTS.get(name, {})
    make = editor.edit
    if hasattr(editor, "fit"):
        make = partial(make, fitted=fitted(editor, backbone, examples, settings, "test", tmp_path))
    return make(backbone, request_of(states, ROW), settings_of(name))


@torch.no_grad()
def plain(backbone: Backbone, edit: Edit, query: Query, said: list[int]) -> torch.Tensor:
    """Logits [T, V] of one sequence of prefix, prompt and answer through the decoder, without cache or padding."""
    embed = backbone.adapter.embed
    with edit.applied(backbone):
        embeds = [embed(torch.tensor([list(edit.prefix)], dtype=torch.long)), backbone.prompts([query]).embeds]
        embeds.append(embed(torch.tensor([said], dtype=torch.long)))
        return backbone.head(backbone.decoder(inputs_embeds=torch.cat(embeds, 1)).last_hidden_state)[0]
