"""Hyper-parameters by dev edits: of what they cannot tell apart the cheapest is taken, what was tried is kept and used again, one
value needs no choice.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages.backbone.vlm import Backbone
from stages.editing import choices, tried, tuning
from stages.editing.editors import module_of
from stages.editing.plan import label
from stages.editing.resume import Records
from stages.editing.team import Team
from stages.params import UserError
from stages.scoring.scope import Chosen
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
    team = Team.alone(make(backbone, method("balancedit", lr=[1e-6, 1e-2], steps=50, margin=0.1)))
    table = tuning.tried(team, records)
    assert table["hm"].tolist()[1] > table["hm"].tolist()[0] and table["chosen"].tolist() == [False, True]
    assert table["tied"].tolist() == [False, True] and table["scope"].between(0, 1).all()  # each under the α that is best for it
    settings, tried = tuning.chosen(team, records, tmp_path / "none.csv")
    assert settings["lr"] == 1e-2 and tried == tuning.as_lines(table)


@pytest.fixture()
def judged(backbone: Backbone, records: Records, monkeypatch: pytest.MonkeyPatch):
    """Which of some settings of fine-tuning is chosen, of which each edit takes so many steps and has one part of HM as told; the
    other parts are 1.
    """

    def judge(grid: Mapping[str, list], *told: tuple[float, list[float]]) -> pd.DataFrame:
        traced, scored = iter(told), iter(told)

        def trace(team: Team, *_: object) -> list[dict]:
            steps, parts = next(traced)
            return [{"edit_id": str(i), "steps": steps} for i in range(len(parts))]

        def choose(_: pd.DataFrame, asked: object) -> Chosen:
            (_, part), nothing = next(scored), np.array([np.nan])
            return Chosen(asked, nothing, nothing, np.stack([part, np.ones(len(part)), np.ones(len(part))], -1))

        monkeypatch.setattr(Team, "trace", trace)
        monkeypatch.setattr(tuning.scope, "choose", choose)
        return tuning.tried(Team.alone(make(backbone, method("ft", **grid))), records)

    return judge


def test_of_equals_within_noise_the_fewest_steps(judged) -> None:
    """[0 1] is tied with [1 1] and [½ 1] is not (tests/test_metrics.py), however few its steps are."""
    table = judged({"lr": [1e-3, 1e-4, 1e-5]}, (50, [1, 1]), (20, [0, 1]), (1, [0.5, 1]))
    assert table["hm"].tolist() == pytest.approx([1, 0.75, 0.9]) and table["tied"].tolist() == [True, True, False]
    assert table["chosen"].tolist() == [False, True, False] and table["steps"].tolist() == [50, 20, 1]


def test_of_as_many_steps_the_fewest_differences_from_the_defaults(judged) -> None:
    """Fine-tuning's are a rate of 1e-3 and a loss of 1e-2. How far a value lies does not matter, how many differ does."""
    grid = {"lr": [2e-3, 1e-3], "loss": [0.02, 0.5, 1e-2]}
    several = [(9, [1, 1])] * 3
    assert judged(grid, *several, *several)["chosen"].tolist() == [False] * 5 + [True]
    found = judged(grid, *several, (9, [0.5, 1]), (9, [0.9, 1]), (9, [0.5, 1]))  # these are worse
    assert found["chosen"].tolist() == [False, False, True, False, False, False]
    assert judged({"lr": [2e-3, 1e-3]}, (9, [1, 1]), (9, [0, 1]))["chosen"].tolist() == [False, True]  # before the higher HM


def test_of_as_many_differences_the_highest_hm_and_then_the_first(judged) -> None:
    grid = {"lr": [2e-3, 4e-3, 6e-3]}
    assert judged(grid, (9, [0, 1]), (9, [1, 1]), (9, [0, 1]))["chosen"].tolist() == [False, True, False]
    assert judged(grid, (9, [0, 1]), (9, [0, 1]), (9, [0, 1]))["chosen"].tolist() == [True, False, False]


def test_settings_are_judged_on_all_probes_with_their_damage(backbone: Backbone, records: Records) -> None:
    """A method without a router answers everything; the step that changes nothing leaves all as it is."""
    cell = make(backbone, method("ft", part="layer", lr=[1e-2, 1e-6], steps=50, loss=0.05))
    table = tuning.tried(Team.alone(cell), records)
    assert table["locality"].tolist()[0] < 1 and table["locality"].tolist()[1] == 1 and table["scope"].isna().all()


def test_a_choice_that_was_kept_is_not_made_again(backbone, records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cell = tmp_path / "tuning.csv", make(backbone, method("balancedit", lr=[1e-2, 2e-2], margin=0.1))
    team = Team.alone(cell)
    table = tuning.tried(team, records)
    table["chosen"] = [False, True]
    for one in (table.assign(method="another"), table.assign(hm=0.0), table):
        tried.keep(tuning.as_lines(one), path)
    kept = pd.read_csv(path)
    pd.testing.assert_frame_equal(
        kept[kept["method"] == "balancedit"].reset_index(drop=True), table, check_dtype=False, atol=1e-6
    )
    assert len(kept) == 4 and choices.known(cell, path) == (cell.grid[1], cell.code)
    monkeypatch.setattr(Team, "trace", lambda *_: pytest.fail("made the dev edits again"))
    assert tuning.chosen(team, records, path) == (cell.grid[1], [])
    other = make(backbone, method("balancedit", lr=[1e-2, 3e-2], margin=0.1))
    with pytest.raises(pytest.fail.Exception):
        tuning.chosen(Team.alone(other), records, path)
    tried.keep(tuning.as_lines(table.assign(code="other")), path)
    with pytest.raises(pytest.fail.Exception):
        tuning.chosen(team, records, path)


def test_lines_of_another_form_are_left_out(tmp_path: Path) -> None:
    """An earlier version wrote other columns."""
    path, at = tmp_path / "tuning.csv", {"dataset": "d", "backbone": "b"}
    tried.keep([at | {"method": "old", "hm": "1", "chosen": "True"}], path)
    tried.keep([at | {"method": name, "hm": "1", "scope": "0.5", "chosen": "True"} for name in ("new", "newer")], path)
    assert [(line["method"], line["scope"]) for line in tried.read(path)] == [("new", "0.5"), ("newer", "0.5")]


def test_one_value_each_needs_no_choice(backbone: Backbone, records: Records, tmp_path: Path) -> None:
    cell = make(backbone, method("balancedit", lr=1e-2, margin=0.1))
    settings, _ = tuning.chosen(Team.alone(cell), records, tmp_path / "none.csv")
    assert label(settings) == '{"lr": 0.01, "margin": 0.1, "rank": 0, "steps": 50}'
