"""The paper's claims beside what was measured, from reports/claims.json."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.params import UserError
from stages.report.markup import Table, TableCell
from stages.report.names import percent
from stages.sections import readable


def read(path: str) -> list[dict[str, Any]]:
    """The rows; UserError names a missing file."""
    if not Path(path).exists():
        raise UserError(f"{path}: missing; run the stage that writes it first")
    with readable(path, "run `python -m stages.claims`"):
        return json.loads(Path(path).read_text(encoding="utf-8"))


def table(claims: Sequence[Mapping[str, Any]], level: float) -> Table:
    """One row a claim, dataset and backbone."""
    rows = [
        [
            *map(TableCell, (c["id"], c["reading"], c["claim"], c["paper"], c["dataset"], c["backbone"], c["unit"])),
            _measured(c),
            TableCell(c["verdict"], best=c["verdict"] in ("holds", "does not hold")),
            TableCell("; ".join(filter(None, (c["reason"], c["table"] and f"table {c['table']}")))),
        ]
        for c in claims
    ]
    caption = (
        f"The paper's claims and what was measured (strict protocol), with {percent(level)} bootstrap intervals over edits. "
        "A claim whose line the interval covers is left open. As published: every other method at its paper's values; even: all "
        "tuned on the same dev edits."
    )
    header = ["", "Reading", "Claim", "Paper", "Dataset", "Backbone", "Measured as", "Measured", "Verdict", "See"]
    return Table(header, rows, caption, labels=len(header))


def _measured(claim: Mapping[str, Any]) -> TableCell:
    if claim["measured"] is None:
        return TableCell("–")
    known = claim["low"] is not None
    return TableCell(f"{claim['measured']:.3f}", f"[{claim['low']:.3f}, {claim['high']:.3f}]" if known else "")
