"""Other depths on a tiny model: each has keys and edits of its own, the model and its weights stay one."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from stages.backbone.depth import seen_from
from stages.backbone.vlm import Backbone
from stages.editing.cell import Cell
from stages.editing.probes import probes_of
from stages.editing.resume import Records
from stages.editing.trunk import run_trunk
from stages.layers import __main__ as layers
from stages.params import UserError
from tests.cells import DEV, PARAMS, make, method
from tests.rows import ROW, SAMPLES


@pytest.fixture()
def cell(backbone: Backbone) -> Cell:
    """A test edit and a dev edit."""
    rows = [ROW, DEV | {"edit_id": "dev"}]
    queries = {row["edit_id"]: probes_of(row, SAMPLES) for row in rows}
    return replace(make(backbone, method("balancedit", lr=1e-2, margin=0.1)), rows=rows, queries=queries)


def test_the_model_says_the_same_wherever_it_is_seen_from(backbone: Backbone) -> None:
    probes, view = probes_of(ROW, SAMPLES), seen_from(backbone, 0)
    here, there = run_trunk(view, ROW, probes), run_trunk(backbone, ROW, probes)
    assert view.edited is view.decoder.layers[0].get_submodule(view.adapter.linear) and backbone.layer != 0
    assert here.answers == there.answers and torch.equal(here.target.argmax, there.target.argmax)
    assert not torch.allclose(here.key["prompt"], there.key["prompt"])
    assert (
        view.fingerprint != backbone.fingerprint
        and seen_from(view, backbone.layer).fingerprint == seen_from(backbone, backbone.layer).fingerprint
    )


@pytest.mark.parametrize("layer", [-1, 99])
def test_a_layer_that_is_not_there_is_named(backbone: Backbone, layer: int) -> None:
    with pytest.raises(UserError, match=f"layer: {layer} is not a decoder layer; allowed: 0.."):
        seen_from(backbone, layer)


def test_every_depth_is_edited_and_scored(cell: Cell, records: Records, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = {name: tensor.clone() for name, tensor in cell.backbone.model.state_dict().items()}
    for layer in (0, 1):
        at = replace(cell, backbone=seen_from(cell.backbone, layer), backbone_name=f"tiny-layer{layer}")
        with layers.records(at) as own:
            table = layers.depth(PARAMS, at, cell.grid[0], own)
        strict = table[table["protocol"] == "strict"].set_index("metric")
        assert strict.loc["reliability", "mean"] == 1 and set(strict.index) == {*layers.SHOWN, "hm"}
        assert (strict["n"] == 1).all() and 0 <= strict["alpha"].iloc[0] <= 1 and strict["inverted"].iloc[0] in (0, 1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in cell.backbone.model.state_dict().items())


def test_the_stage_writes_every_depth_and_leaves_no_record(cell: Cell, records: Records, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    one = next(iter(PARAMS.datasets.items()))
    params = replace(
        PARAMS, datasets=dict([one]), edited={"tiny": None}, layers=replace(PARAMS.layers, at=(0, 1), test=1, probes=1)
    )
    monkeypatch.setattr(layers, "load", lambda: params)
    monkeypatch.setattr(layers.Plan, "of", lambda *_: None)
    monkeypatch.setattr(layers.Cell, "open", lambda *_: cell)
    monkeypatch.setattr(layers.tuning, "chosen_beside", lambda _: cell.grid[0])
    layers.main()
    found = pd.read_csv(layers.OUT)
    assert found["layer"].unique().tolist() == [0, 1] and set(found["dataset"]) == {one[0]}
    assert not list((tmp_path / "data/.resume").glob("*/*"))


def test_few_edits_and_probes_are_the_first(cell: Cell) -> None:
    few = layers.few_edits(replace(cell, rows=[ROW, ROW | {"edit_id": "second"}, *cell.rows[1:]]), few_params())
    assert [row["edit_id"] for row in few.rows] == [ROW["edit_id"], "dev"]
    kinds = [probe.kind for probe in few.queries[ROW["edit_id"]]]
    assert all(kinds.count(kind) == 1 for kind in kinds if not kind.startswith("sample_"))
    assert sum(kind.startswith("sample_") for kind in kinds) == len(SAMPLES)


def few_params() -> object:
    """One test edit, one probe of each kind."""
    return replace(PARAMS, layers=replace(PARAMS.layers, test=1, probes=1))
