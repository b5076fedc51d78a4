"""DoReFa-Net: weights through a tanh, activations clipped to [0, 1], gradients rounded stochastically."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ..contract import CodeType, Encoder, Kind, uniform_encoder
from ..errors import InputError
from .base import ActivationQuantizer, WeightQuantizer, float32, per_output, signs, straight_through

FLOAT_GRADIENT = 32
"""Bits of a gradient that is not quantized."""


def squashed(weight: Tensor) -> Tensor:
    """``tanh(w) / max |tanh(w)|`` over the layer, any shape, with gradient (through the maximum, too)."""
    t = weight.tanh()
    return t / t.abs().max().clamp_min(torch.finfo(t.dtype).tiny)


def weight_values(weight: Tensor, bits: int) -> Tensor:
    """The odd integers ``2 round(n (tanh(w) / (2 max |tanh(w)|) + 1/2)) - n``, any shape; ``n = 2^M - 1``.

    Halves round up. The real of a value is ``value / n``, which is ``2 q_M(..) - 1``.

    Source: Zhou et al., "DoReFa-Net", arXiv 1606.06160, equations (5) and (9).
    """
    n = (1 << bits) - 1
    position = squashed(weight.detach().double()) / 2 + 0.5
    return (torch.floor(position * n + 0.5) * 2 - n).to(weight.dtype)


class GradientRounding(torch.autograd.Function):
    """The identity, whose gradient is rounded by :func:`quantized_gradient`."""

    @staticmethod
    def forward(ctx, x: Tensor, bits: int) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.bits = bits
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        return quantized_gradient(grad, ctx.bits), None


def quantized_gradient(grad: Tensor, bits: int) -> Tensor:
    """``2 m (q_G(g / (2 m) + 1/2 + noise) - 1/2)``, ``m = max |g|`` of each image, on ``2^G`` levels.

    The noise is uniform within half a level to either side, so that rounding is right on average; it is drawn from
    torch's global generator. Rounding stays within the levels.

    Args:
        grad: ``[N, ...]``; half precision is rounded in float32.
        bits: G.

    Source: Zhou et al., arXiv 1606.06160, equation (12).
    """
    n = (1 << bits) - 1
    given, grad = grad.dtype, grad.to(torch.promote_types(grad.dtype, torch.float32))
    most = grad.abs().flatten(1).amax(1).reshape(-1, *[1] * (grad.dim() - 1))
    position = grad / (2 * most).clamp_min(torch.finfo(grad.dtype).tiny) + 0.5
    noise = (torch.rand_like(grad) - 0.5) / n
    level = torch.floor((position + noise) * n + 0.5).clamp_(0, n)
    return (2 * most * (level / n - 0.5)).to(given)


class DoReFaActivation(ActivationQuantizer):
    """Unsigned activations of 1 to 8 bits, ``q_K(clip(x, 0, 1))``, scale ``1 / (2^K - 1)``.

    The gradient passes where ``0 <= x <= 1``. Warns, once, if most positive inputs of the first training batch lie
    above 1: they all become the top level and have no gradient.

    Args:
        bits: K.
        gradient_bits: G, of the gradient of the output of the layer that reads the codes, so that both of its
            backward passes take low-bit numbers; 32 leaves it as it is.

    Raises:
        InputError: bits outside 1..8, gradient bits that are neither 1..8 nor 32.

    Source: Zhou et al., arXiv 1606.06160, equations (5), (6), (11) and (12).
    """

    def __init__(self, bits: int = 2, *, gradient_bits: int = FLOAT_GRADIENT) -> None:
        super().__init__()
        self._code_type = CodeType(Kind.UNSIGNED, bits)
        if gradient_bits not in (*range(1, 9), FLOAT_GRADIENT):
            raise InputError(f"DoReFa activations: gradient bits must be 1..8 or 32, got {gradient_bits}")
        self.bits, self.gradient_bits = bits, gradient_bits
        self._range_checked = False

    @property
    def code_type(self) -> CodeType:
        return self._code_type

    def scale(self) -> float:
        return float32(1 / ((1 << self.bits) - 1))

    def encoder(self) -> Encoder:
        return uniform_encoder(self.code_type, 1 / ((1 << self.bits) - 1))

    def start(self, x: Tensor) -> None:
        if not self._range_checked:
            self._range_checked = True
            if int((x > 1).sum()) > int((x > 0).sum()) / 2:
                warnings.warn(f"{self}: most positive inputs lie above 1, where all are the same code", stacklevel=2)

    def quantize(self, x: Tensor) -> Tensor:
        n = (1 << self.bits) - 1
        codes = torch.floor(x.detach().clamp(0, 1) * n + 0.5)
        return straight_through(x, codes * self.scale(), (x >= 0) & (x <= 1))

    def behind(self, out: Tensor) -> Tensor:
        if self.gradient_bits == FLOAT_GRADIENT:
            return out
        rounded: Tensor = GradientRounding.apply(out, self.gradient_bits)
        return rounded

    def extra_repr(self) -> str:
        return f"{self.bits}, gradient_bits={self.gradient_bits}"


class DoReFaWeight(WeightQuantizer):
    """Weights of 1 to 8 bits: ``sign(w) mean |w|`` over the layer at 1 bit, else :func:`weight_values` over ``n``.

    At 1 bit the gradient passes straight through; else it is that of :func:`squashed`, with the rounding left out. The
    levels then reach from -1 to 1 whatever the size of the latent weights, so a BatchNorm has to follow.

    Source: Zhou et al., arXiv 1606.06160, equations (8) to (10).
    """

    def __init__(self, bits: int = 2) -> None:
        super().__init__()
        self._code_type = CodeType(Kind.BIPOLAR, bits)
        self.bits = bits
        self.keeps_size = bits == 1

    @property
    def code_type(self) -> CodeType:
        return self._code_type

    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        w = weight.detach()
        if self.bits == 1:
            values, scale = signs(w), float32(float(w.double().abs().mean()))
        else:
            values, scale = weight_values(w, self.bits), float32(1 / ((1 << self.bits) - 1))
        return values, torch.full_like(w.flatten(1)[:, 0], scale)

    def quantize(self, weight: Tensor) -> Tensor:
        values, scale = self.integers(weight)
        return straight_through(weight if self.bits == 1 else squashed(weight), values * per_output(scale, weight))

    def extra_repr(self) -> str:
        return f"{self.bits}"
