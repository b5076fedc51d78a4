"""Labelled images as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..errors import InputError


@dataclass(frozen=True)
class Dataset:
    """Labelled images of one size.

    Args:
        images: uint8 ``[N, C, H, W]``.
        labels: int64 ``[N]``, ``0 .. len(classes) - 1``.
        classes: the classes' names.
        mean: per channel, of pixels scaled to 0..1.
        std: likewise.
        source: where the images are from, for reports.

    Raises:
        InputError: shapes, types or labels that do not fit together.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise InputError(f"{self.source}: images must be uint8 [N, C, H, W]")
        if self.labels.shape != self.images.shape[:1]:
            raise InputError(f"{self.source}: {len(self.images)} images but {len(self.labels)} labels")
        if len(self.labels) and not (0 <= self.labels.min() and self.labels.max() < len(self.classes)):
            raise InputError(f"{self.source}: labels beyond the {len(self.classes)} classes")
        if not len(self.mean) == len(self.std) == self.images.shape[1]:
            raise InputError(f"{self.source}: mean and std are not for {self.images.shape[1]} channels")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def take(self, indices: npt.NDArray[np.int64] | slice) -> Dataset:
        """The images with these indices.

        Raises:
            InputError: one number; of the first ``n`` images it is ``take(slice(n))``.
        """
        if isinstance(indices, (int, np.integer)):
            raise InputError(f"take() takes indices or a slice, such as slice({indices}), not one number")
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def spread(self, count: int) -> Dataset:
        """At most ``count`` images at equal distances, so that classes keep their shares, also one behind the other."""
        return replace(self.take(evenly(len(self), count)), source=named(self.source, len(self), count))

    def normalized(self) -> npt.NDArray[np.float32]:
        """All images as float32, ``(pixel / 255 - mean) / std``, ``[N, C, H, W]``."""
        return self.normalize(self.images)

    def normalize(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Images of this set, ``[n, C, H, W]``, as :meth:`normalized` gives them."""
        return normalize(images, mean=self.mean, std=self.std)


def evenly(total: int, count: int) -> npt.NDArray[np.int64]:
    """Indices of ``count`` of ``total`` things, or of all if they are fewer: from the first on, at distances that are
    equal or differ by 1."""
    count = min(count, total)
    return np.arange(count, dtype=np.int64) * total // max(1, count)


def named(source: str, total: int, count: int) -> str:
    """The source of what is left of ``total`` things, where only ``count`` are taken."""
    return source if count >= total else f"{source}, {count:,} of them"


def normalize(
    images: npt.NDArray[np.uint8], *, mean: tuple[float, ...], std: tuple[float, ...]
) -> npt.NDArray[np.float32]:
    """Pixels 0..255 to ``(float32(pixel) / 255 - mean) / std`` per channel, ``[N, C, H, W]``.

    Evaluated in float32 in this order, as :func:`bitbranch.compile` does for its table of uint8 pixels, so that both
    forms of an image give the same codes.
    """
    out = images.astype(np.float32)
    out /= np.float32(255)
    out -= np.array(mean, np.float32)[:, None, None]
    out /= np.array(std, np.float32)[:, None, None]
    return out
