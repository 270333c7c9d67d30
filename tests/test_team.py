"""Processes that make edits side by side: the same edits as one makes alone, in order; an end of one of them is told."""

import os
import pickle
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image

from stages.editing import cell as cells_code
from stages.editing import team as team_code
from stages.editing.cell import Cell, Chunk, make_and_trace, sums
from stages.editing.declared import declared
from stages.editing.editors import serac
from stages.editing.plan import Plan
from stages.editing.probes import probes_of
from stages.editing.team import Team
from stages.editing.trace_cache import Planned
from stages.okedit.schema import encode
from stages.params import UserError
from stages.sequences import make as sequences
from stages.settings import Checkpoint
from tests import cells, editors
from tests.rows import ROW, SAMPLES

PLAN = Plan("set", "llava-smollm2", "f", cells.method("ft"), declared("finetune"), [], [], [], [], [0], {}, {}, [])
ROWS = [ROW, ROW | {"edit_id": "other", "target": "it"}, ROW | {"edit_id": "noise", "image_id": "noise"}]


# -- what workers run: functions of this module travel ------------------------------------------------------------------------


def opens(folder: Path) -> Path:
    """A cell that leaves a line whenever it is opened."""
    with (folder / str(os.getpid())).open("a") as file:
        file.write("opened\n")
    return folder


def opens_later(folder: Path) -> None:
    """A cell that does not open when it is first asked for."""
    if not (mark := folder / "tried").exists():
        mark.touch()
        raise UserError("backbone: no weights; allowed: some")


def meets(folder: Path, item: int) -> tuple[int, int, int]:
    """Its item, its process and its threads, when two processes have begun."""
    until = time.monotonic() + 120
    while len(list(folder.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    return item, os.getpid(), torch.get_num_threads()


def waits(_: object, seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def refuses(_: object, item: int) -> int:
    if item == 1:
        raise UserError(f"radius.alpha: {item} is not allowed; allowed: 2")
    return item


def is_killed(_: object, item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def cell_of(backbone: Any) -> Cell:
    """A BalancEdit's cell of three edits, of which two are made at once."""
    made = cells.make(backbone, cells.method("balancedit", lr=1e-2, margin=0.1))
    return replace(made, rows=ROWS, queries={row["edit_id"]: probes_of(row, SAMPLES) for row in ROWS})


def opens_tiny() -> Cell:
    from tests.conftest import make_backbone, make_tokenizer

    return cell_of(make_backbone(make_tokenizer()))


# -- several processes --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("opened")


@pytest.fixture(scope="module")
def two(folder: Path) -> Iterator[Team]:
    """Two workers with three threads each, for several tests."""
    with Team(PLAN, partial(opens, folder), 2, 3, 1) as team:
        yield team


def test_several_processes_open_the_cell_once_each_with_their_threads(two: Team, folder: Path) -> None:
    items, processes, threads = zip(*two.each(meets, [7, 8, 9]), strict=True)
    assert items == (7, 8, 9) and len(set(processes)) <= 2 and os.getpid() not in processes and set(threads) == {3}
    opened = {path.name: path.read_text() for path in folder.iterdir()}
    assert len(opened) == 2 and set(opened.values()) == {"opened\n"} and set(map(str, processes)) <= opened.keys()


def test_answers_come_in_the_order_of_the_items(two: Team) -> None:
    """Whichever is ready first."""
    assert list(two.each(waits, asked := [0.5, 0.0, 0.2, 0.1])) == asked and list(two.each(waits, [])) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_worker_is_the_callers(two: Team, folder: Path, workers: int) -> None:
    team, found = two if workers == 2 else Team(PLAN, partial(opens, folder), 1, 1, 1), []
    with pytest.raises(UserError) as caught:
        found.extend(team.each(refuses, [0, 1, 2]))
    assert type(caught.value) is UserError and str(caught.value) == "radius.alpha: 1 is not allowed; allowed: 2"
    assert list(team.each(refuses, [0, 2])) == [0, 2]  # the team goes on


def test_an_error_outside_ends_what_workers_are_at(two: Team) -> None:
    """The last test of the two: they are at work for minutes when the error comes."""
    with pytest.raises(ZeroDivisionError), two:
        next(two.each(waits, [0.0, 300.0, 300.0]))
        workers = [one.pid for one in team_code.multiprocessing.active_children()]
        assert len(workers) >= 2 and all(map(is_running, workers))
        raise ZeroDivisionError
    until = time.monotonic() + 30
    while any(map(is_running, workers)):
        assert time.monotonic() < until, "a worker goes on"
        time.sleep(0.05)


def test_a_cell_that_does_not_open_and_a_worker_that_is_killed_end_in_one_line(tmp_path: Path) -> None:
    with Team(PLAN, partial(opens_later, tmp_path), 2, 1, 1) as team:
        with pytest.raises(UserError, match="^backbone: no weights; allowed: some$"):
            list(team.each(waits, [0.0]))
        with pytest.raises(UserError) as caught:
            list(team.each(is_killed, [0]))
    assert str(caught.value) == (
        "workers: 2: a process of set-llava-smollm2-ft was killed; allowed: fewer workers, a smaller batch or more memory"
    )


def is_running(process: int) -> bool:
    """Whether a process is there, and not just its exit code that nobody has asked for."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_trace_does_not_depend_on_how_many_make_it(backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three edits of two seeds, two at once: rows, types, numbers and the weights that they name."""
    monkeypatch.chdir(tmp_path)
    cell = cell_of(backbone)
    alone = pd.DataFrame(Team.alone(cell).trace(cell.grid[0], ROWS, [0, 1], {}))
    records = {}
    with Team(cell, opens_tiny, 2, 1, cell.batch) as team:
        several = pd.DataFrame(team.trace(cell.grid[0], ROWS, [0, 1], records))
        assert "cell" not in vars(team)  # this process opened none
    pd.testing.assert_frame_equal(several, alone)
    assert len(records) == 6 and alone["edit_id"].unique().tolist() == [row["edit_id"] for row in ROWS]
    assert alone.loc[alone["kind"] == "edit", "target_on"].all() and alone["weights"].nunique() == 1


# -- this process alone -------------------------------------------------------------------------------------------------------


def test_what_records_have_is_not_made_again(backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two edits are made at once: where one of them is missing, both are."""
    monkeypatch.chdir(tmp_path)
    cell, records, made = cell_of(backbone), {}, []

    def making(cell: Cell, chunk: Chunk) -> list:
        made.append([row["edit_id"] for row in chunk.rows])
        return make_and_trace(cell, chunk)

    monkeypatch.setattr(team_code, "make_and_trace", making)
    team = Team.alone(cell)
    whole = team.trace(cell.grid[0], ROWS, [0], records)
    assert made == [[ROW["edit_id"], "other"], ["noise"]] and len(records) == 3
    assert pd.DataFrame(team.trace(cell.grid[0], ROWS, [0], records)).equals(pd.DataFrame(whole)) and len(made) == 2
    del records[Chunk(cell.grid[0], 0, ROWS).names[1]]
    assert pd.DataFrame(team.trace(cell.grid[0], ROWS, [0], records)).equals(pd.DataFrame(whole))
    assert made[2:] == [[ROW["edit_id"], "other"]]
    team.trace(cell.grid[0], ROWS[:1], [1], records)
    team.trace(cell.grid[0] | {"steps": 1}, ROWS[:1], [0], records)
    assert len(made) == 5 and len(records) == 5  # another seed, other settings


def test_an_edit_that_changes_the_weights_is_an_error(backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cell, weight, traced = cell_of(backbone), backbone.decoder.layers[0].mlp.up_proj.weight, Cell.traced

    def sabotaged(cell: Cell, *given: object) -> list:
        found = traced(cell, *given)
        weight.data[0, 0] += 1e-7 * weight.data[0, 0].abs() + 1e-9
        return found

    chunk, before = Chunk(cell.grid[0], 0, ROWS[:1]), sums(backbone)
    make_and_trace(cell, chunk)
    assert sums(backbone) == before
    monkeypatch.setattr(Cell, "traced", sabotaged)
    with pytest.raises(RuntimeError, match="tiny_set-tiny-balancedit: the backbone's weights changed"):
        make_and_trace(cell, chunk)
    assert sums(backbone) != before


def test_networks_are_learnt_once_each(backbone, examples, letters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two settings differ in the counterfactual model's rate alone: the scope classifier is one for both."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cells_code, "FITS", tmp_path / "fit")
    hyper, learnt, fit = {k: v for k, v in editors.SETTINGS["serac"].items() if k != "seed"}, [], serac.fit
    made = cells.make(backbone, cells.method("serac", **hyper | {"lr": [1e-3, 1e-2]}))
    cell = replace(made, examples=examples, learnt=[example.row for example in examples])
    monkeypatch.setattr(serac, "fit", lambda *given, part: learnt.append((part, given[2].lr)) or fit(*given, part=part))
    team = Team.alone(cell)
    team.learn(cell.grid[:1], [5])
    assert sorted(learnt) == [("counterfactual", 1e-3), ("scope", serac.Settings().lr)]
    team.learn(cell.grid, [5])
    assert sorted(learnt[2:]) == [("counterfactual", 1e-2)]
    cell.prepared(cell.grid[1] | {"seed": 5})
    assert len(learnt) == 3  # edits find what was learnt
    team.learn(cell.grid[:1], [6])
    assert len(learnt) == 5  # another seed has its own
    Team.alone(cell_of(backbone)).learn([{}], [0])  # BalancEdit learns nothing
    assert len(learnt) == 5
    asked = []
    monkeypatch.setattr(team_code, "learn", lambda _, network: asked.append(network[1]))
    team.learn(cell.grid, [7])
    assert sorted(asked) == ["counterfactual", "counterfactual", "scope"]  # no two processes are at the same


def test_a_model_that_is_not_small_is_opened_once() -> None:
    """Threads are shared among workers; what opens their cells can travel."""
    params = replace(cells.PARAMS, threads=6, workers=4, device="cpu", batch=7)
    team = Team.of(params, PLAN)
    assert (team.workers, team.threads, team.batch) == (4, 1, 7)
    assert pickle.loads(pickle.dumps(team.opens)).func == Cell.open
    assert Team.of(replace(params, workers=2), PLAN).threads == 3
    on_gpu = Team.of(replace(params, device="cuda"), PLAN)
    real = replace(params, backbones={"llava-smollm2": Checkpoint("llava-smollm2", checkpoint="owner/name")})
    assert [(one.workers, one.threads) for one in (on_gpu, Team.of(real, PLAN))] == [(1, 6), (1, 6)]


@pytest.fixture()
def openable(backbone, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A plan whose cell opens on the tiny backbone: an edit with many rephrasings, pictures and far pictures."""
    pictures = dict.fromkeys(("red", "noise"), encode(Image.new("RGB", (64, 64))))
    monkeypatch.setattr(cells_code, "read_images", lambda *_: pictures)
    monkeypatch.setattr(cells_code.Backbone, "open", lambda *_: backbone)
    far = [{"kind": "far_image", "image_id": "noise", "question": f"What {i}?", "answer": ""} for i in range(20)]
    row = ROW | {"rephrasings": [f"Say {i}?" for i in range(20)], "generality_image_ids": ["noise", "red"] * 10, "locality": far}
    return replace(PLAN, rows=[row])


def kinds(cell: Cell) -> dict[str, int]:
    """How many probes of each kind an edit is asked."""
    return pd.Series([probe.kind for probe in cell.queries[ROW["edit_id"]]]).value_counts().to_dict()


def test_edits_are_asked_as_many_probes_as_a_study_says(openable: Plan) -> None:
    counts = {"text_generality": 3, "image_generality": 4, "joint_generality": 2, "far_image": 5}
    team = Team.of(replace(cells.PARAMS, workers=1), replace(openable, asked=counts))
    assert kinds(team.cell) == counts | {"edit": 1, "hop1": 1}


def test_sequences_ask_of_these_the_first(openable: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the stage opens, stopped where its edits would be checked or made."""
    counts = {"text_generality": 1, "image_generality": 1, "joint_generality": 1, "far_image": 2}
    params, openable = replace(cells.PARAMS, workers=1), replace(openable, asked=counts)
    plan = replace(openable, method=replace(openable.method, sequence=replace(openable.method.sequence, probes=3)))
    monkeypatch.chdir(tmp_path)
    seen = []

    def stop(team: Team, *_: object) -> None:
        seen.append(kinds(team.cell))
        raise KeyboardInterrupt

    monkeypatch.setattr(sequences, "chain", stop)
    monkeypatch.setattr(sequences, "chosen", lambda *_: ({"sequence": {}, "edits": {}}, []))
    with pytest.raises(KeyboardInterrupt):
        sequences.make(params, plan, Planned("digest", "code", "cpu", {}, None, None, None))
    assert seen == [counts | {"edit": 1}]
