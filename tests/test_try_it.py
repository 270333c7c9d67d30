"""`./study try`: what is printed, where questions come from, and how a mistake ends."""

import io
import sys
from pathlib import Path

import pytest
from PIL import Image

import balancedit
from balancedit import try_it
from balancedit.model import Model
from stages.backbone.vlm import Backbone
from stages.params import run

EDIT = ("--question", "What is it?", "--answer", "ox", "--set", "lr=0.01", "--set", "margin=0.1")


@pytest.fixture()
def said(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """`./study try` with these arguments and lines typed: exit code, and the lines of both streams."""
    monkeypatch.setattr(balancedit, "open", lambda name: Model(backbone))
    monkeypatch.chdir(tmp_path)
    for name, colour in (("red.png", (200, 30, 30)), ("a blue one.png", (20, 40, 220))):
        Image.new("RGB", (64, 64), colour).save(tmp_path / name)

    def call(*arguments: str, typed: str = "") -> tuple[int, list[str], list[str]]:
        monkeypatch.setattr(sys, "argv", ["try", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        code = 0
        try:
            run(try_it.main)
        except SystemExit as ended:
            code = ended.code
        found = capsys.readouterr()
        return code, found.out.splitlines(), found.err.splitlines()

    return call


def test_questions_are_read_until_an_empty_line(said) -> None:
    typed = "Who owns it?\na blue one.png: What is it?\nTell: what?\n\nWho?\n"
    code, lines, errors = said("--picture", "red.png", *EDIT, "--alpha", "0.5", typed=typed)
    assert (code, errors) == (0, [])
    assert lines[0].startswith("llava-smollm2, layer 2, opened in") and "radius" in lines[1]
    told = [line for line in lines[3:] if not line.startswith("  ")]
    assert told == ["What is it?", "Who owns it?", "a blue one.png: What is it?", "Tell: what?"]
    assert lines[5:7] == ["  after    ox", lines[6]] and lines[6].startswith("  answered edit 1, at distance 0.000 of radius")
    assert len(lines) == 3 + 4 * len(told)


def test_questions_may_be_arguments(said) -> None:
    code, lines, _ = said("--picture", "red.png", *EDIT, "--ask", "Who?", "--ask-picture", "a blue one.png", typed="Not read\n")
    told = [line for line in lines[3:] if not line.startswith("  ")]
    assert (code, told) == (0, ["What is it?", "a blue one.png: What is it?", "Who?"])


def test_an_edit_that_is_always_on_says_so(said) -> None:
    code, lines, _ = said(*EDIT[:4], "--editor", "finetune", "--set", "lr=0.01", "--ask", "Who?")
    assert code == 0 and lines[-1] == "  answered always on" and lines[1].endswith("always on")


def test_a_slip_of_the_keyboard_does_not_lose_the_edit(said) -> None:
    code, lines, errors = said("--picture", "red.png", *EDIT, typed="rad.png: What is it?\nWho?\n")
    assert code == 0 and errors == [
        "error: picture: 'rad.png' cannot be read: no such file; allowed: `question`, or `FILE: question`"
    ]
    assert "Who?" in lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: --question, --answer; ./study try --help says more"),
        (("--picture", "none.png", *EDIT), "picture: 'none.png' cannot be read"),
        ((*EDIT, "--alpha", "much"), "argument --alpha: invalid float value: 'much'"),
        ((*EDIT, "--alpha", "3"), "alpha: 3.0 is not allowed"),
        ((*EDIT, "--set", "lr"), "--set: 'lr' is not allowed; allowed: NAME=VALUE"),
        ((*EDIT, "--set", "lr=fast"), "balancedit.lr: 'fast' is not allowed"),
        ((*EDIT, "--ask", "no.png: Who?"), "picture: 'no.png' cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(said, arguments: tuple[str, ...], message: str) -> None:
    code, _, errors = said(*arguments)
    assert code == 2 and len(errors) == 1 and errors[0].startswith(f"error: {message}")
