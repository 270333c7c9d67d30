"""Tables that say how even a comparison is and how much it can tell: areas under frontiers, tuning, and what a test can find."""

import json

import pandas as pd

from stages.report import names
from stages.report.markup import Table, TableCell
from stages.report.names import count, need, ordered, pairs, percent, select


def areas(table: pd.DataFrame, level: float) -> Table:
    """The area under each method's frontier: one row a method, one column a dataset and backbone."""
    places, rows = pairs(names.tuned(table)), []
    for method in ordered(names.METHODS, names.tuned(table)["method"]):
        cells = []
        for _, block in places:
            row = block[block["method"] == method].iloc[0]
            best = row["area"] == block["area"].max()
            cells.append(TableCell(f"{100 * row['area']:.1f}", f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}]", bool(best)))
        rows.append([TableCell(names.METHODS.get(method, method)), *cells])
    caption = (
        "Area under the frontier of generality against locality over all values of a method's scope, in per cent, with "
        f"{percent(level)} bootstrap interval over edits, {count(table['n'])} edits. A method without a scope is one point: its "
        "generality times its locality, and what the unedited model has already. Bold: largest."
    )
    return Table(["Method", *(", ".join(place) for place, _ in places)], rows, caption)


def tuning(tried: pd.DataFrame, scores: pd.DataFrame) -> Table:
    """Of each cell that had a choice: how many settings tie with the best on dev edits, the chosen one, its HM on dev and test
    edits, and what tuning gained on the test edits over the published values.
    """
    strict, rows = select(scores, protocol="strict", metric="hm"), []
    for place, block in pairs(tried):
        test = select(strict, dataset=place[0], backbone=place[1]).set_index("method")["mean"]
        for method in ordered(names.METHODS, block["method"]):
            own = block[block["method"] == method]
            chosen = own[own["chosen"]].iloc[0]
            setting, varied = json.loads(chosen["setting"]), _varied(own)
            said = ", ".join(f"{name} {setting[name]:g}" for name in varied)
            scope = "–" if pd.isna(chosen["scope"]) else f"{chosen['scope']:.3g}"
            published = test.get(f"{method}{names.PUBLISHED}")
            gain = "–" if published is None else f"{100 * (test[method] - published):+.1f}"
            cells = [f"{own['tied'].sum()} of {len(own)}", said, scope, f"{100 * chosen['hm']:.1f}", f"{100 * test[method]:.1f}"]
            rows.append([*map(TableCell, [*place, names.METHODS.get(method, method), *cells, gain])])
    caption = (
        "What every method was tuned by. Tied: settings that dev edits cannot tell from the best one (one standard error of the "
        "paired difference); of these the one with the fewest steps is taken. Scope: its α, ε or threshold. Gain: HM on test "
        "edits over that at the published values, in points."
    )
    header = ["Dataset", "Backbone", "Method", "Tied", "Chosen", "Scope", "HM, dev", "HM, test", "Gain"]
    return Table(header, rows, caption, labels=3)


def _varied(tried: pd.DataFrame) -> list[str]:
    """The hyper-parameters that differ among the settings that were tried."""
    settings = [json.loads(one) for one in tried["setting"]]
    return [name for name in settings[0] if len({one[name] for one in settings}) > 1]


def power(paired: pd.DataFrame) -> Table:
    """The smallest differences in HM and its parts that the paired test can be expected to find."""
    table, rows = need(names.tuned(select(paired, protocol="strict")), "strict"), []
    metrics = [metric for metric in names.TRADE_OFF if metric in set(table["metric"])]
    for place, block in pairs(table):
        found = block.groupby("metric")["detectable"].agg(["median", "max"])
        cells = [TableCell(f"{100 * found.loc[m, 'median']:.1f}", f"{100 * found.loc[m, 'max']:.1f}") for m in metrics]
        rows.append([*map(TableCell, [*place, count(block["n"])]), *cells])
    caption = (
        "The smallest difference, in points, that a two-sided paired test at 5 % finds in four of five studies of as many edits: "
        "the median over the methods BalancEdit is compared with, and in brackets the largest."
    )
    return Table(["Dataset", "Backbone", "Edits", *(names.TRADE_OFF[m] for m in metrics)], rows, caption, labels=3)
