"""Encoded activation curves as tables of exact integer thresholds.

The composition ``code(clip(slope' * f(y) + intercept', lo', hi'))`` of ``y = clip(slope * v + intercept, lo, hi)`` with
an integer ``v`` is constant between integer thresholds, which bisection finds. A comparison that float64 cannot decide
is decided in rational arithmetic, a float being the rational that it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from ..contract import Encoder, Floats, Ints
from ..errors import CompileError
from . import graph as g
from .functions import Function

TABLE_MAX = 255
"""Most thresholds of a table, see :class:`~bitbranch.runtime.operations.Threshold`."""

Limits = tuple[Floats, Floats]
Table = tuple[npt.NDArray[np.int32], "npt.NDArray[np.uint8] | None"]


@dataclass(frozen=True)
class Curved:
    """``clip(slope * f(y) + intercept, lo, hi)`` per channel ``[C]`` of a scalar function."""

    name: str
    function: Function
    slope: Floats
    intercept: Floats
    lo: Floats
    hi: Floats

    @classmethod
    def of(cls, node: g.Curve, before: Curved | None, channels: int) -> Curved:
        """The plain function of a node.

        Raises:
            CompileError: it follows another curve.
        """
        if before is not None:
            raise CompileError(
                f"layer {node.name!r}: {node.function.name} of {before.function.name} of layer {before.name!r} is not "
                "compiled; between two quantized layers there can be one such activation"
            )
        one, infinite = np.ones(channels), np.full(channels, np.inf)
        return cls(node.name, node.function, one, 0 * one, -infinite, infinite)

    @property
    def sign(self) -> Floats:
        """Sign of the slope behind the function."""
        return np.sign(self.slope)

    def then(self, node: g.Affine | g.Clip) -> Curved:
        """What an affine map or a clip makes of it."""
        if isinstance(node, g.Clip):
            return replace(self, lo=np.clip(self.lo, node.lo, node.hi), hi=np.clip(self.hi, node.lo, node.hi))
        lo, hi = node.limits(self.lo, self.hi)
        slope, intercept = node.slope * self.slope, node.slope * self.intercept + node.intercept
        return replace(self, slope=slope, intercept=intercept, lo=lo, hi=hi)

    def refuse(self, reason: str) -> CompileError:
        """The error that names the activation."""
        return CompileError(f"layer {self.name!r}: {self.function.name} {reason}")

    def thresholds(
        self, slope: Floats, intercept: Floats, clip: Limits, encoder: Encoder, lo: int, hi: int
    ) -> tuple[Ints, npt.NDArray[np.uint8] | None]:
        """Thresholds ``[C, n]`` of ``v`` within ``lo .. hi``, and the ranks between them, or ``None`` if they count up.

        Args:
            slope, intercept, clip: the map from ``v`` to ``y``, ``[C]`` each. ``slope`` is positive, or of one sign
                with :attr:`slope` where the function rises.
            encoder: from the reals to codes.
            lo, hi: bounds of ``v``.

        Raises:
            CompileError: the intervals are too many for a table.
        """
        composed = _Composed(self, slope, intercept, clip, encoder)
        count = len(encoder.thresholds)
        shape = len(slope), count
        first, last = np.full(shape, lo), np.full(shape, hi + 1)
        if self.function.valley is None:
            return _bisect(first, last, composed.passes), None
        # Ranks fall and rise again, or rise and fall again, on the two sides of the function's least value.
        split = _bisect(first[:, :1], last[:, :1], composed.beyond_valley).repeat(count, axis=1)
        peak = self.slope[:, None] < 0
        before = _bisect(first, split, lambda v: composed.passes(v) == peak)
        behind = _bisect(split, last, lambda v: composed.passes(v) != peak)
        falling, rising, again = (
            np.where(peak, first, before[:, ::-1]),
            np.where(peak, before, behind),
            np.where(peak, behind[:, ::-1], last),
        )
        ranks = np.arange(count + 1)
        return self._table(np.hstack([falling, rising, again]), np.r_[ranks[::-1], ranks[1:], ranks[-2::-1]], lo, hi)

    def _table(self, starts: Ints, ranks: Ints, lo: int, hi: int) -> tuple[Ints, npt.NDArray[np.uint8] | None]:
        """Without the intervals that are empty in every channel; plain thresholds where the ranks only rise."""
        count = int(ranks[0])
        bounds = np.pad(starts, ((0, 0), (1, 1)), constant_values=((0, 0), (lo, hi + 1)))
        kept = np.flatnonzero((bounds[:, :-1] < bounds[:, 1:]).any(axis=0))
        ranks, starts = ranks[kept], bounds[:, kept]
        if (np.diff(ranks) > 0).all():
            at = np.searchsorted(ranks, np.arange(1, count + 1))  # the first interval with at least this rank
            never = np.full((len(starts), 1), hi + 1)
            return np.concatenate([starts, never], 1)[:, at], None
        if len(ranks) - 1 > TABLE_MAX:
            raise self.refuse(
                f"takes {len(ranks)} intervals of the accumulators for its codes, more than {TABLE_MAX + 1}; use fewer "
                "bits or an activation that only rises"
            )
        return starts[:, 1:], ranks.astype(np.uint8)


class _Composed:
    """The composition's comparisons for integers ``v`` ``[C, n]``, exact."""

    def __init__(self, curved: Curved, slope: Floats, intercept: Floats, clip: Limits, encoder: Encoder) -> None:
        self.curved, self.encoder = curved, encoder
        self.inner = slope, intercept, *clip
        self.outer = curved.slope, curved.intercept, curved.lo, curved.hi
        self.targets = np.asarray(encoder.thresholds, np.float64)

    def passes(self, v: Ints) -> npt.NDArray[np.bool_]:
        """Whether the real of ``v[c, k]`` passes threshold ``k``."""
        y, error = _affine(v, *self.inner)
        error = error * self.curved.function.steepness + 2.0**-40 * np.abs(z := self.curved.function.real(y))
        out, rounding = _affine(z, *self.outer)
        error = error * np.abs(self.outer[0])[:, None] + rounding + 2.0**-40 * np.abs(self.targets)
        passed: npt.NDArray[np.bool_] = out >= self.targets if self.encoder.closed else out > self.targets
        for c, k in np.argwhere(np.abs(out - self.targets) <= error):
            passed[c, k] = self._exactly(int(c), int(k), int(v[c, k]))
        return passed

    def beyond_valley(self, v: Ints) -> npt.NDArray[np.bool_]:
        """Whether ``y`` is where the function rises."""
        valley = self.curved.function.valley
        assert valley is not None
        y, error = _affine(v, *self.inner)
        beyond: npt.NDArray[np.bool_] = y >= float(valley)
        for c, k in np.argwhere(np.abs(y - float(valley)) <= error + 2.0**-40):
            beyond[c, k] = _exact_affine(Fraction(int(v[c, k])), self.inner, int(c)) >= valley
        return beyond

    def _exactly(self, c: int, k: int, v: int) -> bool:
        y = _exact_affine(Fraction(v), self.inner, c)
        out = _exact_affine(self.curved.function.exact(y), self.outer, c)
        target = Fraction(self.encoder.thresholds[k])
        return out >= target if self.encoder.closed else out > target


def _affine(x: Ints | Floats, slope: Floats, intercept: Floats, lo: Floats, hi: Floats) -> tuple[Floats, Floats]:
    """The clipped affine map in float64, and far more than its rounding error."""
    product = slope[:, None] * x
    error = 2.0**-40 * (np.abs(product) + np.abs(intercept)[:, None])
    return np.clip(product + intercept[:, None], lo[:, None], hi[:, None]), error


def _exact_affine(x: Fraction, numbers: tuple[Floats, ...], c: int) -> Fraction:
    slope, intercept, lo, hi = (float(a[c]) for a in numbers)
    out = Fraction(slope) * x + Fraction(intercept)
    if lo > -np.inf:
        out = max(out, Fraction(lo))
    return min(out, Fraction(hi)) if hi < np.inf else out


def _bisect(first: Ints, last: Ints, holds: Callable[[Ints], npt.NDArray[np.bool_]]) -> Ints:
    """The least integers within ``first .. last`` from which on a predicate holds; ``last`` where it nowhere does."""
    while (first < last).any():
        middle = (first + last) >> 1
        yes = holds(middle)
        open_ = first < last
        first, last = np.where(open_ & ~yes, middle + 1, first), np.where(open_ & yes, middle, last)
    return first
