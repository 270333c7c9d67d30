"""The OKEDIT schema: one row an edit, pictures packed by id; written and read with every field checked."""

import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from stages.params import UserError, write_atomically
from stages.sections import readable
from stages.settings import Edits

LOCALITY_KINDS = ("near_image", "far_image", "other_question", "unrelated", "text_only", "no_image")
AGAIN = "delete it, and `./study repro` makes it again"
SPLITS = ("train", "dev", "test")
# Pillow's plugins, by name: others may start a program, as EPS starts Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MOST_PIXELS = 80_000_000  # of one picture

TEXT = pa.string()
EDITS = pa.schema(
    [
        ("edit_id", TEXT), ("split", TEXT), ("relation", TEXT), ("concept", TEXT), ("question", TEXT), ("image_id", TEXT),
        ("answer", TEXT), ("target", TEXT),
        ("rephrasings_train", pa.list_(TEXT)), ("rephrasings", pa.list_(TEXT)), ("generality_image_ids", pa.list_(TEXT)),
        ("locality", pa.list_(pa.struct([("kind", TEXT), ("image_id", TEXT), ("question", TEXT), ("answer", TEXT)]))),
        ("hops", pa.list_(pa.struct([("n", pa.int64()), ("question", TEXT), ("image_id", TEXT),
                                     ("answer_before", TEXT), ("answer_after", TEXT)]))),
        ("unedited", pa.list_(TEXT)),
    ]
)  # fmt: skip
IMAGES = pa.schema([("image_id", TEXT), ("vendor", TEXT), ("concept", TEXT), ("png", pa.binary())])


@dataclass(frozen=True)
class EditRow:
    """One edit and all that belongs to it (design §4).

    `answer` is true, `target` is what the edit makes the model say: something false, or, where the edit corrects an error, the
    true answer. `unedited` holds what the backbones of the study answered before, in the order of params.yaml; () where unknown.
    """

    edit_id: str
    split: str
    relation: str
    concept: str
    question: str
    image_id: str
    answer: str
    target: str
    rephrasings_train: Sequence[str]
    rephrasings: Sequence[str]
    generality_image_ids: Sequence[str]
    locality: Sequence[Mapping[str, Any]]
    hops: Sequence[Mapping[str, Any]]
    unedited: Sequence[str] = ()

    def shown(self) -> set[str]:
        """Ids of all pictures that the edit and its probes show."""
        return shown(vars(self))


def shown(row: Mapping[str, Any]) -> set[str]:
    """Ids of all pictures that an edit and its probes show."""
    probed = {p["image_id"] for p in [*row["locality"], *row["hops"]]} - {None}
    return {row["image_id"], *row["generality_image_ids"]} | probed


def asked(row: Mapping[str, Any]) -> set[tuple[str, str | None]]:
    """All questions of an edit and its probes, each with the picture (its id, None for none) that it is or may be asked about.

    The edit's question without a picture is no part of it: all edits of one relation have it in common.
    """
    phrasings = [row["question"], *row["rephrasings_train"], *row["rephrasings"]]
    others = [p for p in [*row["locality"], *row["hops"]] if p.get("kind") != "no_image"]
    own = product(phrasings, [row["image_id"], *row["generality_image_ids"]])
    return {*own, *((p["question"], p["image_id"]) for p in others)}


@dataclass(frozen=True)
class Picture:
    """A picture with its id; `png` holds the encoded bytes."""

    image_id: str
    vendor: str
    concept: str
    png: bytes


def encode(image: Image.Image) -> bytes:
    """PNG bytes of a picture."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def check(rows: Sequence[EditRow], image_ids: set[str]) -> None:
    """Raise UserError, naming the edit and the field, for a row that no editor could use."""
    seen = set()
    for row in rows:
        for field in fields(EditRow):
            if getattr(row, field.name) in (None, ""):
                raise UserError(f"{row.edit_id or '?'}.{field.name}: missing; every field of the OKEDIT schema is needed")
        if row.edit_id in seen:
            raise UserError(f"edit_id: {row.edit_id!r} occurs twice; ids are unique")
        seen.add(row.edit_id)
        if row.split not in SPLITS:
            raise UserError(f"{row.edit_id}.split: {row.split!r} is not allowed; allowed: {', '.join(SPLITS)}")
        if row.target.lower() == row.answer.lower() and not row.unedited:
            raise UserError(
                f"{row.edit_id}.target: {row.target!r} is the true answer; allowed: a false one, or a correction that says "
                "what was answered before it (unedited)"
            )
        if row.target.lower() in {answer.lower() for answer in row.unedited}:
            raise UserError(f"{row.edit_id}.target: {row.target!r} is an unedited answer; an edit must change it")
        for probe in row.locality:
            if probe["kind"] not in LOCALITY_KINDS:
                raise UserError(f"{row.edit_id}.locality: {probe['kind']!r} is not allowed; allowed: {', '.join(LOCALITY_KINDS)}")
        for image_id in sorted(row.shown() - image_ids):
            raise UserError(f"{row.edit_id}: image {image_id!r} is missing from the image table")
    check_splits(rows)


def check_splits(rows: Sequence[EditRow]) -> None:
    """Raise UserError, naming both edits, where the same is asked in two splits."""
    first: dict[tuple[str, str | None], EditRow] = {}
    for row in rows:
        for probe in sorted(asked(vars(row)), key=str):
            if (other := first.setdefault(probe, row)).split != row.split:
                both = f"{row.edit_id} ({row.split}) and {other.edit_id} ({other.split})"
                raise UserError(f"{both}: {probe[0]!r} about {probe[1]!r} is asked in both splits; allowed: in one alone")


def write(folder: Path, rows: Sequence[EditRow], pictures: Sequence[Picture]) -> None:
    """Check, then write `edits.parquet` and `images.parquet`."""
    check(rows, {p.image_id for p in pictures})
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "edits.parquet", [asdict(r) for r in rows], EDITS)
    write_table(folder / "images.parquet", [asdict(p) for p in pictures], IMAGES)


def write_table(path: Path, rows: Iterable[Mapping[str, Any]], schema: pa.Schema | None = None) -> None:
    """One parquet file, whole or not at all."""
    with write_atomically(path) as temporary:
        pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), temporary, compression="zstd")


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """One parquet file, or some of its columns, without the libraries that `pq.read_table` loads; UserError where it is missing,
    cut or foreign.
    """
    with readable(path, AGAIN), pq.ParquetFile(path) as file:
        return file.read(columns)


def read_edits(folder: Path, splits: Sequence[str] = SPLITS) -> list[dict[str, Any]]:
    """The rows of the given splits, checked for fields."""
    path = folder / "edits.parquet"
    if not path.exists():
        raise UserError(f"dataset: {path} is missing; run the `okedit` stage first")
    table = read_table(path)
    for name in EDITS.names:
        if name not in table.column_names:
            raise UserError(f"{path}: the field {name!r} is missing; needed: {', '.join(EDITS.names)}")
    with readable(path, AGAIN):
        table.select(EDITS.names).cast(EDITS)  # fields of another type
    rows = [row for row in table.to_pylist() if row["split"] in splits]
    for row in rows:
        for name in EDITS.names:
            if row[name] is None:
                raise UserError(f"{path}: {row['edit_id'] or '?'}.{name}: None; every field of the OKEDIT schema is needed")
    return rows


def of_split(rows: Sequence[Mapping[str, Any]], split: str) -> list[Mapping[str, Any]]:
    """The edits of one split, in the table's order."""
    return [row for row in rows if row["split"] == split]


def made(rows: Sequence[Mapping[str, Any]], edits: Edits) -> list[Mapping[str, Any]]:
    """The dev and test edits that a study makes: the first of each split, as many as `edits` says, in the table's order."""
    return of_split(rows, "test")[: edits.test] + of_split(rows, "dev")[: edits.dev]


def in_sequence(rows: Sequence[Mapping[str, Any]], edits: Edits, count: int) -> list[Mapping[str, Any]]:
    """The edits that follow on each other, at most `count`: test edits and then train edits that no method learns from, in the
    table's order; after them the dev edits that a study makes, which are held out.
    """
    others = of_split(rows, "test") + of_split(rows, "train")[edits.train :]
    return others[:count] + of_split(rows, "dev")[: edits.dev]


def read_images(*paths: Path) -> dict[str, bytes]:
    """Encoded pictures by id, from one or more image tables."""
    found: dict[str, bytes] = {}
    for path in paths:
        if not path.exists():
            raise UserError(f"images: {path} is missing; run the stage that writes it first")
        # Some at a time: the table and its pictures need not be in memory at once.
        with readable(path, AGAIN), pq.ParquetFile(path) as file:
            for batch in file.iter_batches(256, columns=["image_id", "png"]):
                found.update(zip(*(batch.column(name).to_pylist() for name in ("image_id", "png")), strict=True))
    pa.default_memory_pool().release_unused()
    return found


class Unreadable(ValueError):
    """Bytes that are no picture of a known kind, or one that no model could use; the text is a short reason."""


def opened(encoded: bytes) -> Image.Image:
    """The first frame of a picture of one of `FORMATS`, loaded, as it is stored: its mode, orientation and transparency.

    Unreadable for anything else, for a damaged file, and, before it is decoded, for one of more than MOST_PIXELS pixels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what decoders say of odd files
        try:
            image = Image.open(io.BytesIO(encoded), formats=FORMATS)
            if image.width * image.height > MOST_PIXELS:
                raise Unreadable("too many pixels")
            image.load()
            return image
        except (Unreadable, Image.DecompressionBombError):
            raise Unreadable("too many pixels") from None
        except Exception as error:  # rare decoders raise whatever the bytes lead them to
            raise Unreadable("unreadable") from error


def decode(image_id: str, png: bytes) -> Image.Image:
    """A stored picture from its bytes, with its transparency; UserError names the image when it cannot be read."""
    try:
        return opened(png)
    except Unreadable as error:
        raise UserError(f"image {image_id!r}: not a readable picture ({error.__cause__ or error})") from None
