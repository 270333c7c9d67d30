"""What all figures share: sizes, colours, grouped bars, and how a drawing is saved.

Sizes are those of a two-column paper (3.4 in a column, 7 in both). Colours are Okabe and Ito's, which
colour-blind readers tell apart; markers and hatches differ too, so every figure can be read in grey.
Bytes are the same on every run.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text

from stages.params import write_atomically
from stages.report import html, names
from stages.report.names import ordered

FOLDER = Path("reports/figures")
COLUMN, PAGE = 3.4, 7.0  # inches
DPI = 300
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#C4C4C4")
HATCHES = ("", "////", "....", "xxxx", "----", "\\\\\\\\", "||||", "")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
STYLE = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8,
    "legend.fontsize": 7, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "axes.spines.top": False, "axes.spines.right": False,
    "hatch.linewidth": 0.5, "lines.linewidth": 1.2, "lines.markersize": 4,
    "legend.frameon": False, "pdf.fonttype": 42, "svg.hashsalt": "report",
    "text.parse_math": False,  # text is text: a question may say `$5 or $10`, a relation's name `$a_{$`
}  # fmt: skip
BOXES = " Boxes stand for characters that the figure's font lacks."


@dataclass(frozen=True)
class Drawing:
    """A figure and the caption that goes with it."""

    figure: Figure
    caption: str


def save(drawing: Drawing, name: str) -> HTML:
    """Write reports/figures/<name>.png and .pdf, the caption as metadata; return what the page shows. The caption says what boxes
    mean where there are any.
    """
    if lacks(drawing.figure):
        drawing = Drawing(drawing.figure, drawing.caption + BOXES)
    about = {
        "png": {"Software": None, "Description": drawing.caption},
        "pdf": {"Creator": None, "Producer": None, "CreationDate": None, "Subject": drawing.caption},
    }
    for ending, metadata in about.items():
        with write_atomically(FOLDER / f"{name}.{ending}") as temporary:
            temporary.write_bytes(drawn(drawing.figure, ending, metadata))
    return HTML(html.figure((FOLDER / f"{name}.png").read_bytes(), drawing.caption))


def drawn(figure: Figure, ending: str, metadata: Mapping[str, str | None]) -> bytes:
    """The figure as a file. `Figure.savefig` writes the same bytes, but goes through every artist once more before it draws."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the caption says it
        if ending == "png":
            figure.set_dpi(DPI)
            FigureCanvasAgg(figure).print_png(buffer, metadata=metadata)
        else:
            FigureCanvasPdf(figure).print_pdf(buffer, metadata=metadata)
    return buffer.getvalue()


def lacks(figure: Figure) -> str:
    """The characters of a figure's text that its font lacks (Chinese, emoji), sorted: they are drawn as boxes."""
    font = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    with matplotlib.rc_context(STYLE):  # looking for text makes that of ticks
        said = {character for text in figure.findobj(Text) for character in text.get_text()}
    return "".join(sorted(c for c in said if ord(c) not in font.get_charmap() and not c.isspace()))


def panels(rows: int, columns: int, width: float, height: float, **shared: str | bool) -> tuple[Figure, np.ndarray]:
    """A figure of rows × columns axes, `height` inches a row; without pyplot, so nothing shows twice."""
    figure = Figure(figsize=(width, max(rows, 1) * height + 0.35), layout="constrained")
    return figure, figure.subplots(max(rows, 1), columns, squeeze=False, **shared)


def patch(colour: str, hatch: str) -> Patch:
    """A legend's sample of a bar."""
    return Patch(facecolor=colour, hatch=hatch, edgecolor="black", linewidth=0.4)


def legend(figure: Figure, handles: Sequence, labels: Sequence[str]) -> None:
    """One legend above all panels."""
    columns = min(len(labels), 4 if figure.get_figwidth() <= COLUMN else 8)
    figure.legend(handles, labels, loc="outside upper center", ncols=columns)


def bars(
    axes: Axes,
    table: pd.DataFrame,
    groups: dict[str, str],
    group: str,
    series: dict[str, str],
    by: str,
    styles: dict[str, int],
) -> list[Patch]:
    """Bars of mean (per cent) with intervals: one group a value of `group`, one bar a value of `by`."""
    width = 0.8 / max(len(series), 1)
    handles = []
    for i, key in enumerate(series):
        found = table[table[by] == key].set_index(group)[["mean", "low", "high"]].reindex(list(groups)) * 100
        at = np.arange(len(groups)) + (i - (len(series) - 1) / 2) * width
        colour, hatch, _ = look_of(styles[key])
        look = {"color": colour, "hatch": hatch, "edgecolor": "black", "linewidth": 0.4}
        axes.bar(at, found["mean"], width, **look)
        reach = np.nan_to_num([found["mean"] - found["low"], found["high"] - found["mean"]]).clip(0)
        axes.errorbar(at, found["mean"], reach, fmt="none", ecolor="black", elinewidth=0.7, capsize=1.2)
        handles.append(patch(colour, hatch))
    axes.set_xticks(range(len(groups)), list(groups.values()))
    axes.set_ylim(0, 105)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="0.9", linewidth=0.5)
    return handles


def styles(values: Sequence[str]) -> dict[str, int]:
    """The number of each method's look, the same in every figure, that of its tuned row for a published one; the unedited model
    alone is grey.
    """
    others = [v for v in values if v not in names.METHODS]
    tuned = [m for m in names.METHODS if m not in ("balancedit", "base") and not m.endswith(names.PUBLISHED)]
    found = {v: i + i // (len(COLOURS) - 1) for i, v in enumerate(["balancedit", *tuned, *others])}
    found |= {f"{name}{names.PUBLISHED}": found[name] for name in names.STANDS_TWICE}
    return found | {"base": len(COLOURS) - 1}


def look_of(number: int) -> tuple[str, str, str]:
    """Colour, hatch and marker; where the colours begin again, the others are shifted, so that no two looks are the same."""
    turn, place = divmod(number, len(COLOURS))
    return COLOURS[place], HATCHES[(place + turn) % len(HATCHES)], MARKERS[(place + turn) % len(MARKERS)]


def labelled(order: dict[str, str], values: Sequence[str]) -> dict[str, str]:
    """Distinct values with their names, in order."""
    return {v: order.get(v, v) for v in ordered(order, values)}
