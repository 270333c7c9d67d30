"""The way in: the headline figure and table, links to every report, and the files to lift into a paper."""

from pathlib import Path

from markupsafe import Markup
from PIL import Image

from stages.params import UserError
from stages.report import html, names, tables


def page(reports: Path, level: float) -> str:
    """The page, from reports/scores.csv and the headline figure; links are relative to `reports`."""
    png = reports / "figures" / f"{names.HEADLINE_FIGURE}.png"
    if not png.exists():
        raise UserError(f"{png}: missing; run `python -m stages.report ablations` first")
    main = tables.main(tables.read(str(reports / "scores.csv")), "strict", level)
    picture = html.figure(png.read_bytes(), caption_of(png))
    body = Markup(
        "<h1>BalancEdit study</h1>\n<section class=text><p>Editing one fact in a vision-language model so "
        "that the edit reaches "
        "every rephrasing of the fact (generality) and nothing else (locality). Scores are strict unless "
        "said otherwise: "
        "greedy decoding, exact match.</p></section>\n{}\n{}\n<h2>Reports</h2>\n{}\n<h2>Files for a "
        "paper</h2>\n{}"
    ).format(
        Markup(picture),
        Markup(html.table(main.header, main.rows, main.caption, main.labels)),
        _cards(),
        _files(),
    )
    return html.page("BalancEdit study", body, "index")


def caption_of(png: Path) -> str:
    """The caption that a figure carries in its metadata."""
    with Image.open(png, formats=("PNG",)) as image:
        return image.text.get("Description", "")


def _cards() -> Markup:
    card = Markup('<li><a href="{}.html"><b>{}</b></a><p>{}</p></li>')
    return Markup('<ul class="cards">{}</ul>').format(
        Markup("").join(card.format(name, report.title, report.about) for name, report in names.REPORTS.items())
    )


def _files() -> Markup:
    row = Markup("<tr><td>{}</td><td>{}</td><td>{}</td></tr>\n")
    rows = [
        row.format(
            report.title,
            _links("figures", report.figures, ("png", "pdf")),
            _links("tables", report.tables, ("md", "tex")),
        )
        for report in names.REPORTS.values()
    ]
    head = Markup("<thead><tr><th>Report</th><th>Figures</th><th>Tables</th></tr></thead>")
    return Markup('<div class="scroll files"><table>{}<tbody>{}</tbody></table></div>').format(head, Markup("").join(rows))


def _links(folder: str, files: tuple[str, ...], endings: tuple[str, str]) -> Markup:
    link = Markup('<a href="{0}/{1}.{2}">{2}</a>')
    each = [Markup("{} {}").format(f, Markup(" ").join(link.format(folder, f, e) for e in endings)) for f in files]
    return Markup("<br>").join(each)
