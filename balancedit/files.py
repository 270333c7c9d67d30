"""How a model is opened, anew or with the edits of a file."""

import json
import tempfile
from pathlib import Path
from typing import Any

from safetensors import safe_open

from balancedit.model import ALPHA, KEPT, Entry, Model
from stages import params
from stages.backbone import checkpoints
from stages.backbone.pointer import POINTER
from stages.backbone.vlm import Backbone
from stages.editing.codebook import Codebook
from stages.sections import UserError, read_section, readable, refuse
from stages.settings import STAGES, Checkpoint

ROOT = Path(__file__).parents[1]  # the study: its params.yaml, its data, and what it has measured


def open(
    source: str | Path,
    *,
    layer: int | None = None,
    alpha: float | None = None,
    span: str = "prompt",
    distance: str = "euclidean",
    rule: str = "nearest",
    **loading: Any,
) -> Model:
    """Open a backbone for editing: a name of params.yaml's `backbones` that has been assembled, or a checkpoint with an adapter,
    by its folder or its id on the hub.

    `layer` is the decoder layer that is edited: where it is left out, that of params.yaml, else the last. `alpha` weighs the
    positive sample in edits' radii: where it is left out, what the study chose for this backbone, else 0.5. `loading` is for
    checkpoints: `revision`, `dtype`, `device_map`, `quantization`, `template`, as in params.yaml. `span`, `distance` and `rule`:
    see `Model`.

    Raises UserError for a name that is none, a backbone that is not assembled, and a checkpoint that is missing or does not fit.
    """
    name, known = str(source), params.load(ROOT / "params.yaml").backbones
    kept = ROOT / "data/backbones" / name if name in known else Path(name).expanduser()
    if name in known or is_assembled(kept):
        if loading:
            raise refuse("open", ", ".join(loading), "layer, alpha, span, distance, rule: this backbone is assembled")
        backbone = Backbone.open(kept, known[name].layer if layer is None and name in known else layer)
    elif kept.is_dir() or "/" in name:
        at = {} if layer is None else {"layer": layer}
        settings = read_section(Checkpoint, "open", {"checkpoint": name, **at, **loading}, STAGES, name=name)
        with tempfile.TemporaryDirectory() as folder:
            checkpoints.point(settings, Path(folder))
            backbone = Backbone.open(Path(folder), layer)
    else:
        raise refuse("backbone", name, f"{', '.join(known)}, a checkpoint's folder, or owner/name of the hub")
    return Model(backbone, alpha=chosen_alpha(name) if alpha is None else alpha, span=span, distance=distance, rule=rule)


def is_assembled(folder: Path) -> bool:
    """Whether a folder is what the `backbone` stage leaves: a pointer, or an embedded backbone, which has no image processor."""
    embedded = (folder / checkpoints.PROMPT).exists() and not any(folder.glob("*processor_config.json"))
    return embedded or (folder / POINTER).exists()


def chosen_alpha(name: str) -> float:
    """The α that the study chose for a backbone on okedit's dev edits, 0.5 where it has none."""
    path = ROOT / "reports/ablations/summary.json"
    with readable(path, "`git checkout` it, or run `python -m stages.ablations`"):
        summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return summary.get("okedit", {}).get(name, {}).get("balancedit", {}).get("best_alpha_on_dev", ALPHA)


def load(path: str | Path, source: str | Path, **opening: Any) -> Model:
    """Open a backbone (see `open`) with the edits of a file that `Model.save` wrote, keys and their distance included.

    Raises UserError for a file that is none, or whose edits are of another backbone or layer.
    """
    model = open(source, **opening)
    book = Codebook.load(Path(path), model.backbone)
    with safe_open(path, "pt") as file:
        words = json.loads(file.metadata().get(KEPT, "null"))
    if words is None:
        raise UserError(f"{path}: a codebook without its questions; allowed: a file that `Model.save` wrote")
    model.span, model.distance, model.rule = words["span"], book.distance, book.rule
    model.entries = [
        Entry(**own, answer=one.target, radius=one.radius, key=one.key, edit=one.edit)
        for own, one in zip(words["entries"], book.entries, strict=True)
    ]
    model._settle()
    return model
