"""Figures of the reports: one function a figure, from a tidy table to a drawing with its caption."""

import matplotlib
import numpy as np
import pandas as pd

from stages.report import names, tables
from stages.report.canvas import (
    COLOURS,
    COLUMN,
    PAGE,
    STYLE,
    Drawing,
    bars,
    labelled,
    legend,
    panels,
    patch,
    save,
    styles,
)
from stages.report.names import count, need, ordered, pairs, percent, select, where

__all__ = ["backbone_accuracy", "distances", "outcomes", "save", "scores"]


def scores(table: pd.DataFrame, protocol: str, level: float) -> Drawing:
    """The main metrics of every method; a row of axes a dataset and backbone."""
    with matplotlib.rc_context(STYLE):
        table = names.tuned(select(table, protocol=protocol))
        table = table[table["metric"].isin(names.MAIN)]
        groups, methods = labelled(names.MAIN, table["metric"]), labelled(names.METHODS, table["method"])
        found = pairs(table)
        figure, axes = panels(len(found), 1, PAGE, 1.7, sharex=True)
        handles = []
        for ax, ((dataset, backbone), block) in zip(axes[:, 0], found, strict=True):
            handles = bars(ax, block, groups, "metric", methods, "method", styles(list(methods)))
            ax.set_title(f"{dataset}, {backbone}", loc="left")
            ax.set_ylabel("score (%)")
        legend(figure, handles, list(methods.values()))
    caption = (
        f"Scores of every method, {names.PROTOCOLS[protocol]} protocol ({where(table)}). Bars: mean over "
        "edits; "
        f"whiskers: {percent(level)} paired bootstrap interval over edits; {count(table['n'])} edits."
    )
    return Drawing(figure, caption)


def distances(outcomes: pd.DataFrame, radii: pd.DataFrame, method: str, distance: str, span: str) -> Drawing:
    """Distance to the key in units of the edit's own radius, by probe kind."""
    by = ["dataset", "backbone", "edit_id"]
    radius = select(radii, method=method, split="test").drop_duplicates(by).set_index(by)["epsilon"]
    found = select(outcomes, method=method, split="test").join(radius, on=by)
    found = found[~found["kind"].str.startswith("sample_")]
    usable = found[(found["epsilon"] > 0) & found[f"{distance}_{span}"].notna()]
    ratio = usable.assign(ratio=usable[f"{distance}_{span}"] / usable["epsilon"])
    kinds = ordered(names.KINDS, need(ratio, method, distance, span)["kind"])
    with matplotlib.rc_context(STYLE):
        groups = pairs(ratio)
        figure, axes = panels(1, max(len(groups), 1), COLUMN if len(groups) < 2 else PAGE, 2.6, sharey=True)
        for ax, ((dataset, backbone), block) in zip(axes[0], groups, strict=False):
            values = [block[block["kind"] == k]["ratio"].to_numpy() for k in kinds]
            boxes = ax.boxplot(
                values, orientation="horizontal", widths=0.65, whis=(5, 95), showfliers=False,
                patch_artist=True, medianprops={"color": "black"},
            )  # fmt: skip
            for box, kind in zip(boxes["boxes"], kinds, strict=True):
                colour, hatch = _kind_look(kind)
                box.set(facecolor=colour, hatch=hatch, linewidth=0.6)
            ax.axvline(1, color="black", linestyle="--", linewidth=1)
            ax.set_yticks(range(1, len(kinds) + 1), [names.KINDS.get(k, k) for k in kinds])
            ax.set_xlabel("distance to key / radius")
            ax.set_title(f"{dataset}, {backbone}", loc="left")
        axes[0, 0].invert_yaxis()
        looks = [_kind_look(k) for k in ("edit", "hop1", "near_image")]
        handles = [patch(c, h) for c, h in looks]
        legend(figure, handles, ["must reach", "hop", "must not reach"])
    edits = ratio.groupby(["dataset", "backbone"])["edit_id"].nunique()
    left_out = found.loc[~(found["epsilon"] > 0), by].drop_duplicates()
    caption = (
        f"Distance of each probe to the edit's key ({distance}, span {span}, "
        f"{names.METHODS.get(method, method)}; "
        f"{where(ratio)}) in units of the edit's radius: left of the dashed line the edit applies. Boxes: "
        "quartiles; "
        f"whiskers: 5th to 95th percentile; {count(edits)} test edits."
    )
    if len(left_out):
        caption += f" Left out, having no positive radius: {len(left_out)}."
    return Drawing(figure, caption)


def _kind_look(kind: str) -> tuple[str, str]:
    if kind in names.REACHED:
        return COLOURS[0], ""
    return ("#BBBBBB", "....") if kind in names.HOPS else (COLOURS[1], "////")


def outcomes(table: pd.DataFrame) -> Drawing:
    """Shares of the outcomes of one dataset and backbone by probe kind, one panel a method."""
    shares = tables.outcome_shares(table)
    kinds, methods = ordered(names.KINDS, shares["kind"]), ordered(names.METHODS, shares["method"])
    looks = {"target": (COLOURS[0], ""), "unchanged": ("#DDDDDD", ""), "other": (COLOURS[1], "////")}
    with matplotlib.rc_context(STYLE):
        columns = min(max(len(methods), 1), 4)
        figure, axes = panels(-(-len(methods) // columns), columns, PAGE, 2.2, sharey=True, sharex=True)
        for ax in axes.flat[len(methods) :]:
            ax.set_visible(False)
        for ax, method in zip(axes.flat, methods, strict=False):
            part = shares[shares["method"] == method].set_index("kind").reindex(kinds)
            left = np.zeros(len(kinds))
            for outcome, (colour, hatch) in looks.items():
                width = 100 * part[outcome].fillna(0).to_numpy()
                look = {"color": colour, "hatch": hatch, "edgecolor": "black", "linewidth": 0.4}
                ax.barh(range(len(kinds)), width, left=left, **look)
                left += width
            ax.set_title(names.METHODS.get(method, method), loc="left")
            ax.set_yticks(range(len(kinds)), [names.KINDS.get(k, k) for k in kinds])
            ax.tick_params(labelbottom=True)
        axes[0, 0].invert_yaxis()
        figure.supxlabel("probes (%)", fontsize=8)
        handles = [patch(c, h) for c, h in looks.values()]
        legend(figure, handles, ["target", "unchanged", "another answer"])
    caption = (
        f"What the edited model answers, by probe kind ({where(shares)}): share of probes, mean over test edits "
        f"({count(shares['n'])}). For hops, target is their answer after the edit."
    )
    return Drawing(figure, caption)


def backbone_accuracy(table: pd.DataFrame) -> Drawing:
    """Accuracy on names and facts by artist, with Wilson 95 % intervals."""
    table = table[table["split"] != "text"]
    low, high = wilson(table["accuracy"], table["n"])
    table = table.assign(mean=table["accuracy"], low=low, high=high)
    vendors = sorted(labelled(names.VENDORS, table["vendor"]), key=lambda v: _held_out(table, v))
    backbones = {b: b for b in sorted(set(table["backbone"]))}
    tasks = ordered(names.TASKS, table["task"])
    with matplotlib.rc_context(STYLE):
        figure, axes = panels(len(tasks), 1, PAGE, 1.4, sharex=True)
        handles = []
        for ax, task in zip(axes[:, 0], tasks, strict=True):
            groups = {v: names.VENDORS.get(v, v) + ("\n(held out)" if _held_out(table, v) else "") for v in vendors}
            look = {b: i for i, b in enumerate(backbones)}
            handles = bars(ax, table[table["task"] == task], groups, "vendor", backbones, "backbone", look)
            ax.set_title(names.TASKS.get(task, task), loc="left")
            ax.set_ylabel("accuracy (%)")
        legend(figure, handles, list(backbones))
    caption = (
        "Greedy, exact-match accuracy of the unedited models by artist of the picture; held-out artists "
        "were not "
        f"seen in training. Whiskers: 95 % Wilson interval; {count(table['n'])} questions an artist."
    )
    return Drawing(figure, caption)


def _held_out(table: pd.DataFrame, vendor: str) -> bool:
    return bool((table[table["vendor"] == vendor]["split"] == "held-out").any())


def wilson(share: pd.Series, n: pd.Series, z: float = 1.959964) -> tuple[pd.Series, pd.Series]:
    """The 95 % Wilson score interval of a share of n independent trials."""
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return middle - half, middle + half
