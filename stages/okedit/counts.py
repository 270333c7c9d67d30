"""What a built set holds and what was left out: reports/okedit/<dataset>.json."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from stages.okedit.schema import SPLITS, EditRow, Picture
from stages.okedit.validate import Tally
from stages.settings import Dataset


def count(dataset: Dataset, rows: Sequence[EditRow], pictures: Sequence[Picture], rejected: Counter) -> dict[str, Any]:
    """Per split: edits, and edits by relation, probes by kind, phrasings by use; then pictures by artist, rejections by reason
    with the first names of each, and how many edits a split is short of.
    """
    splits = {split: _split([r for r in rows if r.split == split]) for split in SPLITS}
    short = {s: getattr(dataset, s) - splits[s]["edits"] for s in SPLITS if getattr(dataset, s) > splits[s]["edits"]}
    return {
        "splits": splits,
        "pictures": Counter(p.vendor for p in pictures),
        "rejected": rejected,
        "rejected_first": rejected.examples if isinstance(rejected, Tally) else {},
        "short": short,
    }


def _split(rows: Sequence[EditRow]) -> dict[str, Any]:
    probes = Counter(p["kind"] for r in rows for p in r.locality) + Counter(f"hop{h['n']}" for r in rows for h in r.hops)
    probes["edit"] = len(rows)
    probes["text_generality"] = sum(len(r.rephrasings) for r in rows)
    probes["image_generality"] = sum(len(r.generality_image_ids) for r in rows)
    phrasings = {
        "question": len({r.question for r in rows}),
        "rephrasings_train": len({t for r in rows for t in r.rephrasings_train}),
        "rephrasings": len({t for r in rows for t in r.rephrasings}),
    }
    return {
        "edits": len(rows),
        "relations": Counter(r.relation for r in rows),
        "probes": probes,
        "phrasings": phrasings,
    }
