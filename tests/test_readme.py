"""The README says what is true: its tables are the pipeline's, its commands name parameters, methods and stages that exist."""

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_its_tables_are_the_pipelines() -> None:
    shown = re.findall(r"<!-- table: (\S+) -->\n(.*?)<!-- /table -->", README, re.S)
    assert shown[0][0] == "reports/tables/hm_strict.md"
    for name, table in shown:
        assert table.strip() == (ROOT / name).read_text().strip()


def test_the_accuracies_are_the_model_cards() -> None:
    cards = re.findall(r"<!-- card: (\S+) -->\n(.*?)<!-- /card -->", README, re.S)
    assert cards
    for name, shown in cards:
        assert shown.strip() in (ROOT / name).read_text()


def test_nothing_is_left_to_fill_in() -> None:
    assert "@@" not in README


@pytest.mark.parametrize("key", sorted(set(re.findall(r"-S '?([\w.-]+)=", README))))
def test_a_parameter_that_a_command_sets_exists(key: str) -> None:
    value = YAML(typ="safe").load(ROOT / "params.yaml")
    for part in key.split("."):
        assert part in value, key
        value = value[part]


def test_what_the_text_points_at_exists() -> None:
    listed = set(re.findall(r"`((?:stages|tests|notebooks|reports/(?:tables|figures))/[\w./-]+?\.?\w+)/?`", README))
    listed |= set(re.findall(r"\]\(((?:reports|notebooks|stages)/[\w./-]+)\)", README))
    assert listed and [name for name in sorted(listed) if not (ROOT / name).exists()] == []
