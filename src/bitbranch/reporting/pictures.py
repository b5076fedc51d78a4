"""Boxes, masks and legends drawn into pictures, by Pillow."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..tasks.segmentation import IGNORED, resized

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

    Font = FreeTypeFont | ImageFont

Colour = tuple[int, int, int]
Pixels = npt.NDArray[np.uint8]

OPACITY = 0.55
"""Of a mask over its picture."""
PADDING = 3
"""Pixels around a text."""
SIZE = 10
"""Of letters in pixels."""


def palette(count: int) -> list[Colour]:
    """As many colours, the same every time, that neighbours in the list tell apart: hues by the golden angle."""
    from colorsys import hsv_to_rgb

    hues = [(0.58 + 0.381966 * i) % 1 for i in range(count)]
    made = [hsv_to_rgb(hue, 0.85 - 0.25 * (i % 2), 0.95 - 0.2 * (i % 3)) for i, hue in enumerate(hues)]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in made]


def with_boxes(
    pixels: Pixels, boxes: npt.NDArray[np.floating], labels: Sequence[str], colours: Sequence[Colour]
) -> Image:
    """A picture with labelled boxes.

    Args:
        pixels: uint8 ``[H, W, 3]``.
        boxes: ``[k, 4]``, x0, y0, x1, y1 as shares of width and height.
        labels: the text of each box; an empty one draws none.
        colours: of each box.
    """
    from PIL import Image, ImageDraw

    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    width = max(2, round(max(picture.size) / 250))
    corners = np.rint(np.asarray(boxes, np.float64).reshape(-1, 4) * np.tile(picture.size, 2))
    for (x0, y0, x1, y1), colour in zip(corners.tolist(), colours, strict=True):
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=colour, width=width)
    for (x0, y0, _, _), label, colour in zip(corners.tolist(), labels, colours, strict=True):
        if label:
            _tag(draw, x0, y0, label, colour, picture.size)
    return picture


def _tag(draw: ImageDraw, x: float, y: float, label: str, colour: Colour, size: tuple[int, int]) -> None:
    """A text on its colour, above the point where there is room."""
    label, font = lettering(label)
    left, top, right, bottom = draw.textbbox((0, 0), label, font=font)
    width, height = right - left + 2 * PADDING, bottom - top + 2 * PADDING
    x = min(max(0.0, x), max(0, size[0] - width))
    y = y - height if y >= height else y
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    draw.text((x + PADDING - left, y + PADDING - top), label, fill=_readable(colour), font=font)


def lettering(text: str) -> tuple[str, Font]:
    """A text and a font that has all its letters: Pillow's own has ASCII's, matplotlib's most others of Europe.

    Letters that neither has are written as their numbers, so that two names never look alike.
    """
    from PIL import ImageFont

    if text.isascii():
        return text, ImageFont.load_default()
    try:
        import matplotlib

        font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), SIZE)
    except (ImportError, OSError):
        return text.encode("ascii", "backslashreplace").decode(), ImageFont.load_default()
    lacking = bytes(font.getmask("\U0010ffff"))
    known = {letter: bytes(font.getmask(letter)) != lacking for letter in set(text)}
    return "".join(c if known[c] else c.encode("ascii", "backslashreplace").decode() for c in text), font


def _readable(background: Colour) -> str:
    r, g, b = background
    return "black" if 0.299 * r + 0.587 * g + 0.114 * b > 140 else "white"


def with_mask(
    pixels: Pixels, mask: npt.NDArray[np.integer], colours: Sequence[Colour], *, background: int = -1
) -> Image:
    """A picture under the colours of its classes.

    Args:
        pixels: uint8 ``[H, W, 3]``.
        mask: classes ``[h, w]``, brought to the picture's size by nearest neighbours; what is no class stays clear.
        colours: of the classes.
        background: a class that stays clear.
    """
    from PIL import Image

    known = (mask >= 0) & (mask < len(colours)) & (mask != background)
    labels = resized(np.where(known, mask, IGNORED).astype(np.uint8), (pixels.shape[0], pixels.shape[1]))
    blended = (np.arange(256) * (1 - OPACITY))[:, None, None] + np.array(colours, np.float64) * OPACITY + 0.5
    out = np.empty_like(pixels)
    for row, classes, target in zip(pixels, labels, out, strict=True):  # row by row: photographs are large
        clear = (classes == IGNORED)[:, None]
        target[:] = np.where(clear, row, blended[row, np.where(clear, 0, classes[:, None]), range(3)])
    return Image.fromarray(out)


def with_legend(picture: Image, names: Sequence[str], colours: Sequence[Colour]) -> Image:
    """The picture above the names of its classes, each behind a square of its colour, in as many lines as it takes.

    A picture that is narrower than a name gets white at its right.
    """
    from PIL import Image, ImageDraw

    probe = ImageDraw.Draw(picture)
    written = [lettering(name) for name in names]
    line = max((round(probe.textbbox((0, 0), "Ag", font=font)[3]) for _, font in written), default=0) + 2 * PADDING
    widths = [line + round(probe.textlength(text, font=font)) + 3 * PADDING for text, font in written]
    whole = max(picture.width, PADDING + max(widths, default=0))
    places, x, y = [], PADDING, 0
    for width in widths:
        if x > PADDING and x + width > whole:
            x, y = PADDING, y + line
        places.append((x, y))
        x += width
    out = Image.new("RGB", (whole, picture.height + y + line + PADDING), "white")
    out.paste(picture)
    draw = ImageDraw.Draw(out)
    for (x, y), (text, font), colour in zip(places, written, colours, strict=True):
        top = picture.height + y + PADDING
        draw.rectangle((x, top + 1, x + line - 2 * PADDING, top + line - 2 * PADDING + 1), fill=colour)
        draw.text((x + line - PADDING, top), text, fill="black", font=font)
    return out


def embedded(picture: Image, title: str) -> str:
    """The picture inside HTML, as a figure with a title (HTML)."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"<figure class=picture><img src='data:image/png;base64,{data}' alt=''>{title}</figure>"
