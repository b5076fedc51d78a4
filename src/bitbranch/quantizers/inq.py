"""Incremental network quantization (INQ): powers of two or zero, fixed part by part while the rest is retrained."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..contract import CodeType, Kind
from ..errors import InputError
from .base import WeightQuantizer
from .uniform import symmetric_type

LOWEST_EXPONENT = -100
"""Of the largest level, so that all levels are float32 numbers without loss."""


def exponents(largest: float, bits: int) -> tuple[int, int]:
    """``n1 = floor(log2(4 s / 3))`` and ``n2 = n1 + 1 - 2^(b-1) / 2``: levels are 0 and ``+-2^n2 .. +-2^n1``.

    Args:
        largest: ``s = max |w|`` over the layer.
        bits: b, 2..5: one code is 0, and half of the others are negative.

    Source: Zhou et al., "Incremental Network Quantization", ICLR 2017, section 2.1.
    """
    top = math.floor(math.log2(4 * largest / 3)) if largest > 0 else 0
    top = max(top, LOWEST_EXPONENT)
    return top, top + 1 - (1 << (bits - 2))


def power_of_two(weight: Tensor, top: int, bottom: int) -> Tensor:
    """``sign(w) b`` where ``(a + b) / 2 <= |w| < 3 b / 2`` for neighbouring levels ``a < b``, else 0; any shape.

    The levels are ``0, 2^bottom, .., 2^top``; magnitudes of ``3/2 2^top`` and more become ``2^top``.

    Source: Zhou et al., ICLR 2017, equation (4).
    """
    w = weight.detach()
    magnitude = w.abs().double()
    # 3/4 2^k <= |w| < 3/2 2^k is k = floor(log2(4/3 |w|)), and frexp gives floor(log2) + 1 without rounding.
    exponent = torch.frexp(magnitude / 3 * 4).exponent - 1
    exponent = torch.where(magnitude < 0.75 * torch.exp2(exponent.double()), exponent - 1, exponent)
    exponent = torch.where(magnitude >= 1.5 * torch.exp2(exponent.double()), exponent + 1, exponent)
    level = torch.exp2(exponent.clamp(bottom, top).double())
    return (w.sign() * level * (magnitude >= 2.0 ** (bottom - 1))).to(w.dtype)


class PowerOfTwoWeight(WeightQuantizer):
    """Weights on :func:`power_of_two` levels, as far as :meth:`fix` has fixed them; the others are float.

    A fixed weight keeps its level, gets no gradient, and :meth:`project` takes back what momentum or decay did to it.
    The exponents come from the first weights seen. :func:`bitbranch.training.stages.incremental` fixes and trains in
    turn. The integers are powers of two, ``2^n2`` times which is the real; of 2 bits they are ternary, of 5 bits they
    reach 128, for which the compiler reads the layer's input twice where it has to.

    Args:
        bits: b, 2..5.

    Raises:
        InputError: bits out of range.

    Source: Zhou et al., "Incremental Network Quantization", ICLR 2017.
    """

    fixed: Tensor
    levels: Tensor
    top: Tensor

    def __init__(self, bits: int = 5) -> None:
        super().__init__()
        if not 2 <= bits <= 5:
            raise InputError(f"INQ weights have 2..5 bits, got {bits}: of 6 bits they span 2^15, beyond 8-bit integers")
        self.bits = bits
        self._code_type = CodeType(Kind.SIGNED, 8) if bits == 5 else symmetric_type({2: 2, 3: 3, 4: 5}[bits])
        self.register_buffer("top", torch.tensor(0))

    @property
    def started(self) -> bool:
        """Whether the exponents are known."""
        return "fixed" in self._buffers

    @property
    def portion(self) -> float:
        """Share of the weights that are fixed, 0..1."""
        return float(self.fixed.double().mean()) if self.started else 0.0

    @property
    def obstacle(self) -> str:
        if self.started and bool(self.fixed.all()):
            return ""
        return f"INQ has fixed {100 * self.portion:.4g} % of its weights, the others are float; fix them all"

    @property
    def code_type(self) -> CodeType:
        return self._code_type

    def exponents(self) -> tuple[int, int]:
        """``n1`` and ``n2``."""
        top = int(self.top)
        return top, top + 1 - (1 << (self.bits - 2))

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        if not self.started:
            self.top.fill_(exponents(float(weight.detach().abs().max()), self.bits)[0])
            self.register_buffer("fixed", torch.zeros_like(weight, dtype=torch.bool))
            self.register_buffer("levels", torch.zeros_like(weight))

    @torch.no_grad()
    def fix(self, weight: Tensor, portion: float) -> None:
        """Fix the largest of the float weights at their levels, until this share of all is fixed; in place.

        Args:
            weight: latent weights, outputs first.
            portion: 0..1; what is fixed already stays.

        Raises:
            InputError: a portion out of range.

        Source: Zhou et al., ICLR 2017, section 2.2: the pruning-inspired partition.
        """
        if not 0 <= portion <= 1:
            raise InputError(f"INQ: a portion of weights is 0..1, got {portion}")
        self.start(weight)
        count = round(portion * weight.numel()) - int(self.fixed.sum())
        if count > 0:
            magnitude = torch.where(self.fixed, -1.0, weight.abs().double()).flatten()
            chosen = torch.zeros_like(self.fixed).flatten()
            chosen[magnitude.sort(descending=True, stable=True).indices[:count]] = True
            chosen = chosen.view_as(self.fixed)
            self.levels[chosen] = power_of_two(weight, *self.exponents())[chosen]
            self.fixed |= chosen
        self.project(weight)

    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        if self.obstacle:
            raise InputError(self.obstacle)
        unit = 2.0 ** self.exponents()[1]
        return (self.levels / unit).to(weight.dtype), torch.full_like(weight.detach().flatten(1)[:, 0], unit)

    def quantize(self, weight: Tensor) -> Tensor:
        return torch.where(self.fixed, self.levels, weight)

    def project(self, weight: Tensor) -> None:
        weight.copy_(torch.where(self.fixed, self.levels, weight))

    def extra_repr(self) -> str:
        return f"{self.bits}"
