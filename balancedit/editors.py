"""Which of the study's editors can make an edit for someone who has nothing but that edit, and under which settings."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from stages.editing import editors
from stages.sections import Hyper, read_section, refuse
from stages.settings import STAGES

# Where the study's choice on dev edits is better than the paper's own values, which `Settings` has by default.
CHOSEN = {"balancedit": {"lr": 1e-2, "margin": 5.0}}


def known() -> dict[str, ModuleType]:
    """Every editor that changes the model and learns nothing from a train split first."""
    names = sorted(path.stem for path in Path(editors.__file__).parent.glob("*.py"))
    modules = {name: editors.module_of(name) for name in names if name not in ("__init__", "base")}
    return {name: module for name, module in modules.items() if not hasattr(module, "fit")}


def editor_named(name: str, settings: Mapping[str, Any]) -> tuple[ModuleType, Hyper]:
    """An editor's module and its `Settings`; UserError names what is unknown, or needs a train split, and what is allowed."""
    if name not in (allowed := known()):
        raise refuse("editor", name, f"{', '.join(allowed)} (the others learn from a train split first)")
    return allowed[name], read_section(allowed[name].Settings, name, {**CHOSEN.get(name, {}), **settings}, STAGES)
