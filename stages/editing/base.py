"""The unedited model: every table has its row, and every other row is read against it."""

from collections.abc import Mapping
from typing import Any

from stages.backbone.vlm import Backbone
from stages.editing.editor import Edit, Request


def edit(backbone: Backbone, request: Request, settings: Mapping[str, Any]) -> Edit:
    """No edit."""
    return Edit(output=None)
