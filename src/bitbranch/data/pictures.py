"""Picture files to arrays, by Pillow."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's training pixels, scaled to 0..1, as all published networks have them."""


def open_rgb(data: bytes, name: str, *, at_least: int = 0) -> Image:
    """A decoded RGB picture.

    Args:
        data: the file's bytes.
        name: for errors.
        at_least: a JPEG file may be decoded at a half, a fourth or an eighth of its size, if both sides keep so many
            pixels; 0 keeps its size.

    Raises:
        InputError: not a picture, or a damaged one.
    """
    from PIL import Image

    with _readable(name):
        picture = Image.open(io.BytesIO(data))
        if at_least:
            picture.draft("RGB", (at_least, at_least))
        return _rgb(picture, name)


TAIL = 4096
"""Bytes at the end of a file; programs append notes of their own."""

ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xae\x42\x60\x82"}
"""What a whole file of a format has among its last bytes; others are decoded to be sure."""


def size_of(path: Path) -> tuple[int, int]:
    """Height and width of a picture file; JPEG and PNG are not decoded, unless they seem to be cut off.

    Raises:
        InputError: missing, not a picture, or cut off.
    """
    from PIL import Image

    with _readable(str(path)), path.open("rb") as file, Image.open(file) as picture:
        size = picture.height, picture.width
        file.seek(-min(TAIL, file.seek(0, io.SEEK_END)), io.SEEK_END)
        end = ENDS.get(picture.format or "")
        if end is None or end not in file.read():
            with Image.open(path) as whole:
                whole.load()
        return size


def decode_resized(
    path: Path, size: tuple[int, int], *, enlarge: bool = True, upright: bool = False
) -> npt.NDArray[np.uint8]:
    """The pixels, uint8 ``[H, W, 3]``, of a picture file, resized without regard to its proportions.

    Args:
        path: the file.
        size: height and width.
        enlarge: else a side that is shorter is left as it is.
        upright: turn it as its EXIF data say.

    Raises:
        InputError: missing, not a picture, or a damaged one.
    """
    from PIL import Image, ImageOps

    height, width = size
    with _readable(str(path)), Image.open(path) as file:
        file.draft("RGB", (2 * width, 2 * height))  # large JPEG files are decoded at a part of their size
        picture = _rgb(file, str(path))
        if upright:
            picture = ImageOps.exif_transpose(picture)
        if not enlarge:
            height, width = min(height, picture.height), min(width, picture.width)
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        return np.array(picture, np.uint8)


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn what Pillow raises into one line that names the picture."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # what is too large to decode is an error
            yield
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{name}: not a readable picture (of no known format)") from None
    except Exception as error:  # damaged bytes make decoders raise nearly anything
        said = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise InputError(f"{name}: not a readable picture ({said or type(error).__name__})") from None


def _rgb(picture: Image, name: str) -> Image:
    """A picture in red, green and blue of 8 bits; of 16 bits, the upper ones."""
    from PIL.Image import fromarray

    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG"):
        return fromarray((np.asarray(picture).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        raise InputError(f"{name}: a picture of 32 bits a pixel and channel; 8 or 16 are read")
    return picture.convert("RGB")


def decode(data: bytes, name: str, *, upright: bool = False) -> npt.NDArray[np.uint8]:
    """The pixels, uint8 ``[H, W, 3]``, of a picture, turned as its EXIF data say if it is to be ``upright``.

    Other arguments, and errors, as for :func:`open_rgb`.
    """
    from PIL import ImageOps

    picture = open_rgb(data, name)
    return np.array(ImageOps.exif_transpose(picture) if upright else picture, dtype=np.uint8)


def decode_labels(data: bytes, name: str) -> npt.NDArray[np.uint8]:
    """The numbers of a mask's pixels, uint8 ``[H, W]``: grey values, or indices into a palette.

    Raises:
        InputError: not a picture, a damaged one, or one without a number of 8 bits for each pixel.
    """
    from PIL import Image

    with _readable(name):
        picture = Image.open(io.BytesIO(data))
        pixels = np.array(picture)
    if picture.mode not in ("L", "P"):
        raise InputError(f"{name}: a picture of mode {picture.mode}; masks are grey of 8 bits or have a palette")
    return pixels
