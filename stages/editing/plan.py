"""What the edits of a cell, a method on a backbone and a dataset, are made from: known before a model or a picture is opened."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq

from stages.backbone import checkpoints
from stages.editing.editors import module_of
from stages.okedit.schema import read_edits, read_made
from stages.params import Params, UserError
from stages.settings import Method

Row = Mapping[str, Any]


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

    @classmethod
    def of(cls, params: Params, dataset: str, backbone: str, method: str, rows: Sequence[Row] | None = None) -> "Plan":
        """The plan of a cell, of `rows` or of the edits that a study makes; any fault of the method's settings is a UserError."""
        chosen, settings, source = params.method(method), params.backbone(backbone), params.dataset(dataset)
        editor, built = module_of(chosen.editor), Path("data/okedit") / source.name
        grid = [asdict(one) for one in chosen.grid(editor.Settings)]
        rows = [needed(row) for row in (read_made(built, params.edits) if rows is None else rows)]
        if len(grid) > 1 and not any(row["split"] == "dev" for row in rows):
            raise UserError(f"methods.{method}: {len(grid)} settings to choose from need dev edits; allowed: one value each")
        samples = pq.read_table(Path("data/samples") / source.name / "samples.parquet").to_pylist()
        learnt = [needed(row) for row in read_edits(built, ("train",))[: params.edits.train]] if hasattr(editor, "fit") else []
        fingerprint = checkpoints.fingerprint(Path("data/backbones") / settings.name, settings.layer)
        seeds = sorted(params.seeds.values())[: None if getattr(editor, "STOCHASTIC", False) else 1]
        return cls(dataset, backbone, fingerprint, chosen, editor, grid, rows, learnt, samples, seeds)

    @property
    def name(self) -> str:
        return f"{self.dataset}-{self.backbone_name}-{self.method.name}"


def needed(row: Row) -> dict[str, Any]:
    """An edit without what backbones answered before it: nothing here depends on that, and one more backbone changes no more."""
    return {key: value for key, value in row.items() if key != "unedited"}
