"""Texts and pictures of an edit, asked of providers until enough of them are valid; what is rejected is counted by reason.

Guo et al. (section 5.1) had GPT-4 write rephrasings, a counterfactual and a third answer, and a diffusion model draw pictures.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from stages.okedit.agreement import Agrees
from stages.okedit.photos import Photos
from stages.okedit.pictures import read
from stages.okedit.providers.base import EndpointError, Provider, ProviderError
from stages.okedit.schema import EditRow, asked
from stages.okedit.validate import Rejected, Tally, answer_fault, lines, picture_fault, rephrasing_fault
from stages.params import UserError, derive_seed

T = TypeVar("T")
PATIENCE = 3  # edits in a row that an endpoint may fail
PROMPTS = Path(__file__).parent / "prompts"


def prompt(name: str, **values: object) -> str:
    """The text of prompts/<name>.txt with its fields filled in."""
    return (PROMPTS / f"{name}.txt").read_text(encoding="utf-8").strip().format(**values)


@dataclass(frozen=True)
class Writer:
    """Asks a text provider, with another seed each of `attempts` times."""

    provider: Provider
    attempts: int
    seed: int
    tally: Tally

    def _lines(self, edit_id: str, use: str, attempt: int, **values: object) -> list[str]:
        seed = derive_seed(self.seed, edit_id, use, str(attempt))
        reply = self.provider.make(prompt(use, **values), seed, f"{edit_id}/{use}")
        return lines(reply.decode("utf-8", errors="replace"))

    def rephrasings(
        self, edit_id: str, question: str, answers: Collection[str], count: int, taken: Collection[str] = ()
    ) -> list[str]:
        """`count` valid rephrasings of the question, none among `taken`; Rejected when there are fewer."""
        found: list[str] = []
        for attempt in range(self.attempts):
            for line in self._lines(edit_id, "rephrase", attempt, question=question, count=count):
                fault = rephrasing_fault(line, question, [*taken, *found], answers)
                if fault:
                    self.tally.note(f"rephrasing: {fault}", edit_id)
                else:
                    found.append(line)
            if len(found) >= count:
                return found[:count]
        raise Rejected("edit: too few rephrasings")

    def answer(self, edit_id: str, use: str, question: str, refused: Mapping[str, str], **values: str) -> str:
        """A valid false answer (`use`: counterfactual or third), none of those `refused` (text → why); else Rejected."""
        for attempt in range(self.attempts):
            listed = self._lines(edit_id, use, attempt, question=question, **values)
            candidate = listed[0].removesuffix(".") if listed else ""
            fault = answer_fault(candidate, refused)
            if not fault:
                return candidate
            self.tally.note(f"{use}: {fault}", edit_id)
        raise Rejected(f"edit: no {use}")


@dataclass(frozen=True)
class Painter:
    """Asks an image provider, with another seed each of `attempts` times, and packs what is valid among `photos`."""

    provider: Provider
    agrees: Agrees | None
    attempts: int
    seed: int
    photos: Photos
    tally: Tally

    def draw(self, edit_id: str, concept: str, use: str, question: str, answer: str, count: int) -> list[str]:
        """Ids of `count` different pictures about which `answer` is true; Rejected when one cannot be had."""
        taken: list[bytes] = []
        ids = []
        for i in range(count):
            name = f"{edit_id}/{use}-{i}"
            taken.append(self._valid(edit_id, name, question, answer, taken))
            ids.append(self.photos.put(f"generated/{name}", "generated", concept, taken[-1]))
        return ids

    def _valid(self, edit_id: str, name: str, question: str, answer: str, taken: Collection[bytes]) -> bytes:
        asked, last = prompt("scene", question=question, answer=answer), b""
        for attempt in range(self.attempts):
            drawn = self.provider.make(asked, derive_seed(self.seed, name, str(attempt)), name)
            if drawn == last:
                break  # a provider that always gives the same
            fault, last = picture_fault(drawn, taken), drawn
            if not fault and self.agrees and not self.agrees(read(drawn), question, answer):
                fault = "does not show the answer"
            if not fault:
                return drawn
            self.tally.note(f"picture: {fault}", edit_id)
        raise Rejected("edit: too few pictures")


def collect(
    wanted: int,
    items: Sequence[T],
    make: Callable[[T], EditRow],
    name: Callable[[T], str],
    tally: Tally,
    title: str,
    elsewhere: Sequence[EditRow] = (),
) -> list[EditRow]:
    """Rows made of `items` in order until there are `wanted`; an item that is rejected is counted and left out, and so is one
    that asks what the rows of other splits, `elsewhere`, ask.

    UserError when an endpoint fails for PATIENCE items in a row: what is done is cached, the next run goes on from there.
    """
    made: list[EditRow] = []
    taken = {probe for row in elsewhere for probe in asked(vars(row))}
    failed = 0
    with tqdm(total=min(wanted, len(items)), desc=title) as progress:
        for item in items:
            if len(made) == wanted:
                break
            try:
                row = make(item)
                failed = 0
                if taken & asked(vars(row)):
                    raise Rejected("edit: another split asks one of its probes")
                made.append(row)
                progress.update()
            except EndpointError as error:
                tally.note(str(error), name(item))
                failed += 1
                if failed == PATIENCE:
                    raise UserError(f"{title}: {error}, {failed} edits in a row; stopped; run it again to go on") from None
            except (Rejected, ProviderError) as error:
                tally.note(str(error), name(item))
    return made
