"""One edit as a picture: what the model answered before and what it answers after, for one probe of each telling kind."""

import io
import textwrap

import matplotlib
import numpy as np
import pandas as pd
from PIL import Image

from stages.report import names
from stages.report.canvas import COLOURS, PAGE, STYLE, Drawing, panels
from stages.report.html import Pictures, before_edit
from stages.report.names import need, select

KINDS = ("edit", "text_generality", "image_generality", "near_image", "other_question")


def drawing(outcomes: pd.DataFrame, edits: pd.DataFrame, images: pd.DataFrame, method: str) -> Drawing:
    """The first test edit that has a picture to show for every kind in `KINDS` and whose answer the model knew before, unless the
    edit is to correct it.

    Where there is none, the edit with most pictures to show. Chosen by what can be shown and what was known, never by how well
    the edit went.
    """
    pictures = Pictures(images)
    found = need(select(outcomes, method=method), method, "an edit")
    best, best_rank = None, (-1, False)
    for edit in edits[edits["edit_id"].isin(found["edit_id"])].itertuples():
        own = found[found["edit_id"] == edit.edit_id]
        probes = [probe for kind in KINDS if (probe := _shown(own[own["kind"] == kind], pictures)) is not None]
        known = bool(probes[0]["correct_off"]) or edit.target == edit.answer
        rank = sum(pictures.can_show(probe["image_id"]) for probe in probes), known
        if rank > best_rank:
            best, best_rank = (edit, probes), rank
    return _draw(*best, pictures, method)


def _shown(probes: pd.DataFrame, pictures: Pictures) -> pd.Series | None:
    """The first probe, of those whose picture may be shown where there are any; None without a probe."""
    allowed = probes[probes["image_id"].map(pictures.can_show).astype(bool)]
    chosen = probes if allowed.empty else allowed
    return None if chosen.empty else chosen.sort_values("probe").iloc[0]


def _draw(edit: tuple, probes: list[pd.Series], pictures: Pictures, method: str) -> Drawing:
    with matplotlib.rc_context(STYLE):
        figure, axes = panels(1, len(probes), PAGE, 2.3)
        for ax, probe in zip(axes[0], probes, strict=True):
            if pictures.can_show(probe["image_id"]):
                shown = Image.open(io.BytesIO(pictures.png(probe["image_id"])), formats=("PNG", "JPEG"))
                ax.imshow(np.asarray(shown.convert("RGBA")))
            else:
                ax.text(0.5, 0.5, "picture not shown", ha="center", va="center", transform=ax.transAxes, fontsize=7)
            ax.set_axis_off()
            ax.set_anchor("N")  # the words stand below the picture
            ax.set_title(names.KINDS[probe["kind"]], fontweight="bold")
            after = {"target": probe["expected"] or edit.target, "unchanged": probe["answer_off"]}
            wanted = probe["target"] if probe["kind"] in names.REACHED else probe["same"]
            below = {"ha": "center", "va": "top", "transform": ax.transAxes, "fontsize": 7}
            ax.text(0.5, -0.04, textwrap.fill(probe["question"], 24), style="italic", **below)
            ax.text(0.5, -0.34, f"before: {textwrap.shorten(probe['answer_off'], 24)}", **below)
            answer = after.get(probe["outcome"], "another answer")
            if probe["outcome"] == "target" and probe["kind"] not in names.REACHED:
                answer = edit.target
            colour = COLOURS[0] if wanted else COLOURS[5]
            ax.text(0.5, -0.46, f"after: {answer} {'✓' if wanted else '✗'}", color=colour, fontweight="bold", **below)
    caption = (
        f"One edit by {names.METHODS.get(method, method)}: “{edit.question}”, edited from {before_edit(edit)} to {edit.target}. "
        "✓: as it should be, ✗: not. The first three must change, the last two must not (n = 1 edit, chosen by what the "
        "unedited model knew and what can be shown). " + names.CREDIT
    )
    return Drawing(figure, caption)
