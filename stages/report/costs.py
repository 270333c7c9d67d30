"""What editing costs, from reports/cost.csv: one machine's times, compared within one run."""

import pandas as pd

from stages.report import names
from stages.report.markup import Table, TableCell
from stages.report.names import need, ordered, pairs, where

SPENT = {
    "prepare_seconds": "Preparation (s)", "edit_seconds": "An edit (s)", "edit_bytes": "An edit (bytes)",
    "low_rank_bytes": "At rank 1 (bytes)", "edited_per_unedited_forward": "Edited / unedited forward",
    "full_per_trunk_seconds": "Whole model / trunk", "trace_per_forward": "Outcomes / forward",
}  # fmt: skip
ROUTED = {
    "routed_hit_seconds": "A query, all met (s)", "routed_hit_per_unedited": "All met / unedited",
    "routed_miss_per_unedited": "None met / unedited",
}  # fmt: skip


def spent(table: pd.DataFrame) -> Table:
    """Preparation, seconds and bytes an edit, and what the frozen trunk saves: one row a method (the paper's Table 5)."""
    shown = ordered(SPENT, table[table["cost"].isin(SPENT)]["cost"])
    rows = []
    for place, block in pairs(need(table, "costs")):
        for method in ordered(names.METHODS, block["method"]):
            found = block[block["method"] == method].set_index("cost")
            label = [*place, names.METHODS.get(method, method)]
            rows.append([*map(TableCell, label), *(_middle(found, cost) for cost in shown)])
    caption = (
        f"What editing costs ({where(table)}), medians and quartiles on one machine. Preparation: learning from train edits. "
        "Edited / unedited forward: of a batch with the edit applied. Whole model / trunk: the same optimisation of the last "
        "layer without and with what the frozen trunk says. Outcomes / forward: all outcomes of an edit's probes over one "
        "forward over them."
    )
    return Table(["Dataset", "Backbone", "Method", *(SPENT[cost] for cost in shown)], rows, caption, labels=3)


def routed(table: pd.DataFrame) -> Table:
    """Seconds of a forward routed through a codebook over those of an unedited one: a row a method and number of entries."""
    table = need(table[table["cost"].isin(ROUTED)], "a method behind a codebook")
    shown, rows = ordered(ROUTED, table["cost"]), []
    for place, block in pairs(table):
        for method in ordered(names.METHODS, block["method"]):
            for entries, part in block[block["method"] == method].groupby("entries"):
                label = [*place, names.METHODS.get(method, method), f"{int(entries):,}"]
                found = part.set_index("cost")
                rows.append([*map(TableCell, label), *(_middle(found, cost) for cost in shown)])
    caption = (
        f"A forward that a codebook routes, and over the unedited one ({where(table)}): medians and quartiles of "
        f"{names.count(table['n']).removeprefix('n = ')} rounds on one machine. The queries of a batch go to different entries."
    )
    return Table(["Dataset", "Backbone", "Method", "Entries", *(ROUTED[cost] for cost in shown)], rows, caption, labels=3)


def compared(table: pd.DataFrame) -> Table:
    """Seconds of each workload in two versions of the study, in turns on one machine, and their ratio."""
    rows = [
        [
            TableCell(row.case),
            *(TableCell(f"{value:.3g}") for value in (row.before_s, row.after_s, row.ratio)),
            TableCell(f"{row.n}"),
        ]
        for row in need(table, "throughput").itertuples()
    ]
    caption = (
        "Speed before and after edits were made side by side: medians of seconds, in turns on one machine. An edit: made and "
        "traced, with all its probes or with the few that settings are tried on, behind what the trunk says. trunk: what it says "
        "of one edit's probes. fit: one step of a training. pair-from-nothing: computed from these for one dataset and backbone."
    )
    return Table(["Workload", "Before (s)", "After (s)", "Times faster", "n"], rows, caption, labels=1)


def _middle(found: pd.DataFrame, cost: str) -> TableCell:
    """Median, and the quartiles where they differ; bytes whole."""
    if cost not in found.index:
        return TableCell("–")
    row = found.loc[cost]
    form = ",.0f" if cost.endswith("bytes") else ".3g"
    spread = f"[{row['low']:{form}}, {row['high']:{form}}]" if row["low"] < row["high"] else ""
    return TableCell(f"{row['value']:{form}}", spread)
