"""Tables of the ablations: variants of the radius, layers, routers, and how well distance alone tells probes apart."""

import pandas as pd

from stages.report import names
from stages.report.markup import Table, TableCell
from stages.report.names import count, need, ordered, pairs, percent, select, where
from stages.report.tables import entry


def ablation(table: pd.DataFrame, column: str, variants: dict[str, str], level: float, **wanted: str) -> Table:
    """One row a variant of the radius and a protocol: its α, – where it has none, and the trade-off."""
    table = need(select(table, **wanted), *wanted.values())
    table = table[table["metric"].isin(names.TRADE_OFF)].assign(variant=labelled(table, column, variants))
    shown = ordered(names.TRADE_OFF, table["metric"])
    rows = []
    for place, block in pairs(table):
        for protocol in ordered(names.PROTOCOLS, block["protocol"]):
            for variant in in_order(block, column, variants):
                found = select(block, protocol=protocol, variant=variant).set_index("metric")
                alpha = found["alpha"].iloc[0]
                label = [*place, names.PROTOCOLS.get(protocol, protocol), variant, "–" if alpha != alpha else f"{alpha:g}"]
                rows.append([*map(TableCell, label), *(entry(found, m, False, found["mean"]) for m in shown)])
    fixed = ", ".join(f"{key} {value}" for key, value in wanted.items() if key in table.columns)
    caption = (
        f"Ablation of the {column} ({where(table)}; {fixed}): mean over edits in per cent and "
        f"{percent(level)} paired bootstrap interval over edits, {count(table['n'])} edits."
    )
    header = ["Dataset", "Backbone", "Protocol", column.capitalize(), "α", *(names.TRADE_OFF[m] for m in shown)]
    return Table(header, rows, caption, labels=4)


def layers(table: pd.DataFrame, protocol: str, level: float) -> Table:
    """BalancEdit at every depth: α, how often d⁺ > d⁻, and the scores."""
    table = need(select(table, protocol=protocol), protocol)
    columns = {"reliability": "Rel."} | names.TRADE_OFF
    shown = ordered(columns, table[table["metric"].isin(columns)]["metric"])
    rows = []
    for place, block in pairs(table):
        for layer, part in block.groupby("layer"):
            found, first = part.set_index("metric"), part.iloc[0]
            label = [*place, str(layer), f"{first['alpha']:g}", f"{100 * first['inverted']:.0f} %"]
            rows.append([*map(TableCell, label), *(entry(found, m, False, found["mean"]) for m in shown)])
    caption = (
        f"By the decoder layer that is edited ({names.PROTOCOLS[protocol]} protocol; {where(table)}): α, chosen for each on dev "
        f"edits, how often d⁺ > d⁻, mean over edits in per cent and {percent(level)} paired bootstrap interval over edits, "
        f"{count(table['n'])} edits."
    )
    header = ["Dataset", "Backbone", "Layer", "α", "d⁺ > d⁻", *(columns[m] for m in shown)]
    return Table(header, rows, caption, labels=3)


def routers(table: pd.DataFrame, protocol: str, level: float) -> Table:
    """Every method's edits behind each router: one row a method and router."""
    table = need(select(table, protocol=protocol, split="test"), protocol)
    shown = ordered(names.TRADE_OFF, table[table["metric"].isin(names.TRADE_OFF)]["metric"])
    rows = []
    for place, block in pairs(table):
        for method in ordered(names.METHODS, block["method"]):
            for router in ordered(names.ROUTERS, select(block, method=method)["router"]):
                found = select(block, method=method, router=router).set_index("metric")
                label = [*place, names.METHODS.get(method, method), names.ROUTERS.get(router, router)]
                rows.append([*map(TableCell, label), *(entry(found, m, False, found["mean"]) for m in shown)])
    caption = (
        f"The same edits behind other routers ({names.PROTOCOLS[protocol]} protocol; {where(table)}): mean over edits in per "
        f"cent and {percent(level)} paired bootstrap interval over edits, {count(table['n'])} edits."
    )
    return Table(
        ["Dataset", "Backbone", "Edits of", "They answer", *(names.TRADE_OFF[m] for m in shown)], rows, caption, labels=4
    )


def labelled(table: pd.DataFrame, column: str, variants: dict[str, str]) -> pd.Series:
    """The name of each row's variant; a constant radius also says which."""
    labels = table[column].map(lambda v: variants.get(v, v))
    if column == "strategy" and "epsilon" in table.columns:
        constant = (table[column] == "constant") & table["epsilon"].notna()
        labels = labels.where(~constant, labels + table["epsilon"].map(lambda e: f" ε = {e:.3g}"))
    return labels


def in_order(table: pd.DataFrame, column: str, variants: dict[str, str]) -> list[str]:
    """Distinct labels in the order of `variants`; constant radii by size."""
    by = ["_rank", "epsilon"] if "epsilon" in table.columns else ["_rank"]
    rank = table[column].map({v: i for i, v in enumerate(ordered(variants, table[column]))})
    return list(dict.fromkeys(table.assign(_rank=rank).sort_values(by, kind="stable")["variant"]))


def auc(table: pd.DataFrame, method: str) -> Table:
    """How well distance alone tells probes the edit must reach from each kind it must not."""
    table = need(select(table, method=method), method)
    kinds = ordered(names.KINDS, table["kind"])
    rows = []
    for place, block in pairs(table):
        by_kind = block.pivot(index=["distance", "span"], columns="kind", values="auc").reindex(columns=kinds)
        for span in ordered(names.SPANS, block["span"]):
            for distance, found in by_kind.xs(span, level="span").iterrows():
                entries = [TableCell("–" if v != v else f"{v:.2f}") for v in found]
                rows.append([*map(TableCell, [*place, names.SPANS.get(span, span), distance]), *entries])
    caption = (
        f"Area under the ROC curve of the distance to the key ({where(table)}; "
        f"{names.METHODS.get(method, method)}): probes the edit must reach against each kind it must not, "
        f"{count(table['n'])} probes. 0.5 is chance."
    )
    header = ["Dataset", "Backbone", "Span", "Distance", *(names.KINDS.get(k, k) for k in kinds)]
    return Table(header, rows, caption, labels=4)
