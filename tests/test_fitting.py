"""Learning from train edits: nothing that evaluation asks, the same weights after an interruption, kept by content."""

import re
from pathlib import Path

import pytest
import torch

from stages.editing import editors
from stages.editing.editors import serac, wise
from stages.editing.fitting import fitted, learn, learnt_part, networks, training_probes
from tests.editors import SETTINGS, TRAIN
from tests.rows import ROW

pytestmark = pytest.mark.usefixtures("letters")


@pytest.mark.parametrize("path", sorted(Path(editors.__file__).parent.glob("[!_]*.py")), ids=lambda path: path.stem)
def test_an_editor_is_random_iff_it_reads_the_seed(path: Path) -> None:
    text = path.read_text()
    assert ("\nSTOCHASTIC = True" in text) == bool(re.search(r"\.seed\b", text))


def test_training_probes_never_ask_what_evaluation_asks() -> None:
    probes = [p for row in TRAIN for p in training_probes(row)]
    asked = {p.question for p in probes}
    assert "Say it." in asked and not asked & set(ROW["rephrasings"])
    assert all(p.image_id for p in probes)  # the question without a picture is that of every edit of the relation


def test_an_interrupted_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    def run(steps: int, checkpoint: Path) -> torch.Tensor:
        torch.manual_seed(0)
        module = torch.nn.Linear(2, 1)

        def loss_of(step: int) -> torch.Tensor:
            return (module(torch.tensor([1.0, step / 100])) - 3).square().sum()

        learn(module, [{"params": list(module.parameters()), "lr": 0.01}], loss_of, steps, checkpoint)
        return module.weight.detach()

    run(50, tmp_path / "part.pt")  # as long as one checkpoint
    assert torch.equal(run(120, tmp_path / "part.pt"), run(120, tmp_path / "other.pt"))


@pytest.mark.parametrize("before", [0, 50, 150])
def test_the_state_of_the_least_loss_held_out_is_left(before: int, tmp_path: Path) -> None:
    """The loss held out is how far a state is from the one after 100 steps; interrupted before, at a checkpoint or behind it."""

    def run(steps: int) -> float:
        module = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(module.weight)
        module.register_buffer("done", torch.zeros(()))

        def loss_of(step: int) -> torch.Tensor:
            module.done.fill_(step + 1)
            return module.weight.square().sum()

        groups = [{"params": list(module.parameters()), "lr": 1e-3}]
        learn(module, groups, loss_of, steps, tmp_path / "part.pt", lambda: abs(module.done.item() - 100))
        return module.done.item()

    if before:
        run(before)
    assert run(220) == 100


def test_what_was_learnt_is_kept_by_content(backbone, examples, tmp_path, monkeypatch) -> None:
    first = fitted(wise, backbone, examples, SETTINGS["wise"], "code", tmp_path)
    monkeypatch.setattr(wise, "fit", lambda *_: pytest.fail("fitted again"))
    again = fitted(wise, backbone, examples, SETTINGS["wise"], "code", tmp_path)
    assert torch.equal(first[0]["inputs"], again[0]["inputs"])
    for changed in (
        (examples[:1], SETTINGS["wise"], "code"),
        (examples, SETTINGS["wise"] | {"seed": 1}, "code"),
        (examples, {}, "new"),
    ):
        with pytest.raises(pytest.fail.Exception):
            fitted(wise, backbone, *changed, tmp_path)


def test_what_is_learnt_apart_depends_on_its_own_settings_and_the_seed() -> None:
    settings = SETTINGS["serac"]
    assert networks(wise, SETTINGS["wise"]) == {"": SETTINGS["wise"]}
    found = networks(serac, settings)
    assert found["scope"] == {"scope_lr": settings["scope_lr"], "scope_steps": settings["scope_steps"], "seed": 0}
    assert found["counterfactual"].keys() == {"lr", "steps", "rank", "scale", "seed"} and found.keys() == set(serac.PARTS)


def test_a_part_is_trained_where_the_cache_has_it_not(backbone, examples, tmp_path: Path, monkeypatch) -> None:
    """Another rate of the counterfactual model leaves the scope classifier as it is; who only asks trains nothing."""
    settings, trained, fit = SETTINGS["serac"], [], serac.fit
    monkeypatch.setattr(serac, "fit", lambda *given, part: trained.append(part) or fit(*given, part=part))

    def part(name: str, train: bool, **changed: object) -> object:
        return learnt_part(serac, backbone, examples, settings | changed, name, "code", tmp_path / "fit", train)

    assert part("scope", train=False) is None and not trained and not (tmp_path / "fit").exists()
    scope = part("scope", train=True)
    assert torch.equal(part("scope", train=False, lr=1.0), scope) and part("scope", train=False, scope_lr=1.0) is None
    assert trained == ["scope"]
    whole = fitted(serac, backbone, examples, settings, "code", tmp_path / "fit")
    assert trained == ["scope", "counterfactual"] and whole.keys() == {"scope", "counterfactual"}
    assert torch.equal(whole["scope"], scope) and len(whole["counterfactual"]) == len(part("counterfactual", train=False))
