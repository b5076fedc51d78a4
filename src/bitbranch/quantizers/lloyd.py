"""Sparse codes with levels that are not evenly spaced: Lloyd's, for a standard Gaussian, snapped to integers."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from ..contract import CodeType, Encoder, Kind
from ..errors import InputError
from .base import ActivationQuantizer, float32, rank, straight_through
from .gaussian import density, upper_tail
from .tsq import dead_zone

NEVER = 2.0**126
"""A threshold that no real passes."""


def _error(thresholds: tuple[float, ...], levels: tuple[float, ...]) -> float:
    """``E[(Q(x) - x)^2 | x > eps]`` under N(0, 1), up to a factor and to what does not depend on the levels."""
    return sum(x * (x * mass - 2 * first) for x, (mass, first) in zip(levels, _cells(thresholds), strict=True))


def _cells(thresholds: tuple[float, ...]) -> list[tuple[float, float]]:
    """Mass and first moment of N(0, 1) between neighbouring thresholds, the last cell open."""
    tails = [upper_tail(t) for t in thresholds] + [0.0]
    densities = [density(t) for t in thresholds] + [0.0]
    return [(tails[k] - tails[k + 1], densities[k] - densities[k + 1]) for k in range(len(thresholds))]


def _between(eps: float, levels: tuple[float, ...]) -> tuple[float, ...]:
    """Thresholds: ``eps``, then midway between the levels."""
    return (eps, *(max(eps, (a + b) / 2) for a, b in pairwise(levels)))


@cache
def lloyd_levels(eps: float, bits: int) -> tuple[float, ...]:
    """The ``2^K - 1`` levels above ``eps`` with the least squared error on N(0, 1): each the mean of its cell.

    Args:
        eps: end of the dead zone, whose level is 0.
        bits: K.

    Source: Lloyd, "Least squares quantization in PCM", 1982; Wang et al., CVPR 2018, section 3.1.
    """
    count = (1 << bits) - 1
    levels = tuple(eps + (k + 0.5) * 3.5 / count for k in range(count))
    for _ in range(20_000):
        thresholds = _between(eps, levels)
        new = tuple(first / mass for mass, first in _cells(thresholds))
        moved = max(abs(a - b) for a, b in zip(levels, new, strict=True))
        levels = new
        if moved < 1e-12:
            break
    return levels


@cache
def snapped_levels(eps: float, bits: int, resolution: int) -> tuple[tuple[int, ...], float, tuple[float, ...]]:
    """Lloyd's levels as integers times one step, with the least error that ``resolution`` bits allow.

    Returns:
        The integers, the step, and the thresholds.

    Raises:
        InputError: fewer bits than the levels need.
    """
    if resolution < bits:
        raise InputError(f"codes of {bits} bits need a resolution of as many bits, got {resolution}")
    best: tuple[float, tuple[int, ...], float] | None = None
    levels = lloyd_levels(eps, bits)
    for top in range(len(levels), 1 << resolution):
        for tenth in range(-8, 9):
            step = levels[-1] / (top + 0.05 * tenth)
            values = tuple(max(1, min((1 << resolution) - 1, round(level / step))) for level in levels)
            if len(set(values)) < len(values):
                continue
            mass_first = _cells(_between(eps, tuple(v * step for v in values)))
            refit = sum(v * f for v, (_, f) in zip(values, mass_first, strict=True))
            step = refit / sum(v * v * m for v, (m, _) in zip(values, mass_first, strict=True))
            found = tuple(v * step for v in values)
            error = _error(_between(eps, found), found)
            if best is None or error < best[0]:
                best = error, values, step
    assert best is not None
    _, values, step = best
    return values, step, _between(eps, tuple(v * step for v in values))


class LloydActivation(ActivationQuantizer):
    """Sparse activations with ``2^K`` uneven levels, which are integers of ``resolution`` bits times one step.

    Compiled, they are unsigned codes of that many bits of which only some occur.

    Args:
        bits: K.
        sparsity: share of codes 0 that a normalised input gets, in [0.5, 1).
        resolution: bits of the integers, K to 8; default ``min(8, K + 2)``.

    Raises:
        InputError: bits, sparsity or resolution out of range.
    """

    normalised = True

    def __init__(self, bits: int = 2, *, sparsity: float = 0.625, resolution: int | None = None) -> None:
        super().__init__()
        CodeType(Kind.UNSIGNED, bits)  # checks the range
        self.bits, self.resolution = bits, min(8, bits + 2) if resolution is None else resolution
        self._code_type = CodeType(Kind.UNSIGNED, self.resolution)
        self.eps = float32(dead_zone(sparsity))
        self.integers, step, self.thresholds = snapped_levels(self.eps, bits, self.resolution)
        self.step = float32(step)

    @property
    def positive(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The levels above 0, and the threshold below each."""
        return tuple(value * self.step for value in self.integers), self.thresholds

    @property
    def code_type(self) -> CodeType:
        return self._code_type

    def scale(self) -> float:
        return self.step

    def encoder(self) -> Encoder:
        """Codes that do not occur share the threshold of the next one that does; above the last it is never passed."""
        thresholds = []
        for code in range(1, self.code_type.count):
            passed = [t for value, t in zip(self.integers, self.thresholds, strict=True) if value >= code]
            thresholds.append(passed[0] if passed else NEVER)
        return Encoder(self.code_type, tuple(thresholds), closed=False)

    def quantize(self, x: Tensor) -> Tensor:
        """The gradient passes where ``0 < x`` is below the top level: the dead zone learns, too."""
        table = torch.tensor([0, *self.integers], dtype=x.dtype, device=x.device) * self.step
        thresholds = torch.tensor(self.thresholds, dtype=torch.float64).to(x.dtype)
        levels = table[rank(x.detach(), thresholds, closed=False).long()]
        return straight_through(x, levels, (x > 0) & (x < float(table[-1])))

    def extra_repr(self) -> str:
        return f"{self.bits}, integers={self.integers}, eps={self.eps:.6g}, step={self.step:.6g}"
