"""Bipolar codes of multi-branch binary networks (MBN): reals on [-1, 1] as sums of {-1, +1} branches."""

from __future__ import annotations

import math
from functools import cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..contract import CodeType, Encoder, Kind, bipolar_encoder, uniform_encoder
from ..errors import InputError
from .base import (
    ActivationQuantizer,
    HeldScales,
    float32,
    per_output,
    straight_through,
    straight_through_within,
)
from .gaussian import optimal_step
from .passes import levels

Clip = Literal["htanh", "hrelu", "hrelu-affine"]
Gradient = Literal["ste", "cosine"]

ALWAYS_PASSED = -float(np.finfo(np.float32).max)
"""A threshold below every real that a network meets, finite because encoders want finite thresholds."""


def bipolar_values(x: Tensor, bits: int) -> Tensor:
    """The odd integers ``2 u - n`` of reals, any shape; ``n = 2^K - 1``, ``u = floor(n (clip(x) + 1) / 2 + 1/2)``.

    The clip is to [-1, 1] and ``n`` is odd, so this is ``2 floor(n x / 2) + 1``. The real of a value is ``value / n``.

    Source: Sun et al., arXiv 2106.09886, the quantizer ``q_K``.
    """
    n = (1 << bits) - 1
    return torch.floor(x.clamp(-1, 1) * n / 2) * 2 + 1


def cosine_slope(x: Tensor, bits: int) -> Tensor:
    """Derivative of ``q_K`` with its signs of sines replaced by the sines, any shape; 0 is not forced outside [-1, 1].

    The published branches are ``sin(n/2^K pi x)`` at the top and ``-sin(n/2^m pi x)`` at ``m = 1 .. K-1``; branch
    ``m`` weighs ``2^(m-1) / n``. The product of that weight with the inner derivative ``n/2^m pi`` is ``pi/2`` for
    every branch, so the sum is ``pi/2 (cos(n/2^K pi x) - sum_{m<K} cos(n/2^m pi x))``.

    Source: Sun et al., arXiv 2106.09886, the gradient of the M-bit encoding functions.
    """
    n = (1 << bits) - 1
    slope = torch.cos(x * (math.pi * n / (1 << bits)))
    for m in range(1, bits):
        slope = slope - torch.cos(x * (math.pi * n / (1 << m)))
    return slope * (math.pi / 2)


def bipolar(x: Tensor, bits: int, *, clip: Clip = "htanh", gradient: Gradient = "ste") -> Tensor:
    """``q_K(clip(x))`` with a training gradient, any shape.

    ============== ================================== =====================================
    clip           levels                             gradient is 0 outside
    ============== ================================== =====================================
    htanh          ``-1, .., -1/n, 1/n, .., 1``       ``-1 <= x <= 1``
    hrelu          ``1/n, 3/n, .., 1``                ``0 <= x <= 1``
    hrelu-affine   ``0, 1/n, 2/n, .., 1``             ``0 <= x <= 1``
    ============== ================================== =====================================

    Args:
        x: reals.
        bits: K, 1..8.
        clip: HTanh, HReLU through ``q_K`` as published (only the upper half of its levels), or HReLU through
            ``(q_K(2 x - 1) + 1) / 2``, which uses all levels.
        gradient: ``"ste"`` is 1 inside the clip; ``"cosine"`` is :func:`cosine_slope`.
    """
    n = (1 << bits) - 1
    lo = -1 if clip == "htanh" else 0
    affine = clip == "hrelu-affine"

    reals = levels("affine" if affine else "bipolar", x, lo, n, float32(1 / n))
    if gradient == "ste":
        return straight_through_within(x, reals, lo, 1, "[]")
    at = x.detach().clamp(lo, 1)
    # d/dx (q(2 x - 1) + 1) / 2 = q'(2 x - 1)
    slope = cosine_slope(2 * at - 1 if affine else at, bits)
    return straight_through(x, reals, slope * ((x >= lo) & (x <= 1)))


class BipolarActivation(ActivationQuantizer):
    """Activations of 1 to 8 bits through :func:`bipolar`; scale ``1 / n`` with ``n = 2^K - 1``.

    Warns, once, if HTanh's first training batch has no negative input: a ReLU in front leaves half of the codes unused.

    Raises:
        InputError: bits outside 1..8, an unknown clip or gradient, or ``"hrelu"`` with 1 bit, which is a constant.
    """

    def __init__(self, bits: int = 2, *, clip: Clip = "htanh", gradient: Gradient = "ste") -> None:
        super().__init__()
        if clip not in ("htanh", "hrelu", "hrelu-affine"):
            raise InputError(f"bipolar activations: clip must be htanh, hrelu or hrelu-affine, got {clip!r}")
        if clip == "hrelu" and bits == 1:
            raise InputError("bipolar activations: hrelu with 1 bit is the constant +1; take htanh or hrelu-affine")
        _check_gradient(gradient)
        self.bits, self.clip, self.gradient = bits, clip, gradient
        self.reads_signs = clip == "htanh"
        self.mixes = gradient == "ste"
        self._code_type = CodeType(Kind.UNSIGNED if clip == "hrelu-affine" else Kind.BIPOLAR, bits)

    @property
    def code_type(self) -> CodeType:
        return self._code_type

    def scale(self) -> float:
        return float32(1 / ((1 << self.bits) - 1))

    def encoder(self) -> Encoder:
        if self.clip == "hrelu-affine":
            return uniform_encoder(self.code_type, 1 / ((1 << self.bits) - 1))
        encoder = bipolar_encoder(self.bits)
        if self.clip == "hrelu":
            return Encoder(self.code_type, tuple(t if t > 0 else ALWAYS_PASSED for t in encoder.thresholds))
        return encoder

    def start(self, x: Tensor) -> None:
        self.check_signs(x)

    def quantize(self, x: Tensor) -> Tensor:
        return bipolar(x, self.bits, clip=self.clip, gradient=self.gradient)

    def extra_repr(self) -> str:
        return f"{self.bits}, clip={self.clip!r}, gradient={self.gradient!r}"


@cache
def gaussian_scale(bits: int) -> float:
    """Scale of the optimal bipolar quantizer of N(0, 1): half the distance between its levels.

    The distances are 1.596, .9957, .5860, .3352 at 1 to 4 bits. Source: Max, "Quantizing for minimum distortion",
    1960, table II.
    """
    half = 1 << (bits - 1)
    return optimal_step([k + 0.5 for k in range(half)], range(half)) / 2


class BipolarWeight(HeldScales):
    """Weights of 1 to 8 bits on the levels ``s v``, ``v`` odd, ``|v| <= n = 2^M - 1``.

    By default the scale of an output channel is that of the optimal quantizer of a Gaussian with its weights' root
    mean square (1 bit: their mean magnitude, which is optimal for any distribution), computed anew from the current
    weights (at 2 and more bits until a solver sets another); the gradient passes where ``|w| <= (n + 1) s``, the reach
    of the outermost levels' cells, and not to the scale. With ``fixed_range`` the scale is ``1 / n``, as published:
    levels on [-1, 1], gradient within, latent weights clipped there by :meth:`project`.

    Args:
        bits: M, 1..8.
        fixed_range: levels on [-1, 1] instead of a scale per output channel.
        gradient: ``"ste"``, or ``"cosine"`` for :func:`cosine_slope` of ``w / (n s)``.

    Source: Sun et al., arXiv 2106.09886; the scale of 1 bit: Rastegari et al., ECCV 2016, equation (6).
    """

    def __init__(self, bits: int = 2, *, fixed_range: bool = False, gradient: Gradient = "ste") -> None:
        super().__init__()
        _check_gradient(gradient)
        self._code_type = CodeType(Kind.BIPOLAR, bits)
        self.bits, self.fixed_range, self.gradient = bits, fixed_range, gradient
        self.keeps_size = not fixed_range

    @property
    def code_type(self) -> CodeType:
        return self._code_type

    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        n = (1 << self.bits) - 1
        rows = weight.detach().flatten(1).double()
        if self.fixed_range:
            scale = torch.full_like(rows[:, 0], float32(1 / n))
            return bipolar_values(weight.detach().double(), self.bits).to(weight.dtype), scale.to(weight.dtype)
        if self.bits == 1:
            scale = rows.abs().mean(1).float()
        else:
            scale = self.held_or(lambda: rows.square().mean(1).sqrt() * gaussian_scale(self.bits))
        reach = per_output(scale.double() * n, weight).clamp_min(torch.finfo(torch.float64).tiny)  # a row may be zero
        values = bipolar_values(weight.detach().double() / reach, self.bits)
        return values.to(weight.dtype), scale.to(weight.dtype)

    def quantize(self, weight: Tensor) -> Tensor:
        n = (1 << self.bits) - 1
        values, scale = self.integers(weight)
        position = weight.detach() / per_output(scale * n, weight).clamp_min(torch.finfo(weight.dtype).tiny)
        slope = position.abs() <= (1 if self.fixed_range else (n + 1) / n)
        if self.gradient == "cosine":
            slope = slope * cosine_slope(position.clamp(-1, 1), self.bits)
        return straight_through(weight, values * per_output(scale, weight), slope)

    def project(self, weight: Tensor) -> None:
        if self.fixed_range:
            weight.clamp_(-1, 1)

    def extra_repr(self) -> str:
        return f"{self.bits}, fixed_range={self.fixed_range}, gradient={self.gradient!r}"


def _check_gradient(gradient: str) -> None:
    if gradient not in ("ste", "cosine"):
        raise InputError(f"bipolar codes: gradient must be ste or cosine, got {gradient!r}")
