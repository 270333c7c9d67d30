"""The report stage on a synthetic miniature of every input: pages, figures, tables, and a cell that fails."""

import base64
import re
import shutil
import subprocess
import sys

import nbformat
import pandas as pd
import pytest

from stages.params import UserError
from stages.report import (
    canvas,
    claims,
    costs,
    datasets,
    execute,
    figures,
    html,
    index,
    names,
    sequences,
    sweeps,
    tables,
    variants,
)
from stages.report.markup import Table, TableCell
from tests.miniature import COLOURS, PLACE, ROOT, ablations, costs_of, edit_row, grid, png, render, rendered


def test_every_method_has_a_look_of_its_own() -> None:
    numbers = canvas.styles([*names.METHODS, "mine", "yours"])
    published = {name for name in names.METHODS if name.endswith(names.PUBLISHED)}
    looks = [canvas.look_of(number) for name, number in numbers.items() if name not in published]
    assert len(numbers) == len(names.METHODS) + 2
    assert all(numbers[name] == numbers[name.removesuffix(names.PUBLISHED)] for name in published)
    for two in ((0, 1), (0, 2)):  # in bars: colour and hatch; in lines and points: colour and marker
        assert len({tuple(look[i] for i in two) for look in looks}) == len(looks)
    assert [m for m, n in numbers.items() if canvas.look_of(n)[0] == canvas.COLOURS[-1]] == ["base"]


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    with rendered(tmp_path_factory.mktemp("study")) as root:
        yield root


@pytest.mark.parametrize("name", [*names.REPORTS, "index"])
def test_page_stands_alone_without_code(studied, name):
    page = (studied / f"reports/{name}.html").read_text(encoding="utf-8")
    assert not html.external(page)
    assert not re.findall(r"<(?:script|link|iframe)|(?:src|href)=[\"']?(?:https?:)?//", page)
    assert "default-src 'none'" in page and "width=device-width" in page
    assert "tables.read" not in page and "import" not in page
    assert names.CREDIT in page and page.count("<main>") == page.count("<style>") == 1
    report = names.REPORTS.get(name)
    figures_shown, tables_shown = (len(report.figures), len(report.tables)) if report else (1, 1)
    assert page.count("<figure>") == figures_shown and page.count('<figure class="table">') == tables_shown


@pytest.mark.parametrize("folder, endings", [("figures", ("png", "pdf")), ("tables", ("md", "tex"))])
def test_notebooks_write_what_the_list_says(studied, folder, endings):
    listed = {f"{n}.{e}" for r in names.REPORTS.values() for n in getattr(r, folder) for e in endings}
    assert {p.name for p in (studied / "reports" / folder).iterdir()} == listed


def test_index_links_to_every_report_and_file_that_there_is(studied):
    page = (studied / "reports/index.html").read_text(encoding="utf-8")
    linked = set(re.findall(r'href="([^"]+)"', page))
    assert {f"{name}.html" for name in names.REPORTS} < linked
    assert all((studied / "reports" / link).exists() for link in linked)


def test_only_google_and_twitter_art_is_shown(studied):
    for name in ("okedit", "edits"):
        page = (studied / f"reports/{name}.html").read_text(encoding="utf-8")
        for vendor, colour in COLOURS.items():
            shown = base64.b64encode(png(colour)).decode() in page
            assert shown == (vendor in names.SHOWN_VENDORS), (name, vendor)
    assert "picture not shown" in (studied / "reports/okedit.html").read_text(encoding="utf-8")


def test_costs_by_hand() -> None:
    table = pd.DataFrame([PLACE | row for row in costs_of("ft")])
    table.loc[table["cost"] == "edit_seconds", ["value", "low", "high"]] = [0.125, 0.125, 0.125]
    spent, routed = costs.spent(table), costs.routed(table)
    assert [cell.text for cell in spent.rows[0][:6]] == ["okedit", "llava-smollm2", "FT", "1.23e+03", "0.125", "1,234"]
    assert spent.rows[0][4].interval == "" and spent.rows[0][5].interval == "[1,000, 2,000]"
    assert [row[3].text for row in routed.rows] == ["1", "1,000"] and "5 rounds" in routed.caption


def test_samples_by_hand(studied) -> None:
    table = (studied / "reports/tables/samples.md").read_text()
    lines = [line.split(" | ")[2:] for line in table.splitlines() if "okedit" in line and line.startswith("|")]
    assert [line[0] for line in lines] == ["rephrased question", "black", "nearest picture"]
    assert [line[1] for line in lines] == ["2", "1", "1"] and [line[3].strip(" |") for line in lines] == ["–", "0 %", "100 %"]
    assert "n = 5 test edits" in table


def test_gallery_escapes_text_and_marks_outcomes(studied):
    page = (studied / "reports/edits.html").read_text(encoding="utf-8")
    assert "&lt;made&gt;" in page and "<b>clay</b></td>" not in page
    assert '<span class="good">✓ → gold &amp; tin</span>' in page and '<span class="bad">' in page


def test_second_run_gives_the_same_bytes(studied):
    before = {p: p.read_bytes() for p in (studied / "reports").rglob("*") if p.is_file()}
    render(studied, "metrics")
    assert before == {p: p.read_bytes() for p in before}
    assert not any(b"CreationDate" in data for p, data in before.items() if p.suffix == ".pdf")


def test_figures_carry_captions_with_n_and_interval(studied):
    caption = index.caption_of(studied / "reports/figures/scores_strict.png")
    assert "95 % paired bootstrap interval" in caption and "n = 6 edits" in caption
    caption = index.caption_of(studied / "reports/figures/distances.png")
    assert "4 test edits" in caption and "no positive radius: 1." in caption


def test_failing_cell_is_named_and_leaves_the_earlier_page(studied):
    notebook, page = studied / "notebooks/broken.ipynb", studied / "reports/broken.html"
    broken = nbformat.read(studied / "notebooks/backbone.ipynb", as_version=4)
    broken.cells[2].source = "raise ValueError('no such artist')"
    nbformat.write(broken, notebook)
    page.write_text("earlier")
    with pytest.raises(execute.NotebookError) as error:
        execute.render(notebook, page, {}, studied)
    for part in ("broken.ipynb, cell-2", "raise ValueError(", "ValueError: no such artist"):
        assert part in str(error.value)
    assert page.read_text() == "earlier"
    assert not [p for p in page.parent.iterdir() if p.name.startswith(".")]


def test_missing_input_names_the_file(studied):
    with pytest.raises(execute.NotebookError, match="reports/none.csv: missing"):
        render(studied, "backbone", sources=["reports/none.csv"])


def test_unknown_parameter_fails_before_anything_runs(studied):
    with pytest.raises(UserError, match="colour: 'red': unknown parameter .* allowed: sources"):
        render(studied, "backbone", colour="red")


def test_command_line(studied):
    """One line and exit 2 for a user's mistake; source and error of the cell and exit 1 for a failing notebook."""
    shutil.copy(ROOT / "params.yaml", studied)

    def call(*words: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "stages.report", *words]
        return subprocess.run(command, cwd=studied, capture_output=True, text=True)

    unknown = call("nonsense")
    assert unknown.returncode == 2 and "allowed: ablations, backbone" in unknown.stderr
    failing = call("backbone", "sources=['none.csv']")
    assert failing.returncode == 1 and "--- source ---\nfrom stages.report" in failing.stderr
    written = call("index")
    assert written.returncode == 0 and written.stdout == "[report] index -> reports/index.html\n"


def test_a_notebook_leaves_the_process_as_it_was(studied):
    """The next page may be rendered in the same one, which is asked for by a function's name in `__main__`."""
    main = sys.modules["__main__"]
    render(studied, "claims")
    assert sys.modules["__main__"] is main


def test_parse():
    assert execute.parse(["rows=3", "method=grace", "level=0.9"]) == {"rows": 3, "method": "grace", "level": 0.9}
    with pytest.raises(UserError, match="name=value"):
        execute.parse(["rows"])


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebooks_are_clean_and_thin(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stem in names.REPORTS or path.stem == "try_it"  # which is for a reader to run: no stage does
    assert [c.id for c in notebook.cells] == [f"cell-{i}" for i in range(len(notebook.cells))]
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert all(not c.outputs and c.execution_count is None for c in code)
    assert [c.metadata.get("tags", []) for c in code] == [["parameters"]] + [[]] * (len(code) - 1)
    assert not any(word in c.source for c in code for word in ("matplotlib", "plt", "seaborn", "def ", "for "))


@pytest.mark.parametrize(
    "tag",
    ['<script src="x.js">', '<link rel="stylesheet">', "<img src='http://a/b.png'>", "<style>@import 'a'</style>"],
)
def test_external_finds_what_a_page_would_load(tag):
    assert html.external(f"<p>{tag}</p>")
    assert not html.external('<img src="data:image/png;base64,AA"><a href="https://example.org">script src=</a>')


def test_latex_and_markdown_of_a_table():
    table = Table(["a_b", "α"], [[TableCell("x & y|z"), TableCell("83.1", "[80.2, 86.0]", best=True)]], "50 % of {it}")
    latex = table.latex("mine")
    assert r"x \& y|z & \textbf{83.1} {\scriptsize [80.2, 86.0]} \\" in latex
    assert r"\caption{50 \% of \{it\}}" in latex and r"a\_b & $\alpha$ \\" in latex
    assert r"| x & y\|z | **83.1** [80.2, 86.0] |" in table.markdown()


def test_latex_tables_are_well_formed(studied):
    for path in (studied / "reports/tables").glob("*.tex"):
        text = path.read_text(encoding="utf-8")
        assert re.search(r"\\toprule.*\\midrule.*\\bottomrule", text, re.S), path
        assert re.findall(r"\\begin\{([^}]*)\}", text) == re.findall(r"\\end\{([^}]*)\}", text)[::-1]
        bare = re.sub(r"\\[{}]", "", text)
        assert bare.count("{") == bare.count("}")
        columns = len(re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)[1])
        body = text.split(r"\toprule")[1].split(r"\bottomrule")[0].replace(r"\midrule", "")
        rows = [row for row in body.split(r"\\") if row.strip()]
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {columns}, path
        assert text.isascii(), path


def test_best_edited_model_is_bold_and_the_unedited_never():
    rows = grid(method=["base", "ft", "grace"], protocol=["strict"], metric=["hm"])
    for row, mean in zip(rows, (0.9, 0.3, 0.4), strict=True):
        row["mean"] = mean
    table = tables.main(pd.DataFrame(rows), "strict", 0.95)
    assert [(row[2].text, row[3].text, row[3].best) for row in table.rows] == [
        ("Unedited", "90.0", False),
        ("FT", "30.0", False),
        ("GRACE", "40.0", True),
    ]


def test_balance_has_a_column_a_dataset_and_backbone_with_its_own_best():
    rows = grid(method=["base", "ft", "grace"], protocol=["strict"], metric=["hm", "locality"])
    rows += [row | {"dataset": "other"} for row in rows]
    means = {("okedit", "ft"): 0.6, ("okedit", "grace"): 0.5, ("other", "ft"): 0.2, ("other", "grace"): 0.3}
    for row in rows:
        row["mean"] = means.get((row["dataset"], row["method"]), 0.9) if row["metric"] == "hm" else 1.0
    table = tables.hm(pd.DataFrame(rows), "strict", 0.95)
    assert [[(cell.text, cell.best) for cell in row[1:]] for row in table.rows] == [
        [("90.0", False), ("90.0", False)],
        [("60.0", True), ("20.0", False)],
        [("50.0", False), ("30.0", True)],
    ]


def test_outcome_shares_are_means_over_edits_not_probes():
    outcomes = [("e1", "target"), ("e1", "target"), ("e1", "other"), ("e1", "other"), ("e2", "unchanged")]
    rows = [PLACE | {"method": "ft", "split": "test", "kind": "edit", "edit_id": e, "outcome": o} for e, o in outcomes]
    share = tables.outcome_shares(pd.DataFrame(rows)).iloc[0]
    assert [share["target"], share["unchanged"], share["other"], share["n"]] == [0.25, 0.5, 0.25, 2]


def test_nothing_to_show_is_an_error_not_an_empty_figure():
    table = pd.DataFrame(ablations()["alpha"])
    with pytest.raises(UserError, match="nothing to show for mend, strict, prompt"):
        sweeps.alpha(table, "mend", "strict", "prompt", 0.95)


def test_variants_are_ordered_and_constants_say_which():
    table = pd.DataFrame({"strategy": ["constant", "constant", "positive", "balanced"], "epsilon": [10, 2, None, None]})
    labels = variants.labelled(table, "strategy", names.STRATEGIES)
    found = variants.in_order(table.assign(variant=labels), "strategy", names.STRATEGIES)
    assert found == ["balanced", "positive", "constant ε = 2", "constant ε = 10"]


def test_wilson_interval():
    low, high = figures.wilson(pd.Series([0.5]), pd.Series([10]))
    assert low[0] == pytest.approx(0.2366, abs=1e-4) and high[0] == pytest.approx(0.7634, abs=1e-4)


def test_tables_of_a_dataset_show_its_counts(studied, monkeypatch):
    monkeypatch.chdir(studied)
    counts = datasets.read(["okedit"])
    shown = [[cell.text for cell in row] for row in datasets.relation_table(counts).rows]
    assert shown == [
        ["okedit", "made of 0", "0", "0", "3", "3"],
        ["okedit", "made of 1", "0", "1", "2", "3"],
        ["okedit", "all", "0", "1", "5", "6"],
    ]
    probes = [[cell.text for cell in row] for row in datasets.probe_table(counts).rows]
    assert probes[0] == ["okedit", "Near picture", "0", "2", "10"] and len(probes) == len(names.LOCALITY)
    assert [c.text for c in datasets.rejection_table(counts).rows[0]] == ["okedit", "target: may be true", "e1: tin", "4"]
    assert "okedit: 5 test, 1 dev, 0 train" in datasets.relation_table(counts).caption
    with pytest.raises(UserError, match="reports/okedit/evqa.json: missing"):
        datasets.read(["okedit", "evqa"])


def test_a_correction_says_what_was_answered_before():
    edit = pd.DataFrame([edit_row(0) | {"target": "clay", "unedited": ["<mud>", "wool"]}])
    images = pd.DataFrame([{"image_id": "Goog/0", "vendor": "Goog", "png": png("red")}])
    shown = html.examples(edit, images, 1).data
    assert "unedited answer <b>&lt;mud&gt;</b>, edited to <b>clay</b>" in shown and "wool" not in shown


def test_claims_show_numbers_verdicts_and_reasons(studied):
    text = (studied / "reports/tables/claims.md").read_text(encoding="utf-8")
    assert "1.000 [0.900, 1.000] | **holds** | table main_strict" in text
    assert "– | not measured | no sequence yet" in text
    with pytest.raises(UserError, match="reports/none.json: missing"):
        claims.read("reports/none.json")


def test_a_gain_is_bold_where_the_corrected_test_says_so(studied):
    lines = (studied / "reports/tables/paired_strict.md").read_text(encoding="utf-8").splitlines()
    unedited = next(line for line in lines if "| Unedited |" in line)
    assert "**+30.0** [+20.0, +40.0]" in unedited
    assert "| -20.0 [-30.0, -10.0]" in next(line for line in lines if "| FT |" in line)


def test_what_is_left_after_all_edits(studied):
    lines = (studied / "reports/tables/sequences_strict.md").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("After the last of many edits of one model")
    released = next(line for line in lines if "as released" in line)
    assert "| 60.0 [50.0, 70.0] |" in released and released.endswith("| 6 | – | 3.54 |")
    assert "each edit alone | 6 | 50.0 |" in next(line for line in lines if "alone" in line)


def test_ticks_that_stand_too_near_have_no_label():
    assert sequences.spaced([1, 10, 50, 100, 300]) == ["1", "10", "50", "", "300"]


def test_settings_are_told_with_how_many_were_tried(studied):
    lines = (studied / "reports/tables/settings.md").read_text(encoding="utf-8").splitlines()
    assert next(line for line in lines if "BalancEdit" in line).endswith("| BalancEdit | lr 0.003, margin 2.0 | 6 |")
    assert next(line for line in lines if "Unedited" in line).endswith("| Unedited | – | – |")


def test_strata_are_shown_by_size(studied):
    lines = (studied / "reports/tables/strata.md").read_text(encoding="utf-8").splitlines()
    shown = [line.split(" | ")[2:5] for line in lines if "[40.0" in line]
    assert shown == [
        ["Relation", "made of 0", "4"], ["Relation", "made of 1", "2"], ["Type of answer", "several words", "6"],
    ]  # fmt: skip


def test_radii_tell_the_alpha_that_was_used(studied):
    lines = (studied / "reports/tables/radii.md").read_text(encoding="utf-8").splitlines()
    assert "| GRACE | – |" in "".join(lines) and "| BalancEdit | 0.45 |" in "".join(lines)
