"""What Git keeps of a cell's edits is taken only where it would be made the same: digests of code, plans, stamps, checks."""

import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages.backbone.vlm import Backbone
from stages.editing import make, trace_cache, tried
from stages.editing.__main__ import keep
from stages.editing.cell import Cell
from stages.editing.declared import declared
from stages.editing.editors import balancedit, module_of
from stages.editing.team import Team
from stages.editing.trace_cache import Planned, Stamp
from stages.okedit import schema
from stages.params import UserError, load
from tests import cells
from tests.rows import ROW, SAMPLES

ROOT = Path(__file__).parent.parent
EDITORS = sorted(path.stem for path in (ROOT / "stages/editing/editors").glob("*.py") if path.stem != "__init__")
TEST = cells.DEV | {"split": "test"}
HEAVY = ("torch", "transformers")


# -- the code -----------------------------------------------------------------------------------------------------------------


@pytest.fixture()
def study(tmp_path: Path) -> Path:
    """A copy of the code and of params.yaml, to be changed."""
    shutil.copytree(ROOT / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("__pycache__", "weights"))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path


def told(study: Path, script: str) -> str:
    """What a script prints that runs in a copy of the study, which has loaded no heavy library."""
    light = f"import sys\n{script}\nassert not {set(HEAVY)} & set(sys.modules), 'heavy'"
    done = subprocess.run([sys.executable, "-c", light], cwd=study, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def codes(study: Path) -> dict[str, str]:
    made = "{e: code.of_editor(e, *code.adapters('llava'))" + f" for e in {EDITORS}}}"
    script = f"import json\nfrom stages import code\nprint(json.dumps({made}))"
    return json.loads(told(study, script))


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_an_editors_code_is_its_own_and_what_all_share(study: Path) -> None:
    editing, before = study / "stages/editing", codes(study)

    def changed() -> set[str]:
        return {editor for editor, one in codes(study).items() if one != before[editor]}

    assert len(set(before.values())) == len(before)
    change(editing / "editors/balancedit.py", "lr=one.lr", "lr=2 * one.lr")
    assert changed() == {"balancedit"}
    change(editing / "editors/lora.py", "PROJECTIONS = (", "PROJECTIONS = 2 * (")
    assert changed() == {"balancedit", "lora", "serac", "serac_mm"}
    (editing / "editors/another.py").write_text((editing / "editors/base.py").read_text())
    assert changed() == {"balancedit", "lora", "serac", "serac_mm"}
    change(study / "stages/backbone/adapters/smolvlm.py", "class Architecture(", "A = 1\n\n\nclass Architecture(")
    assert changed() == {"balancedit", "lora", "serac", "serac_mm"}  # another architecture's
    change(study / "stages/backbone/adapters/llava.py", "class Architecture(", "A = 1\n\n\nclass Architecture(")
    assert changed() == set(before)


def test_prose_and_layout_are_no_code(study: Path) -> None:
    before = codes(study)
    for path in (study / "stages").rglob("*.py"):
        body = path.read_text().split('"""', 2)
        path.write_text(f'"""Other words.""" # one\n{body[2]}\n\n\n# two\n' if body[0] == "" else "\n".join(body))
    assert codes(study) == before
    change(
        study / "stages/editing/optimise.py",
        "    for parent, name, part in stands:\n",
        "    for parent, name, part in (\n        stands\n    ):\n",
    )
    assert codes(study) == before


def test_what_is_declared_is_what_the_module_says() -> None:
    for editor in EDITORS:
        light, whole = declared(editor), module_of(editor)
        assert light.Settings() == light.Settings(**vars(whole.Settings()))
        for name in ("STOCHASTIC", "SEQUENTIAL", "MEMORY_BASED", "ROUTES"):
            assert getattr(light, name, False) == getattr(whole, name, False)
        assert hasattr(light, "fit") == hasattr(whole, "fit")


@pytest.mark.parametrize("name", ["plan", "code", "__init__", "romes"])
def test_what_is_no_editor_is_refused(study: Path, name: str) -> None:
    change(study / "params.yaml", "editor: mend", f"editor: {name}")
    with pytest.raises(UserError, match=f"methods.mend.editor: '{name}' is not allowed; allowed: alphaedit, balancedit, base,"):
        load(study / "params.yaml")


# -- plans --------------------------------------------------------------------------------------------------------------------


def picture(colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (colour, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture()
def planned(study: Path) -> Path:
    """The copy with small made-up data, planned."""
    whole = ROW | {"rephrasings_train": ["What may it be?"], "unedited": []}
    rows = [whole | {"edit_id": f"{split}-{i}", "split": split} for split in schema.SPLITS for i in range(2)]
    pictures = [{"image_id": name, "vendor": "v", "concept": "c", "png": picture(i)} for i, name in enumerate(("red", "noise"))]
    samples = [sample | {"edit_id": row["edit_id"]} for row in rows for sample in SAMPLES]
    params = load(study / "params.yaml")
    for dataset in params.datasets:
        schema.write_table(study / f"data/okedit/{dataset}/edits.parquet", rows, schema.EDITS)
        schema.write_table(study / f"data/okedit/{dataset}/images.parquet", pictures, schema.IMAGES)
        schema.write_table(study / f"data/samples/{dataset}/samples.parquet", samples)
        schema.write_table(study / f"data/samples/{dataset}/images.parquet", [], schema.IMAGES)
    for folder in ("assets/minilm", *(f"backbones/{name}" for name in params.edited)):
        (study / "data" / folder).mkdir(parents=True)
        (study / "data" / folder / "config.json").write_text("{}")
        (study / "data" / folder / "model.safetensors").write_text(folder)
    editing(study, "plan")
    return study


def editing(study: Path, *words: str) -> str:
    return told(study, f"from stages.editing.__main__ import main\nsys.argv = ['editing', *{words}]\nmain()")


def plans(study: Path) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in (study / "data/plans/edits").iterdir()}


def replanned(study: Path) -> set[str]:
    """The cells whose plans have changed since."""
    before = plans(study)
    editing(study, "plan")
    return {name for name, plan in plans(study).items() if plan != before.get(name)}


def of(*methods: str) -> set[str]:
    """The cells of some methods."""
    return {f"{d}-{b}-{m}" for d in ("okedit", "evqa") for b in ("llava-smollm2", "blip2-smollm2") for m in methods}


def test_an_editor_concerns_its_own_cells_alone(planned: Path) -> None:
    methods = load(planned / "params.yaml").methods
    assert set(plans(planned)) == of(*methods) and len(methods) > 15 and not replanned(planned)
    editors = planned / "stages/editing/editors"
    change(editors / "grace.py", "def edit(", "OTHER = 1\n\n\ndef edit(")
    assert replanned(planned) == of("grace", "grace_published")
    (editors / "another.py").write_text((editors / "balancedit.py").read_text())
    assert not replanned(planned)
    change(
        planned / "params.yaml", "  # FT: fine-tuning", "  another:\n    editor: another\n    router: always\n  # FT: fine-tuning"
    )
    assert replanned(planned) == of("another")


def test_data_settings_and_pictures_concern_whoever_uses_them(planned: Path) -> None:
    (planned / "data/assets/minilm/model.safetensors").write_text("other")
    assert replanned(planned) == of("ike", "ike_published", "serac")
    (planned / "data/backbones/llava-smollm2/model.safetensors").write_text("other")
    assert replanned(planned) == {name for name in plans(planned) if "llava" in name}
    images = pd.read_parquet(path := planned / "data/okedit/evqa/images.parquet")
    path.unlink()
    images["png"] = [picture(9), *images["png"][1:]]
    images.to_parquet(path)
    assert replanned(planned) == {name for name in plans(planned) if "evqa" in name}
    change(planned / "params.yaml", "    part: connector\n    lr: [1e-5, 3e-5, 1e-4, 1e-3]", "    part: connector\n    lr: 3e-4")
    assert replanned(planned) == of("ft_v")
    change(planned / "params.yaml", "  span: prompt", "  span: last")
    change(planned / "params.yaml", "  alpha: dev", "  alpha: 0.5")
    assert not replanned(planned)


def test_a_cell_is_taken_from_git_without_any_model_library(planned: Path) -> None:
    name = "okedit-llava-smollm2-base"
    (planned / "reports/traces").mkdir(parents=True)
    own = pd.DataFrame({"seed": 0, "edit_id": "test-0", "probe": [0, 1], "target_on": [True, False]})
    own.to_parquet(planned / f"reports/traces/{name}.parquet")
    common = own[["edit_id", "probe"]].assign(kind=["edit", "near_image"])
    common.to_parquet(planned / "reports/traces/okedit-llava-smollm2.parquet")
    one = Planned.read(planned / f"data/plans/edits/{name}.json")
    one.stamp(one.settings).write(planned / f"reports/traces/{name}.json")
    assert replanned(planned) == {name}
    assert "has it\n" in editing(planned, "planned", *name.split("-", 1)[:1], "llava-smollm2", "base")
    taken = pd.read_parquet(planned / f"data/traces/{name}.parquet")
    pd.testing.assert_frame_equal(taken, own.assign(kind=["edit", "near_image"]), check_like=True)
    assert (planned / f"data/stamps/edits/{name}.json").read_text() == (planned / f"reports/traces/{name}.json").read_text()
    editing(planned, "okedit", "llava-smollm2", "base")  # by hand: planned first


# -- taking, checking, keeping ------------------------------------------------------------------------------------------------


@pytest.fixture()
def cell(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cell:
    """A BalancEdit's cell of one edit, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    made = cells.make(backbone, cells.method("balancedit", lr=1e-2, steps=50, margin=0.1))
    return replace(made, rows=[TEST], samples=[sample | {"edit_id": TEST["edit_id"]} for sample in SAMPLES])


def plan(cell: Cell, **changed: object) -> Planned:
    """The plan of a cell as it stands, with what Git keeps of it."""
    there = trace_cache.stamped(trace_cache.KEPT / f"{cell.name}.json", *trace_cache.files(cell.name))
    digest = cell.made_from(cells.SOURCE, cell.rows, cell.seeds)
    return replace(Planned(digest, "now", "cpu", cell.grid[0], None, **there), **changed)


def edit(cell: Cell, planned: Planned) -> None:
    """Make the cell's edits, or take them."""
    make.edit(cells.PARAMS, Team.alone(cell), planned)


def trace() -> pd.DataFrame:
    return pd.read_parquet(trace_cache.MADE / "tiny_set-tiny-balancedit.parquet")


def same(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Whether two traces say the same, row by row, type by type, in whatever order of the columns."""
    return sorted(one) == sorted(other) and one[sorted(one)].equals(other[sorted(one)])


@pytest.fixture()
def whole(cell: Cell) -> pd.DataFrame:
    """The trace of the cell, made by the code of now and kept."""
    one = plan(cell)
    edit(cell, one)
    one.write(trace_cache.PLANS / f"{cell.name}.json")
    keep([["tiny_set", "tiny", "balancedit"]])
    return trace()


def test_a_trace_stands_while_all_that_decides_it_is_the_same(cell: Cell, whole: pd.DataFrame, capsys) -> None:
    assert plan(cell).stands
    for other in (
        replace(cell, rows=[TEST | {"target": "cat"}]),
        replace(cell, seeds=[1]),
        replace(cell, fingerprint="other"),
        replace(cell, samples=[cell.samples[0] | {"question": "Else?"}, *cell.samples[1:]]),
    ):
        assert not plan(other).fits(other.grid[0])
    assert not plan(cell, settings=cell.grid[0] | {"steps": 49}).stands
    one = plan(cell, code="other")
    assert not one.stands and one.fits(one.settings)
    with pytest.raises(UserError, match="data/stamps/edits/tiny_set-tiny-lora.json is missing"):
        keep([["tiny_set", "tiny", "lora"]])


def test_code_that_makes_the_same_edits_is_accepted_and_named(cell: Cell, whole: pd.DataFrame, capsys) -> None:
    (trace_cache.MADE / f"{cell.name}.parquet").unlink()
    edit(cell, one := plan(cell, code="refactored"))
    assert "has it, checked on 1 edits made again" in capsys.readouterr().out and same(trace(), whole)
    one.write(trace_cache.PLANS / f"{cell.name}.json")
    keep([["tiny_set", "tiny", "balancedit"]])
    assert plan(cell, code="refactored").stands
    assert Stamp.read(trace_cache.KEPT / f"{cell.name}.json") == Stamp(one.made_from, cell.grid[0], "refactored", "cpu", 1)


@pytest.mark.parametrize("sabotaged", [{"steps": 0}, {"lr": 1e-7}])
def test_code_that_makes_other_edits_makes_the_cell_anew(cell, whole: pd.DataFrame, monkeypatch, capsys, sabotaged: dict) -> None:
    optimise = balancedit.optimise
    monkeypatch.setattr(balancedit, "optimise", lambda *args, **given: optimise(*args, **given | sabotaged))
    edit(cell, plan(cell, code="sabotaged"))
    said = capsys.readouterr().out
    assert "the code has changed and with it target_on of colour-red, probe 0: False and not True; made anew" in said
    assert not same(trace(), whole) and Stamp.read(trace_cache.STAMPS / f"{cell.name}.json").code == "sabotaged"


def test_settings_that_other_code_chose_stand_with_the_cells_edits(cell: Cell, whole: pd.DataFrame, monkeypatch) -> None:
    """Where they do not, settings are chosen anew, and are kept with the trace."""
    several = replace(cell, grid=[cell.grid[0], cell.grid[0] | {"margin": 0.2}])
    chosen = [{"dataset": "tiny_set", "code": "now"}]
    monkeypatch.setattr(make.tuning, "chosen", lambda *_: (several.grid[1], chosen))
    edit(several, plan(several, code="refactored", chosen_by="old"))
    assert same(trace(), whole)
    monkeypatch.setattr(make.check, "differs", lambda *_: "something")
    edit(several, plan(several, code="sabotaged", chosen_by="old"))
    stamp = Stamp.read(trace_cache.STAMPS / f"{cell.name}.json")
    assert (stamp.settings, stamp.tried) == (several.grid[1], chosen)


def test_keeping_names_the_code_that_a_choice_stands_under(cell: Cell, whole: pd.DataFrame) -> None:
    lines = [{"dataset": "tiny_set", "backbone": "tiny", "method": m, "setting": "", "code": "old"} for m in ("balancedit", "ft")]
    tried.keep(lines)
    plan(cell, chosen_by="old").write(trace_cache.PLANS / f"{cell.name}.json")
    keep([["tiny_set", "tiny", "balancedit"]])
    assert [line["code"] for line in tried.read()] == ["now", "old"]


# -- what traces share --------------------------------------------------------------------------------------------------------


def made_up(method: str, edits: str, seeds: tuple[int, ...] = (0,), probes: int = 2) -> pd.DataFrame:
    """A trace of some edits, made as if by `method` and stamped: what is of the set and the unedited model is the same by all."""
    shared = {
        "split": "test", "relation": "r", "concept": "c", "question": "What?", "expected": "ox", "answer_off": "cat",
        "target_off": False, "correct_off": True,
    }  # fmt: skip
    rows = [
        {"seed": seed, "bytes": 8, "key_bytes": 0, "edit_id": edit} | shared
        | {"probe": probe, "kind": ("edit", "text_only")[probe], "image_id": ("red", None)[probe], "tf_off": probe / 3,
           "target_on": probe == 0, "same_on": seed == 1, "tf_on": 0.5, "top10_on": (np.nan, 0.1)[probe],
           "score": (seed + 1) / (len(method) + ord(edit)), "euclidean_prompt": np.float64(np.float32(ord(edit) / 7)),
           "cosine_image": (0.25, np.nan)[probe], "steps": 3, "loss": 1 / 3, "diverged": False, "weights": method}
        for seed in seeds for edit in edits for probe in range(probes)
    ]  # fmt: skip
    whole, name = pd.DataFrame(rows), f"set-tiny-{method}"
    trace_cache.write(trace_cache.MADE / f"{name}.parquet", whole)
    Stamp("digest", {}, "now", "cpu").write(trace_cache.STAMPS / f"{name}.json")
    return whole


@pytest.fixture()
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own."""
    monkeypatch.chdir(tmp_path)


def test_what_is_kept_of_two_methods_is_read_as_it_was(empty: None) -> None:
    """One has two seeds and its edits in no order, the other one edit more: every row, type and number comes back."""
    first, second = made_up("ft", "ba", seeds=(0, 1)), made_up("wise", "abc")
    for method, whole in (("ft", first), ("wise", second), ("ft", first)):
        trace_cache.keep(f"set-tiny-{method}")
        pd.testing.assert_frame_equal(trace_cache.read(f"set-tiny-{method}"), whole, check_like=True)
    assert same(trace_cache.read("set-tiny-ft"), first) and same(trace_cache.read("set-tiny-wise"), second)
    common = pd.read_parquet("reports/traces/set-tiny.parquet")
    assert common[["edit_id", "probe"]].to_numpy().tolist() == [[edit, probe] for edit in "abc" for probe in (0, 1)]
    own = pd.read_parquet("reports/traces/set-tiny-ft.parquet")
    assert set(own) & set(common) == {"edit_id", "probe"} and len(own) == len(first)
    trace_cache.take("set-tiny-ft", Stamp("digest", {}, "now", "cpu"))
    assert same(pd.read_parquet("data/traces/set-tiny-ft.parquet"), first)


def test_numbers_are_kept_short_where_that_loses_nothing(empty: None) -> None:
    made_up("ft", "a")
    trace_cache.keep("set-tiny-ft")
    own, common = (pd.read_parquet(path).dtypes for path in trace_cache.files("set-tiny-ft"))
    assert {own["tf_on"], common["euclidean_prompt"], common["cosine_image"]} == {np.dtype("float32")}
    assert {own["loss"], own["top10_on"], common["tf_off"]} == {np.dtype("float64")}


def test_the_same_trace_is_not_written_again(empty: None) -> None:
    made_up("ft", "ab")
    trace_cache.keep("set-tiny-ft")
    before = [path.stat().st_ino for path in trace_cache.files("set-tiny-ft")]
    trace_cache.keep("set-tiny-ft")
    assert [path.stat().st_ino for path in trace_cache.files("set-tiny-ft")] == before
    made_up("wise", "ab")
    trace_cache.keep("set-tiny-wise")  # it shares all there is to share
    assert [path.stat().st_ino for path in trace_cache.files("set-tiny-ft")] == before
    made_up("wise", "abc")
    trace_cache.keep("set-tiny-wise")
    after = [path.stat().st_ino for path in trace_cache.files("set-tiny-ft")]
    assert after[0] == before[0] and after[1] != before[1]


def test_what_is_not_made_is_not_kept(empty: None) -> None:
    made_up("ft", "a")
    (trace_cache.MADE / "set-tiny-ft.parquet").unlink()
    with pytest.raises(UserError, match="trace: data/traces/set-tiny-ft.parquet is missing; run the `edits` stage first"):
        trace_cache.keep("set-tiny-ft")
    assert not Path("reports").exists()
