"""What is wrong with a generated item, in words that are counted; None where nothing is."""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping

from stages.okedit.pictures import read
from stages.okedit.schema import Unreadable
from stages.okedit.wording import says_same, words

LONGEST_QUESTION, LONGEST_ANSWER = 200, 40  # characters
MOST_WORDS = 5  # of an answer
SMALLEST = 32  # pixels a side
EXAMPLES = 5  # rejected items of one reason that are named


class Rejected(Exception):
    """An edit that cannot be had; the text is the reason that is counted."""


class Tally(Counter):
    """Rejections by reason, with the names of the first few of each."""

    def __init__(self) -> None:
        super().__init__()
        self.examples: dict[str, list[str]] = defaultdict(list)

    def note(self, reason: str, name: str) -> None:
        """Count one."""
        self[reason] += 1
        if len(self.examples[reason]) < EXAMPLES and name not in self.examples[reason]:
            self.examples[reason].append(name)


def normal(text: str) -> str:
    """The form in which texts are compared: lower case, words alone."""
    return " ".join(re.findall(r"\w+", text.lower()))


def lines(text: str) -> list[str]:
    """The items of a list as language models write them: without bullets, numbers and quotes."""
    bare = (re.sub(r"^\s*(?:[-*•]|\(?\d{1,2}[.):])\s+", "", line).strip().strip("\"'“”").strip() for line in text.splitlines())
    return [line for line in bare if line]


def rephrasing_fault(candidate: str, question: str, taken: Collection[str], answers: Collection[str]) -> str | None:
    """A rephrasing is one question, new, neither the question itself nor a hint at an answer that the question lacks."""
    normalised = normal(candidate)
    if not normalised or len(candidate) > LONGEST_QUESTION or candidate.endswith("?") != question.strip().endswith("?"):
        return "format"
    if normalised == normal(question):
        return "equals the question"
    if normalised in {normal(other) for other in taken}:
        return "duplicate"
    said, asked = (f" {' '.join(words(text))} " for text in (candidate, question))
    given = [f" {' '.join(words(answer))} " for answer in answers]
    if any(answer in said and answer not in asked for answer in given if answer.strip()):
        return "gives an answer away"
    return None


def answer_fault(candidate: str, refused: Mapping[str, str]) -> str | None:
    """A false answer is a few words that say none of what is `refused` (text → the reason), in other or more or fewer words."""
    normalised = normal(candidate)
    if (
        not normalised
        or len(candidate) > LONGEST_ANSWER
        or len(normalised.split()) > MOST_WORDS
        or candidate.endswith(("?", ":"))
    ):
        return "format"
    return next((reason for text, reason in refused.items() if says_same(candidate, text)), None)


def picture_fault(encoded: bytes, taken: Collection[bytes]) -> str | None:
    """A picture can be read, is not tiny, shows more than one colour, and is none of those `taken`."""
    try:
        image = read(encoded)
    except Unreadable as error:
        return {"unreadable": "format", "tiny": "too small"}.get(str(error), str(error))
    if min(image.size) < SMALLEST:
        return "too small"
    if all(low == high for low, high in image.getextrema()):
        return "one flat colour"
    return "duplicate" if encoded in taken else None
