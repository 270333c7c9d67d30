"""Hyper-parameters by dev edits: the best is taken, what was tried is kept and used again, one value needs no choice."""

from pathlib import Path

import pandas as pd
import pytest

from stages.backbone.vlm import Backbone
from stages.editing import choices, tuning
from stages.editing.cell import Cell
from stages.editing.editors import module_of
from stages.editing.plan import label
from stages.editing.resume import Records
from stages.params import UserError
from tests.cells import make, method


def test_a_list_is_several_settings_and_each_is_checked() -> None:
    Settings = module_of("finetune").Settings
    grid = method("ft", lr=[1e-3, 1e-2], loss=[0.1, 0.2], steps=7).grid(Settings)
    assert [(one.lr, one.loss, one.steps) for one in grid] == [(1e-3, 0.1, 7), (1e-3, 0.2, 7), (1e-2, 0.1, 7), (1e-2, 0.2, 7)]
    with pytest.raises(UserError, match=r"methods.ft.lr: 0 is not allowed; allowed: a number > 0"):
        method("ft", lr=[1e-3, 0]).grid(Settings)
    with pytest.raises(UserError, match=r"methods.ft.lr: \[\] is not allowed; allowed: a value, or a list of at least one"):
        method("ft", lr=[]).grid(Settings)


def test_the_best_on_dev_is_taken(backbone: Backbone, records: Records, tmp_path: Path) -> None:
    """One step at a tiny rate changes no answer; fifty at a good one reach the target."""
    cell = make(backbone, method("balancedit", lr=[1e-6, 1e-2], steps=50, margin=0.1))
    table = tuning.tried(cell, records)
    assert table["hm"].tolist()[1] > table["hm"].tolist()[0] and table["chosen"].tolist() == [False, True]
    assert (table["locality"] == 1).all()  # an oracle router judges what a codebook method writes
    settings, tried = tuning.chosen(cell, records, tmp_path / "none.csv")
    assert settings["lr"] == 1e-2 and tried == tuning.lines(table)


def test_of_equals_the_better_parts_and_then_the_first(backbone: Backbone, records: Records, monkeypatch) -> None:
    found = iter([(0.0, 0.0), (0.0, 0.5), (0.0, 0.5)])
    parts = ({"text_generality": 1.0, "image_generality": one, "locality": other, "hm": 0.0} for one, other in found)
    monkeypatch.setattr(tuning.scores, "hm_and_parts", lambda table: next(parts))
    cell = make(backbone, method("balancedit", lr=[1e-2, 1e-3, 1e-4], steps=1, margin=0.1))
    assert tuning.tried(cell, records)["chosen"].tolist() == [False, True, False]


def test_always_on_methods_are_judged_with_their_damage(backbone: Backbone, records: Records) -> None:
    cell = make(backbone, method("ft", part="layer", lr=[1e-2, 1e-6], steps=50, loss=0.05))
    table = tuning.tried(cell, records)
    assert table["locality"].tolist()[0] < 1 and table["locality"].tolist()[1] == 1


def test_a_choice_that_was_kept_is_not_made_again(backbone, records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cell = tmp_path / "tuning.csv", make(backbone, method("balancedit", lr=[1e-2, 2e-2], margin=0.1))
    table = tuning.tried(cell, records)
    table["chosen"] = [False, True]
    for one in (table.assign(method="another"), table.assign(hm=0.0), table):
        choices.keep(tuning.lines(one), path)
    kept = pd.read_csv(path)
    pd.testing.assert_frame_equal(kept[kept["method"] == "balancedit"].reset_index(drop=True), table, check_dtype=False)
    assert len(kept) == 4 and choices.known(cell, path) == (cell.grid[1], cell.code)
    monkeypatch.setattr(Cell, "trace", lambda *_: pytest.fail("made the dev edits again"))
    assert tuning.chosen(cell, records, path) == (cell.grid[1], [])
    other = make(backbone, method("balancedit", lr=[1e-2, 3e-2], margin=0.1))
    with pytest.raises(pytest.fail.Exception):
        tuning.chosen(other, records, path)
    choices.keep(tuning.lines(table.assign(code="other")), path)
    with pytest.raises(pytest.fail.Exception):
        tuning.chosen(cell, records, path)


def test_one_value_each_needs_no_choice(backbone: Backbone, records: Records, tmp_path: Path) -> None:
    cell = make(backbone, method("balancedit", lr=1e-2, margin=0.1))
    settings, _ = tuning.chosen(cell, records, tmp_path / "none.csv")
    assert label(settings) == '{"lr": 0.01, "margin": 0.1, "rank": 0, "steps": 50}'
