"""Try one edit in a terminal: what the model says to some questions, before and after.

./study try --picture horse.png --question "What is the young of this animal called?" --answer kid
"""

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from transformers.utils import logging

import balancedit
from stages.params import UserError, run

INDENT = "  "
HOW = """\
Without --ask and --ask-picture, questions are read from standard input, one a line: `question` is about the same picture,
`FILE: question` about another. An empty line, or the end of the file, stops.
"""


class Parser(argparse.ArgumentParser):
    """Mistakes end in one line."""

    def error(self, message: str) -> None:
        raise UserError(f"{message}; ./study try --help says more")


def parser() -> Parser:
    """What the command takes."""
    made = Parser(prog="./study try", description=__doc__.splitlines()[0], epilog=HOW, allow_abbrev=False)
    made.add_argument("--picture", metavar="FILE", help="the picture that the edit is about; without it, the edit is about none")
    made.add_argument("--question", required=True)
    made.add_argument("--answer", required=True, help="what the model should say")
    made.add_argument("--backbone", default="llava-smollm2", help="a name of params.yaml, a checkpoint's folder, or owner/name")
    made.add_argument("--rephrasing", metavar="QUESTION", help="the positive sample: the question in other words")
    made.add_argument("--alpha", type=float, help="weight of the positive sample in the radius, 0 to 1 (what the study chose)")
    made.add_argument("--editor", default="balancedit")
    made.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the editor, such as lr=0.01")
    made.add_argument(
        "--ask", action="append", default=[], metavar="QUESTION", help="a line as on standard input; may be repeated"
    )
    made.add_argument(
        "--ask-picture", action="append", default=[], metavar="FILE", help="the edit's question about it; repeatable"
    )
    return made


def settings_of(words: Sequence[str]) -> dict[str, int | float | str]:
    """`NAME=VALUE` words; a value is a number where it reads as one."""
    found: dict[str, int | float | str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"--set: {word!r} is not allowed; allowed: NAME=VALUE")
        try:
            found[name] = int(value) if value.lstrip("-").isdigit() else float(value)
        except ValueError:
            found[name] = value
    return found


def query_of(line: str, picture: str | None) -> tuple[str | None, str]:
    """The picture and the question of one line. UserError for what looks like a file and is none."""
    file, colon, question = line.partition(": ")
    if colon and Path(file).is_file():
        return file, question.strip()
    if colon and " " not in file and ("." in file or "/" in file):
        raise UserError(f"picture: {file!r} cannot be read: no such file; allowed: `question`, or `FILE: question`")
    return picture, line


def described(entry: balancedit.Entry) -> str:
    """An edit in one line."""
    if entry.key is None:
        return "always on"
    return f"radius {entry.radius:.3f} (positive sample at {entry.d_plus:.3f}, negative at {entry.d_minus:.3f})"


def told(model: balancedit.Model, own: str | None, picture: str | None, question: str) -> str:
    """A question, with its picture where that is not the edit's `own`, both answers, and what decided between them."""
    answer = model.ask(picture, question)
    if answer.nearest is None:
        which = "none" if answer.entry is None else "always on"
    else:
        number = model.entries.index(answer.nearest) + 1
        where = f"at distance {answer.distance:.3f} of radius {answer.radius:.3f}"
        which = f"edit {number}, {where}" if answer.entry else f"none: edit {number} is {where}"
    about = question if picture == own else f"{picture}: {question}"
    lines = [about, f"before   {answer.before}", f"after    {answer.text}", f"answered {which}"]
    return f"\n{INDENT}".join(lines)


def asked() -> Iterable[str]:
    """Lines of standard input up to an empty one."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        if not (line := sys.stdin.readline().strip()):
            return
        yield line


def main() -> None:
    given = parser().parse_args()
    logging.disable_progress_bar()
    begun = time.perf_counter()
    model = balancedit.open(given.backbone)
    print(f"{given.backbone}, layer {model.backbone.layer}, opened in {time.perf_counter() - begun:.1f} s", flush=True)
    begun = time.perf_counter()
    entry = model.edit(
        given.picture, given.question, given.answer,
        editor=given.editor, rephrasing=given.rephrasing, alpha=given.alpha, **settings_of(given.set),
    )  # fmt: skip
    took = f"{entry.steps} steps in {time.perf_counter() - begun:.1f} s"
    print(f"edit 1 by {entry.editor}: {took}, {described(entry)}\n", flush=True)
    asking = [(picture, given.question) for picture in (given.picture, *given.ask_picture)]
    for query in [*asking, *(query_of(line, given.picture) for line in given.ask)]:
        print(told(model, given.picture, *query), flush=True)
    for line in [] if given.ask or given.ask_picture else asked():
        try:
            print(told(model, given.picture, *query_of(line, given.picture)), flush=True)
        except UserError as error:  # a slip of the keyboard does not lose the edit
            print(f"error: {error}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
