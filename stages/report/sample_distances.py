"""The samples that set a radius: how far each kind lies from its edit's key."""

from collections.abc import Sequence

import matplotlib
import pandas as pd

from stages.report import names, tables
from stages.report.canvas import COLOURS, COLUMN, PAGE, STYLE, Drawing, legend, panels, patch
from stages.report.markup import Table, TableCell
from stages.report.names import count, need, ordered, pairs, where

POSITIVE = "positive"
POSITIVES = {POSITIVE: "rephrased question", "view": "view of the picture"}
KINDS = POSITIVES | names.NEGATIVES
EDIT = ["dataset", "backbone", "edit_id"]


def read(datasets: Sequence[str], backbones: Sequence[str], method: str, distance: str, span: str) -> pd.DataFrame:
    """dataset, backbone, edit_id, kind, question and distance to the key: one row a sample of a test edit, of the first seed."""
    parts = []
    for dataset in datasets:
        for backbone in backbones:
            trace = tables.read(f"data/traces/{dataset}-{backbone}-{method}.parquet")
            kept = trace["kind"].str.startswith("sample_") & (trace["split"] == "test") & (trace["seed"] == trace["seed"].min())
            found = trace[kept].rename(columns={f"{distance}_{span}": "distance"})
            found = found.assign(dataset=dataset, backbone=backbone, kind=found["kind"].str.removeprefix("sample_"))
            parts.append(found[[*EDIT, "kind", "question", "distance"]])
    return need(pd.concat(parts, ignore_index=True), method, distance, span)


def distances(samples: pd.DataFrame, distance: str, span: str) -> Drawing:
    """Distance to the key by kind of sample: a panel a dataset and backbone."""
    kinds = ordered(KINDS, samples["kind"])
    with matplotlib.rc_context(STYLE):
        found = pairs(samples)
        figure, axes = panels(1, len(found), COLUMN if len(found) < 2 else PAGE, 2.0, sharey=True)
        for ax, ((dataset, backbone), block) in zip(axes[0], found, strict=True):
            values = [block[block["kind"] == kind]["distance"].dropna().to_numpy() for kind in kinds]
            look = {"orientation": "horizontal", "widths": 0.65, "whis": (5, 95), "showfliers": False, "patch_artist": True}
            boxes = ax.boxplot(values, medianprops={"color": "black"}, **look)
            for box, kind in zip(boxes["boxes"], kinds, strict=True):
                colour, hatch = _look(kind)
                box.set(facecolor=colour, hatch=hatch, linewidth=0.6)
            ax.set_yticks(range(1, len(kinds) + 1), [KINDS.get(kind, kind) for kind in kinds])
            ax.set_title(f"{dataset}, {backbone}", loc="left")
        axes[0, 0].invert_yaxis()
        figure.supxlabel(f"distance to key ({distance}, {span})", fontsize=8)
        legend(figure, [patch(*_look(kind)) for kind in (POSITIVE, "black")], ["positive", "negative"])
    caption = (
        f"Distance of each sample to its edit's key ({where(samples)}; {distance}, span {span}). Boxes: quartiles; whiskers: "
        f"5th to 95th percentile; {_edits(samples)} test edits. The radius lies between a positive and a negative sample."
    )
    return Drawing(figure, caption)


def table(samples: pd.DataFrame) -> Table:
    """By kind: samples an edit, quartiles of the distance, and how often the positive sample lies farther."""
    rows = []
    for place, block in pairs(samples):
        nearest = block[block["kind"] == POSITIVE].groupby("edit_id")["distance"].first()
        for kind in ordered(KINDS, block["kind"]):
            own = block[block["kind"] == kind]
            low, middle, high = own["distance"].quantile([0.25, 0.5, 0.75])
            first = own.groupby("edit_id")["distance"].first()
            farther = "–" if kind == POSITIVE else f"{100 * (nearest.reindex(first.index) > first).mean():.0f} %"
            entries = [
                TableCell(f"{len(own) / len(first):g}"),
                TableCell(f"{middle:.3g}", f"[{low:.3g}, {high:.3g}]"),
                TableCell(farther),
            ]
            rows.append([*map(TableCell, [*place, KINDS.get(kind, kind)]), *entries])
    caption = (
        f"Samples ({where(samples)}): how many an edit, median distance to the key and quartiles, and of how many edits the "
        f"first positive sample lies farther than this one (d⁺ > d⁻); {_edits(samples)} test edits."
    )
    return Table(["Dataset", "Backbone", "Sample", "An edit", "Distance", "d⁺ > d⁻"], rows, caption, labels=3)


def _edits(samples: pd.DataFrame) -> str:
    return count(samples.groupby(["dataset", "backbone"])["edit_id"].nunique())


def _look(kind: str) -> tuple[str, str]:
    return (COLOURS[0], "") if kind in POSITIVES else (COLOURS[1], "////")
