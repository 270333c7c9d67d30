"""Pictures that are already there: <folder>/<edit>/<use>.png, .jpg, .jpeg or .webp, such as 2971475/generality-0.png."""

from dataclasses import dataclass
from pathlib import Path

from stages.okedit.providers.base import Provider, ProviderError
from stages.okedit.settings import need, path
from stages.sections import entry

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Settings:
    """`folder` holds one folder an edit."""

    folder: Path = entry(path)

    def open(self, at: str) -> Provider:
        """The provider; UserError names the entry `at`.folder when there is no such folder."""
        need(f"{at}.folder", self.folder)
        return Folder(self.folder)


class Folder:
    """Finds a picture by its name; prompt and seed play no part."""

    def __init__(self, folder: Path):
        self.folder, self.identity = folder, f"folder {folder}"

    def make(self, prompt: str, seed: int, name: str) -> bytes:
        """The file as it is."""
        for ending in ENDINGS:
            file = self.folder / f"{name}{ending}"
            if file.is_file():
                return file.read_bytes()
        raise ProviderError("image folder: no file")
