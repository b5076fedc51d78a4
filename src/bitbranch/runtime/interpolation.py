"""Upsampling and sums of neighbours, one after the other, as one interpolation between two neighbours each way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import program as p

Ints = npt.NDArray[np.int64]
MOST = 64
"""Taps of a window that is taken apart; a larger one is no sum of neighbours."""


@dataclass(frozen=True, eq=False)
class Axis:
    """Rows or columns, each between a neighbour ``at`` and the next: ``[n]`` each.

    Where there is but one row, the next one is none and has weight 0.
    """

    at: Ints
    weight: Ints
    next: Ints

    @classmethod
    def identity(cls, size: int) -> Axis:
        """Every row itself."""
        return _two_points(np.arange(size)[:, None], np.ones((size, 1), np.int64), size)  # type: ignore[return-value]

    @property
    def rows(self) -> npt.NDArray[np.int32]:
        """``[3, n]`` as the engine takes them."""
        return np.ascontiguousarray(np.stack([self.at, self.weight, self.next]).astype(np.int32))

    @property
    def sums(self) -> Ints:
        """Of both weights, ``[n]``."""
        return self.weight + self.next

    def then(self, at: Ints, weight: Ints, size: int) -> Axis | None:
        """Rows ``[m]`` that are sums of these, ``at`` ``[m, k]`` with weights ``[m, k]``.

        Args:
            at, weight: which of these rows, and how often each; what is beyond them has weight 0.
            size: of the source.

        Returns:
            ``None`` where they lie between more than two neighbours of the source.
        """
        at = at.clip(0, len(self.at) - 1)
        both = np.concatenate([self.at[at], self.at[at] + 1], axis=1)
        return _two_points(both, np.concatenate([weight * self.weight[at], weight * self.next[at]], axis=1), size)


def _two_points(at: Ints, weight: Ints, size: int) -> Axis | None:
    """Sums of rows ``at`` ``[n, k]``, if they are of two neighbours; sums of nothing are of those before."""
    counts = weight != 0
    first = np.where(counts, at, np.where(counts.any(axis=1, keepdims=True), size, 0)).min(axis=1)
    first = first.clip(0, max(0, size - 2))
    if (np.where(counts, at, 0).max(axis=1) > first + 1).any():
        return None
    here = at == first[:, None]
    return Axis(np.maximum.accumulate(first), (weight * here).sum(axis=1), (weight * ~here).sum(axis=1))


def _steps(op: p.Upsample | p.SumPool, axis: int, size: int) -> tuple[Ints, Ints]:
    """The rows that an operation sums, ``[n, k]``, and their weights."""
    if isinstance(op, p.SumPool):
        k, stride, pads = op.kernel[axis], op.stride[axis], op.padding[2 * axis : 2 * axis + 2]
        count = (size + sum(pads) - k) // stride + 1
        at = np.arange(count)[:, None] * stride - pads[0] + np.arange(k)
        return at, ((at >= 0) & (at < size)).astype(np.int64)
    factor = op.factor[axis]
    rows = np.arange(size * factor)
    if op.mode == "nearest":
        return (rows // factor)[:, None], np.ones((len(rows), 1), np.int64)
    twice = 2 * rows + 1 - factor
    at, part = twice // (2 * factor), twice % (2 * factor)
    return np.stack([at, at + 1], axis=1).clip(0, size - 1), np.stack([2 * factor - part, part], axis=1)


@dataclass(frozen=True, eq=False)
class Interpolation(p.Operation):
    """Every pixel a sum of the four around it: ``rows`` of ``columns``. Made by :func:`interpolation`, in no file."""

    rows: Axis
    columns: Axis

    def infer(self, *inputs: p.Value) -> p.Value:
        raise NotImplementedError("its value is that of the operations that it stands for")


def interpolation(op: p.Operation, source: p.Value, before: Interpolation | None = None) -> Interpolation | None:
    """An operation as an interpolation, or behind one.

    Args:
        op: the operation.
        source: what the interpolation reads.
        before: what leads from the source to the operation; ``None`` if it reads the source.

    Returns:
        ``None`` where it is none.
    """
    if isinstance(op, p.Upsample):
        if op.mode == "nearest" and before is None and isinstance(source, p.Codes):
            return None  # stays codes
    elif not isinstance(op, p.SumPool) or before is None or max(op.kernel) > MOST:
        return None
    axes = []
    for axis, size in enumerate(source.shape[1:]):
        old = (before.rows, before.columns)[axis] if before else Axis.identity(size)
        new = old.then(*_steps(op, axis, len(old.at)), size)
        if new is None:
            return None
        axes.append(new)
    return Interpolation(op.name, before.inputs if before else op.inputs, *axes)
