"""Activations that are neither affine nor a clip, as scalar functions whose encoder is an exact table on integers.

Each is known twice: in float64 for whole arrays, and for single rational numbers exactly, or, where it is
transcendental, to :data:`DIGITS` decimals, far below the distance at which a float64 threshold could be missed. It
rises everywhere, or falls to its least value and rises from there on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction

import numpy as np

from ..contract import Floats

DIGITS = 80
_CONTEXT = Context(prec=DIGITS + 20)
_SMALLEST = Fraction(1, 10**DIGITS)


@dataclass(frozen=True)
class Function:
    """A scalar function.

    Args:
        name: torch's.
        real: the function of float64 arrays, within a few units in the last place.
        exact: the function of one rational number.
        valley: where the function has its least value, falling before and rising behind; ``None``: it rises.
        steepness: the greatest magnitude of its derivative.
    """

    name: str
    real: Callable[[Floats], Floats]
    exact: Callable[[Fraction], Fraction]
    valley: Fraction | None = None
    steepness: float = 1.0

    def image(self, lo: Floats, hi: Floats) -> tuple[Floats, Floats]:
        """Least and greatest values over intervals ``lo .. hi``, ``[C]`` each, which may be infinite."""
        with np.errstate(invalid="ignore", over="ignore"):
            ends = [np.where(np.isnan(v), 0.0, v) for v in (self.real(lo), self.real(hi))]  # 0 * inf: a limit of 0
        least = np.minimum(*ends)
        if self.valley is not None:
            inside = (lo <= float(self.valley)) & (float(self.valley) <= hi)
            least = np.where(inside, self.real(np.full_like(lo, float(self.valley))), least)
        return least, np.maximum(*ends)


def _decimal(y: Fraction) -> Decimal:
    return _CONTEXT.divide(Decimal(y.numerator), Decimal(y.denominator))


def _exponential(y: Fraction) -> Fraction:
    """``e^y`` for ``y <= 0``, to more than :data:`DIGITS` decimals, and never 0."""
    if y < -4 * DIGITS:
        return _SMALLEST * _SMALLEST
    return Fraction(_CONTEXT.exp(_decimal(y)))


def leaky_relu(slope: float) -> Function:
    """``y`` where positive, else ``slope * y``."""
    below = Fraction(slope)
    return Function(
        "leaky_relu",
        lambda y: np.where(y > 0, y, slope * y),
        lambda y: y if y > 0 else below * y,
        Fraction(0) if slope < 0 else None,
        max(1.0, abs(slope)),
    )


def hardswish() -> Function:
    """``y * clip(y + 3, 0, 6) / 6``."""
    return Function(
        "hardswish",
        lambda y: y * np.clip(y + 3, 0, 6) / 6,
        lambda y: y * min(max(y + 3, Fraction(0)), Fraction(6)) / 6,
        Fraction(-3, 2),
        1.5,
    )


def _logistic(y: Floats) -> Floats:
    small = np.exp(-np.abs(y))
    return np.where(y >= 0, 1.0, small) / (1 + small)


def _exact_logistic(y: Fraction) -> Fraction:
    small = _exponential(-abs(y))
    return (1 if y >= 0 else small) / (1 + small)


def sigmoid() -> Function:
    """``1 / (1 + e^-y)``."""
    return Function("sigmoid", _logistic, _exact_logistic, steepness=0.25)


def tanh() -> Function:
    """The hyperbolic tangent."""
    return Function("tanh", np.tanh, lambda y: 2 * _exact_logistic(2 * y) - 1)


def silu() -> Function:
    """``y / (1 + e^-y)``; least where ``e^y = -1 - y``."""
    valley = Fraction("-1.27846454276107379510935873902298015543947748")
    return Function("silu", lambda y: y * _logistic(y), lambda y: y * _exact_logistic(y), valley, 1.1)


def elu(alpha: float, scale: float = 1.0, input_scale: float = 1.0) -> Function:
    """``scale * y`` where positive, else ``scale * alpha * (e^(input_scale * y) - 1)``; all three positive."""
    a, s, i = Fraction(alpha), Fraction(scale), Fraction(input_scale)
    return Function(
        "elu",
        lambda y: scale * np.where(y > 0, y, alpha * np.expm1(input_scale * np.minimum(y, 0))),
        lambda y: s * (y if y > 0 else a * (_exponential(i * y) - 1)),
        steepness=scale * max(1.0, alpha * input_scale),
    )
