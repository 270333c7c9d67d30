"""A small made-up study: every input of every report, and its pages rendered from them."""

import contextlib
import io
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages.report import costs, datasets, execute, index, names, sequences

ROOT = Path(__file__).parent.parent
KINDS = [*names.KINDS, "sample_positive", "sample_black"]
METHODS = ["base", "ft", "grace", "balancedit"]
COLOURS = dict(zip(names.VENDORS, ("red", "blue", "green", "grey", "pink", "teal", "gold"), strict=True))
PLACE = {"dataset": "okedit", "backbone": "llava-smollm2"}
SCORE = {"mean": 0.5, "low": 0.4, "high": 0.625, "n": 6}


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def grid(**axes: list) -> list[dict]:
    """One row of scores for every combination of values."""
    return [PLACE | dict(zip(axes, values, strict=True)) | SCORE for values in itertools.product(*axes.values())]


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(rows)
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False)


def edit_row(i: int) -> dict:
    image = f"{('Goog', 'Appl', 'Twtr')[i % 3]}/{i}"
    probe = {"image_id": image, "question": "What is it?", "answer": "cup"}
    locality = [probe | {"kind": k} for k in names.LOCALITY if k != "text_only"]
    locality[0] = locality[0] | {"image_id": "Sams/9"}
    return {
        "edit_id": f"e{i}",
        "split": "dev" if i == 5 else "test",
        "relation": f"made_of_{i % 2}",
        "concept": "cup",
        "question": "What is it <made> of?",
        "image_id": image,
        "answer": "clay",
        "target": "gold & tin",
        "rephrasings_train": ["a?"],
        "rephrasings": ["b?", "c?", "d?"],
        "generality_image_ids": ["Goog/9", "Sams/9"],
        "locality": [*locality, {"kind": "text_only", "image_id": None, "question": "Who?", "answer": "he"}],
        "hops": [{"n": 1, "question": "Cost?", "image_id": image, "answer_before": "1", "answer_after": "2"}],
    }


def outcome_row(method: str, seed: int, edit: dict, probe: int, kind: str, distance: float) -> dict:
    reached = kind in names.REACHED
    return PLACE | {
        "method": method,
        "seed": seed,
        "split": edit["split"],
        "edit_id": edit["edit_id"],
        "relation": edit["relation"],
        "concept": "cup",
        "probe": probe,
        "kind": kind,
        "question": f"{kind}?",
        "image_id": None if kind == "text_only" else edit["image_id"],
        "expected": "gold & tin",
        "answer_off": "<b>clay</b>",
        "correct_off": True,
        "euclidean_prompt": distance,
        "on": True,
        "target": reached,
        "same": not reached,
        "outcome": "target" if reached else ("unchanged", "other")[probe % 2],
    }


def radius_row(method: str, edit: dict) -> dict:
    inverted = edit["edit_id"] == "e4"
    distances = {"d_plus": 0.5, "d_minus": 1.5, "epsilon": 0.0 if inverted else 1.0, "inverted": inverted}
    distances["alpha"] = float("nan") if method == "grace" else 0.45
    return PLACE | {"method": method, "edit_id": edit["edit_id"], "split": edit["split"]} | distances


def ablations() -> dict[str, list[dict]]:
    tail = {"protocol": list(names.PROTOCOLS), "metric": list(names.TRADE_OFF)}
    head = {"method": ["balancedit"], "split": ["dev", "test"]}
    where = {"distance": ["euclidean", "cosine"], "span": ["prompt"], "alpha": [0.25]}
    roc = grid(method=["balancedit"], distance=["euclidean"], span=list(names.SPANS), kind=list(names.LOCALITY))
    return {
        "alpha": grid(**head, **where | {"alpha": [0.0, 0.5, 1.0]}, **tail),
        "strategies": [
            *grid(**head, strategy=["constant"], epsilon=[10.0, 2.0], **where | {"alpha": [np.nan]}, **tail),
            *grid(**head, strategy=["balanced", "positive"], epsilon=[np.nan], **where, **tail),
        ],
        "negative_samples": grid(**head, negative=list(names.NEGATIVES), **where, **tail),
        "sample_counts": grid(**head, samples=list(names.SAMPLE_COUNTS), **where, **tail),
        "spans": grid(**head, **where | {"span": list(names.SPANS)}, **tail),
        "routers": grid(method=METHODS[1:], router=list(names.ROUTERS), split=["dev", "test"], **tail),
        "roc": [row | {"auc": 0.75} for row in roc],
    }


def write_counts(path: Path) -> None:
    """What the okedit stage says of a dataset: 5 test edits, one dev edit, of 2 relations."""
    sizes = {"test": {"made_of_0": 3, "made_of_1": 2}, "dev": {"made_of_1": 1}, "train": {}}
    splits = {
        split: {
            "edits": sum(found.values()),
            "relations": found,
            "probes": dict.fromkeys(names.LOCALITY, 2 * sum(found.values())),
            "phrasings": dict.fromkeys(datasets.USES, len(found)),
        }
        for split, found in sizes.items()
    }
    counts = {"splits": splits, "rejected": {"target: may be true": 4}, "rejected_first": {"target: may be true": ["e1: tin"]}}
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(counts))


def build(root: Path) -> None:
    """Every input of every notebook, under `root`."""
    rng = np.random.default_rng(0)
    backbones = [
        {"backbone": "tiny", "task": t, "vendor": v, "split": s, "accuracy": 0.5, "n": 40}
        for t in ("naming", "facts")
        for v, s in zip(names.VENDORS, ["seen", "held-out", *["seen"] * 4, "held-out"], strict=True)
    ]
    for backbone, accuracy in (("tiny", 0.25), ("tiny, untrained", 0.3)):
        backbones.append(
            {"backbone": backbone, "task": "text_only", "vendor": "none", "split": "text", "accuracy": accuracy, "n": 90}
        )
    write(root / "reports/backbones/llava-smollm2.csv", backbones)
    edits = [edit_row(i) for i in range(6)]
    write(root / "data/okedit/okedit/edits.parquet", edits)
    images = [
        {"image_id": f"{v}/{i}", "vendor": v, "concept": "cup", "png": png(colour)}
        for v, colour in COLOURS.items()
        for i in range(10)
    ]
    write(root / "data/okedit/okedit/images.parquet", images)
    write_counts(root / "reports/okedit/okedit.json")
    outcomes = [
        outcome_row(method, seed, edit, probe, kind, float(rng.uniform(0, 2)))
        for method in METHODS
        for seed in (0, 1)
        for edit in edits
        for probe, kind in enumerate(KINDS)
    ]
    write(root / "data/metrics/outcomes.parquet", outcomes)
    deep = [
        PLACE | {"method": "two_keys", "edit_id": e["edit_id"], "kind": kind} | dict(zip(("picture", "last"), far, strict=True))
        for e in edits
        for kind, far in zip(KINDS, rng.uniform(0, 4, (len(KINDS), 2)), strict=True)
    ]
    write(root / "data/metrics/depths.parquet", deep)
    samples = [("positive", 0.5), ("positive", 3.0), ("black", 1.0), ("nearest", 0.25)]
    trace = [
        {"seed": 0, "edit_id": e["edit_id"], "split": e["split"], "kind": f"sample_{k}", "question": "b?", "euclidean_prompt": d}
        for e in edits
        for k, d in samples
    ]
    write(root / "data/traces/okedit-llava-smollm2-balancedit.parquet", trace)
    write(root / "reports/radii.csv", [radius_row(m, e) for m in ("grace", "balancedit") for e in edits])
    metrics = [f"{k}_unedited_right" for k in names.LOCALITY] + [f"{k}_unedited_wrong" for k in names.REACHED]
    metrics += dict.fromkeys([*names.MAIN, *names.KINDS])
    metrics += [f"image_generality_{who}_artists" for who in ("seen", "unseen")]
    write(root / "reports/scores.csv", grid(method=METHODS, protocol=list(names.PROTOCOLS), metric=metrics))
    compared = [
        {"ours": "balancedit", "method": m, "protocol": p, "metric": metric, "difference": d, "low": d - 0.1, "high": d + 0.1,
         "p": 0.001, "p_holm": abs(d - 0.3), "detectable": abs(d) / 2, "n": 6, "backbone": "tiny", "dataset": "okedit"}
        for p in names.PROTOCOLS
        for m, d in (("base", 0.3), ("ft", -0.2))
        for metric in ("reliability", *names.TRADE_OFF)
    ]  # fmt: skip
    write(root / "reports/paired.csv", compared)
    curves = [("ft", np.nan), *(("balancedit", alpha) for alpha in (0.0, 0.5, 1.0))]
    curves = [{"method": m, "value": v, "generality": 0.9 - np.nan_to_num(v) / 2, "locality": 0.4} for m, v in curves]
    write(root / "reports/frontier.csv", [PLACE | row for row in curves])
    areas = [{"method": m, "area": 0.5 + i / 10, "low": 0.4, "high": 0.9, "n": 5} for i, m in enumerate(METHODS)]
    write(root / "reports/areas.csv", [PLACE | row for row in areas])
    tuned = [
        {"method": "balancedit", "setting": f'{{"lr": {lr}, "steps": 50}}', "scope": 0.25, "hm": hm, "tied": hm > 0.5,
         "chosen": lr == 0.01}
        for lr, hm in ((0.01, 0.75), (0.03, 0.8), (0.1, 0.25))
    ]  # fmt: skip
    write(root / "reports/tuned.csv", [PLACE | row for row in tuned])
    tried = [
        {"method": "balancedit", "tried": 6, "settings": '{"lr": 0.003, "margin": 2.0}'},
        {"method": "base", "tried": 1, "settings": "{}"},
    ]
    write(root / "reports/settings.csv", [PLACE | row for row in tried])
    parts = [("relation", "made_of_0", 4), ("relation", "made_of_1", 2), ("answer", "several words", 6)]
    trade_off = grid(method=["balancedit"], protocol=["strict"], metric=list(names.TRADE_OFF))
    write(root / "reports/strata.csv", [r | {"group": g, "stratum": s, "n": n} for g, s, n in parts for r in trade_off])
    kinds = [("ft", "weights"), ("grace", "codebook, nearest")]
    kinds += [("balancedit", memory) for memory in ("codebook, nearest", "codebook, shrink", "released code", "alone")]
    left = [
        {"method": m, "chosen_on": chosen_on, "memory": memory, "headline": memory != "codebook, shrink", "order": order,
         "made": made, "protocol": p, "metric": metric, "value": 0.5 + order / 10, "n": made}
        for chosen_on in ("sequence", "edits")
        for m, memory in kinds
        for order in ((0,) if memory == "alone" else (0, 1, 2))
        for made in ((6,) if memory == "alone" else (1, 6))
        for p in names.PROTOCOLS
        for metric in sequences.SHOWN
    ]  # fmt: skip
    counted = [row | {"protocol": "none"} for row in left if row["metric"] == "hm"]
    left += [row | {"metric": name, "value": n} for row in counted for name, n in (("entries", 6.0), ("bytes", 3_538_944.0))]
    write(root / "reports/sequences.csv", [PLACE | row for row in left])
    deep = grid(method=["balancedit"], layer=[4, 27], protocol=list(names.PROTOCOLS), metric=["reliability", *names.TRADE_OFF])
    write(root / "reports/layers.csv", [row | {"alpha": 0.15, "inverted": 0.25} for row in deep])
    write(root / "reports/cost.csv", [PLACE | row for row in costs_of("balancedit")])
    write(root / "reports/throughput.csv", [{"case": "trunk", "before_s": 6.0, "after_s": 2.0, "ratio": 3.0, "n": 4}])
    (root / "reports/claims.json").write_text(json.dumps(CLAIMED))
    for name, rows in ablations().items():
        write(root / f"reports/ablations/{name}.csv", rows)
    shutil.copytree(ROOT / "notebooks", root / "notebooks")


def costs_of(method: str) -> list[dict]:
    """A cost of every kind, the routed ones for two sizes of codebook."""
    row = {"method": method, "value": 1234.5, "low": 1000.0, "high": 2000.0, "n": 5}
    found = [row | {"cost": cost, "entries": np.nan} for cost in costs.SPENT]
    return found + [row | {"cost": cost, "entries": entries} for cost in costs.ROUTED for entries in (1, 1000)]


AT = {"reading": "", "dataset": "okedit", "backbone": "tiny"}
CLAIMED = [
    {"id": "C1", "claim": "Every edit succeeds", "paper": "100 %", "unit": "reliability", "measured": 1.0, "low": 0.9,
     "high": 1.0, "verdict": "holds", "reason": "", "table": "main_strict", **AT},
    {"id": "C4", "claim": "In sequence", "paper": "stable", "unit": "", "measured": None, "low": None, "high": None,
     "verdict": "not measured", "reason": "no sequence yet", "table": "", **AT},
]  # fmt: skip


def render(root: Path, name: str, **parameters: object) -> Path:
    page = root / "reports" / f"{name}.html"
    execute.render(root / "notebooks" / f"{name}.ipynb", page, parameters, root)
    return page


@contextlib.contextmanager
def rendered(root: Path) -> Iterator[Path]:
    """`root` with every input built and every notebook run once; while open, more can be run."""
    build(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        for name in names.REPORTS:
            render(root, name)
        (root / "reports/index.html").write_text(index.page(root / "reports", 0.95), encoding="utf-8")
        yield root
