"""The one way in for pictures: what each kind of file shows, what is refused, and damaged files."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ASSETS, ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from balancedit.model import read_picture
from stages.okedit import pictures, schema
from stages.okedit.photos import Photos
from stages.okedit.schema import Unreadable
from stages.okedit.unedited import pixels
from stages.okedit.validate import Rejected, picture_fault
from stages.params import UserError
from tests.sources import png

HIGH, WIDE = 20, 30
WHITE = (255, 255, 255)


def halves(left: tuple[int, ...], right: tuple[int, ...]) -> np.ndarray:
    """[HIGH, WIDE, channels]: one colour, and another one from column 10 on."""
    shown = np.empty((HIGH, WIDE, len(left)), np.uint8)
    shown[:, :10], shown[:, 10:] = left, right
    return shown


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def frames() -> dict[str, object]:
    return {"save_all": True, "append_images": [Image.new("RGB", (WIDE, HIGH), "green")]}


def oriented(kind: str, turn: int, **options: object) -> bytes:
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = turn
    return saved(Image.fromarray(TWO), kind, exif=exif, **options)


def raw_png(bits: int, colours: int, rows: np.ndarray, transparent: bytes = b"", high: int = 0) -> bytes:
    """A PNG of packed rows [HIGH, bytes], of any depth, with its transparent colour: Pillow writes but few of these. It claims to
    be `high` pixels high.
    """

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    width = rows.shape[1] * 8 // (bits * {0: 1, 2: 3, 4: 2}[colours])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, high or len(rows), bits, colours, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + (chunk(b"tRNS", transparent) if transparent else b"") + data + chunk(b"IEND", b"")


def palette(transparency: int | bytes | None) -> Image.Image:
    image = Image.fromarray(halves((1,), (2,))[..., 0], "P")
    image.putpalette([9, 9, 9, 200, 0, 0, 0, 0, 200])
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


def wide_grey(dark: int, light: int) -> np.ndarray:
    return np.where(np.arange(WIDE) < 10, dark, light)[None].repeat(HIGH, 0)


RED, BLUE = (200, 0, 0), (0, 0, 200)
TWO = halves(RED, BLUE)
GREYS = halves((77,), (200,))[..., 0]
SIXTEEN = wide_grey(77 * 257, 200 * 257).astype(np.uint16)
SEEN_GREYS = GREYS[..., None].repeat(3, -1)
GLASS = Image.fromarray(halves((200, 0, 0, 128), (9, 9, 9, 0)), "RGBA")
LEVELS = np.tile([0, 85, 170, 255], (HIGH, 5))[..., None].repeat(3, -1)
SEEN_GLASS = halves((227, 127, 127), WHITE)
# Kind of file → what it holds, what it shows, and by how much a lossy format may differ.
TABLE: dict[str, tuple[Callable[[], bytes], np.ndarray, int]] = {
    "png": (lambda: saved(Image.fromarray(TWO), "PNG"), TWO, 0),
    "png, grey": (lambda: saved(Image.fromarray(GREYS), "PNG"), SEEN_GREYS, 0),
    "png, black and white": (lambda: saved(Image.fromarray(GREYS > 99), "PNG"), halves((0, 0, 0), WHITE), 0),
    "png, palette": (lambda: saved(palette(None), "PNG"), TWO, 0),
    "png, palette, one colour transparent": (lambda: saved(palette(None), "PNG", transparency=1), halves(WHITE, BLUE), 0),
    "png, palette with alpha": (
        lambda: saved(palette(None), "PNG", transparency=bytes([255, 128, 0])), halves((227, 127, 127), WHITE), 1,
    ),
    "png, alpha": (lambda: saved(GLASS, "PNG"), SEEN_GLASS, 1),
    "png, grey with alpha": (
        lambda: saved(Image.fromarray(halves((77, 255), (9, 0)), "LA"), "PNG"), halves((77,) * 3, WHITE), 0,
    ),
    "png, transparent colour": (lambda: saved(Image.fromarray(TWO), "PNG", transparency=RED), halves(WHITE, BLUE), 0),
    "png, grey, transparent colour": (
        lambda: saved(Image.fromarray(GREYS), "PNG", transparency=77), halves(WHITE, (200,) * 3), 0,
    ),
    "png, 2 bits": (lambda: raw_png(2, 0, np.full((HIGH, 5), 0b00011011, np.uint8)), LEVELS, 0),
    "png, 2 bits, transparent colour": (
        lambda: raw_png(2, 0, np.full((HIGH, 5), 0b01010101, np.uint8), struct.pack(">H", 1)), np.full((HIGH, 20, 3), 255), 0,
    ),
    "png, 16 bits": (lambda: saved(Image.fromarray(SIXTEEN), "PNG"), SEEN_GREYS, 0),
    "png, 16 bits, transparent colour": (
        lambda: raw_png(16, 0, SIXTEEN.astype(">u2").view(np.uint8), struct.pack(">H", 77 * 257)), halves(WHITE, (200,) * 3), 0,
    ),
    "png, 16 bits, colour": (
        lambda: raw_png(16, 2, (TWO.astype(">u2") * 257).reshape(HIGH, -1).view(np.uint8)), TWO, 0,
    ),
    "png, 16 bits, colour, transparent colour": (
        lambda: raw_png(
            16, 2, (TWO.astype(">u2") * 257).reshape(HIGH, -1).view(np.uint8), struct.pack(">3H", 200 * 257, 0, 0)
        ), halves(WHITE, BLUE), 0,
    ),
    "png, turned": (lambda: oriented("PNG", 6), np.rot90(TWO, -1), 0),
    "png, animated": (lambda: saved(Image.fromarray(TWO), "PNG", **frames()), TWO, 0),
    "jpeg": (lambda: saved(Image.fromarray(TWO), "JPEG", quality=100, subsampling=0), TWO, 3),
    "jpeg, grey": (lambda: saved(Image.fromarray(GREYS), "JPEG", quality=100), SEEN_GREYS, 3),
    "jpeg, cmyk": (
        lambda: saved(Image.fromarray(TWO).convert("CMYK"), "JPEG", quality=100, subsampling=0), TWO, 8,
    ),
    "jpeg, two pictures of a phone": (
        lambda: saved(Image.fromarray(TWO), "MPO", quality=100, subsampling=0, **frames()), TWO, 3,
    ),
    **{
        f"jpeg, orientation {turn}": (
            lambda turn=turn: oriented("JPEG", turn, quality=100, subsampling=0), shown, 3,
        )
        for turn, shown in {
            0: TWO, 1: TWO, 2: TWO[:, ::-1], 3: TWO[::-1, ::-1], 4: TWO[::-1], 5: TWO.transpose(1, 0, 2), 6: np.rot90(TWO, -1),
            7: np.rot90(TWO, 2).transpose(1, 0, 2), 8: np.rot90(TWO), 9: TWO,
        }.items()
    },
    "webp": (lambda: saved(Image.fromarray(TWO), "WEBP", lossless=True), TWO, 0),
    "webp, alpha": (lambda: saved(GLASS, "WEBP", lossless=True), SEEN_GLASS, 1),
    "webp, animated": (lambda: saved(Image.fromarray(TWO), "WEBP", lossless=True, **frames()), TWO, 0),
    "gif": (lambda: saved(palette(None), "GIF"), TWO, 0),
    "gif, transparent": (lambda: saved(palette(None), "GIF", transparency=1), halves(WHITE, BLUE), 0),
    "gif, animated": (lambda: saved(palette(None), "GIF", **frames()), TWO, 0),
    "bmp": (lambda: saved(Image.fromarray(TWO), "BMP"), TWO, 0),
    "bmp, palette": (lambda: saved(palette(None), "BMP"), TWO, 0),
    "tiff": (lambda: saved(Image.fromarray(TWO), "TIFF"), TWO, 0),
    "tiff, lzw": (lambda: saved(Image.fromarray(TWO), "TIFF", compression="tiff_lzw"), TWO, 0),
    "tiff, pages": (lambda: saved(Image.fromarray(TWO), "TIFF", **frames()), TWO, 0),
    "tiff, alpha": (lambda: saved(GLASS, "TIFF"), SEEN_GLASS, 1),
    "tiff, cmyk": (lambda: saved(Image.fromarray(TWO).convert("CMYK"), "TIFF"), TWO, 0),
    "tiff, 16 bits": (lambda: saved(Image.fromarray(SIXTEEN), "TIFF"), SEEN_GREYS, 0),
    "tiff, 16 bits, most significant byte first": (
        lambda: saved(Image.fromarray(SIXTEEN.astype(">u2")), "TIFF"), SEEN_GREYS, 0,
    ),
    "tiff, 16 bits, white is zero": (
        lambda: saved(Image.fromarray(65535 - SIXTEEN), "TIFF", tiffinfo={262: 0}), SEEN_GREYS, 0,
    ),
    "tiff, turned": (lambda: saved(Image.fromarray(TWO), "TIFF", tiffinfo={pictures.ORIENTATION: 6}), np.rot90(TWO, -1), 0),
}  # fmt: skip


@pytest.mark.parametrize("kind", TABLE)
def test_each_kind_of_file_shows_what_a_viewer_shows(kind: str, tmp_path: Path) -> None:
    made, wanted, near = TABLE[kind]
    (tmp_path / "picture").write_bytes(made())
    photos = Photos([tmp_path], side=448)
    for image in (pictures.read(made()), photos.image(photos.add("picture")).convert("RGB"), read_picture(tmp_path / "picture")):
        found = np.asarray(image).astype(int)
        assert image.mode == "RGB" and found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= near


def test_large_photos_are_upright_and_small() -> None:
    packed = pictures.opened(pictures.pack(oriented("JPEG", 6, quality=95), side=16))
    assert packed.size == (11, 16) and packed.format == "JPEG" and not packed.getexif()


def test_plain_files_are_kept_as_they_are_and_others_are_png() -> None:
    for kind, (made, _, _) in TABLE.items():
        kept = kind in (
            "png", "png, grey", "png, animated", "png, 16 bits, colour", "png, 2 bits", "jpeg", "jpeg, grey",
            "jpeg, two pictures of a phone", "jpeg, orientation 0", "jpeg, orientation 1", "jpeg, orientation 9",
        )  # fmt: skip
        packed = pictures.pack(made(), side=448)
        assert (packed == made()) == kept, kind
        assert kept or (packed.startswith(b"\x89PNG") and pictures.pack(packed, side=448) == packed)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (EPS, "unreadable"),
        (b"", "unreadable"),
        (b"<svg/>", "unreadable"),
        (png(0)[:500], "unreadable"),
        (saved(Image.fromarray(np.ones((32, 32), np.float32)), "TIFF"), "unreadable"),
        (saved(Image.fromarray(np.ones((32, 32), np.int32)), "TIFF"), "unreadable"),
        (raw_png(8, 0, np.zeros((1, 1000), np.uint8), high=10**5), "too many pixels"),
        (raw_png(8, 0, np.zeros((1, 1000), np.uint8), high=10**6), "too many pixels"),
        (saved(Image.new("1", (12_000, 9_000)), "PNG"), "too many pixels"),
        (saved(Image.new("RGB", (900, 4)), "PNG"), "tiny"),
        (saved(Image.new("RGB", (16, 900)), "PNG"), "thin"),
        (png(0, 15), "tiny"),
    ],
)
def test_what_is_refused_and_why(encoded: bytes, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # nothing may be started
    with pytest.raises(Unreadable, match=reason):
        pictures.read(encoded)
    (tmp_path / "a").write_bytes(encoded)
    with pytest.raises(Rejected, match=f"image: {reason}"):
        Photos([tmp_path], side=448).add("a")
    with pytest.raises(UserError, match=r"picture: '.*/a' cannot be read: .*; allowed: a picture's file"):
        read_picture(tmp_path / "a")
    assert picture_fault(encoded, []) == {"unreadable": "format", "tiny": "too small"}.get(reason, reason)
    if reason in ("unreadable", "too many pixels") and b"II*" not in encoded[:4]:
        with pytest.raises(UserError, match=r"image 'Goog/1': not a readable picture"):
            schema.decode("Goog/1", encoded)


def test_pictures_from_memory_are_read_alike() -> None:
    assert (np.asarray(read_picture(Image.fromarray(SIXTEEN))) == SEEN_GREYS).all()
    with pytest.raises(UserError, match=r"picture: a PIL image cannot be read: thin; allowed: a picture's file"):
        read_picture(Image.new("RGB", (900, 20)))


def test_damaged_notes_turn_nothing() -> None:
    encoded = oriented("JPEG", 6, quality=100, subsampling=0)
    assert pictures.read(encoded.replace(b"II*\0", b"II*\1").replace(b"MM\0*", b"MM\1*")).size == (WIDE, HIGH)


@pytest.mark.skipif(not (ASSETS / "emoji").exists(), reason="the drawings are not there")
def test_drawings_decode_to_the_same_pixels_as_ever() -> None:
    """As Pillow alone reads them: digests of edits that took long to make hold these pixels."""
    listed = [path for vendor in sorted((ASSETS / "emoji/").iterdir()) for path in sorted(vendor.glob("*.png"))[::150]]
    assert len(listed) > 20
    for path in listed:
        stored = Image.open(path)
        found = schema.decode("x", path.read_bytes())
        assert (found.size, found.mode, found.info.get("transparency")) == (
            (72, 72),
            stored.mode,
            stored.info.get("transparency"),
        )
        assert pixels(found) == pixels(stored)
    first = (ASSETS / "emoji/Goog/U+1F434.png").read_bytes()
    assert pixels(schema.decode("x", first)) == "a1fa0310da2a5822"


def test_no_picture_is_opened_without_its_formats() -> None:
    """But for the study's own drawings, whose digests are checked (`views`), and the example, which shows one of them."""
    opening = [
        path.relative_to(ROOT).as_posix()
        for folder in ("stages", "balancedit", "examples")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if any("Image.open(" in line and "formats=" not in line for line in path.read_text(encoding="utf-8").splitlines())
    ]
    assert opening == ["stages/backbone/views.py", "examples/balancedit_in_60_lines.py"]


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(TABLE)), st.data())
def test_damaged_files_end_in_one_reason_or_a_picture(kind: str, data: st.DataObject) -> None:
    encoded = bytearray(TABLE[kind][0]())
    for _ in range(data.draw(st.integers(0, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    encoded = bytes(encoded[: data.draw(st.integers(0, len(encoded)))] if data.draw(st.booleans()) else encoded)
    try:
        image = pictures.read(encoded)
        assert image.mode == "RGB" and min(image.size) >= pictures.SMALLEST
        assert image.width * image.height <= schema.MOST_PIXELS
    except Unreadable as error:
        assert str(error) in ("unreadable", "too many pixels", "tiny", "thin")
    try:
        schema.decode("x", encoded)
    except UserError as error:
        assert "image 'x': not a readable picture" in str(error)
