"""What an editor's module says of itself, without what needs a model library: planning knows settings and flags in no time."""

import ast
from types import ModuleType

from stages import code

CHEAP = ("dataclasses", "stages.sections")  # what a `Settings` is made of


def declared(editor: str) -> ModuleType:
    """An editor's module with its `Settings` and flags; its functions are there by name alone."""
    name = code.module_name(editor)
    path, module = code.file_of(name), ModuleType(name)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    exec(compile(ast.Module([node for node in tree.body if _declares(node)], []), str(path), "exec"), vars(module))
    vars(module).update({node.name: None for node in tree.body if isinstance(node, ast.FunctionDef)})
    return module


def _declares(node: ast.stmt) -> bool:
    """Whether a statement of a module belongs to its settings or is a flag."""
    if isinstance(node, ast.ImportFrom):
        return node.module in CHEAP
    if isinstance(node, ast.Assign):
        return isinstance(node.value, ast.Constant)
    return isinstance(node, ast.ClassDef) and node.name == "Settings"
