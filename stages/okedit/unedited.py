"""What backbones answer before any edit: reports/unedited/<dataset>.parquet, in Git, as asking takes most of a build's time.

An answer stands while the model, the question and the picture's pixels are the same. Where other code gave the answers, some
are asked again, and all of them are if one differs. They are kept as they come: an interrupted build asks no question twice.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path

from PIL import Image

from stages import code
from stages.backbone.vlm import Backbone, Query
from stages.okedit.schema import read_table, write_table
from stages.params import write_atomically

FOLDER = Path("reports/unedited")
MODULES = (__name__, *code.adapters(None))  # whose code gives the answers
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

    def __init__(
        self,
        model: str,
        opened: Callable[[], Backbone],
        known: Mapping[Key, str] | None = None,
        sure: bool = True,
        after: Callable[[], None] = lambda: None,
    ):
        """`model` is a digest of its weights. Unless `sure`, what is `known` of those first asked is asked again, and all of it
        is forgotten where one answer differs. `after` is called whenever new answers are known.
        """
        self.model, self.sure, self.known = model, sure, dict(known or {})
        self.given: dict[Key, str] = {}
        self._opened, self._after = opened, after

    @cached_property
    def backbone(self) -> Backbone:
        return self._opened()

    def answers(self, queries: Sequence[Query], pictures: Mapping[str, Image.Image]) -> list[str]:
        """The answers to questions about `pictures`, which are by id."""
        seen = {image_id: pixels(image) for image_id, image in pictures.items()}
        keys = [(query.question, seen[query.image_id]) for query in queries]
        if not self.sure and (again := [i for i, key in enumerate(keys) if key in self.known]):
            self.sure = True
            if self._ask([queries[i] for i in again], pictures) != [self.known[keys[i]] for i in again]:
                self.known.clear()
        if missing := [i for i, key in enumerate(keys) if key not in self.known]:
            asked = self._ask([queries[i] for i in missing], pictures)
            self.known.update(zip((keys[i] for i in missing), asked, strict=True))
            self._after()
        self.given.update((key, self.known[key]) for key in keys)
        return [self.known[key] for key in keys]

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
    sure = not rows or json.loads(stamp.read_text(encoding="utf-8"))["code"] == code.digest(*MODULES)
    known = {model: {(r["question"], r["pixels"]): r["answer"] for r in rows if r["model"] == model} for model, _ in models}
    backbones: list[Unedited] = []
    after = partial(keep, dataset, backbones, whole=False)
    backbones += [Unedited(model, opened, known[model], sure, after) for model, opened in models]
    return backbones


def keep(dataset: str, backbones: Sequence[Unedited], whole: bool = True) -> None:
    """Put the answers that a `whole` build was given where Git keeps them, or all that are known so far."""
    told = [(one.model, one.given if whole else one.known) for one in backbones]
    rows = sorted({(model, *key, answer) for model, answers in told for key, answer in answers.items()})
    write_table(FOLDER / f"{dataset}.parquet", [dict(zip(COLUMNS, row, strict=True)) for row in rows])
    if not whole and not all(one.sure for one in backbones):
        return  # some are still to be checked: the stamp of the code that gave them stays
    with write_atomically(FOLDER / f"{dataset}.json") as temporary:
        temporary.write_text(json.dumps({"code": code.digest(*MODULES), "answers": len(rows)}, indent=2) + "\n")
