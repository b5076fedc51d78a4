"""Batches of a data set: shuffled, augmented, the same for the same seed, however many processes share the work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import BitbranchError
from .dataset import Dataset, normalize

Arrays = tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]
Pair = tuple[Tensor, Tensor]
"""Images ``[n, C, H, W]``, and their targets."""


class Normalized(Protocol):
    """Images whose channels, scaled to 0..1, have this mean and standard deviation."""

    @property
    def mean(self) -> tuple[float, ...]: ...

    @property
    def std(self) -> tuple[float, ...]: ...

    def __len__(self) -> int: ...


class BatchSource:
    """Base of what iterates over a data set, one epoch at a time; subclasses make the batches.

    Batch ``b`` of epoch ``n`` depends on the seed, ``n`` and ``b`` alone: neither on the number of worker processes nor
    on that of the processes that train together, each of which gets its part of every batch.

    Args:
        images: the data set: it has a length, and ``mean`` and ``std`` of its channels.
        size: images per batch, over all processes (all of them where there are fewer).
        training: shuffle, and leave the last, incomplete batch out; else all images come in their order.
        seed: of order and augmentation.
        workers: processes that make batches ahead; 0 makes them in this one.
        part: this process's number among those that train together, and how many they are; each gets every so many-th
            image of a batch.

    Attributes:
        epoch: the next one to be iterated.
        shuffled: whether each epoch has an order of its own; usually in training only.
        pixels: set it to get uint8 images, as the integer engine takes them, in place of normalised ones.

    Yields:
        normalised images, float32 ``[n, C, H, W]``, and what is to be learned of them: labels, int64 ``[n]``, or what
        the subclass says.
    """

    def __init__(
        self, images: Normalized, *, size: int, training: bool, seed: int, workers: int, part: tuple[int, int]
    ) -> None:
        self.normalized, self.count, self.pixels = images, len(images), False
        self.size = min(size, self.count)
        if training and self.size >= part[1]:  # all processes' parts of a batch are equal
            self.size -= self.size % part[1]
        self.training, self.shuffled, self.seed, self.workers, self.part = training, training, seed, workers, part
        self.epoch = 0
        self.first = 0

    def __len__(self) -> int:
        if not self.size:
            return 0
        return self.count // self.size if self.training else -(-self.count // self.size)

    def seek(self, epoch: int, batch: int) -> None:
        """Let the next iteration be that of ``epoch``, from ``batch`` on."""
        self.epoch, self.first = epoch, batch

    def __iter__(self) -> Iterator[Pair]:
        epoch, first = self.epoch, self.first
        self.epoch, self.first = epoch + 1, 0
        plan = self.plan(epoch)
        numbers = range(first, len(self))
        if not self.workers:
            return (self._tensors(plan, number) for number in numbers)
        return _raised(
            DataLoader(
                _Numbered(partial(self._tensors, plan), len(self)),  # type: ignore[arg-type]
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
        return (rng.permutation(self.count) if self.shuffled else np.arange(self.count)), rng

    def chosen(self, order: npt.NDArray[np.int64], number: int) -> npt.NDArray[np.int64]:
        """This process's part of a batch, out of what lies in the epoch's order."""
        return order[number * self.size : (number + 1) * self.size][self.part[0] :: self.part[1]]

    def plan(self, epoch: int) -> Any:
        """All that is random in an epoch, drawn before it."""
        raise NotImplementedError

    def batch(self, plan: Any, number: int) -> Arrays:
        """One batch of an epoch: pixels, uint8 ``[n, C, H, W]``, and what is to be learned of them."""
        raise NotImplementedError

    def _tensors(self, plan: Any, number: int) -> Pair:
        images, targets = self.batch(plan, number)
        if self.pixels:
            return torch.from_numpy(images), torch.from_numpy(targets)
        reals = normalize(images, mean=self.normalized.mean, std=self.normalized.std)
        return torch.from_numpy(reals), torch.from_numpy(targets)


class _Numbered:
    """What a DataLoader's workers call: item ``n`` is batch ``n``."""

    def __init__(self, batch: partial[Pair], count: int) -> None:
        self.batch, self.count = batch, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Pair | BitbranchError:
        try:
            return self.batch(number)
        except BitbranchError as error:  # raised here it would reach the user with the worker's traceback in its text
            return error


def _raised(batches: Iterable[Pair | BitbranchError]) -> Iterator[Pair]:
    """The batches that workers made; what went wrong there is raised here."""
    for batch in batches:
        if isinstance(batch, BitbranchError):
            raise batch
        yield batch


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
        super().__init__(dataset, size=size, training=training, seed=seed, workers=workers, part=part)
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
        return images, self.dataset.labels[chosen]


def shifted(
    images: npt.NDArray[np.uint8], most: int, dy: npt.NDArray[np.int64], dx: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint8]:
    """The windows at ``dy, dx``, ``[N]`` each in ``0 .. 2 most``, of images ``[N, C, H, W]`` padded by ``most``."""
    n, channels, height, width = images.shape
    padded = np.zeros((n, channels, height + 2 * most, width + 2 * most), np.uint8)
    padded[:, :, most : most + height, most : most + width] = images
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    return np.ascontiguousarray(windows[np.arange(n), :, dy, dx])
