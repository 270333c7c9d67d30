"""Where an edit's other pictures come from: drawings for the embedded source, else the photos of the dataset's other edits."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from stages.assets.knowledge import Knowledge
from stages.backbone.vlm import Backbone
from stages.okedit.images import Looks, Neighbours
from stages.okedit.schema import SPLITS, Picture, decode, of_split, shown
from stages.params import UserError

Row = Mapping[str, Any]


def other_question(row: Row, facts: Knowledge) -> str:
    """Another question about the edit's picture: what is shown, in words that no probe uses; where the edit asks that, a fact."""
    if row["relation"] != "name":
        return facts.relations["name"].rephrasings_train[0]
    return next(r.rephrasings_train[0] for name, r in facts.relations.items() if name != "name" and row["concept"] in r.facts)


def shown_elsewhere(rows: Sequence[Row]) -> dict[str, set[str]]:
    """Split → ids of the pictures that edits of other splits and their probes show."""
    there = {split: set().union(*map(shown, of_split(rows, split))) for split in SPLITS}
    return {split: set().union(*(there[other] for other in SPLITS if other != split)) for split in SPLITS}


class Pool(Protocol):
    """Pictures of other things than the edit's, which no probe asks the edit's question about and no other split shows."""

    def others(self, row: Row, elsewhere: Collection[str]) -> list[str]:
        """Ids of all of them; `elsewhere` has those that other splits show."""

    def nearest(self, row: Row, others: Sequence[str]) -> str:
        """The one of `others` that looks most like the edit's picture."""

    def picture(self, image_id: str) -> Picture | None:
        """The picture to store with the samples, None where the dataset holds it already."""


class Drawings:
    """The edit's artist's drawings of the concepts for which the question makes sense."""

    def __init__(self, facts: Knowledge, assets: Path):
        self.facts, self.emoji, self.concepts = facts, assets / "emoji", facts.concepts
        self.index = {c.concept: i for i, c in enumerate(self.concepts)}
        self.code = {c.code_point: i for i, c in enumerate(self.concepts)}
        self.neighbours = Neighbours.open(assets, [c.code_point for c in self.concepts])

    def others(self, row: Row, elsewhere: Collection[str]) -> list[str]:
        """Drawings of the relation's concepts that are neither the edit's nor, under whatever code point, in a probe that asks
        the edit's question; of all concepts where none of the relation's is left.
        """
        vendor = row["image_id"].split("/")[0]
        alike = [p for p in [row, *row["locality"]] if p["image_id"] and p["question"] == row["question"]]
        codes = [p["image_id"].split("/")[1] for p in alike]
        known = {self.concepts[self.code[code]].name for code in codes}
        related = [self.concepts[self.index[c]] for c in self.facts.relations[row["relation"]].facts]
        for concepts in (related, self.concepts):
            drawings = [f"{vendor}/{c.code_point}" for c in concepts if c.name not in known]
            if left := [image_id for image_id in drawings if image_id not in elsewhere]:
                return left
        raise UserError(f"{row['edit_id']}: no other drawing is left for a negative sample; allowed: fewer edits")

    def nearest(self, row: Row, others: Sequence[str]) -> str:
        """By the features of ImageNet's tower, within the artist's drawings."""
        vendor = row["image_id"].split("/")[0]
        among = [self.code[image_id.split("/")[1]] for image_id in others]
        return f"{vendor}/{self.concepts[self.neighbours.nearest(vendor, self.index[row['concept']], among)[0]].code_point}"

    def picture(self, image_id: str) -> Picture | None:
        """The file as it is; composites are the dataset's own."""
        vendor, *code = image_id.split("/")
        return Picture(image_id, vendor, "", (self.emoji / f"{image_id}.png").read_bytes()) if len(code) == 1 else None


class Photos:
    """The pictures of the dataset's other edits."""

    def __init__(self, rows: Sequence[Row], images: Mapping[str, bytes], backbone: Backbone):
        self.rows = rows
        self.looks = Looks(backbone, lambda image_id: decode(image_id, images[image_id]))

    def others(self, row: Row, elsewhere: Collection[str]) -> list[str]:
        """Pictures of the split's other edits that no probe shows; UserError where there are none."""
        known = {row["image_id"], *(p["image_id"] for p in row["locality"]), *elsewhere}
        found = sorted({r["image_id"] for r in of_split(self.rows, row["split"]) if r["concept"] != row["concept"]} - known)
        if not found:
            raise UserError(f"{row['edit_id']}: no other edit's picture is left for a negative sample; allowed: a larger dataset")
        return found

    def nearest(self, row: Row, others: Sequence[str]) -> str:
        """By the backbone's image features."""
        return self.looks.nearest(row["image_id"], others)[0]

    def picture(self, image_id: str) -> None:
        """The dataset's own image table has it."""
