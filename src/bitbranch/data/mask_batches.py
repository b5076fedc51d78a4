"""Batches of pictures and masks: for training scaled, cut out, mirrored and of changed colours, else as they are."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import InputError
from . import colours
from .batches import Arrays, BatchSource
from .masks import MaskSet, Pixels, canvas, fitted

IN_MEMORY = 1 << 30
"""Sets of no more bytes than this are decoded once and kept."""


class MaskBatches(BatchSource):
    """Batches of a :class:`~bitbranch.data.masks.MaskSet`.

    For training each picture is resized by a random factor, a random window of the network's size is cut out of it (or
    it is put into one at random, where it is smaller), mirrored by chance and given other colours; what the picture
    does not fill has its mean colour and the label :data:`~bitbranch.tasks.segmentation.IGNORED`. Else pictures come
    as :func:`~bitbranch.data.masks.fitted` makes them.

    Args:
        masks: the files. They are decoded once, in this process, if all take less than :data:`IN_MEMORY` bytes.
        scale: smallest and largest factor of the size, drawn evenly on a logarithmic scale; (1, 1) keeps it.
        flip: mirror half of the pictures.
        colour: brightness, contrast and saturation are each multiplied by 1 - ``colour`` to 1 + ``colour``, 0..1.
        size, training, seed, workers, part: see :class:`~bitbranch.data.batches.BatchSource`.

    Yields:
        normalised images, float32 ``[n, 3, H, W]``, and masks, int64 ``[n, H, W]``.

    Raises:
        InputError: a scale or colour out of range; here or later, files that :meth:`MaskSet.pair` refuses.
    """

    def __init__(
        self,
        masks: MaskSet,
        *,
        size: int,
        scale: tuple[float, float] = (0.5, 2.0),
        flip: bool = True,
        colour: float = 0.3,
        seed: int = 0,
        training: bool = True,
        workers: int = 0,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        super().__init__(masks, size=size, training=training, seed=seed, workers=workers, part=part)
        if not 0 < scale[0] <= scale[1] or not 0 <= colour <= 1:
            raise InputError(f"augmentation: scale {scale} is not 0 < least <= most, or colour {colour} not 0..1")
        self.masks, self.scale, self.flip, self.colour = masks, scale, flip, colour
        self.kept: list[tuple[Pixels, Pixels]] = []
        if len(masks) and sum(a.nbytes for a in masks.pair(0)) * len(masks) <= IN_MEMORY:
            self.kept = [masks.pair(index) for index in range(len(masks))]

    def plan(self, epoch: int) -> Any:
        return self.order(epoch)[0], epoch

    def batch(self, plan: Any, number: int) -> Arrays:
        order, epoch = plan
        chosen = self.chosen(order, number)
        images = np.empty((len(chosen), *self.masks.shape), np.uint8)
        labels = np.empty((len(chosen), *self.masks.size), np.int64)
        for image, mask, index in zip(images, labels, chosen.tolist(), strict=True):
            view = self._view(index, epoch)
            image[:], mask[:] = view[0].transpose(2, 0, 1), view[1]
        return images, labels

    def _view(self, index: int, epoch: int) -> tuple[Pixels, Pixels]:
        picture, labels = self.kept[index] if self.kept else self.masks.pair(index)
        if not self.training:
            return fitted(picture, self.masks.size, labels)[:2]
        rng = np.random.default_rng([self.seed, epoch, index])
        factor = float(np.exp(rng.uniform(*np.log(self.scale))))
        picture, labels = window(picture, labels, self.masks.size, factor, rng)
        if self.flip and rng.random() < 0.5:
            picture, labels = picture[:, ::-1], labels[:, ::-1]
        if self.colour:
            picture = recoloured(picture, *rng.uniform(1 - self.colour, 1 + self.colour, 3))
        return picture, labels


def window(
    picture: Pixels, labels: Pixels, size: tuple[int, int], factor: float, rng: np.random.Generator
) -> tuple[Pixels, Pixels]:
    """A random window of ``size`` of a picture ``[H, W, 3]`` and its mask ``[H, W]``, resized by ``factor``.

    Along an axis where the resized picture is smaller than the window, it lies in it at random; see
    :func:`~bitbranch.data.masks.canvas` for what it does not fill. The mask takes the nearest pixels.
    """
    from PIL.Image import Resampling, fromarray

    image, mask = canvas(picture, size)
    source, target = list[tuple[float, float]](), list[slice]()
    for given, wanted in zip(labels.shape, size, strict=True):
        whole = max(1, round(given * factor))
        filled = min(whole, wanted)
        start, before = int(rng.integers(0, whole - filled + 1)), int(rng.integers(0, wanted - filled + 1))
        source.append((start * given / whole, (start + filled) * given / whole))
        target.append(slice(before, before + filled))
    (top, bottom), (left, right) = source
    place, box = (target[0], target[1]), (left, top, right, bottom)
    filled_size = target[1].stop - target[1].start, target[0].stop - target[0].start
    image[place] = np.asarray(fromarray(picture).resize(filled_size, Resampling.BILINEAR, box=box))
    mask[place] = np.asarray(fromarray(labels).resize(filled_size, Resampling.NEAREST, box=box))
    return image, mask


def recoloured(picture: Pixels, brightness: float, contrast: float, saturation: float) -> Pixels:
    """A picture ``[H, W, 3]`` with these multiplied: 1 leaves each as it is, 0 is black, a mean grey, and greys.

    All three are one linear map of a pixel's colour.
    """
    matrix = brightness * contrast * colours.saturated(saturation)
    shift = brightness * (1 - contrast) * float(picture.mean((0, 1)) @ colours.LUMA)
    return colours.changed(picture, np.column_stack([matrix, np.full(3, shift)]))
