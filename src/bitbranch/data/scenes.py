"""Scenes of several garments each, composed from Fashion-MNIST, whose boxes and masks are known exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..tasks.segmentation import palette
from . import fashion_mnist
from .batches import Arrays, BatchSource
from .box_set import BoxSet
from .dataset import evenly, named

CLASSES = ("background", *fashion_mnist.CLASSES)
MEAN, STD = (0.45, 0.45, 0.45), (0.25, 0.25, 0.25)

GARMENTS = (2, 5)
"""Fewest and most garments that are tried for a scene."""
SIZES = (0.3, 0.55)
"""Smallest and largest height and width of a garment's image, as shares of the canvas."""
COVERED = 0.25
"""No garment may be covered by more than this share of its pixels."""
TRIES = 12
"""How often a place is looked for before a garment is left out."""
NOISE = 6.0
"""Standard deviation of the noise on every pixel."""
DARK = 24
"""Pixels of an image above this belong to the garment, and those between such in their row and in their column."""


@dataclass(frozen=True)
class SceneSet:
    """Scenes with their boxes and masks.

    Attributes:
        images: uint8 ``[N, 3, H, W]``.
        boxes: float32 ``[N, M, 5]``: left, top, right and bottom edge of what is visible of each garment, as shares of
            the width and height, and its class from 1 on; rows of zeros fill up.
        masks: uint8 ``[N, H, W]``: each pixel's class, 0 where no garment is.
        source: for reports.
        classes: the background and the garments.
        mean, std: per channel, of pixels scaled to 0..1.
    """

    images: npt.NDArray[np.uint8]
    boxes: npt.NDArray[np.float32]
    masks: npt.NDArray[np.uint8]
    source: str
    classes: tuple[str, ...] = CLASSES
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """A colour for each class."""
        return palette(len(self.classes))

    def objects(self) -> BoxSet:
        """The garments alone, as what a detector found is compared with; there are no files."""
        _, height, width = self.shape
        boxes = tuple(rows[rows[:, 4] > 0] for rows in self.boxes)
        return BoxSet(
            paths=("",) * len(self),
            boxes=boxes,
            difficult=tuple(np.zeros(len(rows), bool) for rows in boxes),
            sizes=np.full((len(self), 2), (height, width)),
            classes=self.classes[1:],
            size=(height, width),
            source=self.source,
            mean=self.mean,
            std=self.std,
        )

    def spread(self, count: int) -> SceneSet:
        """At most ``count`` scenes at equal distances."""
        kept = evenly(len(self), count)
        source = named(self.source, len(self), count)
        return replace(self, images=self.images[kept], boxes=self.boxes[kept], masks=self.masks[kept], source=source)


def scenes(split: str, count: int, *, seed: int = 0, size: int = 64) -> SceneSet:
    """Compose scenes of the garments of a split of Fashion-MNIST's sample, so no garment is in two splits.

    On a softly coloured ground with noise lie garments of random size, side and brightness; later ones cover earlier
    ones, but none by more than a quarter. A garment is its image's pixels that are not black, and what they enclose
    along rows and columns.

    Args:
        split: ``"train"`` or ``"test"``.
        count: number of scenes. The first are the same, however many there are.
        seed: of everything random.
        size: height and width.

    Raises:
        InputError: an unknown split, a negative count, or a size below 32.
    """
    if size < 32 or count < 0:
        raise InputError(f"scenes: expected a size of at least 32 and a count of at least 0, got {size} and {count}")
    garments = fashion_mnist.load(split)
    shapes = _enclosed(garments.images[:, 0] > DARK)
    images = np.empty((count, 3, size, size), np.uint8)
    masks = np.empty((count, size, size), np.uint8)
    boxes = np.zeros((count, GARMENTS[1], 5), np.float32)
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        canvas = _Canvas(size, rng)
        for index in rng.integers(0, len(garments), rng.integers(GARMENTS[0], GARMENTS[1] + 1)):
            canvas.lay(garments.images[index, 0], shapes[index], int(garments.labels[index]) + 1)
        images[number], masks[number] = canvas.image(), canvas.mask()
        boxes[number, : len(canvas.labels) - 1] = canvas.boxes()
    return SceneSet(images, boxes, masks, f"scenes of Fashion-MNIST {split}, {count:,} of {size}x{size}")


def _enclosed(shapes: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Shapes ``[.., H, W]`` with the pixels that lie between theirs both in the row and in the column."""
    between = [
        np.logical_or.accumulate(shapes, axis) & np.flip(np.logical_or.accumulate(np.flip(shapes, axis), axis), axis)
        for axis in (-2, -1)
    ]
    return between[0] & between[1]


@lru_cache(maxsize=256)
def _interpolation(given: int, wanted: int) -> npt.NDArray[np.float32]:
    """The matrix ``[wanted, given]`` that resizes a row of pixels linearly."""
    centres = ((np.arange(wanted) + 0.5) * given / wanted - 0.5).clip(0, given - 1)
    return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(given))).astype(np.float32)


class _Canvas:
    """One scene while it is drawn.

    Attributes:
        colours: float32 ``[size, size, 3]``, a ground whose soft colour changes from one side to the other.
        owner: uint8 ``[size, size]``: of each pixel the garment on top, counted from 1 on, or 0.
        labels, spare: of the ground and of each garment the class, and the number of pixels that may yet be covered.
    """

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.size, self.rng = size, rng
        ends = rng.uniform(60, 180) + rng.uniform(-25, 25, (2, 3))
        line = np.linspace(ends[0], ends[1], size, dtype=np.float32)
        line = line[:, None] if rng.random() < 0.5 else line[None]
        self.colours = np.array(np.broadcast_to(line, (size, size, 3)))
        self.owner = np.zeros((size, size), np.uint8)
        self.labels, self.spare = [0], np.array([size * size])

    def lay(self, garment: npt.NDArray[np.uint8], shape: npt.NDArray[np.bool_], label: int) -> None:
        """Draw a garment ``[28, 28]`` of this shape somewhere, at some size and brightness, if there is a place."""
        rng = self.rng
        height, width = np.rint(self.size * rng.uniform(*SIZES) * rng.uniform(0.9, 1.1, 2)).astype(int).tolist()
        down, across = _interpolation(garment.shape[0], height), _interpolation(garment.shape[1], width).T
        if rng.random() < 0.5:
            across = across[::-1]
        form = down @ shape.astype(np.float32) @ across > 0.5
        for _ in range(TRIES if form.any() else 0):
            top, left = rng.integers(0, self.size - height + 1), rng.integers(0, self.size - width + 1)
            place = slice(top, top + height), slice(left, left + width)
            covered = np.bincount(self.owner[place][form], minlength=len(self.spare))
            if (covered <= self.spare).all():
                tint = rng.uniform(0.6, 1.0) * rng.uniform(0.85, 1.15, 3)
                self.colours[place][form] = (down @ garment.astype(np.float32) @ across)[form, None] * tint
                self.owner[place][form] = len(self.labels)
                self.labels.append(label)
                self.spare = np.append(self.spare - covered, int(COVERED * form.sum()))
                return

    def image(self) -> npt.NDArray[np.uint8]:
        """The picture, uint8 ``[3, size, size]``, with noise."""
        noise = self.rng.standard_normal(self.colours.shape, np.float32)
        return (self.colours + NOISE * noise).clip(0, 255).astype(np.uint8).transpose(2, 0, 1)

    def mask(self) -> npt.NDArray[np.uint8]:
        """The class of each pixel."""
        return np.array(self.labels, np.uint8)[self.owner]

    def boxes(self) -> npt.NDArray[np.float32]:
        """Of each garment what is visible, and its class, as in :attr:`SceneSet.boxes`."""
        rows = np.zeros((len(self.labels) - 1, 5), np.float32)
        for number, row in enumerate(rows, start=1):
            y, x = np.nonzero(self.owner == number)
            row[:4] = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) / self.size
            row[4] = self.labels[number]
        return rows


class SceneBatches(BatchSource):
    """Batches of scenes, with boxes or masks, mirrored by chance for training.

    Args:
        scenes: in memory.
        boxes: whether the targets are boxes; else they are masks.
        flip: mirror half of the training images.
        size, training, seed, workers, part: see :class:`~bitbranch.data.batches.BatchSource`.

    Yields:
        normalised images, float32 ``[n, 3, H, W]``, and :attr:`SceneSet.boxes`, or :attr:`SceneSet.masks` as int64.
    """

    def __init__(
        self,
        scenes: SceneSet,
        *,
        boxes: bool,
        size: int,
        flip: bool = True,
        seed: int = 0,
        training: bool = True,
        workers: int = 0,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        super().__init__(scenes, size=size, training=training, seed=seed, workers=workers, part=part)
        self.scenes, self.boxes, self.flip = scenes, boxes, flip and training

    @property
    def pictures(self) -> BoxSet:
        """The truth of all scenes, see :func:`bitbranch.training.multibox.evaluate`."""
        return self.scenes.objects()

    def plan(self, epoch: int) -> Any:
        order, rng = self.order(epoch)
        return order, rng.random(self.count) < (0.5 if self.flip else 0)

    def batch(self, plan: Any, number: int) -> Arrays:
        chosen, mirrored = (self.chosen(drawn, number) for drawn in plan)
        images = self.scenes.images[chosen]
        images[mirrored] = images[mirrored, ..., ::-1]
        if self.boxes:
            boxes = self.scenes.boxes[chosen]
            there = mirrored[:, None] & (boxes[..., 4] > 0)
            boxes[there, 0:3:2] = 1 - boxes[there, 2::-2]
            return images, boxes
        masks = self.scenes.masks[chosen].astype(np.int64)
        masks[mirrored] = masks[mirrored, :, ::-1]
        return images, masks
