"""Run notebooks and write their figures, tables and pages, or write the index page that leads to all reports.

python -m stages.report metrics                 # notebooks/metrics.ipynb -> reports/metrics.html
python -m stages.report edits rows=12           # a parameter of the notebook, by name
python -m stages.report edits metrics index     # the notebooks beside each other, and then reports/index.html
"""

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from stages import beside
from stages.params import Params, UserError, load, run, write_atomically
from stages.report import execute, index, names

NOTEBOOKS = Path("notebooks")
REPORTS = Path("reports")


def settings(params: Params, method: str) -> dict[str, object]:
    """What a notebook gets from params.yaml, if its parameters cell has the name; `method` sets key and radius."""
    chosen = params.method(method)
    return {
        "sources": [f"reports/backbones/{name}.csv" for name in params.backbones],
        "datasets": list(params.datasets),
        "dataset": next(iter(params.datasets)),
        "backbone": next(iter(params.edited)),
        "backbones": list(params.edited),
        "distance": chosen.radius.distance,
        "span": chosen.key.span,
        "level": params.metrics.level,
    }


def main() -> None:
    asked, words = [w for w in sys.argv[1:] if "=" not in w], [w for w in sys.argv[1:] if "=" in w]
    if not asked:
        allowed = ", ".join([*names.REPORTS, "index"])
        raise UserError(f"arguments: no page given; allowed: {allowed}, then name=value")
    params = load()
    if books := [name for name in asked if name != "index"]:
        beside.each(partial(write, params, execute.parse(words)), books, "reports")
    if "index" in asked:
        text = index.page(REPORTS, params.metrics.level)
        with write_atomically(REPORTS / "index.html") as temporary:
            temporary.write_text(text, encoding="utf-8")
    for name in asked:
        print(f"[report] {name} -> {REPORTS / name}.html")


def write(params: Params, asked: Mapping[str, Any], name: str) -> None:
    """Execute a notebook, with the parameters `asked` for, and write its page."""
    notebook = NOTEBOOKS / f"{name}.ipynb"
    known = execute.parameters_of(notebook)
    found = settings(params, asked.get("method", "balancedit"))
    given = {key: value for key, value in found.items() if key in known}
    execute.render(notebook, REPORTS / f"{name}.html", given | asked, Path.cwd())


def exit_on_failure() -> None:
    """A failing cell ends in its source and error on stderr and exit 1; the earlier page stays."""
    try:
        run(main)
    except execute.NotebookError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    exit_on_failure()
