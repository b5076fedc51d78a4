"""What detectors and segmenters say of a picture, and what is drawn of it: stubs for networks, expectations by hand."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import ExifTags, Image
from torch import Tensor, nn

from bitbranch import vision
from bitbranch.cli.main import main
from bitbranch.data.box_set import BoxSet
from bitbranch.data.masks import pairs
from bitbranch.errors import InputError
from bitbranch.reporting.pictures import palette, with_boxes, with_legend
from bitbranch.tasks.boxes import DefaultBoxes
from bitbranch.training import config, gallery, tasks
from bitbranch.vision import Detector, Segmenter

Pixels = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

THINGS = ("cup", "jug", "pan")
CELLS = DefaultBoxes((48, 96), ((1, 4),), (0.5, 0.5), ((),), variances=(1.0, 1.0))
"""Four boxes side by side, each a fourth of the width, and half of the height in the middle."""
JUG, SECOND, PAN = (1 / 8, 3 / 8, 3 / 8, 7 / 8), (1 / 8, 1 / 4, 3 / 8, 3 / 4), (5 / 8, 1 / 4, 7 / 8, 3 / 4)
"""What :func:`answers` has found: a jug, a second one that overlaps it by 36 of 60 parts, a pan."""


def answers(count: int = 1) -> tuple[list[npt.NDArray[np.float32]], list[npt.NDArray[np.float32]]]:
    """Class and box maps of as many pictures with a jug of score 0.9, one of 0.8 and a pan of 0.7."""
    scores = [[0.04, 0.03, 0.9, 0.03], [0.1, 0.05, 0.8, 0.05], [0.2, 0.05, 0.05, 0.7], [0.94, 0.02, 0.02, 0.02]]
    moved = [[0.5, 0.25, 0, 0], [-0.5, 0, 0, 0], [0.5, 0, 0, 0], [0, 0, 0, 0]]  # in parts of a box
    classes, places = (np.array(rows, np.float32).T.reshape(1, 4, 1, 4) for rows in (np.log(scores), moved))
    return [classes.repeat(count, 0)], [places.repeat(count, 0)]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Pixels]:
    """Detectors load stubs that answer :func:`answers`; the images that they are given."""
    images = list[Pixels]()
    info = {"task": "detection", "classes": "cup,jug,pan", "boxes": CELLS.to_json()}

    def answer(image: Pixels) -> list[npt.NDArray[np.float32]]:
        images.append(image)
        classes, places = answers()
        return [*classes, *places]

    monkeypatch.setattr(vision, "read", lambda _: SimpleNamespace(info=info))
    monkeypatch.setattr(vision, "Engine", lambda *_, **__: answer)
    return images


PLAIN = np.full((96, 160, 3), (10, 20, 30), np.uint8)


def outlined(pixels: Pixels, corners: tuple[int, int, int, int], colour: Colour) -> Pixels:
    """A frame of two pixels inside these corners."""
    (x0, y0, x1, y1), out = corners, pixels.copy()
    out[y0:y1, x0:x1] = colour
    out[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2] = pixels[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2]
    return out


def test_detections_are_listed_and_drawn_where_they_are(seen: list[Pixels], tmp_path: Path) -> None:
    Image.fromarray(PLAIN).save(tmp_path / "a.png")
    out = tmp_path / "out"
    assert main(["detect", "net.bb", str(tmp_path / "a.png"), "--out", str(out)]) == 0
    jug = {"class": "jug", "score": 0.9, "box": [20.0, 36.0, 60.0, 84.0]}
    pan = {"class": "pan", "score": 0.7, "box": [100.0, 24.0, 140.0, 72.0]}
    row = {"file": str(tmp_path / "a.png"), "picture": "a.png", "width": 160, "height": 96, "objects": [jug, pan]}
    assert json.loads((out / "detections.json").read_text()) == [row]
    drawn, colours = np.asarray(Image.open(out / "a.png")), palette(3)[1:]
    expected = outlined(outlined(PLAIN, (20, 36, 60, 84), colours[0]), (100, 24, 140, 72), colours[1])
    np.testing.assert_array_equal(drawn[37:], expected[37:])  # below what is written above the boxes
    labelled = with_boxes(PLAIN, np.array([JUG, PAN]), ["jug 0.90", "pan 0.70"], colours)
    np.testing.assert_array_equal(drawn, np.asarray(labelled))
    assert [image.shape for image in seen] == [(1, 3, 48, 96)]
    assert (seen[0][0] == np.array([10, 20, 30]).reshape(3, 1, 1)).all()


def test_pictures_are_files_pixels_or_what_pillow_opened(seen: list[Pixels], tmp_path: Path) -> None:
    """All three give the same, turned as the file says; anything else is named."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 40, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    file = tmp_path / "turned.png"
    Image.fromarray(pixels).save(file, exif=exif)
    detector = Detector("net.bb")
    with Image.open(file) as opened:
        for picture in (file, str(file), np.ascontiguousarray(np.rot90(pixels, -1)), opened):
            detector(picture)
    assert len(seen) == 4 and all(np.array_equal(image, seen[0]) for image in seen[1:])
    detector(Image.fromarray(pixels[..., 0]))  # grey
    for wrong, what in (([[0]], "got list"), (None, "got NoneType"), (pixels[..., 0], r"got uint8 \[64, 40\]")):
        with pytest.raises(InputError, match=what):
            detector(wrong)  # type: ignore[arg-type]
    closed = Image.open(file)
    closed.close()
    with pytest.raises(InputError, match=r"turned.png: not a readable picture"):
        detector(closed)


def test_the_overlap_of_boxes_that_stay_can_be_chosen(seen: list[Pixels], tmp_path: Path) -> None:
    """The second jug overlaps the better one by 0.6."""
    Image.fromarray(PLAIN).save(tmp_path / "a.png")

    def listed(*options: str) -> list[float]:
        command = ["detect", "net.bb", str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), *options]
        assert main(command) == 0
        (row,) = json.loads((tmp_path / "out" / "detections.json").read_text())
        return [thing["score"] for thing in row["objects"]]

    assert listed() == listed("--overlap", "0.59") == [0.9, 0.7]
    assert listed("--overlap", "0.61") == [0.9, 0.8, 0.7]
    assert listed("--overlap", "0.61", "--threshold", "0.75") == [0.9, 0.8]
    detector = Detector("net.bb")
    assert detector.classes == THINGS
    rows = {most: detector(PLAIN, most=most) for most in (0.59, 0.61)}
    assert [len(found) for found in rows.values()] == [2, 3]
    np.testing.assert_allclose(rows[0.61], [[*JUG, 0.9, 2], [*SECOND, 0.8, 2], [*PAN, 0.7, 3]], rtol=1e-6)


# ---- segmentation

COLOURS: tuple[Colour, ...] = ((100, 100, 100), (200, 20, 40), (40, 220, 120))
SCENE = np.full((96, 160, 3), 60, np.uint8)
SCENE[:48, :40], SCENE[:, 120:] = (255, 0, 0), (0, 0, 255)
AREAS = np.zeros((96, 160), np.uint8)
AREAS[:48, :40], AREAS[:, 120:] = 1, 2


def stub_of_areas(monkeypatch: pytest.MonkeyPatch, classes: str, size: tuple[int, int]) -> None:
    """Segmenters load a network for images of this size: what is red is class 1, what is blue is class 2."""
    info = {"task": "segmentation", "classes": classes, "palette": "646464,c81428,28dc78"}

    class Stub:
        def __init__(self, program: Any, *, threads: int) -> None:
            self.program = program

        def __call__(self, image: Pixels) -> npt.NDArray[np.float32]:
            assert image.shape == (1, 3, *size) and image.dtype == np.uint8
            red, _, blue = image[0] > 128
            return np.stack([~(red | blue), red, blue])[None].astype(np.float32)

    program = SimpleNamespace(info=info, input=SimpleNamespace(shape=(3, *size)))
    monkeypatch.setattr(vision, "read", lambda _: program)
    monkeypatch.setattr(vision, "Engine", Stub)


@pytest.mark.parametrize("size", [(64, 80), (48, 112), (100, 200), (48, 80)])
def test_masks_have_their_pictures_proportions(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the network's images are higher than the picture, wider, larger, or just so."""
    stub_of_areas(monkeypatch, "background,cup,saucer", size)
    segmenter = Segmenter("net.bb")
    assert segmenter.classes == ("background", "cup", "saucer") and tuple(segmenter.colours) == COLOURS
    np.testing.assert_array_equal(segmenter(SCENE), AREAS)


@pytest.mark.parametrize(("first", "shown"), [("background", (60, 60, 60)), ("wall", (82, 82, 82))])
def test_areas_are_listed_and_drawn_in_their_colours(
    first: str, shown: Colour, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Colours cover 0.55 of the picture, but for those of a background."""
    stub_of_areas(monkeypatch, f"{first},cup,saucer", (64, 80))
    Image.fromarray(SCENE).save(tmp_path / "a.png")
    out = tmp_path / "out"
    assert main(["segment", "net.bb", str(tmp_path / "a.png"), "--out", str(out)]) == 0
    shares = {first: 0.625, "cup": 0.125, "saucer": 0.25}
    row = {"file": str(tmp_path / "a.png"), "picture": "a.png", "width": 160, "height": 96, "shares": shares}
    assert json.loads((out / "segments.json").read_text()) == [row]
    alone = Image.open(out / "a-mask.png")
    assert alone.mode == "P" and (alone.getpalette() or [])[:9] == [100, 100, 100, 200, 20, 40, 40, 220, 120]
    np.testing.assert_array_equal(np.asarray(alone), AREAS)
    drawn = np.asarray(Image.open(out / "a.png"))
    np.testing.assert_array_equal(drawn[:96], np.array([shown, (225, 11, 22), (22, 121, 181)])[AREAS])
    legend = with_legend(Image.fromarray(SCENE), [first, "cup", "saucer"], COLOURS)
    np.testing.assert_array_equal(drawn[96:], np.asarray(legend)[96:])


# ---- the pictures in reports

MEAN, STD = (0.5, 0.25, 0.125), (0.5, 0.25, 2.0)
SIGHTS = ((60, 60, 60), (160, 100, 40))


def normalised(height: int, width: int) -> Tensor:
    """Two images, each of one of the colours of :data:`SIGHTS`, as networks get them."""
    pixels = np.array(SIGHTS)[:, :, None, None].repeat(height, 2).repeat(width, 3) / 255
    mean, std = (np.array(numbers)[:, None, None] for numbers in (MEAN, STD))
    return torch.from_numpy(((pixels - mean) / std).astype(np.float32))


def in_html(html: str) -> list[tuple[str, Pixels]]:
    """The titles and pictures of a report, in their order."""
    found = re.findall(r"base64,([^']*)' alt=''>([^<]*)</figure>", html)
    return [(title, np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))) for data, title in found]


class Finder(nn.Module):
    """Finds the same in all images."""

    default_boxes = CELLS

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        classes, places = ([torch.from_numpy(m) for m in part] for part in answers(len(images)))
        return classes, places


class Blind(Finder):
    """Finds nothing."""

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        classes, places = super().forward(images)
        return [torch.zeros_like(m) for m in classes], places


def test_galleries_of_boxes_show_the_truth_and_what_was_found() -> None:
    targets = torch.tensor([[[0.25, 0.25, 0.5, 0.75, 3], [0.5, 0.5, 1, 1, 1]], [[0.0] * 5] * 2])
    networks = {"blind": Blind(), "low-bit": Finder()}
    html = gallery.boxes(networks, normalised(48, 96), targets, THINGS, CELLS, MEAN, STD)
    colours, shown = palette(3), in_html(html)
    assert [title for title, _ in shown] == ["truth", "blind", "low-bit"] * 2
    for number, sight in enumerate(SIGHTS):  # enlarged three times, to 200 pixels at least
        pixels = np.full((144, 288, 3), sight, np.uint8)
        truth, blind, found = (picture for _, picture in shown[3 * number : 3 * number + 3])
        true = with_boxes(pixels, targets[0, :, :4].numpy(), ["pan", "cup"], [colours[2], colours[0]])
        np.testing.assert_array_equal(truth, pixels if number else np.asarray(true))
        np.testing.assert_array_equal(blind, pixels)
        both = with_boxes(pixels, np.array([JUG, PAN]), ["jug", "pan"], colours[1:])
        np.testing.assert_array_equal(found, np.asarray(both))


class Painter(nn.Module):
    """Gives every image the same classes."""

    def __init__(self, labels: list[list[int]]) -> None:
        super().__init__()
        self.labels = torch.tensor(labels)

    def forward(self, images: Tensor) -> Tensor:
        logits = nn.functional.one_hot(self.labels, 3).permute(2, 0, 1).float()
        return logits.expand(len(images), -1, -1, -1)


def test_galleries_of_masks_show_the_truth_and_what_was_found() -> None:
    """By hand, 0.45 of the picture and 0.55 of the colour; the background and what is ignored stay clear."""
    truth = torch.tensor([[[1, 255], [1, 255]], [[0, 0], [2, 0]]])
    networks = {"float": Painter([[2, 2], [2, 2]]), "low-bit": Painter([[1, 1], [0, 2]])}
    classes = ("background", "cup", "saucer")
    html = gallery.areas(networks, normalised(2, 2), truth, classes, COLOURS, MEAN, STD)
    mixed = {
        (0, 0): (60, 60, 60), (0, 1): (137, 38, 49), (0, 2): (49, 148, 93),
        (1, 0): (160, 100, 40), (1, 1): (182, 56, 40), (1, 2): (94, 166, 84),
    }  # fmt: skip
    expected = [
        ("truth", 0, [[1, 0], [1, 0]]), ("float", 0, [[2, 2], [2, 2]]), ("low-bit", 0, [[1, 1], [0, 2]]),
        ("truth", 1, [[0, 0], [2, 0]]), ("float", 1, [[2, 2], [2, 2]]), ("low-bit", 1, [[1, 1], [0, 2]]),
    ]  # fmt: skip
    shown = in_html(html)
    assert [title for title, _ in shown] == [title for title, _, _ in expected]
    for (_, picture), (_, image, labels) in zip(shown, expected, strict=True):
        small = np.array([[mixed[image, label] for label in row] for row in labels], np.uint8)
        np.testing.assert_array_equal(picture, small.repeat(100, 0).repeat(100, 1))
    legend = re.findall(r"background:rgb\(([^)]*)\)'></i>([^<]*)<", html)
    assert legend == [("100,100,100", "background"), ("200,20,40", "cup"), ("40,220,120", "saucer")]


def photograph(path: Path, seed: int) -> Pixels:
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 96, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def test_reports_of_a_run_show_its_test_pictures(tmp_path: Path) -> None:
    """As they are in the files, under the names of the set's classes."""
    pixels = photograph(tmp_path / "images" / "test" / "a.png", 1)
    large = pixels.repeat(3, 0).repeat(3, 1)
    labels = np.zeros((48, 96), np.uint8)
    labels[:, 48:] = 255
    (tmp_path / "masks" / "test").mkdir(parents=True)
    Image.fromarray(labels).save(tmp_path / "masks" / "test" / "a.png")
    areas = pairs("test", tmp_path, classes=("background", "cup", "saucer"), colours=COLOURS, size=(48, 96))
    data = config.Data(set="mask-folder", path=str(tmp_path))
    (_, truth), (_, found) = in_html(
        tasks.SemanticSegmentation(data, areas, areas).gallery({"net": Painter([[0] * 96] * 48)})
    )
    np.testing.assert_array_equal(truth, large)
    np.testing.assert_array_equal(found, large)
    boxes = BoxSet(
        (str(tmp_path / "images" / "test" / "a.png"),), (np.array([[0.25, 0.5, 0.75, 1, 2]], np.float32),),
        (np.array([False]),), np.array([[48, 96]]), THINGS, (48, 96), "one picture",
    )  # fmt: skip
    (_, truth), (_, found) = in_html(tasks.ObjectDetection(data, boxes, boxes).gallery({"net": Finder()}))
    colours = palette(3)[1:]
    true = with_boxes(large, np.array([[0.25, 0.5, 0.75, 1]]), ["jug"], colours[:1])
    np.testing.assert_array_equal(truth, np.asarray(true))
    both = with_boxes(large, np.array([JUG, PAN]), ["jug", "pan"], colours)
    np.testing.assert_array_equal(found, np.asarray(both))
