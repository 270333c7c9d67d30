"""The graph and the code say the same: imports, dependencies, parameters, notebooks; and the whole chain runs on a tiny
configuration.
"""

import ast
import itertools
import json
import operator
import re
from fnmatch import fnmatch
from functools import reduce
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages import code

ROOT = Path(__file__).parent.parent
ORDER = (
    "assets", "backbone", "okedit", "samples", "scoring", "editing", "cost", "sequences", "metrics", "retention", "ablations",
    "layers", "claims", "report",
)  # fmt: skip
STAGES = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
GRAPH = {name: stage.get("do", stage) for name, stage in STAGES.items()}
PARAMS = YAML(typ="safe").load(ROOT / "params.yaml")
PLANNED = {"edits": "plan_edits", "sequences": "plan_sequences"}  # stages whose cells depend on their plans, and who writes these


def name_of(path: Path) -> str:
    """The dotted name of a module's file."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted((ROOT / "stages").rglob("*.py"))}
# What runs when a cell's edits or sequences are made beside what their codes' digests cover: it plans, checks, chooses and keeps.
BESIDE = {
    *code.ASIDE, "stages.editing.__main__", "stages.editing.check", "stages.editing.choices", "stages.editing.declared",
    "stages.editing.tried",
    "stages.editing.trace_cache", "stages.editing.make", "stages.editing.planning",
    "stages.editing.team", "stages.editing.tuning", "stages.scoring.means",
    "stages.scoring.routing", "stages.scoring.scope", "stages.scoring.scopes",
    "stages.scoring.scores", "stages.sequences.__main__", "stages.sequences.check", "stages.sequences.cache",
    "stages.sequences.make", "stages.sequences.planning", "stages.sequences.choices", "stages.sequences.replay",
    "stages.sequences.retention", "stages.sequences.tuning",
}  # fmt: skip


def has_code(path: Path) -> bool:
    """False for a package file that holds a docstring alone."""
    return any(not isinstance(node, ast.Expr) for node in ast.parse(path.read_text()).body)


def closure(start: str) -> set[str]:
    """Every module with code that running `python -m <start>` may import."""
    return {name for name in code.closure(start) if has_code(MODULES[name])}


def commands(stage: dict) -> str:
    return stage["cmd"] if isinstance(stage["cmd"], str) else " ".join(stage["cmd"])


@pytest.mark.parametrize("name", sorted(GRAPH.keys() - PLANNED.keys()))
def test_a_stage_depends_on_every_module_it_imports(name: str) -> None:
    modules = re.findall(r"-m (stages\.\w+)", commands(GRAPH[name]))
    deps = [ROOT / dep for dep in GRAPH[name]["deps"] if dep.startswith("stages/")]
    for path in (MODULES[one] for module in modules for one in closure(f"{module}.__main__")):
        assert any(path == dep or dep in path.parents for dep in deps), f"{name}: {path.relative_to(ROOT)} is not in deps"


@pytest.mark.parametrize(("name", "begins"), [("edits", code.MAKERS), ("sequences", (*code.MAKERS, "stages.sequences.chain"))])
def test_a_planned_cell_depends_on_its_plan_which_covers_every_module(name: str, begins: tuple[str, ...]) -> None:
    """The stage that writes the plans depends on all that a cell imports; what makes edits is in the digest that a plan has."""
    planner, module = PLANNED[name], re.search(r"-m (stages\.\w+)", commands(GRAPH[name])).group(1)
    assert [dep.rpartition("/")[0] for dep in GRAPH[name]["deps"]] == GRAPH[planner]["outs"]
    assert f"-m {module} plan" in commands(GRAPH[planner])
    runs, editors = closure(f"{module}.__main__"), {one for one in MODULES if one.startswith(f"{code.EDITORS}.")}
    assert not runs & editors
    for editor in editors:
        covered = code.covered(*begins, editor)
        assert runs - covered <= BESIDE and not covered & (editors - code.closure(editor))


def test_the_lock_file_has_no_stage_that_is_gone() -> None:
    """DVC leaves it there, and reads and writes the whole file for each stage that runs."""
    locked = YAML(typ="safe").load(ROOT / "dvc.lock")["stages"]
    assert {name.split("@")[0] for name in locked} <= STAGES.keys()


def test_imports_run_only_upstream() -> None:
    for name in MODULES:
        own = name.split(".")[1] if "." in name else ""
        if own not in ORDER:
            continue
        for target in code.imports(name) - {"stages"}:
            folder = target.split(".")[1]
            assert folder in ("beside", "code", "params", "sections", "settings") or ORDER.index(folder) <= ORDER.index(own), (
                f"{name} imports {target}"
            )


def test_the_params_module_imports_no_stage() -> None:
    assert code.imports("stages.params") == {"stages.sections", "stages.settings"}
    assert code.imports("stages.settings") == {"stages.sections"} and not code.imports("stages.sections")


def parameter(source: str) -> dict | list:
    """What ${…} stands for in params.yaml."""
    return reduce(operator.getitem, source[2:-1].split("."), PARAMS)


def cells(stage: dict) -> list[dict[str, str]]:
    """What the names in ${…} stand for, in every cell of a stage's matrix or of what it is done for."""
    if "foreach" in stage:
        section = parameter(stage["foreach"])
        return [{"key": key} | {f"item.{name}": value for name, value in entry.items()} for key, entry in section.items()]
    axes = {f"item.{axis}": parameter(source) for axis, source in stage.get("matrix", {}).items() if isinstance(source, str)}
    return [dict(zip(axes, cell, strict=True)) for cell in itertools.product(*axes.values())]


def test_every_stage_parameter_exists() -> None:
    """A parameter that a stage tracks is a key of params.yaml in every cell."""
    for name, stage in STAGES.items():
        for cell in cells(stage):
            for key in GRAPH[name].get("params", []):
                at = PARAMS
                for part in re.sub(r"\$\{([\w.]+)\}", lambda m: cell[m.group(1)], key).split("."):  # noqa: B023
                    assert part in at, f"{name}: {key} is not in params.yaml"
                    at = at[part]


def paths(stage: dict, *keys: str) -> list[list[str]]:
    """The parts of each path that a stage lists; what differs between its cells is `*`."""
    found = [one if isinstance(one, str) else next(iter(one)) for key in keys for one in stage.get(key, [])]
    return [re.sub(r"\$\{[^}]+\}", "*", path).split("/") for path in found]


def meet(one: list[str], other: list[str]) -> bool:
    """Whether one path may be the other, or lie in it."""
    return all(fnmatch(a, b) or fnmatch(b, a) for a, b in zip(one, other, strict=False))


def test_the_architecture_draws_the_graph() -> None:
    """Its picture has an arrow from each stage to what reads its outputs, reports as one, but none that follows from others."""
    called = {name: "reports" if name.startswith("report-") else name for name in GRAPH}
    direct = {stage: set() for stage in called.values()}
    for maker, user in itertools.permutations(GRAPH, 2):
        made, used = paths(GRAPH[maker], "outs", "metrics"), paths(GRAPH[user], "deps")
        if called[maker] != called[user] and any(meet(*pair) for pair in itertools.product(made, used)):
            direct[called[maker]].add(called[user])

    def later(stage: str) -> set[str]:
        return direct[stage].union(*map(later, direct[stage]))

    needed = {(one, other) for one in direct for other in direct[one] if not any(other in later(s) for s in direct[one])}
    drawn = re.search(r"```mermaid\n(.*?)```", (ROOT / "docs/architecture.md").read_text(), re.S).group(1)
    assert set(re.findall(r"(\w+) --> (\w+)", drawn)) == needed


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.name)
def test_notebooks_are_clean_and_thin(path: Path) -> None:
    book = json.loads(path.read_text())
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in code) == 1
    assert all(len("".join(cell["source"]).splitlines()) <= 12 for cell in code), f"{path.name}: a cell is not thin"


def test_files_stay_readable() -> None:
    for path in MODULES.values():
        assert len(path.read_text().splitlines()) <= 350, f"{path.relative_to(ROOT)} is too long to read in one go"
