"""The one way in for pictures that are not the study's own drawings: upright, opaque, 8 bits a channel, RGB.

What a viewer shows is what a model should see. Colour profiles are not applied.
"""

import io

import numpy as np
from PIL import Image

from stages.okedit.schema import Unreadable, opened

SMALLEST = 16  # pixels of the shorter side
THINNEST = 16  # times the shorter side: the longest that the longer one may be
TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
ORIENTATION, BITS, PHOTOMETRIC = 0x0112, 258, 262  # tags of EXIF and TIFF


def read(encoded: bytes) -> Image.Image:
    """A picture's file as RGB pixels; Unreadable says why not: unreadable, too many pixels, tiny, thin."""
    return plain(opened(encoded), _bits(encoded))


def pack(encoded: bytes, side: int) -> bytes:
    """The file as it is where it is a plain PNG or JPEG, else a PNG of what it shows; where the longer side is more than `side`
    pixels, a JPEG with that side. Unreadable as in `read`.
    """
    stored = opened(encoded)
    image = plain(stored, _bits(encoded))
    if max(image.size) <= side:
        return encoded if is_plain(stored) else _saved(image, "PNG")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return _saved(image, "JPEG", quality=95)


def is_plain(stored: Image.Image) -> bool:
    """Whether a loaded picture is shown as it is stored, in a format that everything here reads."""
    fit = stored.format in ("PNG", "JPEG", "MPO") and stored.mode in ("RGB", "L")
    return fit and not stored.has_transparency_data and _turn(stored) is None


def plain(image: Image.Image, bits: int = 8) -> Image.Image:
    """A picture, of a file or from memory, as a new RGB one: turned upright, what is transparent laid on white.

    `bits` is the depth of the file that a picture in 8 bits was read from. Unreadable where a file is damaged, for values of 32
    bits, whose range nobody knows, and for sides that no model could use.
    """
    if not all(image.size) or min(image.size) < SMALLEST:
        raise Unreadable("tiny")
    if max(image.size) > THINNEST * min(image.size):
        raise Unreadable("thin")
    try:
        image.load()
        turn = _turn(image)
        image = _on_white(_of_8_bits(image, bits))
        return image if turn is None else image.transpose(turn)
    except Unreadable:
        raise
    except Exception as error:  # no conversion, a palette that is cut off
        raise Unreadable("unreadable") from error


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How a picture must be turned to stand upright; TIFF files are upright once they are loaded."""
    try:
        return TURNED.get(image.getexif().get(ORIENTATION))
    except Exception:  # damaged notes about a picture say nothing about it
        return None


def _bits(encoded: bytes) -> int:
    """Bits a channel, where a PNG says so; 8 for other files."""
    return encoded[24] if encoded.startswith(b"\x89PNG") else 8


def _of_8_bits(image: Image.Image, bits: int) -> Image.Image:
    """The picture with 8 bits a channel, its transparent colour too, which Pillow leaves in a PNG's own `bits`."""
    if image.mode in ("I", "F"):
        raise Unreadable("unreadable")
    key = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        tags = getattr(image, "tag_v2", {})
        top = (1 << tags.get(BITS, (16,))[0]) - 1
        values = np.asarray(image).astype(np.int64)
        grey = (values.clip(0, top) * 255 + top // 2) // top
        grey = 255 - grey if tags.get(PHOTOMETRIC) == 0 else grey  # 0: white is zero
        alpha = np.where(values == key, 0, 255) if isinstance(key, int) else np.full_like(grey, 255)
        return Image.fromarray(np.stack([grey, alpha], -1).astype(np.uint8), "LA")
    if image.mode == "L" and isinstance(key, int) and bits < 8:
        image = image.copy()
        image.info["transparency"] = key * 255 // ((1 << bits) - 1)
    if image.mode == "RGB" and isinstance(key, tuple) and bits == 16:
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return image


def _on_white(image: Image.Image) -> Image.Image:
    """An RGB copy, without what the file said beside its pixels."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        white.alpha_composite(image)
        image = white
    shown = image.convert("RGB") if image.mode != "RGB" else image.copy()
    shown.info = {}
    return shown


def _saved(image: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
