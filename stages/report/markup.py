"""A table as Markdown and as LaTeX (booktabs)."""

import re
from dataclasses import dataclass

LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "α": r"$\alpha$", "ε": r"$\varepsilon$", "⁺": r"$^{+}$", "⁻": r"$^{-}$",
    ">": "$>$", "<": "$<$", "–": "--",
}  # fmt: skip


@dataclass(frozen=True)
class TableCell:
    """One entry: a value, its interval ("" for none), and whether it is the best of its column."""

    text: str
    interval: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """Header, rows of entries and caption; the first `labels` columns are names, the others numbers."""

    header: list[str]
    rows: list[list[TableCell]]
    caption: str
    labels: int = 1

    def markdown(self) -> str:
        """A pipe table under its caption."""
        align = ["---" if i < self.labels else "---:" for i in range(len(self.header))]
        lines = [self.header, align, *([_markdown(c) for c in row] for row in self.rows)]
        return f"{self.caption}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"

    def latex(self, label: str) -> str:
        """A floating two-column table with booktabs rules."""
        columns = "l" * self.labels + "r" * (len(self.header) - self.labels)
        lines = [r"% \usepackage{booktabs}", r"\begin{table*}[t]", r"\centering", r"\small"]
        lines += [rf"\caption{{{_escape(self.caption)}}}", rf"\label{{tab:{label}}}"]
        lines += [rf"\begin{{tabular}}{{{columns}}}"]
        lines += [r"\toprule", " & ".join(map(_escape, self.header)) + r" \\", r"\midrule"]
        lines += [" & ".join(map(_latex, row)) + r" \\" for row in self.rows]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table*}", ""])


def _markdown(cell: TableCell) -> str:
    text = cell.text.replace("|", r"\|")
    return (f"**{text}**" if cell.best else text) + (f" {cell.interval}" if cell.interval else "")


def _latex(cell: TableCell) -> str:
    text = _escape(cell.text)
    # The braces keep a leading [ from being read as an optional argument of the row before.
    interval = rf" {{\scriptsize {_escape(cell.interval)}}}" if cell.interval else ""
    return (rf"\textbf{{{text}}}" if cell.best else text) + interval


def _escape(text: str) -> str:
    return re.sub("|".join(map(re.escape, LATEX)), lambda found: LATEX[found[0]], text)
