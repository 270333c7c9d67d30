"""E-VQA and E-IC as published with MMEdit (Cheng et al., EMNLP 2023): one rephrasing, one other picture, two locality probes.

As there, the edit makes the model say `alt`, where it said `pred`. `m_loc` becomes an `unrelated` probe (`near_image` where it
asks the edit's own question), `loc` a `text_only` one.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stages.assets.knowledge import Knowledge
from stages.okedit import easyedit
from stages.okedit.generate import PROMPTS, Writer, collect
from stages.okedit.images import Looks
from stages.okedit.locality import Asked, Pool, probe
from stages.okedit.photos import Photos
from stages.okedit.providers import TEXT
from stages.okedit.schema import EditRow, Picture
from stages.okedit.settings import need, path, paths, variant
from stages.okedit.splits import split_of
from stages.okedit.unedited import Unedited
from stages.okedit.validate import Rejected, Tally
from stages.params import UserError, derive_seed
from stages.sections import count, entry
from stages.settings import Dataset

QUESTION_WORDS = ("what", "how", "where", "which", "who", "why", "when")
POSITIVES = 3
PUBLISHED = ("other_question", "unrelated", "text_only")  # kinds of which the files hold all there are


@dataclass(frozen=True)
class Settings:
    """`evaluation` gives test and dev edits, `training` train edits; `text` may write rephrasings for positive samples."""

    evaluation: Path = entry(path)
    images: tuple[Path, ...] = entry(paths)
    training: Path | None = entry(path, default=None)
    text: Any = entry(variant("provider", TEXT), default=None)
    attempts: int = entry(count(1), default=4)
    side: int = entry(count(32), default=448)


@dataclass(frozen=True)
class Builder:
    """Turns records into rows."""

    dataset: Dataset
    settings: Settings
    photos: Photos
    looks: Looks
    writer: Writer | None
    seed: int

    def edit(self, split: str, pool: Pool, record: Mapping[str, Any]) -> EditRow:
        """One record as a row; Rejected where a picture or a rephrasing cannot be had."""
        edit_id = edit_id_of(record)
        rng = np.random.default_rng(derive_seed(self.seed, self.dataset.name, edit_id))
        image_id, question = self.photos.add(record["image"]), record["src"]
        own = Asked(image_id, question, record["pred"])
        about = "near_image" if record["m_loc_q"] == question else "unrelated"
        locality = [
            *pool.same_question(own, self.dataset.near, self.dataset.far, rng),
            probe(about, self.photos.add(record["m_loc"]), record["m_loc_q"], record["m_loc_a"]),
            probe("text_only", None, record["loc"], record["loc_ans"]),
            probe("no_image", None, question, ""),
        ]
        return EditRow(
            edit_id=edit_id, split=split, relation=relation_of(question), concept=Path(image_id).stem, question=question,
            image_id=image_id, answer=record["pred"], target=record["alt"],
            rephrasings_train=self.positives(edit_id, record), rephrasings=[record["rephrase"]],
            generality_image_ids=[self.photos.add(record["image_rephrase"])], locality=locality, hops=[],
        )  # fmt: skip

    def positives(self, edit_id: str, record: Mapping[str, Any]) -> list[str]:
        """Rephrasings for positive samples: the record's own, else the text provider's, else plain frames of the question."""
        question, rephrase = record["src"], record["rephrase"]
        own = [t.strip() for t in record.get(easyedit.POSITIVES, []) if t.strip() not in (question, rephrase)]
        if own:
            return own
        if self.writer:
            return self.writer.rephrasings(edit_id, question, (record["pred"], record["alt"]), POSITIVES, taken=(rephrase,))
        frames = (PROMPTS / "positives.txt").read_text(encoding="utf-8").strip().splitlines()
        return [frame.format(question=question) for frame in frames]


def edit_id_of(record: Mapping[str, Any]) -> str:
    """The files have no ids: the picture's name and a digest of the question."""
    return f"{Path(record['image']).stem}-{hashlib.sha256(record['src'].encode()).hexdigest()[:8]}"


def relation_of(question: str) -> str:
    """E-IC's prompts are no questions; E-VQA's are sorted by their question word."""
    if not question.endswith("?"):
        return "caption"
    first = question.split()[0].lower().removesuffix("'s")
    return first if first in QUESTION_WORDS else "other"


def read(key: str, path: Path, photos: Photos, tally: Tally) -> list[dict[str, Any]]:
    """The valid records of a file, each picture by the name that its file was first asked for by."""
    found = easyedit.read(key, path, tally)
    return [record | {name: photos.same(record[name]) for name in easyedit.PICTURES} for record in found]


def records_of(dataset: Dataset, settings: Settings, photos: Photos, tally: Tally, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Split → records in a seeded order. Test and dev share the evaluation file by picture; no picture of it is in train.

    A record whose id another one has is counted: two pictures of one name in different folders, asked the same.
    """
    at = f"datasets.{dataset.name}"
    taken: set[str] = set()

    def is_new(record: Mapping[str, Any]) -> bool:
        if (edit_id := edit_id_of(record)) in taken:
            tally.note("record: duplicate id", edit_id)
            return False
        taken.add(edit_id)
        return True

    records = [r for r in read(f"{at}.evaluation", settings.evaluation, photos, tally) if is_new(r)]
    splits = split_of((r["image"] for r in records), {"test": dataset.test, "dev": dataset.dev}, seed)
    found: dict[str, list[dict[str, Any]]] = {"test": [], "dev": [], "train": []}
    for record in records:
        found[splits[record["image"]]].append(record)
    if settings.training:
        for record in read(f"{at}.training", settings.training, photos, tally):
            if record["image"] in splits:
                tally.note("training: its picture is an evaluation picture", edit_id_of(record))
            elif is_new(record):
                found["train"].append(record)
    for split, listed in found.items():
        order = np.random.default_rng(derive_seed(seed, "choose", split)).permutation(len(listed))
        found[split] = [listed[i] for i in order]
    return found


def present(records: Sequence[Mapping[str, Any]], photos: Photos, tally: Tally) -> list[Mapping[str, Any]]:
    """The records whose pictures are all there, their own readable; the others are counted."""
    found = []
    for record in records:
        try:
            photos.add(record["image"])
            if not all(photos.find(record[name]) for name in easyedit.PICTURES):
                raise Rejected("image: missing")
            found.append(record)
        except Rejected as error:
            tally.note(str(error), edit_id_of(record))
    return found


def build(
    dataset: Dataset, knowledge: Knowledge, assets: Path, backbones: Sequence[Unedited], seed: int
) -> tuple[list[EditRow], list[Picture], Counter]:
    """The dataset's rows, its pictures sorted by id, and what was rejected, by reason."""
    settings, at, tally = dataset.settings(Settings), f"datasets.{dataset.name}", Tally()
    for kind in PUBLISHED:
        if getattr(dataset, kind):
            raise UserError(f"{at}.{kind}: {getattr(dataset, kind)} is not allowed; allowed: 0, the files have their own")
    if dataset.train and not settings.training:
        raise UserError(f"{at}.training: missing; needed for {at}.train: {dataset.train}")
    need(f"{at}.images", *settings.images)
    photos = Photos(settings.images, settings.side)
    writer = settings.text and Writer(settings.text.open(f"{at}.text"), settings.attempts, seed, tally)
    builder = Builder(dataset, settings, photos, Looks(backbones[0].backbone, photos.image), writer, seed)
    rows: list[EditRow] = []
    for split, records in records_of(dataset, settings, photos, tally, seed).items():
        usable = present(records, photos, tally)
        pool = Pool([Asked(r["image"], r["src"], r["pred"]) for r in usable], builder.looks)
        make = partial(builder.edit, split, pool)
        rows += collect(getattr(dataset, split), usable, make, edit_id_of, tally, f"okedit {dataset.name} {split}", rows)
    return rows, photos.used(rows), tally
