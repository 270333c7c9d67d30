"""What the edits of a cell, a method on a backbone and a dataset, are made from: known before a model or a picture is opened.

Importing this loads no model library.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from stages import code
from stages.backbone import pointer
from stages.editing.declared import declared
from stages.okedit.schema import decode, made, of_split, read_edits, read_images, read_table, shown
from stages.params import Params, UserError, where, within
from stages.settings import Method, Place

Row = Mapping[str, Any]
ENCODER = "stages.editing.sentences"  # what reads the sentence encoder's weights
MINILM = Path("data/assets/minilm")
UNSCOPED = ("always", "oracle")  # routers that nothing is chosen for


class Source:
    """What plans are made of, each part read once."""

    def __init__(self, params: Params):
        self.params, self._known = params, {}

    def _once(self, *asked: str, read: Callable[[], Any]) -> Any:
        if asked not in self._known:
            self._known[asked] = read()
        return self._known[asked]

    def edits(self, dataset: str) -> Sequence[Row]:
        """All edits of a dataset, as `needed`."""
        return self._once("edits", dataset, read=lambda: [needed(row) for row in read_edits(Path("data/okedit") / dataset)])

    def samples(self, dataset: str) -> Sequence[Row]:
        """The samples of all edits of a dataset."""
        path = Path("data/samples") / dataset / "samples.parquet"
        return self._once("samples", dataset, read=lambda: read_table(path).to_pylist())

    def pictures(self, dataset: str) -> Mapping[str, bytes]:
        """The encoded pictures of a dataset by id."""
        paths = [Path("data") / stage / dataset / "images.parquet" for stage in ("okedit", "samples")]
        return self._once("pictures", dataset, read=lambda: read_images(*paths))

    def pixels(self, dataset: str, image_id: str) -> str:
        """A digest of a picture as it is seen, however it is encoded; of one that is missing, none."""
        png = self.pictures(dataset).get(image_id)
        return self._once("pixels", dataset, image_id, read=lambda: "" if png is None else seen(image_id, png))

    def fingerprint(self, backbone: str) -> str:
        """The fingerprint of an assembled backbone; UserError where params.yaml asks for a layer that it does not have."""
        settings = self.params.backbone(backbone)
        folder = Path("data/backbones") / settings.name

        def read() -> str:
            within(pointer.depth(folder), backbone, where(self.params.keys))
            return pointer.fingerprint(folder, settings.layer)

        return self._once("backbone", backbone, read=read)

    def adapters(self, backbone: str) -> Sequence[str]:
        """The modules that say how an assembled backbone is edited."""
        folder = Path("data/backbones") / self.params.backbone(backbone).name
        return self._once("adapters", backbone, read=lambda: pointer.adapters(folder))

    def encoder(self) -> str:
        """A digest of the sentence encoder's weights."""
        return self._once("encoder", read=lambda: pointer.weights(MINILM))


@dataclass(frozen=True)
class Plan:
    """The edits to make (`rows`), the train edits to learn from (`learnt`), samples and seeds; `grid` holds the combinations of
    the method's hyper-parameters to choose from.
    """

    dataset: str
    backbone_name: str
    fingerprint: str
    method: Method
    editor: ModuleType
    grid: Sequence[Mapping[str, Any]]
    rows: Sequence[Row]
    learnt: Sequence[Row]
    samples: Sequence[Row]
    seeds: Sequence[int]
    asked: Mapping[str, int]  # how many probes of a kind an edit is asked, all where it is not named
    keys: Mapping[str, Place]  # those that are read beside the edited layer's
    adapters: Sequence[str]  # modules that say how the backbone is edited

    @classmethod
    def of(
        cls,
        params: Params,
        dataset: str,
        backbone: str,
        method: str,
        rows: Sequence[Row] | None = None,
        source: Source | None = None,
    ) -> "Plan":
        """The plan of a cell, of `rows` or of the edits that a study makes; any fault of the method's settings is a UserError."""
        chosen, built, source = params.method(method), params.dataset(dataset).name, source or Source(params)
        params.backbone(backbone)
        editor = declared(chosen.editor)
        grid = [{k: v for k, v in asdict(one).items() if k != "seed"} for one in chosen.grid(editor.Settings)]
        rows = made(source.edits(built), params.edits) if rows is None else rows
        if len(grid) > 1 and not any(row["split"] == "dev" for row in rows):
            raise UserError(f"methods.{method}: {len(grid)} settings to choose from need dev edits; allowed: one value each")
        learnt = of_split(source.edits(built), "train")[: params.edits.train] if hasattr(editor, "fit") else []
        seeds = sorted(params.seeds.values())[: chosen.seeds if getattr(editor, "STOCHASTIC", False) else 1]
        fingerprint, samples = source.fingerprint(backbone), source.samples(built)
        asked = params.edits.probes, params.keys, source.adapters(backbone)
        return cls(dataset, backbone, fingerprint, chosen, editor, grid, rows, learnt, samples, seeds, *asked)

    @property
    def name(self) -> str:
        return f"{self.dataset}-{self.backbone_name}-{self.method.name}"

    @property
    def to_trace(self) -> Sequence[Row]:
        """The edits that a trace is of: dev edits choose how far edits reach; methods without a scope have no use for them once
        settings are chosen.
        """
        return [row for row in self.rows if row["split"] == "test" or self.method.router not in UNSCOPED]

    @property
    def code(self) -> str:
        """A digest of the code that decides what an edit does."""
        return code.of_editor(self.method.editor, *self.adapters)

    def made_from(self, source: Source, rows: Sequence[Row], seeds: Sequence[int], *more: object) -> str:
        """A digest of what some of the edits, and `more` that is asked of them, depend on, but for settings, code and device."""
        ids = {row["edit_id"] for row in rows}
        samples = [sample for sample in self.samples if sample["edit_id"] in ids]
        images = {one["image_id"] for one in samples}.union(*map(shown, [*rows, *self.learnt])) - {None}
        pixels = {image_id: source.pixels(self.dataset, image_id) for image_id in sorted(images)}
        encoder = source.encoder() if ENCODER in code.closure(code.module_name(self.method.editor)) else ""
        keys = {name: asdict(key) for name, key in self.keys.items()}
        text = [self.fingerprint, encoder, self.method.editor, seeds, rows, samples, self.learnt, pixels, self.asked, keys, *more]
        return hashlib.sha256(json.dumps(text).encode()).hexdigest()[:16]


def label(hyper: Mapping[str, Any]) -> str:
    """Settings in words, the same for equal ones."""
    return json.dumps(dict(hyper), sort_keys=True)


def needed(row: Row) -> dict[str, Any]:
    """An edit without what backbones answered before it: nothing here depends on that, and one more backbone changes no more."""
    return {key: value for key, value in row.items() if key != "unedited"}


def seen(image_id: str, png: bytes) -> str:
    """A digest of a picture's pixels."""
    image = decode(image_id, png).convert("RGBA")
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()[:16]
