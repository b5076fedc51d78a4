"""Picture files: which way up, how many bits; and what is drawn into them."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageOps

from bitbranch.data.pictures import decode, decode_labels, decode_resized, size_of
from bitbranch.errors import InputError
from bitbranch.reporting.pictures import OPACITY, lettering, palette, with_boxes, with_legend, with_mask

Array = npt.NDArray[np.integer]


def encoded(pixels: Array, suffix: str = "png", orientation: int = 0, exif: bytes = b"") -> bytes:
    buffer, tags = io.BytesIO(), Image.Exif()
    if orientation:
        tags[0x0112] = orientation
    Image.fromarray(pixels).save(buffer, suffix, exif=exif or tags.tobytes())
    return buffer.getvalue()


def grey_png(bits: int, pixels: Array) -> bytes:
    """A greyscale PNG file of so few bits, which Pillow does not write."""
    height, width = pixels.shape
    rows = b""
    for row in pixels.tolist():
        text = "".join(f"{value:0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        rows += b"\0" + int(text, 2).to_bytes(len(text) // 8, "big")

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


COLOUR = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
DEEP = np.random.default_rng(1).integers(0, 256, (5, 7), np.uint16) * 257


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(orientation: int, tmp_path: Path) -> None:
    data, file = encoded(COLOUR, orientation=orientation), tmp_path / "a.png"
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(decode(data, "a", upright=True), upright)
    np.testing.assert_array_equal(decode(data, "a"), COLOUR)
    tiff = encoded(COLOUR, "tiff", orientation)  # which Pillow turns itself
    np.testing.assert_array_equal(decode(tiff, "a", upright=True), upright)
    for kind, given in (("png", data), ("jpeg", encoded(COLOUR, "jpeg", orientation)), ("tiff", tiff)):
        file.with_suffix(f".{kind}").write_bytes(given)
        assert size_of(file.with_suffix(f".{kind}")) == upright.shape[:2]
    assert decode_resized(file, upright.shape[:2], upright=True).tolist() == upright.tolist()
    deep = decode(encoded(DEEP, orientation=orientation), "deep", upright=True)
    flat = decode(encoded((DEEP >> 8).astype(np.uint8), orientation=orientation), "flat", upright=True)
    np.testing.assert_array_equal(deep, flat)


@pytest.mark.parametrize("suffix", ["png", "jpeg", "webp"])
def test_damaged_exif_says_nothing(suffix: str, tmp_path: Path) -> None:
    data = encoded(COLOUR, suffix, exif=b"Exif\0\0garbage here that is no tiff")
    (tmp_path / "a").write_bytes(data)
    assert size_of(tmp_path / "a") == (5, 7)
    np.testing.assert_array_equal(decode(data, "a", upright=True), decode(data, "a"))


def test_sixteen_bits_in_every_format(tmp_path: Path) -> None:
    expected = np.repeat((DEEP >> 8).astype(np.uint8)[..., None], 3, -1)
    pgm = b"P5 7 5 65535\n" + DEEP.astype(">u2").tobytes()
    for data in (encoded(DEEP), encoded(DEEP, "tiff"), pgm):
        np.testing.assert_array_equal(decode(data, "deep"), expected)
    with pytest.raises(InputError, match="wide: a picture of 32 bits a pixel"):
        decode(encoded(DEEP.astype(np.int32), "tiff"), "wide")


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_masks_of_few_bits_keep_their_labels(bits: int) -> None:
    labels = np.arange(33).reshape(3, 11) % 2**bits
    if bits == 1:
        with pytest.raises(InputError, match="a: a picture of mode 1"):
            decode_labels(grey_png(1, labels), "a")
        return
    np.testing.assert_array_equal(decode_labels(grey_png(bits, labels), "a"), labels)


def test_a_mask_over_a_picture_by_hand() -> None:
    pixels, colours = np.random.default_rng(2).integers(0, 256, (4, 6, 3), np.uint8), palette(3)
    mask = np.array([[0, 1, 2], [2, 7, -1]])
    drawn = np.asarray(with_mask(pixels, mask, colours, background=0))
    for y in range(4):
        for x in range(6):
            label = mask[y // 2, x // 2]
            clear = label not in (1, 2)
            colour = pixels[y, x] if clear else pixels[y, x] * (1 - OPACITY) + np.array(colours[label]) * OPACITY
            np.testing.assert_allclose(drawn[y, x], colour, atol=0.51)


def test_boxes_are_framed_inside_their_corners() -> None:
    pixels = np.random.default_rng(3).integers(0, 200, (90, 150, 3), np.uint8)
    boxes, colours = np.array([[0.5, 0.5, 1, 1], [0, 0, 0.5, 0.5]]), [(255, 0, 0), (0, 255, 0)]
    expected = pixels.copy()
    expected[45:90, 75:150], expected[0:45, 0:75] = colours
    expected[47:88, 77:148], expected[2:43, 2:73] = pixels[47:88, 77:148], pixels[2:43, 2:73]
    plain = np.asarray(with_boxes(pixels, boxes, ["", ""], colours))
    np.testing.assert_array_equal(plain, expected)
    tagged = np.asarray(with_boxes(pixels, boxes, ["cup", ""], colours))
    rows, columns = np.nonzero((tagged != plain).any(2))
    assert 20 < rows.min() and rows.max() < 47 and columns.min() == 75 and columns.max() < 120
    assert tagged[44, 75].tolist() == [255, 0, 0]  # its text stands above the box, on its colour


def test_names_that_differ_look_different() -> None:
    names = ["größe", "grüße", "собака", "кошкам", "日本", "犬猫", "plain"]
    drawn = [
        with_boxes(np.zeros((40, 200, 3), np.uint8), np.array([[0, 0.6, 1, 1]]), [name], [(255, 255, 255)]).tobytes()
        for name in names
    ]
    assert len(set(drawn)) == len(names)
    assert lettering("plain")[0] == "plain" and lettering("собака")[0] == "собака"
    assert lettering("日本")[0] == r"\u65e5\u672c"


@pytest.mark.parametrize("width", [1, 48, 300])
def test_a_legend_has_room_for_its_longest_name(width: int) -> None:
    picture = Image.fromarray(np.zeros((10, width, 3), np.uint8))
    names = ["building", "pavement", "größe"]
    alone = [np.asarray(with_legend(picture, [name], palette(1))) for name in names]
    whole = with_legend(picture, names, palette(3))
    assert whole.width == max(a.shape[1] for a in alone) >= width
    for one in alone:  # no letter touches the edge
        assert (one[10:, -1] == 255).all()
    assert (np.asarray(whole)[:10, :width] == 0).all() and (np.asarray(whole)[:10, width:] == 255).all()


def test_a_legend_has_each_name_behind_its_own_colour() -> None:
    picture = Image.fromarray(np.zeros((10, 300, 3), np.uint8))
    names, colours = ["sky", "road", "car"], [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    whole = np.asarray(with_legend(picture, names, colours))[10:]
    starts = [int(np.flatnonzero((whole == colour).all(2).any(0))[0]) for colour in colours]
    assert starts == sorted(starts)
    for name, colour, start, end in zip(names, colours, starts, [*starts[1:], 250], strict=True):
        alone = np.asarray(with_legend(picture, [name], [colour]))[10:]
        first = int(np.flatnonzero((alone == colour).all(2).any(0))[0])
        np.testing.assert_array_equal(whole[:, start:end], alone[:, first : first + end - start])
