"""Trained ternary quantization (TTQ): ternary weights whose positive and negative levels are learned apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..contract import CodeType, Kind
from ..errors import InputError
from .base import WeightQuantizer

THRESHOLD = 0.05
"""In largest magnitudes of a layer; the paper's ``t`` for ImageNet and CIFAR-10."""

FEW = 0.1
"""Share of weights beyond the threshold that is fewer than a trained layer has."""

TWO_SCALES = (
    "TTQ's levels +Wp and -Wn are two scales, which integers with one scale per output channel cannot hold; "
    "bitbranch.split(network) makes two ternary layers of it, whose sum is compiled"
)


class TrainedTernary(torch.autograd.Function):
    """The levels and gradients of :func:`trained_ternary`."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, weight: Tensor, positive: Tensor, negative: Tensor, threshold: float
    ) -> Tensor:
        delta = threshold * weight.abs().max()
        above, below = weight > delta, weight < -delta
        ctx.save_for_backward(above, below, positive, negative)
        return positive * above - negative * below

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        above, below, positive, negative = ctx.saved_tensors
        slope = torch.where(above, positive, torch.where(below, negative, 1.0))
        return grad * slope, (grad * above).sum(), -(grad * below).sum(), None


def trained_ternary(weight: Tensor, positive: Tensor, negative: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """``+Wp`` where ``w > D``, ``-Wn`` where ``w < -D``, else 0; ``D = t max |w|`` over the layer.

    Gradients: to ``Wp`` the sum over the weights at ``+Wp``; to ``Wn`` minus the sum over those at ``-Wn`` (the paper
    leaves the minus to the meaning of ``Wn``); to a latent weight the gradient of its level times ``Wp``, 1 or ``Wn``.

    Args:
        weight: latent weights, any shape; the paper divides them by the largest first, which changes nothing here.
        positive, negative: scalars ``Wp`` and ``Wn``.
        threshold: ``t``.

    Source: Zhu et al., "Trained Ternary Quantization", ICLR 2017, equations (6) to (9).
    """
    out: Tensor = TrainedTernary.apply(weight, positive, negative, threshold)
    return out


class TrainedTernaryWeight(WeightQuantizer):
    """Ternary weights through :func:`trained_ternary`, one pair of levels for the layer.

    The levels start at the mean magnitudes of the weights that get them. A sum of weights at two scales is no integer
    with one scale, so a layer has no integers of its own: :func:`bitbranch.split` gives two ternary layers, of scales
    ``(Wp + Wn) / 2`` and ``(Wp - Wn) / 2``, whose sum is compiled as residual sums are.

    The gradient of a level is a sum over thousands of weights: at rates that suit these, stochastic gradient descent
    throws the levels far off (VGG-small on CIFAR-10: within 50 steps, at a rate of 0.01). Adam's steps do not grow with
    it.

    Args:
        threshold: ``t``, in [0, 1).

    Raises:
        InputError: a threshold out of range.
    """

    def __init__(self, *, threshold: float = THRESHOLD) -> None:
        super().__init__()
        if not 0 <= threshold < 1:
            raise InputError(f"TTQ: the threshold must be at least 0 and below 1, got {threshold}")
        self.threshold = threshold
        self.positive = nn.Parameter(torch.tensor(0.0))
        self.negative = nn.Parameter(torch.tensor(0.0))

    @property
    def obstacle(self) -> str:
        return TWO_SCALES

    @property
    def code_type(self) -> CodeType:
        return CodeType(Kind.TERNARY, 2)

    def ternary(self, weight: Tensor) -> Tensor:
        """Which level each latent weight has: -1, 0, 1, without gradient."""
        w = weight.detach()
        return w.sign() * (w.abs() > self.threshold * w.abs().max())

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        if float(self.positive) == 0 and float(self.negative) == 0:
            t = self.ternary(weight)
            for level, kept in ((self.positive, t > 0), (self.negative, t < 0)):
                level.copy_((weight.abs() * kept).sum() / kept.sum().clamp_min(1))

    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        raise InputError(self.obstacle)

    def quantize(self, weight: Tensor) -> Tensor:
        return trained_ternary(weight, self.positive, self.negative, self.threshold)

    def trap(self, weight: Tensor) -> str:
        few = float((self.ternary(weight) != 0).float().mean()) < FEW
        return "an outlier sets TTQ's threshold so high that nearly all weights are 0" if few else ""

    def extra_repr(self) -> str:
        return f"threshold={self.threshold:g}"
