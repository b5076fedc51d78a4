"""Batches of a data set for training: shuffled, augmented, the same for the same seed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .dataset import Dataset


class Batches:
    """Iterates once over a data set, in a new order each time; the last, incomplete batch is left out.

    Args:
        dataset: the images.
        size: images per batch (all of them where there are fewer).
        flip: mirror half of the images, chosen at random.
        shift: move each image by up to this many pixels in both directions; black pixels enter.
        seed: of order and augmentation; epoch ``n`` of one seed is always the same.

    Yields:
        normalised images, float32 ``[size, C, H, W]``, and labels, int64 ``[size]``.
    """

    def __init__(self, dataset: Dataset, *, size: int, flip: bool = False, shift: int = 0, seed: int = 0) -> None:
        self.size = min(size, len(dataset))
        self.flip = flip
        self.shift = shift
        self.seed = seed
        self.epoch = 0
        self.images = dataset.normalized()
        self.labels = dataset.labels
        black = np.zeros((1, dataset.shape[0], 1, 1), np.uint8)
        border = Dataset(black, np.zeros(1, np.int64), dataset.classes, dataset.mean, dataset.std, dataset.source)
        self.black = border.normalized()

    def __len__(self) -> int:
        return len(self.labels) // self.size if self.size else 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        self.epoch += 1
        order = rng.permutation(len(self.labels))
        for start in range(0, len(self) * self.size, self.size):
            chosen = order[start : start + self.size]
            yield torch.from_numpy(self._augmented(chosen, rng)), torch.from_numpy(self.labels[chosen])

    def _augmented(self, chosen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        images = self.images[chosen]
        n, channels, height, width = images.shape
        if self.shift:
            s = self.shift
            padded = np.broadcast_to(self.black, (n, channels, height + 2 * s, width + 2 * s)).copy()
            padded[:, :, s:-s, s:-s] = images
            windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
            dy, dx = rng.integers(0, 2 * s + 1, (2, n))
            images = windows[np.arange(n), :, dy, dx]
        if self.flip:
            mirrored = rng.random(n) < 0.5
            images[mirrored] = images[mirrored, :, :, ::-1]
        return np.ascontiguousarray(images)
