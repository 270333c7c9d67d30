"""Run one notebook and write its figures, tables and page, or write the index page that leads to all reports.

python -m stages.report metrics                 # notebooks/metrics.ipynb -> reports/metrics.html
python -m stages.report edits rows=12           # a parameter of the notebook, by name
python -m stages.report index                   # reports/index.html
"""

import sys
from pathlib import Path

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
    if len(sys.argv) < 2:
        allowed = ", ".join([*names.REPORTS, "index"])
        raise UserError(f"arguments: none given; allowed: {allowed}, then name=value")
    name, *words = sys.argv[1:]
    params = load()
    page = REPORTS / f"{name}.html"
    if name == "index":
        text = index.page(REPORTS, params.metrics.level)
        with write_atomically(page) as temporary:
            temporary.write_text(text, encoding="utf-8")
    else:
        notebook = NOTEBOOKS / f"{name}.ipynb"
        known, asked = execute.parameters_of(notebook), execute.parse(words)
        found = settings(params, asked.get("method", "balancedit"))
        given = {key: value for key, value in found.items() if key in known}
        execute.render(notebook, page, given | asked, Path.cwd())
    print(f"[report] {name} -> {page}")


def exit_on_failure() -> None:
    """A failing cell ends in its source and error on stderr and exit 1; the earlier page stays."""
    try:
        run(main)
    except execute.NotebookError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    exit_on_failure()
