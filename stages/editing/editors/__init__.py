"""The editors: one module each, found by its `Settings`. What `stages.editing.edits` says is all that one must have."""

import importlib
from collections.abc import Callable
from types import ModuleType

from stages.editing.edits import Edit


def module_of(name: str) -> ModuleType:
    """The editor's module, `stages.editing.editors.<name>`."""
    return importlib.import_module(f"stages.editing.editors.{name.replace('-', '_')}")


def load_editor(name: str) -> Callable[..., Edit]:
    """The `edit` function of an editor."""
    return module_of(name).edit
