"""Pictures from folders on the user's disk, and the JSON files that name them."""

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from stages.okedit.schema import EditRow, Picture, decode
from stages.okedit.validate import UNREADABLE, Rejected
from stages.params import UserError


def read_json(key: str, path: Path) -> Any:
    """The file's content; UserError names the key of params.yaml, the file and the place of the fault."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{key}: {str(path)!r} cannot be read as JSON: {error}; allowed: the file as published") from None


def pack(encoded: bytes, side: int) -> bytes:
    """The picture as it is, or as a JPEG whose longer side is `side` pixels; OSError when it cannot be read."""
    image = Image.open(io.BytesIO(encoded))
    image.load()
    if max(image.size) <= side:
        return encoded
    image = image.convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@dataclass
class Photos:
    """Finds pictures by relative name in folders, and packs those that are used under ids equal to their names."""

    folders: Sequence[Path]
    side: int
    pictures: dict[str, Picture] = field(default_factory=dict)

    def find(self, name: str) -> Path | None:
        """The first file of that name below a folder; COCO's own folder (val2014/…) may be left out of either."""
        for folder in self.folders:
            for path in (folder / name, folder / Path(name).name):
                if path.is_file():
                    return path
        return None

    def add(self, name: str) -> str:
        """Pack one photo; its id. Rejected when it is missing or cannot be read."""
        if name not in self.pictures:
            path = self.find(name)
            if path is None:
                raise Rejected("image: missing")
            self.put(name, "photo", Path(name).stem, path.read_bytes())
        return name

    def put(self, image_id: str, vendor: str, concept: str, encoded: bytes) -> str:
        """Pack a picture that is already read; its id. Rejected when it cannot be decoded."""
        try:
            self.pictures[image_id] = Picture(image_id, vendor, concept, pack(encoded, self.side))
        except UNREADABLE:
            raise Rejected("image: unreadable") from None
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
