"""Batches of a data set: shuffled, augmented, the same for the same seed, however many processes share the work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import BitbranchError
from .dataset import Dataset

Arrays = tuple[npt.NDArray[np.float32], npt.NDArray[Any]]
"""Normalised images ``[n, C, H, W]``, and their targets."""


class BatchSource:
    """Base of what iterates over a data set, one epoch at a time; subclasses make the batches.

    Batch ``b`` of epoch ``n`` depends on the seed, ``n`` and ``b`` alone: neither on the number of worker processes nor
    on that of the processes that train together, each of which gets its part of every batch.

    Args:
        count: images of the data set.
        size: images per batch, over all processes (all of them where there are fewer).
        training: shuffle, and leave the last, incomplete batch out; else all images come in their order.
        seed: of order and augmentation.
        workers: processes that make batches ahead; 0 makes them in this one.
        part: this process's number among those that train together, and how many they are; each gets every so many-th
            image of a batch.

    Attributes:
        epoch: the next one to be iterated.

    Yields:
        normalised images, float32 ``[n, C, H, W]``, and labels, int64 ``[n]``.
    """

    def __init__(
        self, count: int, *, size: int, training: bool, seed: int, workers: int, part: tuple[int, int]
    ) -> None:
        self.count, self.size = count, min(size, count)
        self.training, self.seed, self.workers, self.part = training, seed, workers, part
        self.epoch = 0
        self.first = 0

    def __len__(self) -> int:
        if not self.size:
            return 0
        return self.count // self.size if self.training else -(-self.count // self.size)

    def seek(self, epoch: int, batch: int) -> None:
        """Let the next iteration be that of ``epoch``, from ``batch`` on."""
        self.epoch, self.first = epoch, batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, first = self.epoch, self.first
        self.epoch, self.first = epoch + 1, 0
        plan = self.plan(epoch)
        numbers = range(first, len(self))
        if not self.workers:
            return (_tensors(self.batch(plan, number)) for number in numbers)
        return _raised(
            DataLoader(
                _Numbered(partial(self.batch, plan), len(self)),  # type: ignore[arg-type]
                batch_size=None,
                sampler=numbers,
                num_workers=self.workers,
                generator=torch.Generator(),  # of its own, so that workers leave the global one alone
                pin_memory=torch.cuda.is_available(),
            )
        )

    def order(self, epoch: int) -> tuple[npt.NDArray[np.int64], np.random.Generator]:
        """The images' order in an epoch, and the generator that drew it."""
        rng = np.random.default_rng([self.seed, epoch])
        return (rng.permutation(self.count) if self.training else np.arange(self.count)), rng

    def chosen(self, order: npt.NDArray[np.int64], number: int) -> npt.NDArray[np.int64]:
        """This process's part of a batch, out of what lies in the epoch's order."""
        return order[number * self.size : (number + 1) * self.size][self.part[0] :: self.part[1]]

    def plan(self, epoch: int) -> Any:
        """All that is random in an epoch, drawn before it."""
        raise NotImplementedError

    def batch(self, plan: Any, number: int) -> Arrays:
        """One batch of an epoch."""
        raise NotImplementedError


class _Numbered:
    """What a DataLoader's workers call: item ``n`` is batch ``n``."""

    def __init__(self, batch: partial[Arrays], count: int) -> None:
        self.batch, self.count = batch, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor] | BitbranchError:
        try:
            return _tensors(self.batch(number))
        except BitbranchError as error:  # raised here it would reach the user with the worker's traceback in its text
            return error


def _raised(batches: Iterable[tuple[Tensor, Tensor] | BitbranchError]) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches that workers made; what went wrong there is raised here."""
    for batch in batches:
        if isinstance(batch, BitbranchError):
            raise batch
        yield batch


def _tensors(arrays: Arrays) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(arrays[0]), torch.from_numpy(arrays[1])


class Batches(BatchSource):
    """Iterates once over images in memory, or in a file mapped into it; each epoch in a new order.

    Args:
        dataset: the images.
        size: images per batch, over all processes.
        flip: mirror half of the images, chosen at random.
        shift: move each image by up to this many pixels in both directions; black pixels enter. This is the usual
            crop of an image padded by so many pixels.
        training, seed, workers, part: see :class:`BatchSource`.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        size: int,
        flip: bool = False,
        shift: int = 0,
        seed: int = 0,
        training: bool = True,
        workers: int = 0,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        super().__init__(len(dataset), size=size, training=training, seed=seed, workers=workers, part=part)
        self.dataset, self.flip, self.shift = dataset, flip, shift

    def plan(self, epoch: int) -> Any:
        order, rng = self.order(epoch)
        shifts, mirrored = np.zeros((2, self.count), np.int64), np.zeros(self.count, bool)
        if self.flip or self.shift:
            for start in range(0, len(self) * self.size, self.size):
                batch = slice(start, min(start + self.size, self.count))
                n = batch.stop - start
                if self.shift:
                    shifts[:, batch] = rng.integers(0, 2 * self.shift + 1, (2, n))
                if self.flip:
                    mirrored[batch] = rng.random(n) < 0.5
        return order, shifts, mirrored

    def batch(self, plan: Any, number: int) -> Arrays:
        order, shifts, mirrored = plan
        chosen = self.chosen(order, number)
        images = self.dataset.images[chosen]
        if self.shift:
            images = shifted(images, self.shift, *(self.chosen(s, number) for s in shifts))
        if self.flip:
            flipped = self.chosen(mirrored, number)
            images[flipped] = images[flipped, :, :, ::-1]
        return self.dataset.normalize(images), self.dataset.labels[chosen]


def shifted(
    images: npt.NDArray[np.uint8], most: int, dy: npt.NDArray[np.int64], dx: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint8]:
    """The windows at ``dy, dx``, ``[N]`` each in ``0 .. 2 most``, of images ``[N, C, H, W]`` padded by ``most``."""
    n, channels, height, width = images.shape
    padded = np.zeros((n, channels, height + 2 * most, width + 2 * most), np.uint8)
    padded[:, :, most : most + height, most : most + width] = images
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    return np.ascontiguousarray(windows[np.arange(n), :, dy, dx])
