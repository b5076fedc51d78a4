"""Compiled networks that find objects in pictures or outline them; needs neither torch nor onnx, but Pillow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from .data.masks import fitted
from .data.pictures import decode, decode_resized, pixels_of, read_bytes, resized_pixels
from .errors import InputError
from .runtime.container import read
from .runtime.engine import Engine
from .tasks.boxes import DefaultBoxes, detections
from .tasks.segmentation import masks, restored

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = npt.NDArray[np.uint8]
Picture: TypeAlias = "str | os.PathLike[str] | Pixels | Image"


class Detector:
    """A compiled detector.

    Args:
        file: ``.bb``, of a network that was trained for detection.
        threads: of the engine.

    Attributes:
        classes: names of classes ``1 .. C``.

    Raises:
        InputError: missing, damaged, or for another task.
    """

    def __init__(self, file: str | os.PathLike[str], *, threads: int = 1) -> None:
        self.engine, info = _engine(file, "detection", "boxes", threads)
        self.classes = tuple(info["classes"].split(","))
        self.boxes = DefaultBoxes.from_json(info["boxes"])

    def __call__(self, picture: Picture, *, threshold: float = 0.5, most: float = 0.45) -> npt.NDArray[np.float32]:
        """What is in a picture: ``[k, 6]``, corners as shares of its width and height, score and class, best first.

        Args:
            picture: the file, its pixels, uint8 ``[H, W, 3]``, or a picture that Pillow has opened.
            threshold: scores below it are left out.
            most: overlap of two boxes of a class, of which the better one stays.

        Raises:
            InputError: not a readable picture, or a number that is not 0..1.
        """
        check_shares(threshold, most)
        size = self.boxes.image_size
        if isinstance(picture, (str, os.PathLike)):
            image = decode_resized(Path(picture), size, upright=True)
        else:
            image = resized_pixels(_pixels(picture), size)
        outputs = self.engine(np.ascontiguousarray(image.transpose(2, 0, 1)[None]))
        half = len(outputs) // 2
        (found,) = detections(outputs[:half], outputs[half:], self.boxes, threshold=threshold, most=most)
        return found


class Segmenter:
    """A compiled network for semantic segmentation.

    Args:
        file: ``.bb``, of a network that was trained for it.
        threads: of the engine.

    Attributes:
        classes: their names.
        colours: red, green and blue of each.

    Raises:
        InputError: missing, damaged, or for another task.
    """

    def __init__(self, file: str | os.PathLike[str], *, threads: int = 1) -> None:
        self.engine, info = _engine(file, "segmentation", "palette", threads)
        self.classes = tuple(info["classes"].split(","))
        self.colours = [(c[0], c[1], c[2]) for c in map(bytes.fromhex, info["palette"].split(","))]

    def __call__(self, picture: Picture) -> Pixels:
        """The class of every pixel ``[H, W]`` of a picture, given as to a :class:`Detector`.

        Raises:
            InputError: not a readable picture.
        """
        if isinstance(picture, (str, os.PathLike)):
            pixels = decode(read_bytes(Path(picture)), str(picture), upright=True)
        else:
            pixels = _pixels(picture)
        _, height, width = self.engine.program.input.shape
        image, _, inner = fitted(pixels, (height, width))
        logits = self.engine(np.ascontiguousarray(image.transpose(2, 0, 1)[None]))
        assert isinstance(logits, np.ndarray)
        return restored(masks(logits, (height, width)), inner, (pixels.shape[0], pixels.shape[1]))[0]


def _pixels(given: object) -> Pixels:
    from PIL.Image import Image

    if isinstance(given, Image):
        return pixels_of(given)
    if not isinstance(given, np.ndarray):
        raise InputError(f"a picture is a file, uint8 [H, W, 3] or one of Pillow's, got {type(given).__name__}")
    if given.ndim != 3 or given.shape[2] != 3 or given.dtype != np.uint8 or not given.size:
        raise InputError(f"a picture is uint8 [H, W, 3], got {given.dtype} {list(given.shape)}")
    return given.astype(np.uint8, copy=False)


def check_shares(threshold: float, most: float) -> None:
    """Raise :class:`InputError` where a score's threshold or an overlap is not 0..1."""
    if not 0 <= threshold <= 1 or not 0 <= most <= 1:
        raise InputError(f"detect: threshold and overlap are 0..1, got {threshold} and {most}")


def _engine(file: str | os.PathLike[str], task: str, needed: str, threads: int) -> tuple[Engine, dict[str, str]]:
    program = read(file)
    info = dict(program.info)
    if info.get("task", task) != task:
        raise InputError(f"{file}: a network for {info['task']}, not for {task}")
    if not {"classes", needed} <= info.keys():
        raise InputError(f"{file}: does not say its task, classes and {needed}; compile what `bitbranch train` made")
    return Engine(program, threads=threads), info
