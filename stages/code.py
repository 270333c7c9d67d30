"""What of the code decides a result, as a digest: docstrings, comments and layout are no part of it.

A module's closure is all that it imports of the study, and what these import, read from the source without running any. An
editor's code is the closure of what makes and traces edits, of its own module and of the architecture's adapter, so that another
editor or adapter changes nothing.
"""

import ast
import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
EDITORS, ADAPTERS = "stages.editing.editors", "stages.backbone.adapters"  # folders whose modules are found by name
MAKERS = ("stages.editing.cell",)  # what makes and traces edits begins here
# What reads, checks and keeps: the values that come of it enter another digest (`stages.editing.plan`).
ASIDE = (
    "stages.code", "stages.params", "stages.sections", "stages.settings", "stages.okedit.schema", "stages.editing.plan",
    "stages.editing.resume", "stages.backbone.checkpoints", "stages.backbone.pointer",
)  # fmt: skip


def of_editor(name: str, *more: str) -> str:
    """A digest of the code that decides what an editor's edits do, and of `more` modules with theirs."""
    return digest(*MAKERS, module_name(name), *more)


def module_name(editor: str) -> str:
    """The dotted name of an editor's module."""
    return f"{EDITORS}.{editor.replace('-', '_')}"


def adapters(architecture: str | None) -> list[str]:
    """The dotted name of an architecture's adapter; those of all adapters where it is not known which."""
    names = [path.stem for path in file_of(ADAPTERS).parent.glob("*.py") if path.stem != "__init__"]
    return sorted(f"{ADAPTERS}.{name}" for name in names if architecture is None or name == architecture.replace("-", "_"))


@cache
def digest(*starts: str) -> str:
    """A digest of some modules and of all that they import, but for what stands `ASIDE`."""
    whole = hashlib.sha256()
    for name in sorted(covered(*starts)):
        whole.update(json.dumps([name, _content(name)]).encode())
    return whole.hexdigest()[:16]


def covered(*starts: str) -> set[str]:
    """The modules that a digest is of."""
    return closure(*starts) - set(ASIDE)


def closure(*starts: str) -> set[str]:
    """Dotted names of some modules and of all modules of the study that they import, wherever in the file they do so."""
    seen, waiting = set(), list(starts)
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += imports(name)
    return seen


@cache
def imports(name: str) -> frozenset[str]:
    """The modules of the study that a module imports. An architecture's adapter is found by its name: see `adapters`."""
    found = set()
    for node in ast.walk(_tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(one for one in found if one.split(".")[0] == "stages" and file_of(one).exists())


def file_of(name: str) -> Path:
    """A module's file; that of a package is its `__init__.py`."""
    path = ROOT.joinpath(*name.split("."))
    return package if (package := path / "__init__.py").exists() else path.with_suffix(".py")


@cache
def _tree(name: str) -> ast.Module:
    return ast.parse(file_of(name).read_text(encoding="utf-8"))


@cache
def _content(name: str) -> Any:
    """What a module says, as nested lists that are the same under every version of Python."""
    return list(_plain(_tree(name)))


def _plain(node: ast.AST) -> Iterator[Any]:
    yield type(node).__name__
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            value = value[ast.get_docstring(node, clean=False) is not None :]
        if isinstance(value, ast.AST):
            yield [name, *_plain(value)]
        elif isinstance(value, list) and value:
            yield [name, *(list(_plain(one)) if isinstance(one, ast.AST) else repr(one) for one in value)]
        elif value not in (None, []):
            yield [name, repr(value)]
