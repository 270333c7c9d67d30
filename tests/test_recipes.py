"""Recipes of methods can be copied into params.yaml: all keys are known, and a tuned method has four settings to choose from."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.editing.declared import declared
from stages.params import Params, load

ROOT = Path(__file__).parent.parent
PUBLISHED = "_published"


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Params:
    """params.yaml with the methods of both recipes."""
    yaml, path = YAML(), tmp_path_factory.mktemp("copied") / "params.yaml"
    raw = yaml.load(ROOT / "params.yaml")
    for name in ("methods", "rivals"):
        raw["methods"].update(yaml.load(ROOT / f"recipes/{name}.yaml")["methods"])
    yaml.dump(raw, path)
    return load(path)


@pytest.mark.parametrize("name", YAML(typ="safe").load(ROOT / "recipes/rivals.yaml")["methods"])
def test_a_rival_has_four_settings_or_those_of_its_paper(name: str, copied: Params) -> None:
    method = copied.method(name)
    settings = declared(method.editor).Settings
    grid = method.grid(settings)
    if name.endswith(PUBLISHED):
        assert grid == [settings()] and method.editor == name.removesuffix(PUBLISHED)
        assert method.router != "builtin" or method.threshold == copied.method(method.editor).published
    else:
        assert len(grid) == 4 and method.hyper.keys() == vars(settings()).keys() - {"seed"}


def test_methods_of_the_other_recipe_are_valid(copied: Params) -> None:
    for name in YAML(typ="safe").load(ROOT / "recipes/methods.yaml")["methods"]:
        method = copied.method(name)
        assert method.grid(declared(method.editor).Settings)
