"""The unedited model: every table has its row, and every other row is read against it."""

from dataclasses import dataclass

from stages.backbone.vlm import Backbone
from stages.editing.edits import Edit, Request
from stages.sections import Hyper


@dataclass(frozen=True)
class Settings(Hyper):
    """Nothing to set."""


def edit(backbone: Backbone, request: Request, settings: Settings) -> Edit:
    """No edit."""
    return Edit()
