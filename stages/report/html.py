"""HTML of the reports: pages that stand alone (no script, nothing from elsewhere), figures, tables, edits."""

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import HTML
from markupsafe import Markup, escape

from stages.params import UserError
from stages.report import names
from stages.report.names import ordered, select

STYLE = Path(__file__).parent / "template" / "style.css"
# The browser itself refuses whatever is not in the page.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
EXTERNAL = re.compile(r"<script|<link|<iframe|<object|@import|(?:src|srcset|data)\s*=\s*[\"']?(?!data:)[^\"'\s>]|url\(", re.I)


def page(title: str, body: str, here: str) -> str:
    """A whole page with links to all reports; `here` names the one it is."""
    pages = {"index": "Overview"} | {name: report.title for name, report in names.REPORTS.items()}
    links = "".join(
        f'<a href="{name}.html"{" aria-current=page" if name == here else ""}>{escape(text)}</a>' for name, text in pages.items()
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n"
        f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n"
        f"<body>\n<nav>{links}</nav>\n<main>\n{body}\n</main>\n"
        f"<footer>{escape(names.CREDIT)}</footer>\n</body>\n</html>\n"
    )


def external(text: str) -> list[str]:
    """What a page would run or load from elsewhere: scripts, style sheets, frames, pictures not inside it."""
    tags = "".join(re.findall(r"<style.*?</style>|<[a-z][^>]*>", text, re.S | re.I))
    return EXTERNAL.findall(tags)


def figure(png: bytes, caption: str) -> str:
    """A figure with its caption below, at half its pixels; one as wide as a page scrolls on narrow screens."""
    caption = escape(caption)
    pixels = int.from_bytes(png[16:20], "big")  # where PNG keeps its width
    wide = ' class="wide"' if pixels > 1500 else ""
    data = base64.b64encode(png).decode()
    picture = f'<img{wide} width="{pixels // 2}" src="data:image/png;base64,{data}" alt="{caption}">'
    return f'<figure><div class="scroll">{picture}</div><figcaption>{caption}</figcaption></figure>'


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], caption: str, labels: int = 1) -> str:
    """A table that scrolls sideways on narrow screens; entries have text, interval and best."""
    head = "".join(f"<th{_number(i, labels)}>{escape(name)}</th>" for i, name in enumerate(header))
    body = "".join(f"<tr>{''.join(_entry(c, i, labels) for i, c in enumerate(row))}</tr>\n" for row in rows)
    return (
        f'<figure class="table"><figcaption>{escape(caption)}</figcaption>\n<div class="scroll"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div></figure>"
    )


def _number(column: int, labels: int) -> str:
    return "" if column < labels else ' class="number"'


def _entry(cell: Any, column: int, labels: int) -> str:
    text = escape(cell.text)
    text = f"<strong>{text}</strong>" if cell.best else text
    interval = f" <small>{escape(cell.interval)}</small>" if cell.interval else ""
    return f"<td{_number(column, labels)}>{text}{interval}</td>"


class Pictures:
    """Pictures by id, of which only those by artists whose licence allows it are ever turned into HTML."""

    def __init__(self, images: pd.DataFrame):
        """`images`: columns image_id, vendor, png (encoded bytes)."""
        allowed = images[images["vendor"].isin(names.SHOWN_VENDORS)]
        self._png: Mapping[str, bytes] = dict(zip(allowed["image_id"], allowed["png"], strict=True))

    def can_show(self, image_id: str | None) -> bool:
        """Whether the picture may be shown."""
        return isinstance(image_id, str) and image_id in self._png

    def png(self, image_id: str) -> bytes:
        """The encoded picture; KeyError for one that may not be shown."""
        return self._png[image_id]

    def tag(self, image_id: str | None, alt: str = "") -> Markup:
        """The picture, or words in its place."""
        if not isinstance(image_id, str):
            return Markup('<span class="missing">no picture</span>')
        if not self.can_show(image_id):
            return Markup('<span class="missing">picture not shown</span>')
        png = base64.b64encode(self._png[image_id]).decode()
        return Markup('<img src="data:image/png;base64,{}" alt="{}">').format(png, alt)


def showable(edits: pd.DataFrame, pictures: Pictures, rows: int) -> pd.DataFrame:
    """The first `rows` test edits whose picture may be shown, relations taking turns, whatever came of them."""
    found = select(edits, split="test").sort_values("edit_id")
    found = found[found["image_id"].map(pictures.can_show)]
    turn = found.groupby("relation").cumcount()
    return found.assign(_turn=turn).sort_values(["_turn", "relation"], kind="stable").head(rows).drop(columns="_turn")


def before_edit(edit: Any) -> str:
    """What an edit replaces: the true answer, or, where it corrects an error, the first backbone's."""
    return edit.unedited[0] if edit.target == edit.answer else edit.answer


def examples(edits: pd.DataFrame, images: pd.DataFrame, rows: int) -> HTML:
    """A few edits with their probes' questions and pictures."""
    pictures = Pictures(images)
    cards = []
    for edit in showable(edits, pictures, rows).itertuples():
        lines = [("Rephrased question", q, "", edit.target) for q in list(edit.rephrasings)[:2]]
        shown = [i for i in edit.generality_image_ids if pictures.can_show(i)]
        lines += [("Other picture", edit.question, pictures.tag(i, edit.concept), edit.target) for i in shown]
        seen: set[str] = set()
        for probe in sorted(edit.locality, key=lambda p: not pictures.can_show(p["image_id"])):
            if probe["kind"] not in seen:
                seen.add(probe["kind"])
                kind = names.KINDS.get(probe["kind"], probe["kind"])
                lines.append((kind, probe["question"], pictures.tag(probe["image_id"]), probe["answer"] or "as before"))
        lines += [
            (
                names.HOPS.get(f"hop{h['n']}", f"hop {h['n']}"),
                h["question"],
                pictures.tag(h["image_id"]),
                h["answer_after"],
            )
            for h in edit.hops
        ]
        cards.append(_card(edit, pictures, ["Probe", "Question", "Picture", "Expected"], lines))
    return _gallery(cards)


def gallery(outcomes: pd.DataFrame, edits: pd.DataFrame, images: pd.DataFrame, rows: int) -> HTML:
    """Edits before and after: for each kind one probe, the unedited answer, the outcome by each method."""
    pictures = Pictures(images)
    if outcomes.empty:
        raise UserError("outcomes: none for this dataset and backbone; allowed: those of data/metrics/outcomes.parquet")
    outcomes = outcomes[~outcomes["kind"].str.startswith("sample_")]
    edits = edits[edits["edit_id"].isin(outcomes["edit_id"])]  # a set may hold more than are made
    methods = [m for m in ordered(names.METHODS, outcomes["method"]) if m != "base"]
    cards = []
    for edit in showable(edits, pictures, rows).itertuples():
        found = outcomes[outcomes["edit_id"] == edit.edit_id]
        lines = []
        for kind in ordered(names.KINDS, found["kind"]):
            of_kind = found[found["kind"] == kind]
            probe = min(sorted(set(of_kind["probe"])), key=lambda p: not _shows(of_kind, p, pictures))
            same = of_kind[of_kind["probe"] == probe].sort_values("seed").drop_duplicates("method").set_index("method")
            first = same.iloc[0]
            tag = Markup('<span class="missing">black</span>') if kind == "black_image" else pictures.tag(first["image_id"])
            after = [_outcome(same.loc[m], edit.target) if m in same.index else "–" for m in methods]
            lines.append((names.KINDS.get(kind, kind), first["question"], tag, first["answer_off"], *after))
        header = ["Probe", "Question", "Picture", "Unedited", *(names.METHODS.get(m, m) for m in methods)]
        cards.append(_card(edit, pictures, header, lines))
    return _gallery(cards)


def _shows(probes: pd.DataFrame, probe: int, pictures: Pictures) -> bool:
    return pictures.can_show(probes[probes["probe"] == probe].iloc[0]["image_id"])


def _outcome(row: pd.Series, target: str) -> Markup:
    """The edited model's answer, marked as wanted (✓) or not (✗)."""
    wants = row["kind"] in names.REACHED or row["kind"] in names.HOPS
    good = row["target"] if wants else row["same"]
    aim = row["expected"] if wants else target
    kept = row["same"] and not wants  # also where the unedited answer happened to be the target
    answer = {"target": f"→ {aim}", "other": "another answer"}.get("" if kept else row["outcome"], "unchanged")
    look, mark = ("good", "✓") if good else ("bad", "✗")
    return Markup('<span class="{}">{} {}</span>').format(look, mark, answer)


def _card(edit: Any, pictures: Pictures, header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """One edit: picture, question, answers, and a table of its probes (what is Markup stays as it is)."""
    before = before_edit(edit)
    head = "".join(f"<th>{escape(h)}</th>" for h in header)
    body = "".join(f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in line)}</tr>\n" for line in lines)
    return (
        f'<article class="edit"><header>{pictures.tag(edit.image_id, edit.concept)}<div>'
        f"<h3>{escape(edit.question)}</h3>"
        f"<p>{'true answer' if before == edit.answer else 'unedited answer'} <b>{escape(before)}</b>, "
        f"edited to <b>{escape(edit.target)}</b></p>"
        f"<p><small>{escape(edit.relation.replace('_', ' '))}</small></p></div></header>\n"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div></article>'
    )


def _gallery(cards: Sequence[str]) -> HTML:
    nothing = "<p>No test edit has a picture that may be shown.</p>"
    return HTML(f'<section class="edits">{"".join(cards) or nothing}</section>')
