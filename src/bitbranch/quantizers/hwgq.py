"""Half-wave Gaussian quantization (HWGQ): the sparse codes without a dead zone."""

from __future__ import annotations

from torch import Tensor

from .base import straight_through_within
from .tsq import SparseActivation, sparse_levels


def half_wave(x: Tensor, bits: int, step: float) -> Tensor:
    """``Q(x) = 0 (x <= 0), D (<= 1.5 D), .., n D (above)``, any shape; the gradient passes where ``0 < x <= n D``.

    Args:
        x: reals, normalised.
        bits: K, 1..8; ``n = 2^K - 1``.
        step: ``D``, .5388 at 2 bits.

    Source: Cai et al., CVPR 2017, equations (8) and (13), the clipped backward approximation.
    """
    return straight_through_within(x, sparse_levels(x, bits, 0.0, step), 0.0, ((1 << bits) - 1) * step, "(]")


class HalfWaveActivation(SparseActivation):
    """Unsigned activations of 1 to 8 bits through :func:`half_wave`; scale ``D``, optimal for a half-wave Gaussian."""

    def __init__(self, bits: int = 2) -> None:
        super().__init__(bits, sparsity=0.5)

    def quantize(self, x: Tensor) -> Tensor:
        return half_wave(x, self.bits, self.step)
