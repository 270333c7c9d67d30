"""Pictures from folders on the user's disk, and the JSON files that name them."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from stages.okedit.pictures import pack
from stages.okedit.schema import EditRow, Picture, Unreadable, decode
from stages.okedit.validate import Rejected
from stages.params import UserError


def read_json(key: str, path: Path) -> Any:
    """The file's content; UserError names the key of params.yaml, the file and the place of the fault."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError:
        fault = "nested too deep"
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, no JSON, a number of thousands of digits
        fault = str(error)
    raise UserError(f"{key}: {str(path)!r} cannot be read as JSON: {fault}; allowed: the file as published")


def is_text(value: Any) -> bool:
    """Whether it is a text that can be written to a file: JSON may hold half of a surrogate pair."""
    try:
        return isinstance(value, str) and bool(value.encode())
    except UnicodeEncodeError:
        return False


@dataclass
class Photos:
    """Finds pictures by relative name in folders, and packs those that are used under ids equal to their names."""

    folders: Sequence[Path]
    side: int
    pictures: dict[str, Picture] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # a file's place → the name that it was first asked for by

    def find(self, name: str) -> Path | None:
        """The first file of that name below a folder; COCO's own folder (val2014/…) may be left out of either."""
        for folder in self.folders:
            for path in (folder / name, folder / Path(name).name):
                try:
                    if path.is_file():
                        return path
                except (OSError, ValueError):  # a name that no file can have
                    continue
        return None

    def same(self, name: str) -> str:
        """The name by which the same file was first asked for: `p3.jpg` and `val2014/p3.jpg` may be one picture."""
        path = self.find(name)
        return name if path is None else self.names.setdefault(os.path.realpath(path), name)

    def add(self, name: str) -> str:
        """Pack one photo; its id. Rejected when it is missing or cannot be used."""
        if name not in self.pictures:
            path = self.find(name)
            if path is None:
                raise Rejected("image: missing")
            try:
                encoded = path.read_bytes()
            except OSError:
                raise Rejected("image: unreadable") from None
            self.put(name, "photo", Path(name).stem, encoded)
        return name

    def put(self, image_id: str, vendor: str, concept: str, encoded: bytes) -> str:
        """Pack a picture that is already read; its id. Rejected when it cannot be used."""
        try:
            self.pictures[image_id] = Picture(image_id, vendor, concept, pack(encoded, self.side))
        except Unreadable as error:
            raise Rejected(f"image: {error}") from None
        return image_id

    def image(self, image_id: str) -> Image.Image:
        """A packed picture, decoded."""
        return decode(image_id, self.pictures[self.add(image_id)].png)

    def used(self, rows: Iterable[EditRow]) -> list[Picture]:
        """The pictures that the rows show, sorted by id."""
        shown: set[str] = set()
        for row in rows:
            probes = [p["image_id"] for p in [*row.locality, *row.hops] if p["image_id"]]
            shown |= {row.image_id, *row.generality_image_ids, *probes}
        return [self.pictures[i] for i in sorted(shown)]
