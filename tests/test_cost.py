"""Costs on a tiny model: what is compared does the same work, bytes by hand, turns are taken."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from stages.cost import __main__ as cost
from stages.cost import clock, frozen, serving
from stages.editing.cell import Cell
from stages.editing.edits import Difference, Edit
from stages.editing.size import size_of, tensors_in
from stages.editing.transform import Layer, LowRank
from tests.cells import make, method
from tests.rows import ROW


@pytest.fixture()
def cell(backbone, records) -> Cell:
    return replace(make(backbone, method("balancedit", lr=1e-2, margin=0.1)), rows=[ROW])


def test_things_are_measured_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    now, ran = iter(range(100)), []
    monkeypatch.setattr(clock.time, "perf_counter", lambda: next(now))
    taken = clock.measure({"a": partial(ran.append, "a"), "b": partial(ran.append, "b")}, 2)
    assert "".join(ran) == "abbaab" and {name: len(seconds) for name, seconds in taken.items()} == {"a": 2, "b": 2}
    assert clock.middle(np.array([1.0, 2.0, 3.0, 4.0, 5.0])) == {"value": 3, "low": 2, "high": 4, "n": 5}


def test_the_trunk_saves_time_and_nothing_else(cell: Cell) -> None:
    """The same optimisation of the last layer ends at the same loss, and the backbone is as it was."""
    before = {name: tensor.clone() for name, tensor in cell.backbone.model.state_dict().items()}
    found = frozen.optimisation(cell, cell.grid[0], ROW)
    assert found["trunk"] > 0 and found["full"] > 0
    assert found["full_loss"] == pytest.approx(found["trunk_loss"], rel=1e-3)
    assert cell.backbone.layer == 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in cell.backbone.model.state_dict().items())


def times(weight: torch.Tensor, inputs: torch.Tensor, unedited: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    """An output that is a plain function."""
    return inputs @ weight.T


def closing_over(weight: torch.Tensor, scale: float) -> Callable[..., torch.Tensor]:
    """An output that closes over its weight, in a function within a function."""

    def scaled(inputs: torch.Tensor) -> torch.Tensor:
        return scale * inputs @ weight.T

    return lambda inputs, unedited, prompt: scaled(inputs)


def test_bytes_by_hand(backbone) -> None:
    weight, delta = torch.zeros(3, 4), torch.zeros(5, 2)
    assert size_of(Edit(Layer(weight))) == 48
    assert size_of(Edit(LowRank(torch.zeros(1, 4), torch.zeros(3, 1)))) == 28
    added = Edit(added={backbone.edited: Difference(delta)}, prefix=(1, 2, 3))
    assert size_of(added) == 40 + 24
    assert size_of(added, shared=[delta]) == 24
    assert size_of(Edit(output=closing_over(weight, scale=2.0))) == size_of(Edit(output=partial(times, weight))) == 48
    assert tensors_in({"a": [{"b": delta}], "c": "text"}) == [delta]


def test_a_batch_is_served_from_as_many_entries_as_there_are(cell: Cell) -> None:
    edit = cell.editor.edit(cell.backbone, frozen.request_at(cell.backbone, ROW), cell.editor.Settings(**cell.grid[0]))
    queries = [p.query for p in cell.queries[ROW["edit_id"]][:3]]
    found = serving.served(cell.backbone, queries, [edit] * 3, "prompt", (1, 20), 2)
    assert {name: len(values) for name, values in found.items()} == dict.fromkeys(
        ["unedited", *((n, w) for n in (1, 20) for w in ("hit", "miss"))], 2
    )


@pytest.mark.parametrize("name", ["base", "balancedit", "ft"])
def test_every_cost_of_a_method(backbone, records, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "ROUNDS", 1)
    monkeypatch.setattr(cost, "TURNS", 2)
    monkeypatch.setattr(cost, "SIZES", (1, 4))
    hyper = {"balancedit": {"lr": 1e-2}, "ft": {"part": "layer", "lr": 1e-2}, "base": {}}[name]
    cell = replace(make(backbone, method(name, **hyper)), rows=[ROW])
    found = pd.DataFrame(cost.costs(cell, cell.grid[0])).set_index("cost")["value"]
    size = backbone.edited.weight.numel() * 4
    assert found["prepare_seconds"] == 0 and found["edit_seconds"] >= 0
    assert found["edit_bytes"] == (0 if name == "base" else size)
    if name == "balancedit":
        assert found["low_rank_bytes"] < size and found["low_rank_reached"] == 1
        assert {"routed_hit_seconds", "routed_hit_per_unedited", "trace_per_forward", "full_per_trunk_seconds"} <= set(
            found.index
        )


def test_some_methods_measured_anew_stand_beside_the_others(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "REPORT", tmp_path / "cost.csv")
    row = dict(zip(cost.COLUMNS, ["okedit", "tiny", "ft", "edit_seconds", None, 1.5, 1.0, 2.0, 8], strict=True))
    cost.keep(pd.DataFrame([row, row | {"method": "grace", "entries": 10}]), beside=False)
    cost.keep(pd.DataFrame([row | {"method": "grace", "value": 2.5}]), beside=True)
    found = pd.read_csv(tmp_path / "cost.csv").set_index("method")["value"]
    assert found.to_dict() == {"ft": 1.5, "grace": 2.5}
    cost.keep(pd.DataFrame([row | {"method": "grace"}]), beside=False)
    assert pd.read_csv(tmp_path / "cost.csv")["method"].tolist() == ["grace"]
