"""Binary weight networks (BWN): signs, with a scale per filter."""

from __future__ import annotations

from torch import Tensor

from ..contract import CodeType, Kind
from .base import WeightQuantizer, per_output, signs, straight_through


def binary(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The signs ``t`` (``sign(0) = +1``) and scales ``alpha = mean |w|`` that minimise ``|| w - alpha t ||^2`` per row.

    Rows that already are ``alpha t`` come back unchanged, bit for bit.

    Args:
        weight: ``[O, n]`` reals.

    Returns:
        ``t [O, n]`` of {-1, +1} and ``alpha [O]``, float32 numbers, both in the dtype of ``weight``.

    Source: Rastegari et al., ECCV 2016, equations (4) and (6).
    """
    w = weight.detach()
    alpha = w.double().abs().mean(1)  # sums of equal float32 numbers are exact in float64
    return signs(w), alpha.float().to(w.dtype)


class BinaryWeight(WeightQuantizer):
    """Binary weights by :func:`binary`; the gradient passes straight through where ``|w| <= 1``.

    Source: Rastegari et al., ECCV 2016; the gradient: Courbariaux et al., arXiv 1602.02830, equation (4).
    """

    @property
    def code_type(self) -> CodeType:
        return CodeType(Kind.BIPOLAR, 1)

    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        t, alpha = binary(weight.flatten(1))
        return t.view_as(weight), alpha

    def quantize(self, weight: Tensor) -> Tensor:
        t, alpha = self.integers(weight)
        return straight_through(weight, t * per_output(alpha, weight), weight.detach().abs() <= 1)

    def trap(self, weight: Tensor) -> str:
        stuck = bool((weight.detach().abs() > 1).any())
        return "latent weights beyond -1..1 have no gradient and never change; scale them down first" if stuck else ""
