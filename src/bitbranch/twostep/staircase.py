"""What lies behind a layer's pre-activation, and the ``z`` half-step of the alternation for it.

Source: Wang et al., Two-Step Quantization for Low-bit Neural Networks, CVPR 2018, section 3.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..quantizers.base import ActivationQuantizer, rank
from ..quantizers.lloyd import NEVER


class Code(Protocol):
    """What lies behind a pre-activation: a monotone function ``Q``, or a relaxation of it."""

    def __call__(self, v: Tensor) -> Tensor:
        """``Q(v)``, any shape, in the dtype of ``v``."""

    def update(self, v: Tensor, y: Tensor, lam: float) -> tuple[Tensor, Tensor]:
        """``z`` that minimises ``(y - Q(z))^2 + lam (z - v)^2`` element by element, and the cost there.

        Args:
            v: reals, any shape.
            y: targets, same shape.
            lam: weight of the second term, positive.
        """

    def relaxed(self) -> Clip:
        """The clipped identity with the same range."""


@dataclass(frozen=True)
class Staircase:
    """An activation quantizer: ``levels[k]`` from ``thresholds[k - 1]`` to ``thresholds[k]``.

    Attributes:
        thresholds: ``[L - 1]`` ascending, float64.
        levels: ``[L]`` ascending reals, float64.
        closed: whether a real equal to a threshold passes it.
    """

    thresholds: Tensor
    levels: Tensor
    closed: bool

    @classmethod
    def of(cls, quantizer: ActivationQuantizer) -> Staircase:
        """The staircase of a quantizer."""
        encoder, code_type = quantizer.encoder(), quantizer.code_type
        values = torch.arange(code_type.lo, code_type.hi + 1, code_type.step, dtype=torch.float64)
        thresholds = torch.tensor(encoder.thresholds, dtype=torch.float64)
        reached = torch.cat([thresholds.diff() > 0, torch.ones(1, dtype=torch.bool)]) & (thresholds < NEVER)
        above = torch.cat([torch.ones(1, dtype=torch.bool), reached])  # levels that no real gets are left out
        return cls(thresholds[reached], values[above] * quantizer.scale(), encoder.closed)

    def __call__(self, v: Tensor) -> Tensor:
        return self.levels.to(v.dtype)[rank(v, self.thresholds.to(v.dtype), self.closed).int()]

    def update(self, v: Tensor, y: Tensor, lam: float) -> tuple[Tensor, Tensor]:
        """Exact: per level the best ``z`` is ``v`` clipped to its interval, and the cheapest level is taken.

        At an interval's open end the minimum is approached, not attained; the end itself is returned.
        """
        edges = [-math.inf, *self.thresholds.tolist(), math.inf]
        best, cost = v, torch.full_like(v, math.inf)
        for k, level in enumerate(self.levels.tolist()):
            best, cost = _cheaper(best, cost, v.clamp(edges[k], edges[k + 1]), level, v, y, lam)
        return best, cost

    def commutes(self, lo: float, hi: float) -> bool:
        """Whether clipping to ``lo .. hi`` first makes no difference."""
        t = self.thresholds
        return bool(((t > lo) & (t <= hi) if self.closed else (t >= lo) & (t < hi)).all())

    def relaxed(self) -> Clip:
        return Clip(self.levels[0].item(), self.levels[-1].item())


@dataclass(frozen=True)
class Clip:
    """``clip(v, lo, hi)``: a staircase relaxed, or too fine to tell apart; ReLU is ``Clip(0, inf)``."""

    lo: float
    hi: float

    def __call__(self, v: Tensor) -> Tensor:
        return v.clamp(self.lo, self.hi)

    def update(self, v: Tensor, y: Tensor, lam: float) -> tuple[Tensor, Tensor]:
        """The candidates are ``min(lo, v)``, ``clip((y + lam v) / (1 + lam), lo, hi)`` and ``max(hi, v)``."""
        best = ((y + lam * v) / (1 + lam)).clamp_(self.lo, self.hi)
        cost = (y - best).square_().add_((best - v).square_(), alpha=lam)
        if self.lo > -math.inf:
            best, cost = _cheaper(best, cost, v.clamp(max=self.lo), self.lo, v, y, lam)
        if self.hi < math.inf:
            best, cost = _cheaper(best, cost, v.clamp(min=self.hi), self.hi, v, y, lam)
        return best, cost

    def relaxed(self) -> Clip:
        return self


def _cheaper(
    best: Tensor, cost: Tensor, z: Tensor, level: float, v: Tensor, y: Tensor, lam: float
) -> tuple[Tensor, Tensor]:
    """Take candidate ``z``, where ``Q`` is ``level``, in the elements where it costs less."""
    candidate = (y - level).square_().add_((z - v).square_(), alpha=lam)
    return torch.where(candidate < cost, z, best), torch.minimum(candidate, cost)
