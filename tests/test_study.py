"""./study makes .venv once, again if requirements or Python change, and says what is wrong in one line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

STUDY = Path(__file__).parent.parent / "study"

# Stands for python: answers -c for real, copies itself for -m venv, and writes down everything else.
FAKE = """#!/bin/sh
case "$1 ${2:-}" in
"-c "*) exec REAL "$@" ;;
"-m venv")
    for folder; do :; done
    echo "venv" >>LOG
    mkdir -p "$folder/bin" && cp "$0" "$folder/bin/python"
    ;;
*)
    echo "$* offline=$HF_HUB_OFFLINE parallel=$TOKENIZERS_PARALLELISM quiet=$DVC_NO_ANALYTICS" >>LOG
    [ "$2" != pip ] || [ ! -e FAILS ] || exit 1
    ;;
esac
"""


@pytest.fixture
def clone(tmp_path):
    """A folder with the script, a PATH with just the fake python, and `log` of what it was asked to do."""
    here = tmp_path / "a clone"
    bin_folder = tmp_path / "bin"
    here.mkdir()
    bin_folder.mkdir()
    shutil.copy(STUDY, here / "study")
    (here / "requirements.txt").write_text("one==1\n")
    for tool in ("sh", "cat", "dirname", "mkdir", "cp", "rm"):
        (bin_folder / tool).symlink_to(shutil.which(tool))
    log = tmp_path / "log"
    text = FAKE.replace("REAL", sys.executable).replace("LOG", str(log)).replace("FAILS", str(tmp_path / "fails"))
    (bin_folder / "python3").write_text(text)
    (bin_folder / "python3").chmod(0o755)
    return here


def study(clone, *arguments, **variables):
    environment = {"PATH": str(clone.parent / "bin"), "HOME": os.environ.get("HOME", "/")} | variables
    command = [str(clone / "study"), *arguments]
    return subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=60)


def log(clone):
    path = clone.parent / "log"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


@pytest.mark.parametrize("arguments", [(), ("help",), ("--help",)])
def test_help_lists_the_commands_and_needs_no_python(clone, arguments):
    (clone.parent / "bin" / "python3").unlink()
    done = study(clone, *arguments)
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("repro", "test", "try", "dvc", "setup", "help"))


def test_an_unknown_command_is_one_line_and_exit_2(clone):
    done = study(clone, "rerpo")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown command 'rerpo'; allowed: repro, test, try, dvc, setup, help\n"


def test_setup_installs_once_and_again_only_when_requirements_change(clone):
    assert study(clone, "setup").returncode == 0
    first = log(clone)
    assert first[0] == "venv"
    assert first[1].startswith("-m pip install") and "-r requirements.txt" in first[1]
    assert study(clone, "setup").stderr == ""
    assert log(clone) == []
    (clone / "requirements.txt").write_text("one==2\n")
    study(clone, "setup")
    assert [line.split()[:3] for line in log(clone)] == [["-m", "pip", "install"]]


def test_another_python_makes_the_environment_anew(clone):
    study(clone, "setup")
    log(clone)
    old = (clone / ".venv" / "bin" / "python").read_text()
    (clone / ".venv" / "bin" / "python").write_text("#!/bin/sh\necho 3.11.0\n")
    (clone / ".venv" / "stamp").write_text("3.11.0 0\n")
    study(clone, "setup")
    assert log(clone)[0] == "venv"
    assert (clone / ".venv" / "bin" / "python").read_text() == old


def test_an_installation_that_failed_is_taken_up_again(clone):
    fails = clone.parent / "fails"
    fails.touch()
    done = study(clone, "test")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: requirements.txt could not be installed")
    assert not (clone / ".venv" / "stamp").exists()
    fails.unlink()
    log(clone)
    assert study(clone, "setup").returncode == 0
    assert [line.split()[:3] for line in log(clone)] == [["-m", "pip", "install"]]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("repro",), "-m stages.guard repro --all-pipelines"),
        (("repro", "--force"), "-m stages.guard repro --force"),
        (("dvc", "exp", "run", "-S", "radius.alpha=0.3"), "-m stages.guard exp run -S radius.alpha=0.3"),
        (("test", "-k", "a b"), "-m pytest -k a b"),
        (("try", "--ask", "Who is it?"), "-m balancedit.try_it --ask Who is it?"),
    ],
)
def test_commands_run_inside_the_environment(clone, arguments, expected):
    study(clone, "setup")
    log(clone)
    assert study(clone, *arguments).returncode == 0
    assert log(clone) == [f"{expected} offline=1 parallel=false quiet=1"]


def test_the_hub_is_asked_when_the_user_says_so(clone):
    study(clone, "setup")
    log(clone)
    assert study(clone, "repro", HF_HUB_OFFLINE="0").returncode == 0
    assert log(clone) == ["-m stages.guard repro --all-pipelines offline=0 parallel=false quiet=1"]


def test_no_python_is_one_clear_line(clone):
    (clone.parent / "bin" / "python3").write_text("#!/bin/sh\nexit 1\n")  # too old, or a launcher without a version
    done = study(clone, "setup")
    assert done.returncode == 2
    assert done.stderr == ("error: no Python 3.11 or newer found; looked for: python3.13 python3.12 python3.11 python3\n")
    done = study(clone, "setup", PYTHON="/no/such python")
    assert done.stderr == "error: no Python 3.11 or newer found; looked for: /no/such python\n"


def test_a_python_without_venv_is_one_clear_line(clone):
    python = clone.parent / "bin" / "python3"
    python.write_text(python.read_text().replace('"-c "*)', '"-c import ensurepip, venv") exit 1 ;;\n"-c "*)'))
    done = study(clone, "setup")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "has no venv module" in done.stderr


def test_missing_requirements_are_one_clear_line(clone):
    (clone / "requirements.txt").unlink()
    assert study(clone, "setup").stderr == "error: requirements.txt cannot be read\n"
