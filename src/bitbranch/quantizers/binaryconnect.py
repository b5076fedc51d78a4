"""BinaryConnect: weights ``+-H`` by their signs or by chance, activations float."""

from __future__ import annotations

import torch
from torch import Tensor

from ..contract import CodeType, Kind
from ..errors import InputError
from .base import WeightQuantizer, float32, signs, straight_through

SMALL = 0.1
"""Latent weights of less than this share of ``H`` (root mean square) are drawn with nearly equal chances."""


def hard_sigmoid(x: Tensor) -> Tensor:
    """``clip((x + 1) / 2, 0, 1)``, any shape. Source: Courbariaux et al., NIPS 2015, equation (3)."""
    return ((x + 1) / 2).clamp(0, 1)


def stochastic_signs(weight: Tensor, magnitude: float) -> Tensor:
    """+1 with probability ``hard_sigmoid(w / H)``, else -1, any shape, without gradient.

    Draws from torch's global generator, so ``torch.manual_seed`` (the ``seed`` of ``fit``) repeats it.

    Source: Courbariaux et al., NIPS 2015, equation (2).
    """
    w = weight.detach()
    return torch.where(torch.rand_like(w) < hard_sigmoid(w / magnitude), 1.0, -1.0).to(w.dtype)


class BinaryConnectWeight(WeightQuantizer):
    """Weights ``+-H``: ``H sign(w)`` (``sign(0) = +1``), or ``H`` times :func:`stochastic_signs` while training.

    The gradient passes straight through, everywhere; :meth:`project` clips latent weights to ``-H..H``. Evaluation
    takes the signs in both forms. (The paper evaluates the stochastic form with its latent float weights, which are no
    integers.)

    Args:
        magnitude: ``H``; 1 as in the paper. The authors' programs take ``sqrt(1.5 / (inputs + outputs))``.
        stochastic: draw the signs anew at every call in training.

    Raises:
        InputError: a magnitude that is not positive and finite.

    Source: Courbariaux, Bengio, David, "BinaryConnect", NIPS 2015, equations (1) to (3) and algorithm 1.
    """

    keeps_size = False

    def __init__(self, *, magnitude: float = 1.0, stochastic: bool = False) -> None:
        super().__init__()
        if not 0 < magnitude < float("inf"):
            raise InputError(f"binary weights: the magnitude must be positive and finite, got {magnitude}")
        self.magnitude, self.stochastic = float32(magnitude), stochastic

    @property
    def code_type(self) -> CodeType:
        return CodeType(Kind.BIPOLAR, 1)

    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return signs(weight), torch.full_like(weight.detach().flatten(1)[:, 0], self.magnitude)

    def quantize(self, weight: Tensor) -> Tensor:
        drawn = self.stochastic and self.training
        values = stochastic_signs(weight, self.magnitude) if drawn else signs(weight)
        return straight_through(weight, values * self.magnitude)

    def project(self, weight: Tensor) -> None:
        weight.clamp_(-self.magnitude, self.magnitude)

    def trap(self, weight: Tensor) -> str:
        w = weight.detach()
        if bool((w.abs() > self.magnitude).any()):
            return "latent weights beyond -H..H are clipped by the first step; take a larger magnitude H"
        if self.stochastic and float(w.square().mean().sqrt()) < SMALL * self.magnitude:
            return "the latent weights are so small beside H that the first draws are coin flips; take a smaller H"
        return ""

    def extra_repr(self) -> str:
        return f"magnitude={self.magnitude:.6g}, stochastic={self.stochastic}"
