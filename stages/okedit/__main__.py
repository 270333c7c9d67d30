"""Build a dataset of edits with all their probes: data/okedit/<dataset>/ and reports/okedit/<dataset>.json.

python -m stages.okedit okedit
"""

import importlib
import json
import sys
from collections import Counter
from pathlib import Path

import torch

from stages.assets import knowledge
from stages.backbone.vlm import Backbone
from stages.okedit import schema
from stages.params import UserError, load, run, write_atomically


def main() -> None:
    if len(sys.argv) != 2:
        raise UserError(f"arguments: {' '.join(sys.argv[1:])!r}; needed: a dataset's name")
    params = load()
    torch.set_num_threads(params.threads)
    dataset = params.dataset(sys.argv[1])
    source = importlib.import_module(f"stages.okedit.sources.{dataset.source}")
    backbones = [Backbone.open(Path("data/backbones") / b.name, b.layer) for b in params.backbones.values()]
    rows, pictures, rejected = source.build(dataset, knowledge.load(), Path("data/assets"), backbones, params.seed)
    folder = Path("data/okedit") / dataset.name
    schema.write(folder, rows, pictures)
    counts = {
        "edits": Counter(r.split for r in rows),
        "relations": Counter(r.relation for r in rows),
        "probes": Counter(p["kind"] for r in rows for p in r.locality),
        "hops": Counter(f"hop{h['n']}" for r in rows for h in r.hops),
        "pictures": {"all": len(pictures)},
        "rejected": rejected,
    }
    report = Path("reports/okedit") / f"{dataset.name}.json"
    report.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(report) as temporary:
        temporary.write_text(json.dumps(counts, indent=2, sort_keys=True) + "\n")
    print(f"[okedit] {len(rows)} edits, {len(pictures)} pictures -> {folder}; counts -> {report}")


if __name__ == "__main__":
    run(main)
