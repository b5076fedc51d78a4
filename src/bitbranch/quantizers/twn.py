"""Ternary weight networks (TWN): a threshold of 0.7 mean magnitudes, and the best scale for it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..contract import CodeType, Kind
from .base import WeightQuantizer, per_output, straight_through

THRESHOLD = 0.7
"""In mean magnitudes."""


def threshold_ternary(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``t = sign(w) [|w| > 0.7 mean |w|]`` and ``alpha``, the mean magnitude of what lies beyond, per row.

    Args:
        weight: ``[O, n]`` reals.

    Returns:
        ``t [O, n]`` of {-1, 0, 1} and ``alpha [O]``, float32 numbers (0 for a row of zeros), both in the dtype of
        ``weight``.

    Source: Li, Zhang, Liu, "Ternary Weight Networks", arXiv 1605.04711, equations (3) to (6).
    """
    magnitude = weight.detach().double().abs()
    kept = magnitude > THRESHOLD * magnitude.mean(1, keepdim=True)
    alpha = (magnitude * kept).sum(1) / kept.sum(1).clamp_min(1)
    return torch.where(kept, weight.detach().sign(), 0.0), alpha.float().to(weight.dtype)


class ThresholdTernaryWeight(WeightQuantizer):
    """Ternary weights by :func:`threshold_ternary`, of each filter or of the layer; the gradient passes through.

    Args:
        per_layer: one threshold and one scale for the whole layer.

    Source: Li, Zhang, Liu, arXiv 1605.04711.
    """

    def __init__(self, *, per_layer: bool = False) -> None:
        super().__init__()
        self.per_layer = per_layer

    @property
    def code_type(self) -> CodeType:
        return CodeType(Kind.TERNARY, 2)

    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        t, alpha = threshold_ternary(weight.reshape(1, -1) if self.per_layer else weight.flatten(1))
        return t.view_as(weight), alpha.expand(len(weight)).contiguous()

    def quantize(self, weight: Tensor) -> Tensor:
        t, alpha = self.integers(weight)
        return straight_through(weight, t * per_output(alpha, weight))

    def extra_repr(self) -> str:
        return f"per_layer={self.per_layer}"
