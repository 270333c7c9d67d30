"""Scopes of several keys: where an edit's probes lie in them."""

import matplotlib
import pandas as pd

from stages.report import names
from stages.report.canvas import COLOURS, COLUMN, PAGE, STYLE, Drawing, legend, panels
from stages.report.names import count, pairs, select, where

PROBE = ["dataset", "backbone", "method", "edit_id", "kind"]  # what a row is of, beside its distances
FARTHEST = 3.0  # of what is shown, as a share of the reach
GROUPS = {
    "must reach": ("edit", "text_generality", "image_generality", "joint_generality"),
    "near and far pictures": ("near_image", "far_image"),
    "other question": ("other_question",),
    "unrelated": ("unrelated",),
}


def depths(table: pd.DataFrame, method: str) -> Drawing:
    """Every probe by its distance from the picture's and from the question's key, each as a share of the reach: a panel a dataset
    and backbone. The square in the corner is the scope.
    """
    table = select(table, method=method)
    with matplotlib.rc_context(STYLE):
        found = pairs(table)
        figure, axes = panels(1, max(1, len(found)), COLUMN if len(found) < 2 else PAGE, 2.2, sharex=True, sharey=True)
        handles = []
        for ax, ((dataset, backbone), block) in zip(axes[0], found, strict=False):
            across, up = block.dropna(axis="columns", how="all").columns.difference(PROBE, sort=False)[:2]
            handles = []
            for kinds, colour in zip(GROUPS.values(), COLOURS, strict=False):
                some = block[block["kind"].isin(kinds)].dropna(subset=[across, up])
                shown = {"s": 3, "alpha": 0.35, "linewidths": 0, "color": colour, "rasterized": True}
                handles.append(ax.scatter(some[across].clip(upper=FARTHEST), some[up].clip(upper=FARTHEST), **shown))
            ax.plot([0, 1, 1], [1, 1, 0], color="black", linewidth=1)
            ax.set_xlim(0, FARTHEST)
            ax.set_ylim(0, FARTHEST)
            ax.set_title(f"{dataset}, {backbone}", loc="left")
            ax.set_xlabel("picture: distance / reach")
        axes[0, 0].set_ylabel("question: distance / reach")
        legend(figure, handles, list(GROUPS))
    edits = table.groupby(["dataset", "backbone"])["edit_id"].nunique()
    caption = (
        f"{names.METHODS.get(method, method)}: every probe with a picture by its distances from the edit's two keys, each as a "
        f"share of how far the edit reaches ({where(table)}; {count(edits)} test edits). The edit answers what lies in the "
        f"square: what shows the same and asks the same. What is farther than {FARTHEST:g} is drawn at the edge."
    )
    return Drawing(figure, caption)
