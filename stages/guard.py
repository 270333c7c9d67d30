"""What must hold before DVC runs stages, as it removes their outputs first: params.yaml, with what the command line says in its
place, is right, and no other run is in this clone. Then DVC takes over.

    python -m stages.guard repro --all-pipelines
    python -m stages.guard exp run -S radius.alpha=0.5

Any other command of DVC's is passed on as it is. No model library is loaded, unless a dataset has entries that its source reads.
"""

import argparse
import fcntl
import importlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from stages.editing import tried
from stages.editing.declared import declared
from stages.params import UserError, load, run
from stages.sections import module_text, readable
from stages.settings import STAGES, Dataset

LOCK = Path(".dvc/tmp/study.lock")
PARAMS = Path("params.yaml")
RUNS = (["repro"], ["exp", "run"], ["experiments", "run"])  # by what DVC runs stages
ELSEWHERE = {"--queue", "--temp", "--run-all", "--dry"}  # asked so, it runs none in this folder


def main() -> None:
    asked = sys.argv[1:]
    if begins(asked) and not {"-h", "--help"} & set(asked):
        for overrides in overridden(asked):
            check(overrides)
        if not ELSEWHERE & set(asked):
            hold(["./study", *asked])
    os.execv(sys.executable, [sys.executable, "-m", "dvc", *asked])


def begins(asked: Sequence[str]) -> bool:
    """Whether a command line of DVC's runs stages."""
    words = [word for word in asked if not word.startswith("-")]
    return any(words[: len(one)] == one for one in RUNS)


def overridden(asked: Sequence[str]) -> list[list[str]]:
    """What -S puts in the place of entries of params.yaml, for each experiment that is asked for; nothing where DVC will say what
    is wrong with it.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("-S", "--set-param", action="append", default=[])
    try:
        given = parser.parse_known_args(asked)[0].set_param
    except argparse.ArgumentError:
        return [[]]
    if not given:
        return [[]]
    from dvc.utils.cli_parse import to_path_overrides
    from dvc.utils.hydra import get_hydra_sweeps

    paths = to_path_overrides(given)
    try:
        return [one.get(str(PARAMS), []) for one in get_hydra_sweeps(paths) or [paths]]
    except Exception:  # of its parser's
        return [[]]


def check(overrides: Sequence[str]) -> None:
    """UserError for whatever is wrong with params.yaml, under the `overrides`."""
    if not overrides:
        return validate(PARAMS)
    from dvc.utils.hydra import apply_overrides

    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(PARAMS, path := Path(folder) / PARAMS.name)
        try:
            apply_overrides(path, list(overrides))
        except Exception:  # DVC itself says what is wrong, before it runs a stage
            return validate(PARAMS)
        validate(path)


def validate(path: Path) -> None:
    """Read the whole file, and what only editors and sources know of it."""
    params = load(path)
    with readable(tried.TABLE, "`git checkout` it, or run `python -m stages.editing tune`"):
        for line in tried.read():
            tried.cell_of(line)
    for method in params.methods.values():
        method.grid(declared(method.editor).Settings)
    for dataset in params.datasets.values():
        if dataset.own or "entry(" in module_text("okedit/sources", dataset.source, STAGES):
            dataset.settings(settings_of(dataset))


def settings_of(dataset: Dataset) -> type:
    """What a dataset's source reads of its entry."""
    return importlib.import_module(f"stages.okedit.sources.{dataset.source.replace('-', '_')}").Settings


def hold(command: Sequence[str]) -> IO[str]:
    """Keep other runs out of this clone for as long as this process lives, also as DVC. UserError names the run that is here."""
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    file = LOCK.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        who = file.read(500).strip() or "no name"
        raise UserError(f"{LOCK}: another run is in this clone ({who}); wait for it or stop it") from None
    file.truncate(0)
    file.write(f"process {os.getpid()}, {' '.join(command)}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    file.flush()
    os.set_inheritable(file.fileno(), True)
    return file


if __name__ == "__main__":
    run(main)
