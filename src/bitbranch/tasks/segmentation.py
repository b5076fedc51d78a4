"""Semantic segmentation: masks from logits, what they are measured by, and how they are shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from ..errors import InputError

IGNORED = 255
"""The label of pixels that belong to no class: they are neither learned nor counted."""

Mask = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.integer]
Palette = Sequence[tuple[int, int, int]]


def masks(logits: npt.NDArray[np.floating], size: tuple[int, int] | None = None) -> Mask:
    """The class of every pixel: that of the largest logit, the lowest of several equal ones.

    Args:
        logits: ``[N, C, H, W]``, 2 to 255 classes.
        size: height and width of the masks, where the network answers at a lower resolution; see :func:`resized`.

    Returns:
        uint8 ``[N, H, W]``, or ``[N, *size]``.

    Raises:
        InputError: logits of another shape.
    """
    if logits.ndim != 4 or not 2 <= logits.shape[1] <= IGNORED:
        raise InputError(f"logits must be [N, C, H, W] of 2 to {IGNORED} classes, got {list(logits.shape)}")
    found = logits.argmax(1).astype(np.uint8)
    return found if size is None else resized(found, size)


def resized(labels: Mask, size: tuple[int, int]) -> Mask:
    """Masks ``[.., H, W]`` at another size, by the nearest pixel: each takes the one in which its centre lies."""
    for axis, wanted in zip((-2, -1), size, strict=True):
        given = labels.shape[axis]
        if given != wanted:
            labels = labels.take((2 * np.arange(wanted) + 1) * given // (2 * wanted), axis)
    return labels


def restored(labels: Mask, inner: tuple[int, int], size: tuple[int, int]) -> Mask:
    """Masks ``[.., H, W]`` of pictures that fill the top left ``inner`` of the network's image, at the pictures' size.

    Undoes what :func:`bitbranch.data.masks.fitted` does to a picture.
    """
    return resized(labels[..., : inner[0], : inner[1]], size)


class Confusion:
    """How often each class was taken for which, summed up over batches.

    Args:
        classes: number of classes.
        ignored: label of the pixels that do not count.

    Attributes:
        matrix: int64 ``[classes, classes]``: pixels of the true class (row) that were found to be of another (column).

    Source: the figures are those of Long et al., arXiv 1411.4038, section 5.
    """

    def __init__(self, classes: int, ignored: int = IGNORED) -> None:
        self.classes, self.ignored = classes, ignored
        self.matrix = np.zeros((classes, classes), np.int64)

    def add(self, truth: Labels, found: Labels) -> None:
        """Count masks of one shape, whichever it is.

        Raises:
            InputError: masks of two shapes, or labels beyond the classes.
        """
        if truth.shape != found.shape:
            raise InputError(f"masks of {list(found.shape)} cannot be compared with a truth of {list(truth.shape)}")
        counted = truth != self.ignored
        rows, columns = truth[counted].astype(np.int64), found[counted].astype(np.int64)
        for labels in (rows, columns):
            if labels.size and not (0 <= labels.min() and labels.max() < self.classes):
                raise InputError(f"labels of {labels.min()}..{labels.max()} in a mask of {self.classes} classes")
        pairs = np.bincount(rows * self.classes + columns, minlength=self.classes**2)
        self.matrix += pairs.reshape(self.matrix.shape)

    @property
    def iou(self) -> npt.NDArray[np.float64]:
        """Intersection over union of each class, NaN for those in neither the truth nor what was found."""
        right = np.diag(self.matrix)
        return _shares(right, self.matrix.sum(0) + self.matrix.sum(1) - right)

    @property
    def miou(self) -> float:
        """Mean of :attr:`iou` over the classes in the truth or in what was found; NaN without any."""
        return _mean(self.iou)

    @property
    def pixel_accuracy(self) -> float:
        """Share of the pixels that were found right; NaN without any."""
        return float(_shares(np.trace(self.matrix), self.matrix.sum()))

    @property
    def class_accuracy(self) -> float:
        """Mean over the classes in the truth of the share of their pixels that were found right; NaN without any."""
        return _mean(_shares(np.diag(self.matrix), self.matrix.sum(1)))

    def figures(self, names: Sequence[str] = ()) -> dict[str, float]:
        """``miou``, ``pixel_accuracy``, ``class_accuracy``, and ``iou NAME`` of each class that has one."""
        of_class = {f"iou {name}": float(iou) for name, iou in zip(names, self.iou, strict=False) if iou == iou}
        means = {name: getattr(self, name) for name in ("miou", "pixel_accuracy", "class_accuracy")}
        return means | of_class


def _shares(part: npt.ArrayLike, whole: npt.ArrayLike) -> npt.NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        return np.true_divide(part, whole)


def _mean(shares: npt.NDArray[np.float64]) -> float:
    there = shares[~np.isnan(shares)]
    return float(there.mean()) if there.size else float("nan")


def median_frequency(
    labels: Iterable[Labels], classes: int, *, power: float = 1.0, ignored: int = IGNORED
) -> npt.NDArray[np.float64]:
    """Weights of the classes in a loss that make up for how rare they are: the median frequency over each one's own.

    A class's frequency is its share of the pixels in those masks where it appears.

    Args:
        labels: masks, one after the other.
        classes: number of classes.
        power: of the weights; below 1 they differ less, at 0 all are 1.
        ignored: label of the pixels that do not count.

    Returns:
        float64 ``[classes]``; 1 for classes that no mask has.

    Raises:
        InputError: labels beyond the classes.

    Source: Eigen, Fergus, arXiv 1411.4734, section 6.3.2.
    """
    own, beside = np.zeros((2, classes), np.int64)
    for mask in labels:
        counts = np.bincount(mask[mask != ignored].ravel(), minlength=classes)
        if len(counts) > classes:
            raise InputError(f"label {len(counts) - 1} in a mask of {classes} classes")
        own += counts
        beside += (counts > 0) * counts.sum()
    frequency = own[own > 0] / beside[own > 0]
    weights = np.ones(classes)
    weights[own > 0] = (np.median(frequency) / frequency) ** power if frequency.size else 1
    return weights


def palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """Pascal VOC's colours: as many as you like, far apart, the first of them black.

    The bits of a label go in turn to red, green and blue, the lowest three to the highest bits of each.
    """
    bits = np.arange(count)[:, None, None] >> (3 * np.arange(8)[:, None] + np.arange(3)) & 1
    colours = (bits << np.arange(7, -1, -1)[:, None]).sum(1)
    return tuple((int(r), int(g), int(b)) for r, g, b in colours)


def coloured(labels: Mask, colours: Palette, ignored: tuple[int, int, int] = (0, 0, 0)) -> npt.NDArray[np.uint8]:
    """Masks ``[.., H, W]`` as pictures ``[.., H, W, 3]``; what is beyond the palette has the colour ``ignored``."""
    table = np.empty((256, 3), np.uint8)
    table[:] = ignored
    table[: len(colours)] = colours
    return table[labels]
