"""Run a notebook with papermill and turn it into one page; an earlier page stays unless all went well."""

import ast
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbconvert import HTMLExporter
from papermill.exceptions import PapermillExecutionError, strip_color

from stages.params import UserError, write_atomically
from stages.report import engine, html, names

# Bytes of figures depend on neither date nor hash order; the debugger's warning would only be noise.
ENVIRONMENT = {
    "SOURCE_DATE_EPOCH": "0",
    "PYTHONHASHSEED": "0",
    "MPLBACKEND": "agg",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}


class NotebookError(Exception):
    """A cell failed; the text shows its source and its error."""


def parameters_of(notebook: Path) -> list[str]:
    """Names that the notebook's cell tagged `parameters` sets."""
    if not notebook.exists():
        found = ", ".join(sorted(p.stem for p in notebook.parent.glob("*.ipynb")))
        raise UserError(f"notebook: {notebook.stem!r} is not allowed; allowed: {found}")
    return list(papermill.inspect_notebook(notebook))


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """`name=value` words as parameters; a value is a Python literal, else text."""
    found = {}
    for word in arguments:
        name, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"argument: {word!r} is not allowed; allowed: name=value")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


def render(notebook: Path, page: Path, parameters: Mapping[str, Any], root: Path) -> None:
    """Execute `notebook` in the folder `root` and write `page`.

    UserError for a parameter that the notebook does not have; NotebookError for a cell that fails.
    """
    known = parameters_of(notebook)
    for name, value in parameters.items():
        if name not in known:
            allowed = ", ".join(known) or "none"
            raise UserError(f"{name}: {value!r}: unknown parameter of {notebook}; allowed: {allowed}")
    text = to_html(scrub(_execute(notebook, dict(parameters), root)), notebook.stem)
    if found := html.external(text):
        what = ", ".join(sorted(set(found)))
        raise NotebookError(f"{notebook}: the page would load or run something: {what}")
    with write_atomically(page) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _execute(notebook: Path, parameters: dict[str, Any], root: Path) -> nbformat.NotebookNode:
    os.environ.update(ENVIRONMENT)  # the kernel inherits it
    try:
        return papermill.execute_notebook(
            notebook.resolve(), None, parameters, engine_name=engine.NAME, kernel_name="python3", cwd=root, record_timing=False,
            progress_bar=False,
        )  # fmt: skip
    except PapermillExecutionError as error:
        cells = nbformat.read(notebook, as_version=4).cells
        cell = next((c.id for c in cells if c.source == error.source), "the injected parameters")
        frames = strip_color("\n".join(error.traceback))
        message = f"{notebook}, {cell}, failed: {error.ename}: {error.evalue}"
        message += f"\n\n--- source ---\n{error.source}\n\n--- error ---\n{frames}"
        raise NotebookError(message) from None


def scrub(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop what differs between runs: metadata but tags, random cell ids, execution counts."""
    notebook.metadata = nbformat.from_dict({"kernelspec": notebook.metadata.get("kernelspec", {})})
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i}"
        cell.metadata = nbformat.from_dict({"tags": cell.metadata.get("tags", [])})
        if cell.cell_type == "code":
            cell.execution_count = None
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = None
    return notebook


def to_html(notebook: nbformat.NotebookNode, name: str) -> str:
    """The page of an executed notebook: text and outputs, no code."""
    template = Path(__file__).parent
    exporter = HTMLExporter(
        template_name="template",
        extra_template_basedirs=[str(template)],
        exclude_input=True,
        exclude_anchor_links=True,
    )
    body, _ = exporter.from_notebook_node(notebook)
    title = names.REPORTS[name].title if name in names.REPORTS else name
    return html.page(f"{title} · BalancEdit study", body, name)
