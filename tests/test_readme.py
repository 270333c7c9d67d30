"""README and docs say what is true: tables are the pipeline's, commands name parameters that exist, links lead somewhere."""

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
PAGES = {path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
README, WHOLE = PAGES[ROOT / "README.md"], "\n".join(PAGES.values())


def test_the_readme_is_read_in_a_minute() -> None:
    assert len(README.splitlines()) <= 200 and len(README.encode()) <= 14_000


def test_its_tables_are_the_pipelines() -> None:
    shown = re.findall(r"<!-- table: (\S+) -->\n(.*?)<!-- /table -->", WHOLE, re.S)
    assert shown[0][0] == "reports/tables/hm_strict.md"
    for name, table in shown:
        assert table.strip() == (ROOT / name).read_text().strip()


def test_the_accuracies_are_the_model_cards() -> None:
    cards = re.findall(r"<!-- card: (\S+) -->\n(.*?)<!-- /card -->", WHOLE, re.S)
    assert cards
    for name, shown in cards:
        assert shown.strip() in (ROOT / name).read_text()


def test_nothing_is_left_to_fill_in() -> None:
    assert "@@" not in WHOLE


@pytest.mark.parametrize("key", sorted(set(re.findall(r"-S '?([\w.-]+)=", WHOLE))))
def test_a_parameter_that_a_command_sets_exists(key: str) -> None:
    value = YAML(typ="safe").load(ROOT / "params.yaml")
    for part in key.split("."):
        assert part in value, key
        value = value[part]


def test_what_the_text_points_at_exists() -> None:
    listed = set(re.findall(r"`((?:stages|tests|notebooks|reports/(?:tables|figures))/[\w./-]+?\.?\w+)/?`", WHOLE))
    assert listed and [name for name in sorted(listed) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(page: Path) -> None:
    """To files, from where the page stands; every page of docs/ is reached from the README."""
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]) if "://" not in link]
    assert [link for link in links if link.startswith("#") or not (page.parent / link).exists()] == []
    assert page.name == "README.md" or f"](docs/{page.name})" in README.replace("\n", "")
