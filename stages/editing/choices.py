"""Which settings of a cell are known, and need no trying: a choice that stands in reports/tuning.csv is not made again.

Importing this loads no model library.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.editing.plan import Plan, label
from stages.editing.tried import TABLE, cell_of, read
from stages.okedit.schema import of_split


def made_from(plan: Plan) -> str:
    """A digest of what a choice depends on, but for the code, pictures, and the key and the radius of the method: an experiment
    with these makes no edit again.
    """
    dev, method = of_split(plan.rows, "dev"), [plan.method.editor, plan.method.router, plan.grid]
    ids = {row["edit_id"] for row in dev}
    samples = [sample for sample in plan.samples if sample["edit_id"] in ids]
    text = json.dumps([plan.fingerprint, *method, dev, samples, plan.asked, plan.learnt, plan.seeds[:1]])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def known(plan: Plan, path: Path = TABLE) -> tuple[Mapping[str, Any] | None, str | None]:
    """The settings that need no trying, and the code that chose them: the only ones, by no code, or what was chosen before from
    the same; None where there are none.
    """
    if len(plan.grid) == 1:
        return plan.grid[0], None
    at = (plan.dataset, plan.backbone_name, plan.method.name)
    for line in read(path):
        if cell_of(line) == at and line["made_from"] == made_from(plan) and line["chosen"] == "True":
            return next(hyper for hyper in plan.grid if label(hyper) == line["setting"]), line["code"]
    return None, None
