"""Optimal uniform quantizers of the standard Gaussian, from closed forms and a fixed point."""

from __future__ import annotations

import math
from collections.abc import Sequence

GRID = 128
"""Starting steps that are tried; the squared error has several local minima where ``eps`` swallows levels."""


def density(x: float) -> float:
    """Density of N(0, 1)."""
    return math.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def upper_tail(x: float) -> float:
    """Probability that N(0, 1) exceeds ``x``, without cancellation for large ``x``."""
    return 0.5 * math.erfc(x / math.sqrt(2))


def optimal_step(levels: Sequence[float], edges: Sequence[float], eps: float = 0.0) -> float:
    """The step ``D`` whose levels ``c_k D`` have the least squared error on the Gaussian above ``eps``.

    The cell of level ``c_k D`` reaches from ``max(eps, e_k D)`` to ``max(eps, e_{k+1} D)``, the last one to infinity;
    a cell below ``eps`` is empty and counts nothing. With the cells fixed, the best step is
    ``sum_k c_k int_k x phi / sum_k c_k^2 int_k phi``; that is iterated, from the best of a grid, until it stands.

    Args:
        levels: ``c_1 < .. < c_n``, in steps.
        edges: ``e_1 < .. < e_n``, lower edges of the cells, in steps.
        eps: least real that counts, at least 0.

    Source: Wang et al., CVPR 2018, section 3.1; Max, "Quantizing for minimum distortion", 1960.
    """

    def moments(step: float) -> tuple[float, float]:
        """``sum_k c_k int_k x phi`` and ``sum_k c_k^2 int_k phi``."""
        bounds = [max(eps, e * step) for e in edges]
        densities = [density(b) for b in bounds] + [0.0]
        tails = [upper_tail(b) for b in bounds] + [0.0]
        first = sum(c * (densities[k] - densities[k + 1]) for k, c in enumerate(levels))
        second = sum(c * c * (tails[k] - tails[k + 1]) for k, c in enumerate(levels))
        return first, second

    def error(step: float) -> float:
        """Squared error, up to what does not depend on the step."""
        first, second = moments(step)
        return step * (step * second - 2 * first)

    span = [eps + 0.5 + 5.5 * i / (GRID - 1) for i in range(GRID)]  # where the top level may lie
    step = min((top / levels[-1] for top in span), key=error)
    for _ in range(10_000):
        first, second = moments(step)
        previous, step = step, first / second
        if abs(step - previous) <= 1e-11 * step:
            break
    return step
