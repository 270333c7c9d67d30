"""A frozen vision-language model and the edits beside it."""

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from balancedit.editors import editor_named
from stages.backbone.vlm import Backbone, Query, Trunk, mean_over
from stages.editing import codebook
from stages.editing.codebook import Codebook
from stages.editing.conflicts import GONE, RULES, UNEDITED
from stages.editing.edits import Edit, attempt
from stages.editing.probes import Probe
from stages.editing.trunk import ANSWER_LIMIT, request_of, run_trunk
from stages.okedit.pictures import plain, read
from stages.okedit.schema import Unreadable, decode
from stages.params import write_atomically
from stages.samples.generate import plain_pictures
from stages.sections import UserError, number, one_of, refuse, text
from stages.settings import DISTANCES, PROMPT_SPANS, STAGES

ALPHA = 0.5  # the paper's, for a backbone that the study has not chosen one for
REPHRASED = "Look at the picture. {}"  # the positive sample of a question that comes with no rephrasing
REPHRASED_ALONE = "Can you tell me: {}"  # likewise where there is no picture
WORDS = ("question", "editor", "d_plus", "d_minus", "steps", "reached")  # of an `Entry`, that a codebook's file has no place for
KEPT = "balancedit"  # where they stand in its header

Picture = str | Path | Image.Image | None  # a file, an opened picture, or none


@dataclass(frozen=True, eq=False)
class Entry:
    """One edit as it was made.

    `d_plus` and `d_minus` are the distances from its key to its positive and its negative sample, and `radius` is how far it
    reaches, all three in units of the model's distance. `steps` and `reached` say how long it was optimised, and whether greedy
    decoding then gave the answer. An edit that is always on has no key, distances or radius.
    """

    question: str
    answer: str
    editor: str
    radius: float | None
    d_plus: float | None
    d_minus: float | None
    steps: int
    reached: bool
    key: torch.Tensor | None = field(repr=False)  # [D], the width of the edited linear map's input
    edit: Edit = field(repr=False)

    @property
    def stored(self) -> codebook.Entry:
        """How it stands in a codebook."""
        return codebook.Entry(self.key, self.radius, self.answer, self.edit)


@dataclass(frozen=True)
class Answer:
    """What the model says: `text`, and `before`, the unedited model's answer.

    `entry` is the edit that answered, None where none did. `nearest` is the edit at the key nearest to the query, `distance` how
    far that key is, and `radius` how far that edit reaches now; None where no edit has a key, or the query lacks what keys are
    means over.
    """

    text: str
    before: str
    entry: Entry | None = None
    distance: float | None = None
    radius: float | None = None
    nearest: Entry | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return self.text


class Model:
    """An opened backbone and its edits, which are all by one editor.

    Edits of `balancedit` and `grace` stand in a codebook: a query goes to its nearest key, and the edit there answers it iff it
    lies within the radius. `span` is what a key is the mean over, `distance` how keys are compared, `rule` what becomes of edits
    that cover each other's keys (`stages.editing.conflicts`). Edits of `finetune` and `lora` are always on, one at a time.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        alpha: float = ALPHA,
        span: str = "prompt",
        distance: str = "euclidean",
        rule: str = "nearest",
    ):
        self.alpha = number(0, 1)("alpha", alpha, STAGES)
        self.span = one_of(*PROMPT_SPANS)("span", span, STAGES)
        self.distance = one_of(*DISTANCES)("distance", distance, STAGES)
        self.rule = one_of(*RULES)("rule", rule, STAGES)
        self.backbone, self.entries = backbone, []
        black = plain_pictures()[0]
        self._black = self._show(decode(black.image_id, black.png))
        self._settle()

    def edit(
        self,
        picture: Picture,
        question: str,
        answer: str,
        *,
        editor: str = "balancedit",
        rephrasing: str | None = None,
        alpha: float | None = None,
        radius: float | None = None,
        **settings: Any,
    ) -> Entry:
        """Make the model give `answer` to this question about this picture: a file, a PIL image, or None.

        The radius is α·d⁺ + (1 − α)·d⁻. The positive sample is the `rephrasing` of the question, a general one where none is
        given; the negative sample is the question about a black picture. `alpha` is the model's where it is left out; a `radius`
        takes the place of all that. `settings` are the editor's own (`lr`, `steps`, …).

        Raises UserError for a value that is not allowed, and for an edit that diverged.
        """
        module, chosen = editor_named(editor, settings)
        if self.entries and (other := self.entries[0].editor) != editor:
            raise refuse("editor", editor, f"{other}, that of the model's other edits")
        if self._always_on:
            raise UserError(f"editor: {editor!r}: its edits are always on, and one stands already; remove it first")
        alpha = self.alpha if alpha is None else number(0, 1)("alpha", alpha, STAGES)
        radius = None if radius is None else number(0)("radius", radius, STAGES)
        image_id = self._show(picture)
        if image_id is None and getattr(chosen, "part", None) == "connector":
            raise refuse("picture", None, f"a picture: of {editor}, part 'connector' has nothing to learn from without one")
        row = {
            "question": text("question", question, STAGES),
            "image_id": image_id,
            "target": text("answer", answer, STAGES),
        }
        if rephrasing is None:
            rephrasing = (REPHRASED_ALONE if image_id is None else REPHRASED).format(question)
        probes = [
            Probe("edit", question, image_id, answer, ""),
            Probe("sample_positive", text("rephrasing", rephrasing, STAGES), image_id, "", ""),
            Probe("sample_black", question, self._black, "", ""),
        ]
        states = run_trunk(self.backbone, row, probes)
        key, samples = states.key[self.span], states.phi[self.span][1:]
        if key.isnan().any():
            raise refuse("span", self.span, "prompt, question, last: an edit without a picture has no image positions")
        request = request_of(states, row)
        if (index := self._book.continues(key, answer)) != UNEDITED:  # it goes on from the edit that answers here already
            request = replace(request, start=self._book.entries[index].edit)
        made = attempt(lambda: module.edit(self.backbone, request, chosen))
        if made.diverged:
            raise UserError(f"{editor}: the edit diverged under {chosen}; allowed: other settings, such as a smaller lr")
        entry = Entry(question, answer, editor, None, None, None, made.steps, made.reached, None, made)
        if not made.added:
            apart = Codebook(self.distance, [codebook.Entry(key, 0.0, answer, made)]).distances(samples)[:, 0].tolist()
            radius = alpha * apart[0] + (1 - alpha) * apart[1] if radius is None else radius
            entry = replace(entry, radius=radius, d_plus=apart[0], d_minus=apart[1], key=key)
        self.entries.append(entry)
        self._settle()
        return entry

    @torch.no_grad()
    def ask(self, picture: Picture, question: str) -> Answer:
        """What the model says, with its edits and without; at most 12 tokens each."""
        query = Query(text("question", question, STAGES), self._show(picture))
        prompts = self.backbone.prompts([query])
        trunk = self.backbone.prefill(prompts)
        before = self._says(trunk)
        if self._always_on:
            entry = self.entries[0]
            with entry.edit.applied(self.backbone):
                return Answer(self._says(self.backbone.prefill(self.backbone.prompts([query]))), before, entry)
        phi = mean_over(trunk.inputs, prompts.spans[self.span])
        if not self.entries or phi.isnan().any():
            return Answer(before, before)
        reach = torch.tensor([one.radius for one in self._book.entries])
        apart = self._book.distances(phi)[0].masked_fill(reach == GONE, torch.inf)
        index = int(apart.argmin())
        found = {"nearest": self._at(index), "distance": float(apart[index]), "radius": self._book.entries[index].radius}
        if int(self._book.route(phi)[0]) == UNEDITED:
            return Answer(before, before, **found)
        with self._book.answering(self.backbone, prompts, self.span):
            return Answer(self._says(self.backbone.prefill(prompts)), before, self._at(index), **found)

    def remove(self, entry: Entry) -> None:
        """Take an edit out, as if it had never been made; UserError where the model does not have it."""
        if entry not in self.entries:
            raise UserError(f"entry: the model has no such edit; allowed: one of its {len(self.entries)} `entries`")
        self.entries.remove(entry)
        self._settle()

    def save(self, path: str | Path) -> None:
        """Write the edits, as they were made, to one safetensors file, which `balancedit.load` reads: a codebook
        (`Codebook.save`) with the words of each `Entry` in its header. UserError for edits that are always on.
        """
        if self._always_on:
            raise UserError(f"save: edits of {self.entries[0].editor!r} are always on; allowed: edits with a key")
        Codebook(self.distance, [entry.stored for entry in self.entries], rule=self.rule).save(Path(path), self.backbone)
        with safe_open(path, "pt") as file:
            header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        words = {"span": self.span, "entries": [{name: getattr(entry, name) for name in WORDS} for entry in self.entries]}
        with write_atomically(path) as temporary:
            save_file(tensors, temporary, header | {KEPT: json.dumps(words)})

    @property
    def _always_on(self) -> bool:
        return bool(self.entries) and self.entries[0].key is None

    def _settle(self) -> None:
        """Put all edits into an empty codebook, in the order in which they were made: one that lies inside another with the same
        answer shares its place there, and that reaches farther.
        """
        self._book = Codebook(self.distance, rule=self.rule)
        self._places = [self._book.add(entry.stored) for entry in self.entries if entry.key is not None]

    def _at(self, index: int) -> Entry:
        """The latest edit that stands at a place of the codebook."""
        return next(entry for entry, place in zip(self.entries[::-1], self._places[::-1], strict=True) if place == index)

    def _says(self, trunk: Trunk) -> str:
        return self.backbone.decode(self.backbone.greedy(trunk, ANSWER_LIMIT)[0])

    def _show(self, picture: Picture) -> str | None:
        """Make a picture known to the backbone, by its content; its id, None where there is none."""
        if picture is None:
            return None
        image = read_picture(picture)
        whole = image.convert("RGBA")
        image_id = hashlib.sha256(f"{whole.size}".encode() + whole.tobytes()).hexdigest()
        self.backbone.add_pictures({image_id: image})
        return image_id


def read_picture(picture: str | Path | Image.Image) -> Image.Image:
    """A picture, of a file or opened, as RGB pixels (`stages.okedit.pictures`); UserError where it is none."""
    allowed = "a picture's file, a PIL image, or None"
    if not isinstance(picture, str | Path | Image.Image):
        raise refuse("picture", type(picture).__name__, allowed)
    try:
        return plain(picture) if isinstance(picture, Image.Image) else read(Path(picture).read_bytes())
    except Unreadable as error:
        why = "PIL knows no such picture" if str(error) == "unreadable" else str(error)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
    told = repr(str(picture)) if isinstance(picture, str | Path) else "a PIL image"
    raise UserError(f"picture: {told} cannot be read: {why}; allowed: {allowed}")
