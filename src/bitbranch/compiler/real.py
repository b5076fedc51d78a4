"""What the compiler knows of a real tensor: which integers of the program it comes from, and how.

From here it goes on in one of two ways, both per channel: into codes, by :meth:`Real.thresholds`, exactly; or onto a
stream's scale, by :meth:`Real.rescaling`, to 31 bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from ..contract import REQUANTIZE_OFFSET_MAX, Encoder, Floats, Ints, fixed_point, fold_thresholds
from ..errors import InputError
from . import graph as g
from .curves import Curved, Table

Rescaling = tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8], npt.NDArray[np.int64]]
"""Multiplier, shift and offset per channel, see :class:`~bitbranch.runtime.operations.Requantize`."""


@dataclass(frozen=True)
class Real:
    """A real tensor: ``clip(slope * v + intercept, lo, hi)`` per channel ``[C]``, or a curve of that.

    ``source`` is the number of the integer value ``v``; ``slope`` is that of ``v`` as the layer defines it, before
    channels are turned round. ``curved`` is what becomes of the clipped affine map.
    """

    source: int
    slope: Floats
    intercept: Floats
    lo: Floats
    hi: Floats
    curved: Curved | None = None

    @classmethod
    def affine(cls, source: int, slope: Floats, intercept: Floats) -> Real:
        """Without clip and curve."""
        return cls(source, slope, intercept, np.full(slope.shape, -np.inf), np.full(slope.shape, np.inf))

    @property
    def clipped(self) -> bool:
        """Whether a limit of the clip is finite."""
        return bool(np.isfinite(self.lo).any() or np.isfinite(self.hi).any())

    @property
    def rising(self) -> Floats:
        """The sign of ``v`` per channel with which the real rises, or, behind a curve with a valley, enters it."""
        sign = np.sign(self.slope)
        return sign if self.curved is None or self.curved.function.valley is not None else sign * self.curved.sign

    def then(self, node: g.Affine | g.Clip | g.Curve) -> Real:
        """The real behind an affine map, a clip or a curve.

        Raises:
            CompileError: a curve behind a curve.
        """
        if isinstance(node, g.Curve):
            return replace(self, curved=Curved.of(node, self.curved, len(self.slope)))
        if self.curved is not None:
            return replace(self, curved=self.curved.then(node))
        if isinstance(node, g.Clip):
            return replace(self, lo=np.clip(self.lo, node.lo, node.hi), hi=np.clip(self.hi, node.lo, node.hi))
        lo, hi = node.limits(self.lo, self.hi)
        slope, intercept = node.slope * self.slope, node.slope * self.intercept + node.intercept
        return replace(self, slope=slope, intercept=intercept, lo=lo, hi=hi)

    def thresholds(self, encoder: Encoder, lo: int, hi: int) -> Table:
        """Integer thresholds of the codes, on ``v`` turned so that all are :attr:`rising`.

        Args:
            encoder: from the reals to codes.
            lo, hi: bounds of the turned ``v``.

        Returns:
            ``[C, n]``, or ``[1, n]`` where all channels have the same, and the ranks between them or ``None``, as in
            :class:`~bitbranch.runtime.operations.Threshold`.

        Raises:
            CompileError: a curve that takes more intervals than a table has.
        """
        table = None
        if self.curved is None:
            out = self._folded(encoder, lo, hi)
        else:
            slope = self.slope * np.where(self.rising < 0, -1, 1)
            out, table = self.curved.thresholds(slope, self.intercept, (self.lo, self.hi), encoder, lo, hi)
        return (out[:1] if (out == out[:1]).all() else out).astype(np.int32), table

    def _folded(self, encoder: Encoder, lo: int, hi: int) -> Ints:
        limits = np.stack([self.lo, self.hi], 1)
        out = np.empty((len(self.slope), len(encoder.thresholds)), np.int64)
        for clip in np.unique(limits, axis=0):
            c = np.flatnonzero((limits == clip).all(1))
            bounds = np.full(len(c), lo), np.full(len(c), hi)
            out[c] = fold_thresholds(
                self.slope[c], self.intercept[c], encoder, *bounds, (float(clip[0]), float(clip[1]))
            )
        return out

    def rescaling(self, scale: float, direction: Ints, bound: int) -> Rescaling:
        """The fixed-point map of ``v`` onto a stream of this scale, clip apart.

        Args:
            scale: of the stream.
            direction: -1 for channels of ``v`` that have been turned round, else +1.
            bound: largest magnitude of ``v``.

        Raises:
            InputError: a slope or an intercept that is huge beside the clip's range.
        """
        multipliers, shifts = fixed_point(self.slope * direction / scale, np.full(len(self.slope), bound))
        offsets = np.empty(len(multipliers), np.int64)
        for c, b in enumerate(self.intercept / scale):
            # A slope that is tiny beside its intercept has a shift at which the offset would not fit; its product
            # then needs fewer digits too.
            room = math.floor(math.log2(REQUANTIZE_OFFSET_MAX // 4 / max(1.0, abs(float(b)))))
            if room < 0:
                raise InputError(f"an intercept of {b:.3g} steps of the sum or average that it goes into does not fit")
            excess = max(0, int(shifts[c]) - room)
            multipliers[c] = round(Fraction(int(multipliers[c]), 1 << excess))
            shifts[c] -= excess
            offsets[c] = round(Fraction(float(b)) * (1 << int(shifts[c])))
        return multipliers.astype(np.int32), shifts.astype(np.uint8), offsets
