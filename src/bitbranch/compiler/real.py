"""What the compiler knows of a real tensor: which integers of the program it comes from, and how.

From here it goes on in one of two ways, both per channel: into codes, by :meth:`Real.thresholds`, exactly; or onto a
stream's scale, by :meth:`Real.rescaling`, to 31 bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from ..contract import REQUANTIZE_OFFSET_MAX, Encoder, Floats, Ints, fixed_point, fold_thresholds
from . import graph as g

Rescaling = tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8], npt.NDArray[np.int64]]
"""Multiplier, shift and offset per channel, see :class:`~bitbranch.runtime.program.Requantize`."""


@dataclass(frozen=True)
class Real:
    """A real tensor: ``clip(slope * v + intercept, lo, hi)`` per channel ``[C]``, then max-pools.

    ``source`` is the number of the integer value ``v``; ``slope`` is that of ``v`` as the layer defines it, before
    channels are turned round.
    """

    source: int
    slope: Floats
    intercept: Floats
    lo: Floats
    hi: Floats
    pools: tuple[g.MaxPool, ...] = ()

    @classmethod
    def affine(cls, source: int, slope: Floats, intercept: Floats) -> Real:
        """Without clip and pools."""
        return cls(source, slope, intercept, np.full(slope.shape, -np.inf), np.full(slope.shape, np.inf))

    @property
    def clipped(self) -> bool:
        """Whether a limit of the clip is finite."""
        return bool(np.isfinite(self.lo).any() or np.isfinite(self.hi).any())

    def thresholds(self, encoder: Encoder, lo: int, hi: int) -> npt.NDArray[np.int32]:
        """Integer thresholds of the codes before the pools, on ``v`` turned so that all slopes are positive.

        Args:
            encoder: from the reals to codes.
            lo, hi: bounds of the turned ``v``.

        Returns:
            ``[C, count - 1]``, or ``[1, count - 1]`` where all channels have the same.
        """
        limits = np.stack([self.lo, self.hi], 1)
        out = np.empty((len(self.slope), len(encoder.thresholds)), np.int64)
        for clip in np.unique(limits, axis=0):
            c = np.flatnonzero((limits == clip).all(1))
            bounds = np.full(len(c), lo), np.full(len(c), hi)
            out[c] = fold_thresholds(
                self.slope[c], self.intercept[c], encoder, *bounds, (float(clip[0]), float(clip[1]))
            )
        return (out[:1] if (out == out[:1]).all() else out).astype(np.int32)

    def rescaling(self, scale: float, direction: Ints, bound: int) -> Rescaling:
        """The fixed-point map of ``v`` onto a stream of this scale, clip and pools apart.

        Args:
            scale: of the stream.
            direction: -1 for channels of ``v`` that have been turned round, else +1.
            bound: largest magnitude of ``v``.
        """
        multipliers, shifts = fixed_point(self.slope * direction / scale, np.full(len(self.slope), bound))
        offsets = np.empty(len(multipliers), np.int64)
        for c, b in enumerate(self.intercept / scale):
            # A slope that is tiny beside its intercept has a shift at which the offset would not fit; its product
            # then needs fewer digits too.
            room = math.floor(math.log2(REQUANTIZE_OFFSET_MAX // 4 / max(1.0, abs(float(b)))))
            excess = max(0, int(shifts[c]) - room)
            multipliers[c] = round(Fraction(int(multipliers[c]), 1 << excess))
            shifts[c] -= excess
            offsets[c] = round(Fraction(float(b)) * (1 << int(shifts[c])))
        return multipliers.astype(np.int32), shifts.astype(np.uint8), offsets
