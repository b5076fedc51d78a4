"""The batches that layers are solved with: their images alone, checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError

Batches = Iterable[Tensor | Sequence[Tensor]]
"""Batches with a length: images ``[N, C, H, W]``, or tuples and lists that begin with them, as a DataLoader gives."""


class Images:
    """The images of batches, one batch after the other, as often as the batches can be iterated.

    Args:
        batches: see :data:`Batches`.
        what: what they are for; begins the errors.

    Raises:
        InputError: no batches, no length, or one batch in place of several; while they are iterated: what is no batch
            of images, or not finite.
    """

    def __init__(self, batches: Batches, what: str) -> None:
        if isinstance(batches, (Tensor, np.ndarray)):
            raise InputError(f"{what}: takes batches: give it a list of them, [x]")
        if not isinstance(batches, Sized):
            raise InputError(
                f"{what}: batches are gone through more than once and need a length, which {type(batches).__name__} "
                "has not; take a list or a DataLoader"
            )
        if not len(batches):
            raise InputError(f"{what}: there are no batches to calibrate with")
        self._batches = batches
        self._what = what
        self._length = len(batches)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Tensor]:
        for number, batch in enumerate(self._batches):
            images = torch.as_tensor(batch[0] if isinstance(batch, (tuple, list)) else batch)
            if images.ndim < 2:
                raise InputError(
                    f"{self._what}: batch {number} has the shape {list(images.shape)}; images are [N, C, H, W]"
                )
            if not torch.isfinite(images).all():
                raise InputError(f"{self._what}: the calibration images hold NaN or infinity")
            yield images
