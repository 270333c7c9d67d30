"""Views of an edit's picture: what it shows, drawn otherwise. They are positive samples for a key that sees the picture alone.

Each view changes more than the one before. By the distance of what the connector says, the last is about as far from the picture
as another artist's drawing of the same is.
"""

from PIL import Image, ImageEnhance, ImageOps

from stages.backbone.tower import flatten
from stages.okedit.schema import Picture, decode, encode

WHITE = (255, 255, 255)
TILT = 10  # degrees
PALE = 0.6  # share of the colours' saturation that is left
COLOURS = 6


def views_of(edit_id: str, image_id: str, png: bytes) -> list[Picture]:
    """Three views of a picture: turned and paler; grey; smaller, of few flat colours. All are mirrored, and laid on white."""
    image = ImageOps.mirror(flatten(decode(image_id, png)))
    turned = image.rotate(TILT, Image.Resampling.BICUBIC, fillcolor=WHITE)
    pale = ImageEnhance.Color(smaller(turned, 0.9)).enhance(PALE)
    views = pale, image.convert("L"), smaller(image, 0.85).quantize(COLOURS)
    pictures = [encode(view.convert("RGB")) for view in views]
    return [Picture(f"view_{n}/{edit_id}", "", "", picture) for n, picture in enumerate(pictures, 1)]


def smaller(image: Image.Image, share: float) -> Image.Image:
    """A picture in the middle of a white one of its own size, at a `share` of it."""
    width, height = (max(1, round(side * share)) for side in image.size)
    canvas, small = Image.new("RGB", image.size, WHITE), image.resize((width, height), Image.Resampling.BICUBIC)
    canvas.paste(small, ((image.width - width) // 2, (image.height - height) // 2))
    return canvas
