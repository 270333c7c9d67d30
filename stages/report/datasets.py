"""What the sets of edits hold: figure, tables and examples, from reports/okedit/<dataset>.json and data/okedit/<dataset>/."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from IPython.display import HTML
from markupsafe import escape

from stages.params import UserError, write_atomically
from stages.report import html, names, tables
from stages.report.canvas import COLOURS, HATCHES, PAGE, STYLE, Drawing, legend, panels, patch
from stages.report.markup import Table, TableCell
from stages.report.names import ordered

# Dataset → what the `okedit` stage counted.
Counts = Mapping[str, Mapping[str, Any]]
USES = {"question": "Edit", "rephrasings_train": "Positive samples", "rephrasings": "Evaluation"}


def read(datasets: Sequence[str]) -> Counts:
    """The counts of each dataset; UserError names a missing file."""
    found = {}
    for name in datasets:
        path = Path("reports/okedit") / f"{name}.json"
        if not path.exists():
            raise UserError(f"{path}: missing; run the stage that writes it first")
        found[name] = json.loads(path.read_text(encoding="utf-8"))
    return found


def save(counts: Counts) -> None:
    """Write all sets' counts in one file, reports/okedit.json."""
    with write_atomically("reports/okedit.json") as temporary:
        temporary.write_text(json.dumps(counts, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def sizes(counts: Counts) -> str:
    """`okedit: 150 test, 50 dev, 300 train`, for captions."""
    each = (f"{n}: " + ", ".join(f"{c['splits'][s]['edits']} {s}" for s in reversed(names.SPLITS)) for n, c in counts.items())
    return "; ".join(each)


def relations(counts: Counts) -> Drawing:
    """Edits by relation, stacked by split; one panel a dataset."""
    shown = ordered({}, (r for c in counts.values() for s in c["splits"].values() for r in s["relations"]))
    with matplotlib.rc_context(STYLE):
        figure, axes = panels(1, len(counts), PAGE, max(1.2, 0.15 * len(shown)), sharey=True)
        for ax, (name, found) in zip(axes[0], counts.items(), strict=True):
            left = np.zeros(len(shown))
            for i, split in enumerate(names.SPLITS):
                width = [found["splits"][split]["relations"].get(r, 0) for r in shown]
                look = {"color": COLOURS[i], "hatch": HATCHES[i], "edgecolor": "black", "linewidth": 0.4}
                ax.barh(range(len(shown)), width, left=left, **look)
                left += width
            ax.set_yticks(range(len(shown)), [r.replace("_", " ") for r in shown])
            ax.xaxis.get_major_locator().set_params(integer=True)
            ax.set_xlabel("edits")
            ax.set_title(name, loc="left")
        axes[0, 0].invert_yaxis()
        legend(figure, [patch(COLOURS[i], HATCHES[i]) for i in range(len(names.SPLITS))], list(names.SPLITS.values()))
    return Drawing(figure, f"Edits by relation and split ({sizes(counts)}).")


def relation_table(counts: Counts) -> Table:
    """Edits by relation and split."""
    rows = []
    for name, found in counts.items():
        by_split = {s: found["splits"][s]["relations"] for s in names.SPLITS}
        listed = {r: [by_split[s].get(r, 0) for s in names.SPLITS] for r in sorted(set().union(*by_split.values()))}
        listed["all"] = [sum(line[i] for line in listed.values()) for i in range(len(names.SPLITS))]
        rows += [_row(name, r.replace("_", " "), [*line, sum(line)]) for r, line in listed.items()]
    header = ["Dataset", "Relation", *names.SPLITS.values(), "all"]
    return Table(header, rows, f"Edits by relation and split ({sizes(counts)}).", labels=2)


def probe_table(counts: Counts) -> Table:
    """Probes by kind and split."""
    caption = (
        f"Probes stored by kind and split ({sizes(counts)} edits); pairs of a rephrasing and another picture come from these."
    )
    return _by_split(counts, "probes", "Probe", names.KINDS, caption)


def phrasing_table(counts: Counts) -> Table:
    """Different phrasings by use and split."""
    return _by_split(counts, "phrasings", "Phrasings for", USES, f"Different phrasings of questions ({sizes(counts)} edits).")


def rejection_table(counts: Counts) -> Table:
    """What was rejected while the sets were built, and why, with an example of each."""
    rows = []
    for name, found in counts.items():
        for reason, n in sorted(found["rejected"].items()) or [("nothing", 0)]:
            first = (found["rejected_first"].get(reason) or [""])[0]
            rows.append([*map(TableCell, (name, reason, first, str(n)))])
    caption = f"Candidates that were rejected, by reason, with the first of each ({sizes(counts)} edits were kept)."
    return Table(["Dataset", "Reason", "First", "Rejected"], rows, caption, labels=3)


def _by_split(counts: Counts, part: str, label: str, labels: Mapping[str, str], caption: str) -> Table:
    rows = []
    for name, found in counts.items():
        by_split = [found["splits"][s][part] for s in names.SPLITS]
        for kind in ordered(labels, set().union(*by_split)):
            rows.append(_row(name, labels.get(kind, kind), [counted.get(kind, 0) for counted in by_split]))
    return Table(["Dataset", label, *names.SPLITS.values()], rows, caption, labels=2)


def _row(dataset: str, label: str, numbers: Iterable[int]) -> list[TableCell]:
    return [TableCell(dataset), TableCell(label), *(TableCell(str(n)) for n in numbers)]


def examples(datasets: Sequence[str], rows: int) -> HTML:
    """The first `rows` edits of each dataset that may be shown, with their probes."""
    parts = []
    for name in datasets:
        edits, images = (tables.read(f"data/okedit/{name}/{part}.parquet") for part in ("edits", "images"))
        parts.append(f"<h3>{escape(name)}</h3>\n{html.examples(edits, images, rows).data}")
    return HTML("\n".join(parts))
