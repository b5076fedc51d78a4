"""BinaryNet and QNN: signs, or multiples of ``2^(1-K)`` on [-1, 1), in weights and activations."""

from __future__ import annotations

import torch
from torch import Tensor

from ..contract import CodeType, Encoder, Kind, bipolar_encoder, uniform_encoder
from .base import ActivationQuantizer, WeightQuantizer, signs, straight_through
from .uniform import symmetric_type

MANY = 0.9
"""Share of weights that round to 0 from which a layer learns badly."""


def linear_values(x: Tensor, bits: int) -> Tensor:
    """The integers ``clip(round(x / 2^(1-K)), -2^(K-1), 2^(K-1) - 1)``, any shape; halves round up; ``sign(x)`` at K=1.

    The real of an integer is ``2^(1-K)`` times it.

    Source: Hubara et al., "Quantized Neural Networks", JMLR 18, 2018, the linear quantization of section 4; the range,
    which the paper leaves open, is that of its hard tanh.
    """
    if bits == 1:
        return signs(x)
    top = 1 << (bits - 1)
    return torch.floor(x.detach() * top + 0.5).clamp_(-top, top - 1)


def linear(x: Tensor, bits: int) -> Tensor:
    """``2^(1-K)`` times :func:`linear_values`, any shape; the gradient passes where ``|x| <= 1``.

    Source: of the gradient: Courbariaux et al., "Binarized Neural Networks", arXiv 1602.02830, equation (4).
    """
    return straight_through(x, linear_values(x, bits) * 2.0 ** (1 - bits), x.detach().abs() <= 1)


class BinaryNetActivation(ActivationQuantizer):
    """Activations of 1 to 8 bits through :func:`linear`: bipolar at 1 bit with scale 1, else signed.

    Warns, once, if its first training batch has no negative input. Its place is behind a BatchNorm, whose outputs are
    mostly within -1..1.
    """

    reads_signs = True

    def __init__(self, bits: int = 1) -> None:
        super().__init__()
        self._code_type = CodeType(Kind.BIPOLAR if bits == 1 else Kind.SIGNED, bits)
        self.bits = bits

    @property
    def code_type(self) -> CodeType:
        return self._code_type

    def scale(self) -> float:
        return 2.0 ** (1 - self.bits)

    def encoder(self) -> Encoder:
        return bipolar_encoder(1) if self.bits == 1 else uniform_encoder(self.code_type, self.scale())

    def start(self, x: Tensor) -> None:
        self.check_signs(x)

    def quantize(self, x: Tensor) -> Tensor:
        return linear(x, self.bits)

    def extra_repr(self) -> str:
        return f"{self.bits}"


class BinaryNetWeight(WeightQuantizer):
    """Weights of 1 to 8 bits on the levels of :func:`linear`; the gradient passes straight through.

    :meth:`project` clips latent weights to [-1, 1]. The lowest level, -1, is left out above 1 bit, so that a channel
    can be negated; 2 bits are ternary, with levels ``-1/2, 0, 1/2``.

    Source: Courbariaux et al., arXiv 1602.02830, algorithm 1; Hubara et al., JMLR 18, 2018, section 4.
    """

    keeps_size = False

    def __init__(self, bits: int = 1) -> None:
        super().__init__()
        self._code_type = CodeType(Kind.BIPOLAR, 1) if bits == 1 else symmetric_type(bits)
        self.bits = bits

    @property
    def code_type(self) -> CodeType:
        return self._code_type

    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        values = linear_values(weight, self.bits).clamp_(min=-max(1, (1 << (self.bits - 1)) - 1))
        return values, torch.full_like(weight.detach().flatten(1)[:, 0], 2.0 ** (1 - self.bits))

    def quantize(self, weight: Tensor) -> Tensor:
        return straight_through(weight, self.integers(weight)[0] * 2.0 ** (1 - self.bits))

    def project(self, weight: Tensor) -> None:
        weight.clamp_(-1, 1)

    def trap(self, weight: Tensor) -> str:
        if bool((weight.detach().abs() > 1).any()):
            return "latent weights beyond -1..1 are clipped by the first step; scale them down first"
        zeros = float((self.integers(weight)[0] == 0).float().mean())
        if self.bits > 1 and zeros > MANY:
            return f"the latent weights are so small that {100 * zeros:.0f} % round to 0; scale them up first"
        return ""

    def extra_repr(self) -> str:
        return f"{self.bits}"
