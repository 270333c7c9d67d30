"""OK-VQA (Marino et al., CVPR 2019) with generated probes, as Guo et al. (section 5.1) made OKEDIT of it.

The official question and annotation files and COCO's photos are read; a text provider writes rephrasings, the counterfactual and
a third answer, an image provider draws pictures for which the true answer holds (image generality) and one for which the third
answer does (near locality, with the same question). No photo is in two splits.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stages.assets.knowledge import Knowledge
from stages.backbone.vlm import Query
from stages.okedit.agreement import AGREEMENT
from stages.okedit.generate import Painter, Writer, collect
from stages.okedit.images import Looks
from stages.okedit.locality import Asked, Pool, draw, open_questions, probe
from stages.okedit.photos import Photos, is_text, read_json
from stages.okedit.providers import IMAGE, TEXT
from stages.okedit.schema import EditRow, Picture
from stages.okedit.settings import need, path, paths, variant
from stages.okedit.splits import split_of
from stages.okedit.unedited import Unedited
from stages.okedit.validate import Rejected, Tally
from stages.params import UserError, derive_seed
from stages.sections import count, entry
from stages.settings import Dataset

PLAIN = re.compile(r"\w[\w-]{,99}", re.ASCII)  # ids become parts of file names


@dataclass(frozen=True)
class Settings:
    """Where the files are, who writes and draws, and how many items an edit gets."""

    questions: Path = entry(path)
    annotations: Path = entry(path)
    images: tuple[Path, ...] = entry(paths)
    text: Any = entry(variant("provider", TEXT))
    image: Any = entry(variant("provider", IMAGE))
    agreement: Any = entry(variant("by", AGREEMENT), default=None)
    attempts: int = entry(count(1), default=4)
    rephrasings_train: int = entry(count(1), default=3)
    rephrasings: int = entry(count(1), default=10)
    generality: int = entry(count(1), default=10)
    side: int = entry(count(32), default=448)


@dataclass(frozen=True)
class Question:
    """A question with all its annotators' answers, the most frequent first, the category that OK-VQA gives it, and the answers as
    annotators wrote them.
    """

    question_id: str
    image: str
    question: str
    answers: Sequence[str]
    category: str
    aliases: Sequence[str] = field(default=(), compare=False)

    @property
    def asked(self) -> Asked:
        """The question with the answer that most annotators gave."""
        return Asked(self.image, self.question, self.answers[0])

    @property
    def true(self) -> dict[str, str]:
        """Answers that no counterfactual may be, with the reason."""
        return dict.fromkeys([*self.answers, *self.aliases], "is a true answer")


def read_questions(at: str, questions: Path, annotations: Path, tally: Tally) -> list[Question]:
    """The questions that have answers; the others are counted by reason. UserError when a file is not as published.

    `annotations` is the official file or a list of {question_id, answer: [answers]}.
    """
    asked, answers = read_json(f"{at}.questions", questions), read_json(f"{at}.annotations", annotations)
    listed = asked.get("questions") if isinstance(asked, Mapping) else None
    if not isinstance(listed, list) or not PLAIN.fullmatch(str(asked.get("data_subtype"))):
        raise UserError(f"{at}.questions: {str(questions)!r} has no `questions` or `data_subtype`; allowed: the official file")
    records = answers.get("annotations") if isinstance(answers, Mapping) else answers
    if not isinstance(records, list):
        raise UserError(f"{at}.annotations: {str(annotations)!r} has no `annotations`; allowed: the official file")
    named = answers.get("question_types", {}) if isinstance(answers, Mapping) else {}
    answered = _answers(records, named if isinstance(named, Mapping) else {}, annotations.name, tally)
    found: dict[str, Question] = {}
    for i, record in enumerate(listed):
        try:
            question_id, text = str(record["question_id"]), record["question"].strip()
            image = f"{asked['data_subtype']}/COCO_{asked['data_subtype']}_{_whole(record['image_id']):012d}.jpg"
        except (KeyError, TypeError, ValueError, AttributeError):
            tally.note("question: malformed", f"{questions.name}[{i}]")
            continue
        if not is_text(text) or not PLAIN.fullmatch(question_id):
            tally.note("question: malformed", f"{questions.name}[{i}]")
        elif question_id not in answered:
            tally.note("question: no answers", question_id)
        elif question_id in found:
            tally.note("question: duplicate id", question_id)
        else:
            found[question_id] = Question(question_id, image, text, *answered[question_id])
    return list(found.values())


def _whole(value: Any) -> int:
    """COCO's number of a picture; ValueError for what is none: Infinity, true, 1.5, -3, more digits than a file's name has."""
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,12}", str(value)):
        raise ValueError
    return int(value)


def _answers(records: Sequence[Any], named: Mapping, file: str, tally: Tally) -> dict[str, tuple[list[str], str, list[str]]]:
    """Question id → its answers, most frequent first (the earlier one on a tie), its category, and its answers in other words."""
    found: dict[str, tuple[list[str], str, list[str]]] = {}
    for i, record in enumerate(records):
        try:
            question_id = str(record["question_id"])
            answers = record["answers"] if "answers" in record else record["answer"]
            texts = [(a["answer"] if isinstance(a, Mapping) else a).strip() for a in answers]
            category = str(named.get(record.get("question_type"), "uncategorised"))
            raw = [a["raw_answer"] for a in answers if isinstance(a, Mapping) and is_text(a.get("raw_answer"))]
        except (KeyError, TypeError, AttributeError):
            tally.note("annotation: malformed", f"{file}[{i}]")
            continue
        ranked = [text for text, _ in Counter(t for t in texts if t).most_common()]
        if not ranked or not all(map(is_text, [question_id, category, *ranked])):
            tally.note("annotation: malformed", question_id if is_text(question_id) else f"{file}[{i}]")
        elif question_id in found:
            tally.note("annotation: duplicate id", question_id)
        else:
            found[question_id] = (ranked, category, sorted(set(raw) - set(ranked)))
    return found


@dataclass(frozen=True)
class Builder:
    """Makes edits of questions; everything random follows from `seed` and the question's id."""

    dataset: Dataset
    settings: Settings
    backbones: Sequence[Unedited]
    photos: Photos
    writer: Writer
    painter: Painter
    texts: Mapping[str, Sequence[Mapping[str, Any]]]  # by split
    seed: int

    def edit(self, split: str, pool: Pool, question: Question) -> EditRow:
        """One edit with all its probes; Rejected, ProviderError where something cannot be had."""
        s, own, edit_id = self.settings, question.asked, question.question_id
        rng = np.random.default_rng(derive_seed(self.seed, self.dataset.name, edit_id))
        picture = self.photos.image(own.image_id)
        asked = [Query(own.question, own.image_id)], {own.image_id: picture}
        unedited = {b.answers(*asked)[0]: "is the unedited answer" for b in self.backbones}
        refused = unedited | question.true
        target = self.writer.answer(edit_id, "counterfactual", own.question, refused, answer=own.answer)
        rephrased = self.writer.rephrasings(
            edit_id, own.question, (*question.answers, target), s.rephrasings_train + s.rephrasings
        )
        concept = Path(own.image_id).stem
        others = self.painter.draw(edit_id, concept, "generality", own.question, own.answer, s.generality)
        return EditRow(
            edit_id=edit_id, split=split, relation=question.category, concept=concept, question=own.question,
            image_id=own.image_id, answer=own.answer, target=target,
            rephrasings_train=rephrased[: s.rephrasings_train], rephrasings=rephrased[s.rephrasings_train :],
            generality_image_ids=others, locality=self.locality(split, pool, question, target, concept, rng), hops=[],
        )  # fmt: skip

    def locality(
        self, split: str, pool: Pool, question: Question, target: str, concept: str, rng: np.random.Generator
    ) -> list[dict[str, Any]]:
        """The picture of the third answer counts among the near ones; the other near ones are the photos most alike."""
        own, d = question.asked, self.dataset
        drawn = []
        if d.near:
            refused = question.true | {target: "is the target"}
            third = self.writer.answer(question.question_id, "third", own.question, refused, answer=own.answer, target=target)
            ids = self.painter.draw(question.question_id, concept, "locality", own.question, third, 1)
            drawn = [probe("near_image", ids[0], own.question, third)]
        return [
            *drawn,
            *pool.same_question(own, d.near - len(drawn), d.far, rng),
            *pool.other_question(own, d.other_question, rng),
            *pool.unrelated(own, d.unrelated, rng),
            *draw(self.texts[split], d.text_only, rng),
            probe("no_image", None, own.question, ""),
        ]


def build(
    dataset: Dataset, knowledge: Knowledge, assets: Path, backbones: Sequence[Unedited], seed: int
) -> tuple[list[EditRow], list[Picture], Counter]:
    """The dataset's rows, its pictures sorted by id, and what was rejected, by reason."""
    settings, at, tally = dataset.settings(Settings), f"datasets.{dataset.name}", Tally()
    need(f"{at}.images", *settings.images)
    text, image = settings.text.open(f"{at}.text"), settings.image.open(f"{at}.image")
    agrees = settings.agreement and settings.agreement.open(f"{at}.agreement", backbones)
    photos = Photos(settings.images, settings.side)
    usable = []
    for question in read_questions(at, settings.questions, settings.annotations, tally):
        try:
            photos.add(question.image)
            usable.append(question)
        except Rejected as error:
            tally.note(str(error), question.question_id)
    writer = Writer(text, settings.attempts, seed, tally)
    painter = Painter(image, agrees, settings.attempts, seed, photos, tally)
    wanted = {"test": dataset.test, "dev": dataset.dev, "train": dataset.train}
    texts = {split: open_questions(assets, split) if dataset.text_only else [] for split in wanted}
    builder = Builder(dataset, settings, backbones, photos, writer, painter, texts, seed)
    looks = Looks(backbones[0].backbone, photos.image)
    splits = split_of((q.image for q in usable), wanted, seed)
    rows: list[EditRow] = []
    for split, n in wanted.items():
        listed = [q for q in usable if splits[q.image] == split]
        order = np.random.default_rng(derive_seed(seed, "choose", split)).permutation(len(listed))
        pool = Pool([q.asked for q in listed], looks)
        make = partial(builder.edit, split, pool)
        ordered = [listed[i] for i in order]
        rows += collect(n, ordered, make, lambda q: q.question_id, tally, f"okedit {dataset.name} {split}", rows)
    return rows, photos.used(rows), tally
