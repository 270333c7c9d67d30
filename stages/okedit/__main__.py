"""Build a dataset of edits with all their probes: data/okedit/<dataset>/ and reports/okedit/<dataset>.json.

    python -m stages.okedit okedit

data/easyedit/<dataset>/ holds the same edits as EasyEdit reads them: apart, as nothing else here reads its thousands of files.
"""

import importlib
import json
import sys
from functools import partial
from pathlib import Path

import torch

from stages.assets import knowledge
from stages.backbone import pointer
from stages.backbone.vlm import Backbone
from stages.okedit import easyedit, schema, unedited
from stages.okedit.counts import count
from stages.params import UserError, load, run, write_atomically


def main() -> None:
    if len(sys.argv) != 2:
        raise UserError(f"arguments: {' '.join(sys.argv[1:])!r}; needed: a dataset's name")
    params = load()
    torch.set_num_threads(params.threads)
    dataset = params.dataset(sys.argv[1])
    source = importlib.import_module(f"stages.okedit.sources.{dataset.source.replace('-', '_')}")
    dataset.settings(source.Settings)  # a wrong entry stops here, before a model is loaded
    folders = [(Path("data/backbones") / b.name, b.layer) for b in params.edited.values()]
    # Whichever layer is edited later, the model answers the same before.
    models = [(pointer.fingerprint(folder, 0), partial(Backbone.open, folder, layer)) for folder, layer in folders]
    backbones = unedited.recalled(dataset.name, models)
    rows, pictures, rejected = source.build(dataset, knowledge.load(), Path("data/assets"), backbones, params.seed)
    found = count(dataset, rows, pictures, rejected)
    if not found["splits"]["test"]["edits"]:
        worst = ", ".join(f"{reason} ({n})" for reason, n in rejected.most_common(3)) or "none was rejected"
        raise UserError(f"datasets.{dataset.name}.test: {dataset.test} wanted, no edit is left; rejected: {worst}")
    folder = Path("data/okedit") / dataset.name
    schema.write(folder, rows, pictures)
    unedited.keep(dataset.name, backbones)
    found["easyedit"] = easyedit.export(Path("data/easyedit") / dataset.name, rows, pictures)
    report = Path("reports/okedit") / f"{dataset.name}.json"
    with write_atomically(report) as temporary:
        temporary.write_text(json.dumps(found, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    for split, short in found["short"].items():
        print(f"[okedit] {dataset.name}: {short} {split} edits fewer than wanted; {report} says why")
    print(f"[okedit] {len(rows)} edits, {len(pictures)} pictures -> {folder}; counts -> {report}")


if __name__ == "__main__":
    run(main)
