"""Settings, scope and rule of sequences: what is best at the end of a sequence of dev edits, by hand and on the tiny backbone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages.backbone.vlm import Backbone
from stages.editing import tried
from stages.editing.cell import Cell
from stages.editing.team import Team
from stages.editing.trace_cache import Planned
from stages.editing.tuning import as_lines
from stages.scoring import scores
from stages.sequences import choices, make, planning, retention, tuning
from stages.settings import DEV, Key, Radius
from tests import cells
from tests.rows import ROW, SAMPLES
from tests.test_sequences import OTHER, hand_made

PLANNED = Planned("made from", "code", "cpu", None, None, None, None)


def dev_cell(backbone: Backbone, name: str, **hyper: object) -> Cell:
    """A cell of two dev edits, which a sequence of their own makes."""
    made = cells.make(backbone, cells.method(name, **hyper))
    rows = tuning.of_dev([row | {"split": "dev"} for row in (ROW, OTHER)])
    asked = {row["edit_id"]: make.asking(made)(row, SAMPLES, {}) for row in rows}
    samples = [sample | {"edit_id": row["edit_id"]} for row in rows for sample in SAMPLES]
    return replace(made, rows=rows, queries=asked, samples=samples)


def test_what_is_made_of_dev_edits_is_not_held_out() -> None:
    rows = [ROW | {"split": split} for split in ("test", "dev", "train")]
    (row,) = tuning.of_dev(rows)
    assert row == ROW | {"split": "made"} and rows[1]["split"] == "dev"


def test_each_rule_is_judged_at_its_best_radius() -> None:
    """Of x's and y's own near pictures, one is 5 from x, the other 2 from x and 8 from y; each rephrasing is 1 away. A radius
    from 1 to below 2 reaches all rephrasings and none of the pictures, whatever the rule.
    """
    tables = hand_made()
    trace = tables.trace.assign(euclidean_prompt=[0.0, 1, 5, 0, 1, 8, 9])
    samples = [
        trace[trace["probe"] == 0].assign(kind=kind, probe=probe, euclidean_prompt=far)
        for kind, probe, far in (("sample_positive", 8, 1.0), ("sample_black", 9, 9.0))
    ]
    image = tables.interference.rename(columns={"d": "euclidean_prompt"})
    tables = replace(tables, trace=pd.concat([trace, *samples], ignore_index=True), interference=image)
    radius = Radius("constant", 0.5, DEV, "euclidean", 1, ("black",))
    method = replace(cells.method("grace"), key=Key("prompt"), radius=radius, published=None)
    ends = list(tuning.ends(method, with_pictures(tables)))
    assert [end.rule for end in ends] == ["shrink", "nearest"]
    for end in ends:
        assert 1 <= end.scope < 2 and scores.hm_of(end.parts) == 1


def test_two_keys_go_where_a_query_lies_deepest() -> None:
    """The same distances by the picture, views at 1 and the nearest picture at 9, and no question far: α from 7/8 up."""
    tables = with_pictures(hand_made())
    far = tables.trace["probe"].map({0: 0.0, 1: 1.0, 2: 5.0, 3: 1.0})
    trace = tables.trace.assign(euclidean_picture=far, euclidean_last=0.0)
    samples = [
        trace[trace["probe"] == 0].assign(kind=f"sample_{kind}", probe=10 + i, euclidean_picture=picture, euclidean_last=last)
        for i, (kind, picture, last) in enumerate(
            [("view", 1.0, 0.0), ("nearest", 9.0, 0.0), ("positive", 0.0, 0.5), ("other_question", 0.0, 1.0)]
        )
    ]
    image = tables.interference.rename(columns={"d": "euclidean_picture"}).assign(euclidean_last=0.0)
    tables = replace(tables, trace=pd.concat([trace, *samples], ignore_index=True), interference=image)
    method = replace(cells.method("balancedit"), scope="two_keys")
    (end,) = tuning.ends(method, tables)
    assert end.rule == "nearest" and 0.875 < end.scope <= 1 and scores.hm_of(end.parts) == 1


def with_pictures(tables: retention.Tables) -> retention.Tables:
    """The same, where rephrasings also stand for other pictures: HM needs all three of its parts."""
    more = tables.trace[tables.trace["kind"] == "text_generality"].assign(kind="image_generality", probe=3)
    met = tables.interference[tables.interference["probe"] == 1].assign(probe=3)
    trace, interference = (pd.concat(pair, ignore_index=True) for pair in ((tables.trace, more), (tables.interference, met)))
    return retention.Tables(trace, interference, tables.rollout, tables.edits)


def test_a_threshold_is_chosen_of_the_scores_that_are_left() -> None:
    """Scores of 1, ½ and ¼ for an edit's own query, its rephrasing and its near picture: a half keeps the first two apart."""
    tables = with_pictures(hand_made())
    score = tables.trace["probe"].map({0: 1.0, 1: 0.5, 2: 0.25, 3: 0.5})
    rolled_out = tables.trace[["edit_id", "probe"]].assign(order=0, made=2, tf_on=1.0, score=score)
    rolled_out = rolled_out.assign(target_on=(score >= 0.5).astype(float), same_on=0.0)
    method = replace(cells.method("wise"), threshold=DEV, published=None)
    (end,) = tuning.ends(method, replace(tables, interference=pd.DataFrame(), rollout=rolled_out))
    assert end.rule == "" and 0.25 < end.scope <= 0.5 and scores.hm_of(end.parts) == 1
    (fixed,) = tuning.ends(replace(method, threshold=0.75), replace(tables, interference=pd.DataFrame(), rollout=rolled_out))
    assert fixed.scope == 0.75 and scores.hm_of(fixed.parts) == 0


@pytest.mark.parametrize(
    ("name", "hyper", "lines"),
    [("balancedit", {"lr": [1e-7, 1e-2]}, 4), ("ft", {"part": "layer", "lr": [1e-7, 1e-2], "loss": 0.05}, 2)],
)
def test_the_best_setting_at_the_end_is_chosen(backbone, tmp_path: Path, monkeypatch, name: str, hyper: dict, lines: int) -> None:
    """A learning rate that changes nothing loses; what was tried is kept and known again."""
    monkeypatch.chdir(tmp_path)
    cell = dev_cell(backbone, name, **hyper)
    plan = replace(cell, rows=[row | {"split": "dev"} for row in cell.rows])
    table = tuning.tried(Team.alone(cell), PLANNED, 0, planning.made_from(plan))
    assert len(table) == lines and table["chosen"].sum() == 1 and list(table) == tuning.COLUMNS
    best = table[table["chosen"]].iloc[0]
    assert best["hm"] >= table["hm"].max() - 1e-9 or best["tied"]
    assert set(table["rule"]) == ({"shrink", "nearest"} if name == "balancedit" else {""})
    assert planning.known(plan) is None
    tried.keep(as_lines(table), choices.TABLE)
    again, found = planning.known(plan), choices.of_scope((cell.dataset, cell.backbone_name, name), cell.method)
    assert tuning.label(again.settings) == best["setting"] and again == found or np.isnan(found.scope)
    assert (found.rule, found.code) == (best["rule"], "code")
    assert planning.known(replace(plan, rows=plan.rows[:1])) is None  # of other edits
    other = replace(cell.method, key=Key("image"))
    assert choices.of_scope((cell.dataset, cell.backbone_name, name), other) is None  # another key reaches in another way


def test_settings_of_single_edits_are_made_where_they_are_others() -> None:
    same, other = {"lr": 1.0}, {"lr": 2.0}
    assert make.distinct({"sequence": same, "edits": dict(same)}) == {"sequence": same}
    assert make.distinct({"sequence": same, "edits": other}) == {"sequence": same, "edits": other}
