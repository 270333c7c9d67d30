"""Figures of the ablations: the weight α, the generality-locality frontier, and variants of the radius."""

import matplotlib
import pandas as pd
from matplotlib.lines import Line2D

from stages.report import names
from stages.report.canvas import (
    COLOURS,
    COLUMN,
    MARKERS,
    PAGE,
    STYLE,
    Drawing,
    bars,
    legend,
    look_of,
    panels,
    styles,
)
from stages.report.names import count, need, ordered, pairs, percent, select, where
from stages.report.variants import in_order, labelled

DASHES = ("-", "--", "-.", ":")


def alpha(table: pd.DataFrame, method: str, protocol: str, span: str, level: float) -> Drawing:
    """The trade-off against α on the test edits: a row a dataset and backbone, a column a distance."""
    table = select(table, method=method, protocol=protocol, split="test", span=span)
    table = need(table[table["metric"].isin(names.TRADE_OFF)], method, protocol, span)
    distances, metrics = (
        sorted(set(table["distance"]), reverse=True),
        ordered(names.TRADE_OFF, table["metric"]),
    )
    with matplotlib.rc_context(STYLE):
        found = pairs(table)
        figure, axes = panels(len(found), max(len(distances), 1), PAGE, 2.0, sharex=True, sharey=True)
        handles = []
        for row, ((dataset, backbone), block) in zip(axes, found, strict=False):
            for ax, distance in zip(row, distances, strict=False):
                handles = _lines(ax, select(block, distance=distance), metrics, "alpha", markevery=2)
                ax.set_title(f"{dataset}, {backbone}: {distance}", loc="left")
                ax.tick_params(labelbottom=True)
            row[0].set_ylabel("score (%)")
        for ax in axes[-1]:
            ax.set_xlabel("α  (0: ε = d⁻, 1: ε = d⁺)")
        legend(figure, handles, [names.TRADE_OFF[m] for m in metrics])
    caption = (
        f"{names.METHODS.get(method, method)} against α, {names.PROTOCOLS[protocol]} protocol, span {span} "
        f"({where(table)}). Lines: mean over edits; bands: {percent(level)} paired bootstrap interval over "
        "edits; "
        f"{count(table['n'])} test edits."
    )
    return Drawing(figure, caption)


def _lines(ax: matplotlib.axes.Axes, table: pd.DataFrame, metrics: list[str], against: str, **look: int) -> list[Line2D]:
    """Each metric's mean and band against a column; returns the lines, for a legend."""
    handles = []
    for i, metric in enumerate(metrics):
        line = select(table, metric=metric).sort_values(against)
        styled = {"color": COLOURS[i], "marker": MARKERS[i], "linestyle": DASHES[i], **look}
        handles += ax.plot(line[against], 100 * line["mean"], **styled)
        band = {"color": COLOURS[i], "alpha": 0.15, "linewidth": 0}
        ax.fill_between(line[against], 100 * line["low"], 100 * line["high"], **band)
    ax.set_ylim(0, 105)
    return handles


def frontier(curves: pd.DataFrame, scores: pd.DataFrame) -> Drawing:
    """Generality against locality, strict: a curve over all values of a method's scope, a point where it stands; a panel a
    dataset and backbone.
    """
    scores = names.tuned(select(scores, protocol="strict"))
    methods = ordered(names.METHODS, scores["method"])
    look = styles(methods)
    with matplotlib.rc_context(STYLE):
        found = pairs(scores)
        figure, axes = panels(-(-len(found) // 2), min(len(found), 2), PAGE, 2.5, sharex=True, sharey=True)
        for ax, ((dataset, backbone), block) in zip(axes.flat, found, strict=False):
            _frontier_panel(ax, select(curves, dataset=dataset, backbone=backbone), block, look)
            ax.set_title(f"{dataset}, {backbone}", loc="left")
        for ax in axes[:, 0]:
            ax.set_ylabel("generality (%)")
        for ax in axes[-1]:
            ax.set_xlabel("locality (%)")
        legend(figure, [_point(look[m]) for m in methods], [names.METHODS.get(m, m) for m in methods])
    caption = (
        f"Generality (mean of text and image) against locality, strict ({where(scores)}). Markers: methods tuned on dev edits; "
        "lines: the same edits under every value of the method's scope. Means over edits, "
        f"{count(scores['n'])}; the table of areas has intervals."
    )
    return Drawing(figure, caption)


def _point(number: int) -> Line2D:
    colour, _, marker = look_of(number)
    look = {"marker": marker, "markerfacecolor": colour, "markeredgecolor": "black"}
    return Line2D([], [], linestyle="", markeredgewidth=0.5, markersize=6, **look)


def _frontier_panel(ax: matplotlib.axes.Axes, curves: pd.DataFrame, scores: pd.DataFrame, look: dict[str, int]) -> None:
    for method in ordered(names.METHODS, scores["method"]):
        colour, _, marker = look_of(look[method])
        curve = curves[(curves["method"] == method) & curves["value"].notna()].sort_values("value")
        ax.plot(100 * curve["locality"], 100 * curve["generality"], color=colour, linewidth=1)
        mean = select(scores, method=method).set_index("metric")["mean"]
        at = 100 * mean["locality"], 50 * (mean["text_generality"] + mean["image_generality"])
        shown = {"marker": marker, "s": 36, "color": colour, "edgecolors": "black", "linewidths": 0.5, "zorder": 3}
        ax.scatter(*at, clip_on=False, **shown)
    ax.set(xlim=(0, 102), ylim=(0, 102))
    ax.grid(color="0.92", linewidth=0.5)
    ax.set_axisbelow(True)


def layers(table: pd.DataFrame, method: str, protocol: str, level: float) -> Drawing:
    """The trade-off against the edited layer: a column a dataset and backbone."""
    table = select(table, method=method, protocol=protocol)
    table = need(table[table["metric"].isin(names.TRADE_OFF)], method, protocol)
    metrics = ordered(names.TRADE_OFF, table["metric"])
    with matplotlib.rc_context(STYLE):
        found = pairs(table)
        figure, axes = panels(1, len(found), COLUMN if len(found) < 2 else PAGE, 2.2, sharey=True)
        for ax, ((dataset, backbone), block) in zip(axes[0], found, strict=True):
            handles = _lines(ax, block, metrics, "layer")
            ax.set_title(f"{dataset}, {backbone}", loc="left")
            ax.set_xticks(sorted(set(block["layer"])))
            ax.set_xlabel("edited decoder layer")
        axes[0, 0].set_ylabel("score (%)")
        legend(figure, handles, [names.TRADE_OFF[m] for m in metrics])
    caption = (
        f"{names.METHODS.get(method, method)} by the edited layer, {names.PROTOCOLS[protocol]} protocol ({where(table)}), "
        f"α chosen for each on dev edits. Lines: mean over edits; bands: {percent(level)} paired bootstrap interval over edits; "
        f"{count(table['n'])} test edits."
    )
    return Drawing(figure, caption)


def variants(table: pd.DataFrame, column: str, labels: dict[str, str], protocol: str, level: float, **wanted: str) -> Drawing:
    """The trade-off under each variant of the radius (strategy, negative sample, number of samples or span)."""
    table = select(table, protocol=protocol, **wanted)
    table = need(table[table["metric"].isin(names.TRADE_OFF)], protocol, *wanted.values())
    table = table.assign(variant=labelled(table, column, labels))
    metrics = {m: names.TRADE_OFF[m] for m in ordered(names.TRADE_OFF, table["metric"])}
    with matplotlib.rc_context(STYLE):
        found = pairs(table)
        shown = [in_order(block, column, labels) for _, block in found]
        figure, axes = panels(len(found), 1, PAGE if max(map(len, shown)) > 4 else COLUMN, 1.7)
        handles = []
        for ax, ((dataset, backbone), block), order in zip(axes[:, 0], found, shown, strict=True):
            groups = {v: v.replace(" ", "\n", 1) for v in order}
            handles = bars(ax, block, groups, "variant", metrics, "metric", {m: i for i, m in enumerate(metrics)})
            ax.set_title(f"{dataset}, {backbone}", loc="left")
            ax.set_ylabel("score (%)")
        legend(figure, handles, list(metrics.values()))
    fixed = ", ".join(f"{key} {value}" for key, value in wanted.items() if key in table.columns)
    caption = (
        f"The trade-off by {column}, {names.PROTOCOLS[protocol]} protocol ({where(table)}; {fixed}). Bars: mean "
        f"over edits; whiskers: {percent(level)} paired bootstrap interval over edits; {count(table['n'])} edits."
    )
    return Drawing(figure, caption)
