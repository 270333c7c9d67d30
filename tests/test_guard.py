"""Before DVC removes anything, params.yaml is right and no other run is here: else one line, and all stays as it was."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages import guard
from stages.params import UserError

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")
DVC = """stages:
  scores:
    cmd: {python} make.py
    params: [radius.alpha]
    outs:
    - scores.csv:
        cache: false
"""
MAKE = "from stages.params import load, run\nrun(lambda: print(load(), file=open('scores.csv', 'w')))\n"


@pytest.fixture()
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC project of one stage, whose output is there."""
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (tmp_path / "params.yaml").write_text(TEXT, encoding="utf-8")
    (tmp_path / "make.py").write_text(MAKE)
    (tmp_path / "dvc.yaml").write_text(DVC.format(python=sys.executable))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def guarded(clone: Path, *asked: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1"}
    command = [sys.executable, "-m", "stages.guard", *asked]
    return subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, timeout=120)


def test_a_wrong_parameter_leaves_what_is_there(clone: Path) -> None:
    """DVC itself would remove scores.csv, and then run the command that refuses the value."""
    done = guarded(clone, "repro")
    assert done.returncode == 0, done.stderr
    made = (clone / "scores.csv").read_text()
    for text, words in (
        (TEXT.replace("alpha: dev", "alpha: 1.5"), "radius.alpha: 1.5 is not allowed; allowed: a number from 0 to 1 or dev"),
        (TEXT.replace("    steps: 50\n", "    steps: many\n", 1), "methods.ft.steps: 'many' is not allowed"),
    ):
        (clone / "params.yaml").write_text(text)
        begun = time.perf_counter()
        done = guarded(clone, "repro")
        assert (done.returncode, done.stdout) == (2, "") and time.perf_counter() - begun < 5
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and words in done.stderr
        assert (clone / "scores.csv").read_text() == made
    (clone / "params.yaml").write_text(TEXT.replace("alpha: dev", "alpha: 0.5"))
    assert guarded(clone, "repro").returncode == 0 and (clone / "scores.csv").read_text() != made


@pytest.fixture()
def passed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What DVC is given, in its place."""
    found: list[list[str]] = []
    monkeypatch.setattr(guard.os, "execv", lambda _, command: found.append(command[1:]))
    return found


def asks(monkeypatch: pytest.MonkeyPatch, *asked: str) -> None:
    monkeypatch.setattr(sys, "argv", ["guard", *asked])
    guard.main()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("exp", "run", "-S", "radius.alpha=1.5"), "radius.alpha: 1.5 is not allowed"),
        (("exp", "run", "-Sradius.alpha=1.5"), "radius.alpha: 1.5 is not allowed"),
        (("exp", "run", "--set-param=radius.alpha=1.5", "scores"), "radius.alpha: 1.5 is not allowed"),
        (("experiments", "run", "--set-param", "radius.alpha=1.5"), "radius.alpha: 1.5 is not allowed"),
        (("exp", "run", "-S", "params.yaml:radius.alpha=1.5"), "radius.alpha: 1.5 is not allowed"),
        (("exp", "run", "-S", "seed=3", "-S", "+radius.alfa=1"), "radius.alfa: 1: unknown key"),
        (("exp", "run", "--queue", "-S", "radius.alpha=0.5,1.5"), "radius.alpha: 1.5 is not allowed"),
        (("exp", "run", "-S", "++datasets.okedit.nera=3"), "datasets.okedit.nera: 3: unknown key"),
        (("exp", "run", "-S", "~seed"), "seed: missing"),
    ],
)
def test_what_the_command_line_says_is_checked_too(clone: Path, monkeypatch, passed, asked: tuple, words: str) -> None:
    with pytest.raises(UserError) as caught:
        asks(monkeypatch, *asked)
    assert words in str(caught.value) and passed == [] and (clone / "params.yaml").read_text() == TEXT


@pytest.mark.parametrize(
    "asked",
    [
        ("exp", "run", "-S", "radius.alpha=0.5"), ("exp", "run", "-S", "=="), ("exp", "run", "-S"), ("repro", "--force"),
        ("exp", "run", "--queue", "-S", "radius.alpha=range(0,1,0.5)"), ("exp", "run", "-S", "other.yaml:radius.alpha=1.5"),
    ],
)  # fmt: skip
def test_what_is_right_or_wrong_to_dvc_alone_is_passed_on(clone: Path, monkeypatch, passed, asked: tuple) -> None:
    asks(monkeypatch, *asked)
    assert passed == [["-m", "dvc", *asked]] and (clone / "params.yaml").read_text() == TEXT


def test_other_commands_run_whatever_the_file_says_and_whoever_is_here(clone: Path, monkeypatch, passed) -> None:
    (clone / "params.yaml").write_text("nothing")
    for asked in (("status",), ("dag", "--mermaid"), ("exp", "show"), ("repro", "--help"), ("params", "diff"), ()):
        asks(monkeypatch, *asked)
        assert passed.pop() == ["-m", "dvc", *asked]


def test_a_second_run_says_who_is_here(clone: Path, monkeypatch, passed) -> None:
    held = guard.hold(["./study", "repro", "scores"])
    done = guarded(clone, "repro")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"another run is in this clone (process {os.getpid()}, ./study repro scores, since 20" in done.stderr
    asks(monkeypatch, "exp", "run", "--queue", "-S", "radius.alpha=0.5")  # which runs nothing here
    assert len(passed) == 1
    held.close()
    guard.hold(["./study"]).close()


def test_the_lock_is_dvcs_as_long_as_it_runs(clone: Path) -> None:
    """It passes through exec, and not to the commands of stages."""
    after = "print(0, flush=True); input()"
    script = "import os, sys; from stages import guard; kept = guard.hold(['x']); "
    script += f"os.execv(sys.executable, [sys.executable, '-c', {after!r}])"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", script], cwd=clone, env=environment, **pipes) as other:
        assert other.stdout.readline() == "0\n"
        with pytest.raises(UserError, match=f"process {other.pid}, x, since"):
            guard.hold(["y"])
        other.communicate("\n")
    guard.hold(["y"]).close()
