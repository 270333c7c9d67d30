"""What backbones answer before any edit: reports/unedited/<dataset>.parquet, in Git, as asking takes most of a build's time.

An answer stands while the model, the question and the picture's pixels are the same. Where other code gave the answers, some
are asked again, and all of them are if one differs.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from PIL import Image

from stages import code
from stages.backbone.vlm import Backbone, Query
from stages.okedit.schema import read_table, write_table
from stages.params import write_atomically

FOLDER = Path("reports/unedited")
COLUMNS = ("model", "question", "pixels", "answer")
ANSWER_LIMIT = 12  # tokens of a greedy answer
Key = tuple[str, str]  # a question, and a digest of the picture that it is asked about


def unedited_answers(backbone: Backbone, queries: Sequence[Query], batch: int = 32) -> list[str]:
    """The backbone's greedy answers before any edit; the pictures must have been added to it."""
    answers = []
    for start in range(0, len(queries), batch):
        trunk = backbone.prefill(backbone.prompts(queries[start : start + batch]))
        answers += [backbone.decode(ids) for ids in backbone.greedy(trunk, ANSWER_LIMIT)]
    return answers


class Unedited:
    """A backbone before any edit, which is opened when it is asked what is not known."""

    def __init__(self, model: str, opened: Callable[[], Backbone], known: Mapping[Key, str] | None = None, sure: bool = True):
        """`model` is a digest of its weights. Unless `sure`, what is `known` of those first asked is asked again, and all of it
        is forgotten where one answer differs.
        """
        self.model, self.sure = model, sure
        self.given: dict[Key, str] = {}
        self._opened, self._known = opened, dict(known or {})

    @cached_property
    def backbone(self) -> Backbone:
        return self._opened()

    def answers(self, queries: Sequence[Query], pictures: Mapping[str, Image.Image]) -> list[str]:
        """The answers to questions about `pictures`, which are by id."""
        seen = {image_id: pixels(image) for image_id, image in pictures.items()}
        keys = [(query.question, seen[query.image_id]) for query in queries]
        if not self.sure and (again := [i for i, key in enumerate(keys) if key in self._known]):
            self.sure = True
            if self._ask([queries[i] for i in again], pictures) != [self._known[keys[i]] for i in again]:
                self._known.clear()
        if missing := [i for i, key in enumerate(keys) if key not in self._known]:
            asked = self._ask([queries[i] for i in missing], pictures)
            self._known.update(zip((keys[i] for i in missing), asked, strict=True))
        self.given.update((key, self._known[key]) for key in keys)
        return [self._known[key] for key in keys]

    def _ask(self, queries: Sequence[Query], pictures: Mapping[str, Image.Image]) -> list[str]:
        self.backbone.add_pictures(pictures)
        return unedited_answers(self.backbone, queries)


def pixels(image: Image.Image) -> str:
    """A digest of a picture as it is seen, however it is encoded."""
    image = image.convert("RGBA")
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()[:16]


def recalled(dataset: str, models: Sequence[tuple[str, Callable[[], Backbone]]]) -> list[Unedited]:
    """Backbones, each a digest of its weights and what opens it, with what Git has of their answers to a dataset's questions."""
    table, stamp = FOLDER / f"{dataset}.parquet", FOLDER / f"{dataset}.json"
    rows = read_table(table).to_pylist() if table.exists() and stamp.exists() else []
    sure = bool(rows) and json.loads(stamp.read_text(encoding="utf-8"))["code"] == code.digest(__name__)
    known = {model: {(r["question"], r["pixels"]): r["answer"] for r in rows if r["model"] == model} for model, _ in models}
    return [Unedited(model, opened, known[model], sure) for model, opened in models]


def keep(dataset: str, backbones: Sequence[Unedited]) -> None:
    """Put the answers that a build was given where Git keeps them."""
    rows = sorted({(one.model, *key, answer) for one in backbones for key, answer in one.given.items()})
    write_table(FOLDER / f"{dataset}.parquet", [dict(zip(COLUMNS, row, strict=True)) for row in rows])
    with write_atomically(FOLDER / f"{dataset}.json") as temporary:
        temporary.write_text(json.dumps({"code": code.digest(__name__), "answers": len(rows)}, indent=2) + "\n")
