"""Figure and table of sequences: what is left of every edit as more are made."""

from collections.abc import Sequence

import matplotlib
import pandas as pd

from stages.report import names
from stages.report.canvas import PAGE, STYLE, Drawing, legend, look_of, panels, styles
from stages.report.markup import Table, TableCell
from stages.report.names import need, ordered, pairs, select, where

SHOWN = {"reliability": "Rel."} | names.TRADE_OFF | {"held_out_locality": "Loc, others"}
ASIDE = {
    "released code": "as released", "alone": "each edit alone", "codebook, shrink": "radii shrink",
    "codebook, nearest": "nearest key",
}  # fmt: skip
DASHES = {"released code": ":", "codebook, shrink": "--"}


def label(method: str, memory: str, chosen_on: str = "sequence") -> str:
    """A method, how it keeps its edits where that is not its own way, and whether settings are those of single edits."""
    name = names.METHODS.get(method, method)
    name = f"{name}, {ASIDE[memory]}" if memory in ASIDE else name
    return name if chosen_on == "sequence" else f"{name} (settings of single edits)"


def retention(table: pd.DataFrame, protocol: str) -> Drawing:
    """Scores of all edits made so far against their number: a row a dataset and backbone, a column a metric."""
    table = select(table, protocol=protocol, chosen_on="sequence")
    table = need(table[table["memory"] != "alone"], protocol)
    metrics = ordered(SHOWN, table[table["metric"].isin(SHOWN)]["metric"])
    kinds = list(dict.fromkeys(zip(table["method"], table["memory"], strict=True)))
    look = styles(list(dict.fromkeys(table["method"])))
    with matplotlib.rc_context(STYLE):
        found = pairs(table)
        figure, axes = panels(len(found), len(metrics), PAGE, 1.5, sharex=True, sharey=True)
        handles = []
        for row, ((dataset, backbone), block) in zip(axes, found, strict=True):
            for ax, metric in zip(row, metrics, strict=True):
                handles = []
                for method, memory in kinds:
                    points = select(block, metric=metric, method=method, memory=memory).groupby("made")["value"]
                    middle, low, high = 100 * points.mean(), 100 * points.min(), 100 * points.max()
                    colour, _, marker = look_of(look[method])
                    handles += ax.plot(middle.index, middle, color=colour, marker=marker, linestyle=DASHES.get(memory, "-"))
                    ax.fill_between(middle.index, low, high, color=colour, alpha=0.15, linewidth=0)
                ax.set_xscale("log")
                ax.set_xticks(made := sorted(set(block["made"])), spaced(made))
                ax.minorticks_off()
                ax.set_ylim(-3, 105)
                ax.set_title(SHOWN[metric], loc="left")
            row[0].set_ylabel(f"{dataset}, {backbone}\nscore (%)")
        for ax in axes[-1]:
            ax.set_xlabel("edits made")
        legend(figure, handles, [label(*kind) for kind in kinds])
    caption = (
        f"What is left of all edits made so far, {names.PROTOCOLS[protocol]} protocol ({where(table)}). Lines: mean over "
        f"{table['order'].nunique()} orders; bands: from the lowest to the highest. Loc, others: on edits that are never made."
    )
    return Drawing(figure, caption)


def spaced(made: Sequence[int]) -> list[str]:
    """Labels of ticks on a logarithmic axis, none where the last one is too near."""
    labels, at = [], 0
    for number in made:
        labels.append(str(number) if number >= 3 * at else "")
        at = number if labels[-1] else at
    return labels


def last(table: pd.DataFrame, protocol: str) -> Table:
    """Scores after the most edits that there are of a method and memory, and what is kept: one row each. The settings of single
    edits stand below those chosen on sequences; `*` marks the rule for conflicts that dev edits chose.
    """
    kept = select(table, protocol="none")
    table = need(select(table, protocol=protocol), protocol)
    metrics = ordered(SHOWN, table[table["metric"].isin(SHOWN)]["metric"])
    rows = []
    for place, block in pairs(table):
        for kind, made in block.groupby(["method", "memory", "chosen_on", "headline"], sort=False)["made"].max().items():
            at = dict(zip(("method", "memory", "chosen_on"), kind, strict=False))
            at |= {"dataset": place[0], "backbone": place[1], "made": made}
            marked = "*" if kind[1].startswith("codebook") and kind[3] else ""
            entries = [_spread(100 * select(block, metric=metric, **at)["value"]) for metric in metrics]
            sizes = [_spread(select(kept, metric=name, **at)["value"], ".3g") for name in ("entries", "shrunk")]
            sizes.append(_spread(select(kept, metric="bytes", **at)["value"] / 1e6, ".2f"))
            rows.append([*map(TableCell, [*place, label(*kind[:3]) + marked, str(made)]), *entries, *sizes])
    caption = (
        f"After the last of many edits of one model ({names.PROTOCOLS[protocol]} protocol; {where(table)}): mean over "
        f"{table['order'].nunique()} orders in per cent, and the lowest and highest; entries that are kept, how often a radius "
        "shrank, and megabytes that are kept beside the model. *: the rule that dev edits chose."
    )
    header = ["Dataset", "Backbone", "Method", "Edits", *(SHOWN[m] for m in metrics), "Entries", "Shrunk", "MB"]
    return Table(header, rows, caption, labels=3)


def _spread(values: pd.Series, form: str = ".1f") -> TableCell:
    """Mean, lowest and highest."""
    if values.empty or values.isna().all():
        return TableCell("–")
    spread = f"[{values.min():{form}}, {values.max():{form}}]" if values.min() < values.max() else ""
    return TableCell(f"{values.mean():{form}}", spread)
