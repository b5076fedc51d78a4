"""Batches of pictures with boxes, augmented as SSD's are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..tasks.boxes import intersection_over_union
from . import colours
from .batches import Arrays, BatchSource
from .box_set import BoxSet
from .pictures import decode_resized

OVERLAPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
"""What a random crop overlaps an object by at least; 0 is any crop."""

TRIES = 50
"""Crops that are drawn for one minimum overlap before another is."""

COLOUR = (32.0, 0.5, 0.5, 18.0)
"""Of the distortion: brightness by as many of 255 grey levels, contrast and saturation by a share, hue by degrees."""


@dataclass(frozen=True)
class Augmentation:
    """What is done to training pictures by chance.

    Args:
        colour: brightness, contrast, saturation and hue are changed, each of half of the pictures.
        expand: half of the pictures are laid into a canvas of up to so many times their height and width, filled with
            the set's mean; 1 never does.
        crop: the smallest side of a random crop, as a share of the picture's; 1 never crops.
        flip: half of the pictures are mirrored.
        upside_down: half of them are also turned upside down, where up and down mean nothing.

    Raises:
        InputError: a number out of range.

    Source: Liu et al., arXiv 1512.02325, sections 2.2 and 3.6; Howard, arXiv 1312.5402, for the colours.
    """

    colour: bool = True
    expand: float = 4.0
    crop: float = 0.3
    flip: bool = True
    upside_down: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.expand < math.inf or not 0 < self.crop <= 1:
            raise InputError(
                f"augmentation: expand is at least 1 and crop a share above 0, got {self.expand} and {self.crop}"
            )


class BoxBatches(BatchSource):
    """Batches of pictures with boxes, resized to the network's size; augmented for training.

    Targets are float32 ``[n, M, 5]``: corners as shares of the image's width and height, and the class ``1 .. C``;
    rows of zeros fill up. ``M`` is the largest number of boxes in the batch, and at least 1.

    Decoded pictures are kept in memory at the network's size, for training at up to twice that; with worker processes
    they are decoded before the first batch, so that the workers share them.

    Args:
        pictures: the set.
        size, training, seed, workers, part: see :class:`~bitbranch.data.batches.BatchSource`.
        augmentation: of training pictures.
        difficult: let targets hold difficult boxes, too; crowds are better left out.
        memory: bytes of decoded pictures to keep; what is beyond is decoded each time.

    Raises:
        InputError: while iterating, a picture that cannot be read; names it.
    """

    def __init__(
        self,
        pictures: BoxSet,
        *,
        size: int,
        augmentation: Augmentation | None = None,
        difficult: bool = True,
        seed: int = 0,
        training: bool = True,
        workers: int = 0,
        part: tuple[int, int] = (0, 1),
        memory: int = 2**30,
    ) -> None:
        super().__init__(pictures, size=size, training=training, seed=seed, workers=workers, part=part)
        self.pictures, self.augmentation = pictures, augmentation if augmentation is not None else Augmentation()
        self.difficult = difficult
        self.memory = memory
        self.kept: dict[int, npt.NDArray[np.uint8]] = {}

    def plan(self, epoch: int) -> Any:
        if self.workers and not self.kept:
            for index in range(self.count):
                if self._decoded(index) is not self.kept.get(index):
                    break  # the memory is full
        return self.order(epoch)[0], epoch

    def batch(self, plan: Any, number: int) -> Arrays:
        order, epoch = plan
        chosen = self.chosen(order, number).tolist()
        images = np.empty((len(chosen), *self.pictures.shape), np.uint8)
        boxes = list[npt.NDArray[np.float32]]()
        for image, index in zip(images, chosen, strict=True):
            view, kept = self._view(index, epoch)
            image[:] = view.transpose(2, 0, 1)
            boxes.append(kept)
        targets = np.zeros((len(chosen), max([1, *map(len, boxes)]), 5), np.float32)
        for target, kept in zip(targets, boxes, strict=True):
            target[: len(kept)] = kept
        return images, targets

    def _decoded(self, index: int) -> npt.NDArray[np.uint8]:
        """The pixels ``[H, W, 3]`` of a picture, from memory if they are there."""
        if index in self.kept:
            return self.kept[index]
        height, width = self.pictures.size
        path, times = Path(self.pictures.paths[index]), 2 if self.training else 1
        pixels = decode_resized(path, (times * height, times * width), enlarge=not self.training, upright=True)
        if pixels.nbytes <= self.memory:
            self.memory -= pixels.nbytes
            self.kept[index] = pixels
        return pixels

    def _view(self, index: int, epoch: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        """The image ``[H, W, 3]`` that the network gets of a picture, and its boxes ``[m, 5]``."""
        pixels, boxes = self._decoded(index), self.pictures.boxes[index]
        if not self.difficult:
            boxes = boxes[~self.pictures.difficult[index]]
        if not self.training:
            return pixels, boxes
        rng, how = np.random.default_rng([self.seed, epoch, index]), self.augmentation
        fill = tuple(round(255 * m) for m in self.pictures.mean)
        window = random_window(boxes, rng, how)
        image, boxes = _resized(pixels, window, self.pictures.size, fill), seen_through(window, boxes)
        if how.colour:
            image = colours.changed(image, random_colours(rng))
        if how.flip and rng.random() < 0.5:
            image = image[:, ::-1]
            boxes[:, [0, 2]] = 1 - boxes[:, [2, 0]]
        if how.upside_down and rng.random() < 0.5:
            image = image[::-1]
            boxes[:, [1, 3]] = 1 - boxes[:, [3, 1]]
        return image, boxes


Window = tuple[float, float, float, float]
"""Corners of what is seen of a picture, in shares of its width and height; may reach out of it."""


def random_window(boxes: npt.NDArray[np.float32], rng: np.random.Generator, how: Augmentation) -> Window:
    """A window for a picture with boxes ``[m, 5]``: expanded, and in that cropped, by chance.

    A crop has sides of ``how.crop`` to 1, their ratio is 1:2 to 2:1, the centre of an object is in it, and an object
    is overlapped by what is drawn out of :data:`OVERLAPS`. One time in seven nothing is cropped, and where no crop is
    found all is drawn again.
    """
    x, y, ratio = 0.0, 0.0, 1.0
    if how.expand > 1 and rng.random() < 0.5:
        ratio = rng.uniform(1, how.expand)
        x, y = (-rng.uniform(0, ratio - 1, 2)).tolist()
    canvas = np.array([x, y, x + ratio, y + ratio])
    while how.crop < 1:
        choice = int(rng.integers(len(OVERLAPS) + 1))
        if choice == len(OVERLAPS):
            break
        sides = rng.uniform(how.crop, 1, (TRIES, 2))
        firsts = rng.uniform(0, 1 - sides)
        crops = np.tile(canvas[:2], 2) + ratio * np.concatenate([firsts, firsts + sides], 1)
        good = (sides[:, 0] <= 2 * sides[:, 1]) & (sides[:, 1] <= 2 * sides[:, 0])
        if len(boxes):
            overlap = intersection_over_union(crops, boxes[:, :4].astype(np.float64))
            good &= (overlap.max(1) >= OVERLAPS[choice]) & centred(crops, boxes).any(1)
        if good.any():
            canvas = crops[good.argmax()]
            break
    x0, y0, x1, y1 = canvas.tolist()
    return x0, y0, x1, y1


def centred(windows: npt.NDArray[np.float64], boxes: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Whether the centres of boxes ``[m, 5]`` lie in windows ``[w, 4]``, ``[w, m]``."""
    centres = (boxes[:, :2] + boxes[:, 2:4]) / 2
    inside: npt.NDArray[np.bool_] = (windows[:, None, :2] < centres) & (centres < windows[:, None, 2:])
    return np.logical_and.reduce(inside, 2)


def seen_through(window: Window, boxes: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The boxes whose centre is in a window, cut at its edges, as shares of it, ``[m, 5]``."""
    x0, y0, x1, y1 = window
    kept = boxes[centred(np.array([window]), boxes)[0]]
    kept[:, [0, 2]] = ((kept[:, [0, 2]] - x0) / (x1 - x0)).clip(0, 1)
    kept[:, [1, 3]] = ((kept[:, [1, 3]] - y0) / (y1 - y0)).clip(0, 1)
    return kept


def _resized(
    pixels: npt.NDArray[np.uint8], window: Window, size: tuple[int, int], fill: tuple[int, ...]
) -> npt.NDArray[np.uint8]:
    """A window of a picture ``[H, W, 3]``, resized to a height and width; what is outside the picture is filled."""
    from PIL import Image

    picture, (height, width) = Image.fromarray(pixels), size
    x0, y0, x1, y1 = window
    # Of the image's pixels, those that show the picture; and what of the picture they show.
    left, right = (round((x - x0) / (x1 - x0) * width) for x in (max(x0, 0), min(x1, 1)))
    top, bottom = (round((y - y0) / (y1 - y0) * height) for y in (max(y0, 0), min(y1, 1)))
    out = np.empty((height, width, 3), np.uint8)
    out[:] = fill
    if left < right and top < bottom:
        seen = np.clip(window, 0, 1) * (picture.size * 2)
        part = picture.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=tuple(seen.tolist()))
        out[top:bottom, left:right] = np.asarray(part)
    return out


def random_colours(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """A change of colours ``[3, 4]``: of red, green, blue and 1 to red, green and blue, 0 .. 255.

    Brightness, contrast, saturation and hue, each by chance. Hue turns about the grey axis, so that all is one matrix.
    """
    levels, contrast, saturation, degrees = COLOUR
    brighter, stronger, purer, turned = rng.uniform(-1, 1, 4) * (rng.random(4) < 0.5)
    matrix = colours.turned(math.radians(degrees * turned)) @ colours.saturated(1 + saturation * purer)
    return (1 + contrast * stronger) * np.column_stack([matrix, np.full(3, levels * brighter)])
