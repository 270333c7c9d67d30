"""Tables of the reports: read tidy results, arrange them, write them as Markdown and as LaTeX (booktabs)."""

import json
import math
from pathlib import Path

import pandas as pd
from IPython.display import HTML

from stages.params import UserError, write_atomically
from stages.report import html, names
from stages.report.markup import Table, TableCell
from stages.report.names import count, need, ordered, pairs, percent, select, where
from stages.sections import readable

FOLDER = Path("reports/tables")
OUTCOMES = ["target", "unchanged", "other"]


def save(table: Table, name: str) -> HTML:
    """Write reports/tables/<name>.md and .tex; return the table as the page shows it."""
    for ending, text in (("md", table.markdown()), ("tex", table.latex(name))):
        with write_atomically(FOLDER / f"{name}.{ending}") as temporary:
            temporary.write_text(text, encoding="utf-8")
    return HTML(html.table(table.header, table.rows, table.caption, table.labels))


def save_csv(table: pd.DataFrame, name: str) -> None:
    """Write reports/<name>.csv."""
    with write_atomically(FOLDER.parent / f"{name}.csv") as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def read(*paths: str) -> pd.DataFrame:
    """One tidy table from .csv or .parquet files, in the given order; UserError names a missing file."""
    for path in paths:
        if not Path(path).exists():
            raise UserError(f"{path}: missing; run the stage that writes it first")
    parts = []
    for path in paths:
        with readable(path, "run the stage that writes it again"):
            parts.append(pd.read_parquet(path) if str(path).endswith(".parquet") else pd.read_csv(path))
    return pd.concat(parts, ignore_index=True)


def score(row: pd.Series, best: bool = False) -> TableCell:
    """A mean in per cent with its interval, from a row with mean, low and high in [0, 1]."""
    if math.isnan(row["mean"]):
        return TableCell("–")
    known = not (math.isnan(row["low"]) or math.isnan(row["high"]))
    interval = f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}]" if known else ""
    return TableCell(f"{100 * row['mean']:.1f}", interval, best)


def scores(table: pd.DataFrame, protocol: str, metrics: dict[str, str], caption: str, level: float) -> Table:
    """One row a dataset, backbone and method, one column a metric; the best edited model is bold, diverged edits are counted."""
    table = select(table, protocol=protocol)
    failed = table[(table["metric"] == "diverged") & (table["mean"] > 0)].set_index(["dataset", "backbone", "method"])
    table = need(table[table["metric"].isin(metrics)], protocol, *metrics)
    shown = ordered(metrics, table["metric"])
    rows = []
    for place, block in pairs(table):
        edited = block[block["method"] != "base"].groupby("metric")["mean"].max()
        for method in ordered(names.METHODS, block["method"]):
            found = block[block["method"] == method].set_index("metric")
            entries = [entry(found, m, method != "base", edited) for m in shown]
            at = (*place, method)
            share = f"{100 * failed.loc[at, 'mean']:.0f} % diverged" if at in failed.index else ""
            rows.append([*map(TableCell, place), TableCell(names.METHODS.get(method, method), share), *entries])
    caption += (
        f" ({names.PROTOCOLS[protocol]} protocol; {where(table)}): mean over edits in per cent and "
        f"{percent(level)} paired bootstrap interval over edits, {count(table['n'])} edits. Bold: best edited model."
    )
    return Table(["Dataset", "Backbone", "Method", *(metrics[m] for m in shown)], rows, caption, labels=3)


def entry(found: pd.DataFrame, metric: str, edited: bool, best: pd.Series) -> TableCell:
    """The score of `metric` from rows by metric, – where there is none; an edited model's is bold where none is better."""
    if metric not in found.index:
        return TableCell("–")
    row = found.loc[metric]
    return score(row, edited and round(100 * row["mean"], 1) == round(100 * best[metric], 1))


def main(table: pd.DataFrame, protocol: str, level: float) -> Table:
    """The study's main table: reliability, generality, locality, HM."""
    return scores(table, protocol, names.MAIN, "Main results", level)


def hm(table: pd.DataFrame, protocol: str, level: float) -> Table:
    """HM alone: one row a method, one column a dataset and backbone."""
    table = need(select(table, protocol=protocol, metric="hm"), protocol)
    places, rows = pairs(table), []
    for method in ordered(names.METHODS, table["method"]):
        entries = []
        for _, block in places:
            best = pd.Series({"hm": block[block["method"] != "base"]["mean"].max()})
            entries.append(entry(block[block["method"] == method].set_index("metric"), "hm", method != "base", best))
        rows.append([TableCell(names.METHODS.get(method, method)), *entries])
    caption = (
        f"HM, the harmonic mean of text generality, image generality and locality ({names.PROTOCOLS[protocol]} protocol): mean "
        f"over edits in per cent and {percent(level)} paired bootstrap interval over edits, {count(table['n'])} edits. Bold: "
        "best edited model."
    )
    return Table(["Method", *(", ".join(place) for place, _ in places)], rows, caption)


def paired(table: pd.DataFrame, protocol: str, level: float) -> Table:
    """What BalancEdit gains on each other method, in points with an interval; bold where a paired test tells them apart."""
    table = need(select(table, protocol=protocol), protocol)
    columns = {"reliability": names.MAIN["reliability"]} | names.TRADE_OFF
    shown = ordered(columns, table["metric"])
    rows = []
    for place, block in pairs(table):
        for method in ordered(names.METHODS, block["method"]):
            found = block[block["method"] == method].set_index("metric")
            entries = [_gain(found.loc[m]) if m in found.index else TableCell("–") for m in shown]
            rows.append([*map(TableCell, [*place, names.METHODS.get(method, method)]), *entries])
    ours = ", ".join(names.METHODS.get(m, m) for m in sorted(set(table["ours"])))
    caption = (
        f"{ours} against each other method ({names.PROTOCOLS[protocol]} protocol; {where(table)}): difference in points with "
        f"{percent(level)} paired bootstrap interval over edits, {count(table['n'])} edits. Bold: p < 0.05 in a two-sided paired "
        "permutation test over edits, Holm-corrected over the methods."
    )
    return Table(["Dataset", "Backbone", "Against", *(columns[m] for m in shown)], rows, caption, labels=3)


def _gain(row: pd.Series) -> TableCell:
    interval = f"[{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
    return TableCell(f"{100 * row['difference']:+.1f}", interval, bool(row["p_holm"] < 0.05))


def probes(table: pd.DataFrame, protocol: str, level: float) -> Table:
    """Every probe kind on its own, and the hops."""
    in_main = ("edit", "text_generality", "image_generality")
    metrics = {kind: name for kind, name in names.KINDS.items() if kind not in in_main}
    return scores(table, protocol, metrics, "Scores by probe kind", level)


def conditional(table: pd.DataFrame, level: float) -> Table:
    """Generality where the unedited model did not give the target, locality where it was right."""
    metrics = {f"{k}_unedited_wrong": v for k, v in names.REACHED.items() if k != "edit"}
    metrics |= {f"{k}_unedited_right": v for k, v in names.LOCALITY.items()}
    about = "Generality on probes not already answered with the target, locality on probes already right"
    return scores(table, "strict", metrics, about, level)


def artists(table: pd.DataFrame, level: float) -> Table:
    """Image generality by who drew the picture, beside the hard kinds of locality: a scope must not buy one with the other."""
    metrics = {"image_generality": "I-Gen", "image_generality_seen_artists": "seen artists"}
    metrics |= {"image_generality_unseen_artists": "unseen artists", "hard_locality": "Hard Loc"}
    metrics |= {kind: names.LOCALITY[kind] for kind in ("near_image", "far_image", "other_question")}
    return scores(table, "strict", metrics, "Other pictures by artist, and hard locality", level)


def outcomes(table: pd.DataFrame) -> Table:
    """Share of each outcome by probe kind, a column a method."""
    shares = outcome_shares(table)
    methods = ordered(names.METHODS, shares["method"])
    rows = []
    for place, block in pairs(shares):
        found = block.set_index(["kind", "method"])
        for kind in ordered(names.KINDS, block["kind"]):
            parts = [found.loc[(kind, m)] if (kind, m) in found.index else None for m in methods]
            entries = [TableCell("–" if p is None else _split(p)) for p in parts]
            rows.append([*map(TableCell, [*place, names.KINDS.get(kind, kind)]), *entries])
    caption = (
        f"Outcomes by probe kind ({where(table)}): target / unchanged / another answer in per cent, mean "
        f"over test edits ({count(shares['n'])}). For hops, target is their answer after the edit."
    )
    header = ["Dataset", "Backbone", "Probe", *(names.METHODS.get(m, m) for m in methods)]
    return Table(header, rows, caption, labels=3)


def _split(part: pd.Series) -> str:
    return " / ".join(f"{100 * part[outcome]:.0f}" for outcome in OUTCOMES)


def outcome_shares(table: pd.DataFrame) -> pd.DataFrame:
    """dataset, backbone, method, kind, share of each outcome, n: means over edits of means over probes."""
    table = table[(table["split"] == "test") & ~table["kind"].str.startswith("sample_")]
    by = ["dataset", "backbone", "method", "kind"]
    shares = pd.get_dummies(table["outcome"], dtype=float)
    shares = shares.reindex(columns=OUTCOMES, fill_value=0.0)
    per_edit = pd.concat([table[[*by, "edit_id"]], shares], axis=1).groupby([*by, "edit_id"]).mean()
    grouped = per_edit.groupby(by)
    return grouped.mean().assign(n=grouped.size()).reset_index()


def strata(table: pd.DataFrame, method: str, level: float) -> Table:
    """One method's trade-off by relation and by type of answer, the strata with the most edits first."""
    table = need(select(table, method=method), method)
    shown = ordered(names.TRADE_OFF, table[table["metric"].isin(names.TRADE_OFF)]["metric"])
    rows = []
    for place, block in pairs(table):
        for group in ordered(names.STRATA, block["group"]):
            sizes = block[block["group"] == group].groupby("stratum")["n"].max().sort_values(ascending=False, kind="stable")
            for stratum, size in sizes.items():
                found = select(block, group=group, stratum=stratum).set_index("metric")
                label = [*place, names.STRATA.get(group, group), str(stratum).replace("_", " ")]
                rows.append(
                    [*map(TableCell, label), TableCell(str(size)), *(entry(found, m, False, found["mean"]) for m in shown)]
                )
    caption = (
        f"{names.METHODS.get(method, method)} by relation and by type of the target (strict protocol; {where(table)}): mean over "
        f"edits in per cent and {percent(level)} bootstrap interval over the stratum's n edits."
    )
    return Table(["Dataset", "Backbone", "By", "Stratum", "n", *(names.TRADE_OFF[m] for m in shown)], rows, caption, labels=4)


def radii(table: pd.DataFrame) -> Table:
    """α, medians of d⁺, d⁻ and ε, and how often the positive sample is farther than the negative."""
    table = select(table, split="test").drop_duplicates(["dataset", "backbone", "method", "edit_id"])
    rows = []
    for place, block in pairs(table):
        for method in ordered(names.METHODS, block["method"]):
            found = block[block["method"] == method]
            alpha = found["alpha"].iloc[0]
            middle = [TableCell("–" if alpha != alpha else f"{alpha:g}")]
            middle += [TableCell(f"{found[c].median():.3g}") for c in ("d_plus", "d_minus", "epsilon")]
            inverted = TableCell(f"{int(found['inverted'].sum())} of {len(found)}")
            rows.append([*map(TableCell, place), TableCell(names.METHODS.get(method, method)), *middle, inverted])
    sizes = table.groupby(["dataset", "backbone", "method"]).size()
    caption = f"Radii ({where(table)}): α, medians over test edits ({count(sizes)}), and how many have d⁺ > d⁻."
    return Table(["Dataset", "Backbone", "Method", "α", "d⁺", "d⁻", "ε", "d⁺ > d⁻"], rows, caption, labels=3)


def settings(table: pd.DataFrame) -> Table:
    """The hyper-parameters that each method's edits used, and of how many they were chosen on dev edits."""
    rows = []
    for place, block in pairs(table):
        for method in ordered(names.METHODS, block["method"]):
            found = block[block["method"] == method].iloc[0]
            used = ", ".join(f"{name} {value}" for name, value in json.loads(found["settings"]).items())
            tried = str(found["tried"]) if found["tried"] > 1 else "–"
            rows.append(
                [*map(TableCell, place), TableCell(names.METHODS.get(method, method)), TableCell(used or "–"), TableCell(tried)]
            )
    caption = f"Hyper-parameters ({where(table)}), and of how many settings the best on dev edits, by strict HM, was taken."
    return Table(["Dataset", "Backbone", "Method", "Settings", "Tried on dev"], rows, caption, labels=4)


def backbone_accuracy(table: pd.DataFrame) -> Table:
    """Accuracy by task and artist, means over seen and held-out artists, and accuracy on questions without a picture."""
    vendors = _seen_first(table)
    rows = []
    for backbone, block in table.groupby("backbone", sort=True):
        for task in ordered(names.TASKS, block["task"]):
            found = block[block["task"] == task]
            by_vendor = found.set_index("vendor")["accuracy"]
            means = [found[found["split"] == s]["accuracy"].mean() for s in ("seen", "held-out", "text")]
            entries = [TableCell("–" if v != v else f"{100 * v:.1f}") for v in [*by_vendor.reindex(vendors), *means]]
            rows.append([TableCell(str(backbone)), TableCell(names.TASKS.get(task, task)), *entries])
    shown, text = (count(part["n"]) for part in (table[table["split"] != "text"], table[table["split"] == "text"]))
    caption = (
        f"Greedy accuracy of the unedited models in per cent: exact match by artist ({shown} questions each), and, on open "
        f"questions without a picture, whether the answer contains an accepted one ({text})."
    )
    header = ["Backbone", "Task", *(names.VENDORS.get(v, v) for v in vendors), "Seen", "Held out", "No picture"]
    return Table(header, rows, caption, labels=2)


def _seen_first(table: pd.DataFrame) -> list[str]:
    held = set(table[table["split"] == "held-out"]["vendor"])
    shown = table[table["split"] != "text"]
    return sorted(ordered(names.VENDORS, shown["vendor"]), key=lambda v: v in held)
