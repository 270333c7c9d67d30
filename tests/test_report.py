"""The report stage on a synthetic miniature of every input: pages, figures, tables, and what happens when "
"a cell fails."""

import io
import itertools
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages.report import execute, index, names

ROOT = Path(__file__).parent.parent
KINDS = [*names.KINDS, "sample_positive", "sample_black"]
METHODS = ("base", "ft", "grace", "balancedit")
CELL = {"dataset": "okedit", "backbone": "llava-smollm2"}
SCORE = {"mean": 0.5, "low": 0.4, "high": 0.625, "n": 6}


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def grid(**axes) -> list[dict]:
    """One row of scores for every combination of values."""
    return [CELL | dict(zip(axes, values, strict=True)) | SCORE for values in itertools.product(*axes.values())]


def write(root: Path, name: str, rows: list[dict] | pd.DataFrame) -> None:
    path, frame = root / name, pd.DataFrame(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False)


def edit_row(i: int) -> dict:
    vendor = ("Goog", "Appl", "Twtr")[i % 3]
    probe = {"image_id": f"{vendor}/{i}", "question": "What is it?", "answer": "cup"}
    return {
        "edit_id": f"e{i}", "split": "dev" if i == 5 else "test", "relation": f"made_of{i % 2}", "concept": "cup",
        "question": "What is it <made> of?", "image_id": f"{vendor}/{i}", "answer": "clay", "target": "gold & tin",
        "rephrasings_train": ["a?"], "rephrasings": ["b?", "c?", "d?"], "generality_image_ids": ["Goog/9", "Sams/9"],
        "locality": [probe | {"kind": k} for k in names.LOCALITY if k != "text_only"]
        + [{"kind": "text_only", "image_id": None, "question": "Who?", "answer": "he"}],
        "hops": [{"n": 1, "question": "How much?", "image_id": f"{vendor}/{i}", "answer_before": "1", "answer_after": "2"}],
    }  # fmt: skip


def build(root: Path) -> None:
    """Every input of every notebook, under `root`."""
    rng = np.random.default_rng(0)
    vendors = names.VENDORS
    write(root, "reports/backbones.csv", [
        {"backbone": "llava-smollm2", "task": t, "vendor": v, "split": "held-out" if v in ("Twtr", "Wind") else "seen",
         "accuracy": 0.25 + 0.1 * i, "n": 40}
        for t in names.TASKS for i, v in enumerate(vendors)
    ])  # fmt: skip
    edits = [edit_row(i) for i in range(6)]
    write(root, "data/okedit/okedit/edits.parquet", edits)
    images = [(f"{v}/{i}", v) for v in vendors for i in range(10)]
    colours = dict(zip(vendors, ("red", "blue", "green", "grey", "pink", "teal", "gold"), strict=True))
    write(root, "data/okedit/okedit/images.parquet", [
        {"image_id": i, "vendor": v, "concept": "cup", "png": png(colours[v])} for i, v in images
    ])  # fmt: skip
    outcomes = [
        CELL | {
            "method": m, "seed": s, "split": e["split"], "edit_id": e["edit_id"], "relation": e["relation"], "concept": "cup",
            "probe": p, "kind": k, "question": f"{k}?", "image_id": None if k == "text_only" else e["image_id"],
            "expected": "gold & tin", "answer_off": "<b>clay</b>", "euclidean_prompt": float(rng.uniform(0, 2)),
            "on": True, "target": k in names.REACHED, "same": k not in names.REACHED,
            "outcome": "target" if k in names.REACHED else ("unchanged", "other")[p % 2],
        }
        for m in METHODS for s in (0, 1) for e in edits for p, k in enumerate(KINDS)
    ]  # fmt: skip
    write(root, "data/metrics/outcomes.parquet", outcomes)
    write(root, "reports/radii.csv", [
        CELL | {"method": m, "edit_id": e["edit_id"], "split": e["split"], "d_plus": 0.5, "d_minus": 1.5,
                "epsilon": 0.0 if e["edit_id"] == "e4" else 1.0, "inverted": e["edit_id"] == "e4"}
        for m in ("grace", "balancedit") for e in edits
    ])  # fmt: skip
    metrics = [*names.MAIN, *names.KINDS, *(f"{k}_unedited_right" for k in names.LOCALITY)]
    metrics += [f"{k}_unedited_wrong" for k in names.REACHED]
    protocols = list(names.PROTOCOLS)
    write(root, "reports/scores.csv", grid(method=METHODS, protocol=protocols, metric=list(dict.fromkeys(metrics))))
    tail = {"protocol": protocols, "metric": list(names.TRADE_OFF)}
    head = {"method": ["balancedit"], "split": ["dev", "test"]}
    place = {"distance": ["euclidean", "cosine"], "span": ["prompt"]}
    ablations = {
        "alpha": grid(**head, **place, alpha=[0.0, 0.5, 1.0], **tail),
        "strategies": grid(**head, strategy=["balanced", "positive"], epsilon=[np.nan], **place, **tail)
        + grid(**head, strategy=["constant"], epsilon=[2.0, 10.0], **place, **tail),
        "anchors": grid(**head, negative=list(names.NEGATIVES), **place, **tail),
        "spans": grid(**head, distance=["euclidean"], span=list(names.SPANS), **tail),
        "roc": [r | {"auc": 0.75} for r in grid(
            method=["balancedit"], distance=["euclidean"], span=list(names.SPANS), kind=list(names.LOCALITY)
        )],
        "frontier": [
            CELL | {"method": m, "alpha": a, "protocol": p, "generality": 0.9 - (a or 0) / 2, "locality": 0.4 + (a or 0) / 2}
            for p in protocols for m, a in [*((m, None) for m in METHODS), ("balancedit", 0.0), ("balancedit", 1.0)]
        ],
    }  # fmt: skip
    for name, rows in ablations.items():
        write(root, f"reports/ablations/{name}.csv", rows)
    shutil.copytree(ROOT / "notebooks", root / "notebooks")


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """A folder in which every notebook has run once."""
    root = tmp_path_factory.mktemp("study")
    build(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        for name in names.REPORTS:
            execute.render(root / "notebooks" / f"{name}.ipynb", root / "reports" / f"{name}.html", {}, root)
    (root / "reports/index.html").write_text(index.page(root / "reports", 0.95), encoding="utf-8")
    return root
