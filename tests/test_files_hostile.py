"""A table, stamp or trace that is missing, cut, empty or foreign is one line that names it; what cannot be written is one too."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import stages.ablations.__main__ as ablations
import stages.metrics.__main__ as metrics
from stages import beside, guard
from stages.claims import __main__ as claims
from stages.editing import trace_cache, tried
from stages.metrics.files import read_table, read_trace
from stages.okedit.schema import EDITS, read_edits, read_images, write_table
from stages.okedit.schema import read_table as read_parquet
from stages.params import UserError, load, run, write_atomically
from stages.report import claims as claims_page
from stages.report import tables
from tests.test_metrics import trace  # noqa: F401  (a fixture)

ROOT = Path(__file__).parent.parent
PARQUET = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}).to_parquet()
FOREIGN = [
    b"",
    b"PAR1",
    PARQUET[:-1],
    PARQUET[: len(PARQUET) // 2],
    PARQUET[4:],
    b"<html></html>" * 9,
    b"\xff\xfe\x00",
    b"a,b\n1",
]


@pytest.fixture()
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(path: Path | str, data: bytes) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("data", FOREIGN, ids=range(len(FOREIGN)))
def test_a_parquet_file_that_is_cut_or_foreign_is_named(here: Path, data: bytes) -> None:
    put("data/traces/a-b-c.parquet", data)
    put("data/okedit/edits.parquet", data)
    images, outcomes = put("data/images.parquet", data), put("data/metrics/outcomes.parquet", data)
    asked = {
        "a-b-c.parquet.*; run `python -m stages.editing a b c`": lambda: read_trace("a", "b", "c"),
        "edits.parquet.*; delete it, and `./study repro` makes it again": lambda: read_edits(here / "data/okedit"),
        "images.parquet.*; delete it, and `./study repro` makes it again": lambda: read_images(images),
        "images.parquet: cannot": lambda: read_parquet(images),
        "outcomes.parquet: cannot be read: .*; run the stage": lambda: tables.read(str(outcomes)),
        "outcomes.parquet: cannot be read: .*; run `python -m stages.metrics`": lambda: read_table(
            outcomes, "run `python -m stages.metrics`", claims.PLACE
        ),
    }
    for words, ask in asked.items():
        with pytest.raises(UserError, match=words) as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_a_table_of_other_columns_or_types_is_named(here: Path) -> None:
    put("data/traces/a-b-c.parquet", PARQUET)
    with pytest.raises(UserError, match="a-b-c.parquet: the column 'seed' is missing; run"):
        read_trace("a", "b", "c")
    pd.DataFrame({name: [1] for name in EDITS.names}).to_parquet("edits.parquet")
    with pytest.raises(UserError, match="edits.parquet: cannot be read: .*; delete it"):
        read_edits(here)
    write_table(here / "images.parquet", [{"image_id": "a"}])
    with pytest.raises(UserError, match="images.parquet: cannot be read: "):
        read_images(here / "images.parquet")


@pytest.mark.parametrize("data", [b"", b"\xff\xfe\x00", b"a,b\n1,2\n"])
def test_a_csv_that_is_foreign_is_named(here: Path, data: bytes) -> None:
    put(tried.TABLE, data)
    if data:
        with pytest.raises(UserError, match="reports/tuning.csv: cannot be read: .*; `git checkout` it"):
            metrics.tried_for(("a", "b", "c"))
        with pytest.raises(UserError, match="reports/tuning.csv: cannot be read: .*; `git checkout` it"):
            guard.validate(ROOT / "params.yaml")
    put("reports/cost.csv", data)
    with pytest.raises(UserError, match="reports/cost.csv: .*; run `python -m stages.cost`"):
        read_table(Path("reports/cost.csv"), "run `python -m stages.cost`", claims.PLACE)


def test_the_claims_name_what_is_missing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "load", lambda: load(ROOT / "params.yaml"))
    with pytest.raises(UserError, match="^data/metrics/outcomes.parquet: missing; run `python -m stages.metrics`$"):
        claims.main()
    put("claims.json", b"{")
    with pytest.raises(UserError, match="claims.json: cannot be read: .*; run `python -m stages.claims`"):
        claims_page.read("claims.json")


@pytest.mark.parametrize("data", FOREIGN[:-1], ids=range(len(FOREIGN) - 1))
def test_a_kept_trace_that_cannot_be_read_counts_as_absent(here: Path, data: bytes, capsys: pytest.CaptureFixture) -> None:
    stamp = trace_cache.Stamp("from", {}, "code", "cpu")
    paths = {name: here / name for name in ("stamp.json", "own.parquet", "common.parquet")}
    asked = [paths["stamp.json"], paths["own.parquet"]], {"beside": [paths["common.parquet"]]}
    for broken, path in paths.items():
        stamp.write(paths["stamp.json"])
        put(paths["own.parquet"], PARQUET)
        put(paths["common.parquet"], PARQUET)
        assert trace_cache.stamped(*asked[0], **asked[1])["kept"] == stamp
        put(path, data)
        assert trace_cache.stamped(*asked[0], **asked[1]) == {"kept": None, "content": None}, broken
        assert "counts as absent" in capsys.readouterr().out
    assert trace_cache.kept_at(paths["common.parquet"]) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"run": 1}', "\x00"])
def test_a_stamp_or_plan_that_is_broken_is_named(here: Path, text: str) -> None:
    path = put("stamp.json", text.encode())
    for kind in (trace_cache.Stamp, trace_cache.Planned):
        with pytest.raises(UserError, match="stamp.json: .*; delete it, and `./study repro` makes it again"):
            kind.read(path)


# -- what cannot be written ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError(30, "Read-only file system"), PermissionError(13, "Permission denied")])
def test_a_folder_that_nothing_can_be_removed_from_leaves_the_line(here: Path, monkeypatch, error: OSError) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Path, "unlink", fails)
    with pytest.raises(UserError, match="^reports/x.csv: cannot be written: "), write_atomically("reports/x.csv"):
        raise error
    monkeypatch.setattr(Path, "mkdir", fails)
    with pytest.raises(UserError, match="^reports/x.csv: cannot be written: "), write_atomically("reports/x.csv"):
        pytest.fail("written")


def test_a_library_that_meets_a_full_disk_is_a_line(here: Path) -> None:
    with pytest.raises(UserError, match="^x: cannot be written: .*No space left"), write_atomically("x"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    with pytest.raises(RuntimeError, match="else"), write_atomically("x"):
        raise RuntimeError("else")


def test_a_folder_in_the_place_of_a_file_is_a_line(here: Path) -> None:
    (here / "x.csv").mkdir()
    put("y", b"")
    for path in ("x.csv", "y/z.csv"):
        with pytest.raises(UserError, match=f"^{path}: cannot be written: "), write_atomically(path) as temporary:
            temporary.write_text("one")


def test_what_is_written_by_other_ways_is_a_line_too(here: Path) -> None:
    script = (
        "from stages.params import run\ndef main():\n    raise OSError(28, 'No space left on device', 'reports/x')\nrun(main)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.startswith("error: reports/x: cannot be written") and done.stderr.count("\n") == 1
    with pytest.raises(ConnectionError):
        run(lambda: (_ for _ in ()).throw(ConnectionError(104, "another error")))


# -- no codebook --------------------------------------------------------------------------------------------------------------


def test_a_study_without_a_codebook_has_scores(here: Path, monkeypatch, trace: pd.DataFrame) -> None:  # noqa: F811
    params = load(ROOT / "params.yaml")
    params = replace(params, methods={name: params.methods[name] for name in ("base", "ft_published")}, scopes={})
    params = replace(params, datasets=dict([*params.datasets.items()][:1]), edited=dict([*params.edited.items()][:1]))
    params = replace(params, metrics=replace(params.metrics, resamples=10, permutations=10))
    said = {"settings": "{}", "tried": 1, "relation": "r", "concept": "c", "question": "q", "image_id": "i", "expected": "e"}
    said |= {"answer_off": "a", "answer_on": "b", "steps": 1.0, "weights": "w", "fitted": False}
    whole = trace.assign(**said)
    for name in params.methods:
        path = Path("data/traces") / f"{next(iter(params.datasets))}-{next(iter(params.edited))}-{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        whole.to_parquet(path)
    monkeypatch.setattr(beside, "each", lambda work, things, _: [work(one) for one in things])
    for stage in (metrics, ablations):
        monkeypatch.setattr(stage, "load", lambda: params)
        stage.main()
    assert list(pd.read_csv("reports/radii.csv")) == metrics.RADII and pd.read_csv("reports/radii.csv").empty
    assert set(pd.read_csv("reports/scores.csv")["method"]) == set(params.methods)
    for name, columns in ablations.COLUMNS.items():
        found = pd.read_csv(f"reports/ablations/{name}.csv")
        assert found.empty and [*found] == ["dataset", "backbone", "method", *columns]
    assert np.isfinite(pd.read_csv("reports/areas.csv")["area"]).all()
