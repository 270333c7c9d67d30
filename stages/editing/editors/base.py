"""The unedited model: every table has its row, and every other row is read against it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.backbone.vlm import Backbone
from stages.editing.edits import Edit, Request


@dataclass(frozen=True)
class Settings:
    """Nothing to set."""


def edit(backbone: Backbone, request: Request, settings: Mapping[str, Any]) -> Edit:
    """No edit."""
    return Edit()
