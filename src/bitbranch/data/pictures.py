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


def open_rgb(data: bytes, name: str, *, at_least: int = 0, upright: bool = False) -> Image:
    """A decoded RGB picture.

    Args:
        data: the file's bytes.
        name: for errors.
        at_least: a JPEG file may be decoded at a half, a fourth or an eighth of its size, if both sides keep so many
            pixels; 0 keeps its size.
        upright: turn it as its EXIF data say, where they can be read.

    Raises:
        InputError: not a picture, or a damaged one.
    """
    from PIL import Image

    with _readable(name):
        picture = Image.open(io.BytesIO(data))
        if at_least:
            picture.draft("RGB", (at_least, at_least))
        return _rgb(picture, name, upright=upright)


TAIL = 4096
"""Bytes at the end of a file; programs append notes of their own."""

ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xae\x42\x60\x82"}
"""What a whole file of a format has among its last bytes; others are decoded to be sure."""


def size_of(path: Path) -> tuple[int, int]:
    """Height and width of a picture file when it is upright; JPEG and PNG are decoded only if they seem to be cut off.

    Raises:
        InputError: missing, not a picture, or cut off.
    """
    from PIL import Image

    with _readable(str(path)), path.open("rb") as file, Image.open(file) as picture:
        size = (picture.width, picture.height) if _orientation(picture) in SIDEWAYS else (picture.height, picture.width)
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
    from PIL import Image

    height, width = size
    with _readable(str(path)), Image.open(path) as file:
        file.draft("RGB", (2 * width, 2 * height))  # large JPEG files are decoded at a part of their size
        picture = _rgb(file, str(path), upright=upright)
        if not enlarge:
            height, width = min(height, picture.height), min(width, picture.width)
        return _resized(picture, (height, width))


def resized_pixels(pixels: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """A picture's pixels ``[H, W, 3]`` as :func:`decode_resized` gives those of a file that is not larger."""
    from PIL import Image

    return _resized(Image.fromarray(pixels), size)


def _resized(picture: Image, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    from PIL.Image import Resampling

    wanted = size[1], size[0]
    return np.array(picture if picture.size == wanted else picture.resize(wanted, Resampling.BILINEAR), np.uint8)


def read_bytes(path: Path) -> bytes:
    """A file's content; raises :class:`InputError` where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # a null in its name
        raise InputError(f"{str(path)!r}: cannot be read ({error})") from None


def read_text(path: Path) -> str:
    """A file's text, in UTF-8 with or without a byte-order mark.

    Raises:
        InputError: it cannot be read, or is no UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 (byte {error.start})") from None


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


def _rgb(picture: Image, name: str, *, upright: bool) -> Image:
    """A picture in red, green and blue of 8 bits; of 16 bits, the upper ones."""
    from PIL.Image import Transpose, fromarray

    turn = _orientation(picture) if upright else 1
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM")):
        picture = fromarray((np.asarray(picture).astype(np.uint32) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise InputError(f"{name}: a picture of 32 bits a pixel and channel; 8 or 16 are read")
    picture = picture.convert("RGB")
    return picture.transpose(Transpose[TURNS[turn]]) if turn in TURNS else picture


TURNS = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
    8: "ROTATE_90",
}  # fmt: skip
"""What makes a picture upright, by its orientation in EXIF."""
SIDEWAYS = (5, 6, 7, 8)


def _orientation(picture: Image) -> int:
    """As EXIF counts it: 1 is upright, and so is what has no EXIF data, or damaged ones."""
    from PIL.ExifTags import Base

    if picture.format == "TIFF":  # Pillow turns it when its pixels are read, and then knows it as upright
        picture.load()
    if picture.format == "PNG" and "exif" not in picture.info:  # else Pillow decodes it to look behind the pixels
        return 1
    try:
        return int(picture.getexif().get(Base.Orientation, 1))
    except Exception:  # as with pixels, damaged bytes raise nearly anything
        return 1


def decode(data: bytes, name: str, *, upright: bool = False) -> npt.NDArray[np.uint8]:
    """The pixels, uint8 ``[H, W, 3]``, of a picture, turned as its EXIF data say if it is to be ``upright``.

    Other arguments, and errors, as for :func:`open_rgb`.
    """
    return np.array(open_rgb(data, name, upright=upright), dtype=np.uint8)


def pixels_of(picture: Image) -> npt.NDArray[np.uint8]:
    """The pixels, uint8 ``[H, W, 3]``, of a picture that Pillow has opened, turned as its EXIF data say.

    Raises:
        InputError: its file is damaged or closed, or it has 32 bits a channel.
    """
    name = str(getattr(picture, "filename", "") or "the picture")
    with _readable(name):
        return np.array(_rgb(picture, name, upright=True), dtype=np.uint8)


def decode_labels(data: bytes, name: str) -> npt.NDArray[np.uint8]:
    """The numbers of a mask's pixels, uint8 ``[H, W]``: grey values, or indices into a palette.

    Raises:
        InputError: not a picture, a damaged one, or one without a number of 8 bits for each pixel.
    """
    from PIL import Image

    with _readable(name):
        picture = Image.open(io.BytesIO(data))
        raw = str(picture.tile[0][3]) if picture.format == "PNG" and picture.mode == "L" else ""
        pixels = np.array(picture)
    if picture.mode not in ("L", "P"):
        raise InputError(f"{name}: a picture of mode {picture.mode}; masks are grey of 8 bits or have a palette")
    return pixels // GREYS.get(raw, 1)


GREYS = {"L;2": 85, "L;4": 17}
"""What Pillow multiplies the greys of a PNG file by that has less than 8 bits."""
