"""Uniform quantization: 8 bits for first and last layers, and the base of quantizers with a step from data."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import processes
from ..contract import CodeType, Encoder, Kind, uniform_encoder
from ..errors import InputError
from .base import (
    ActivationQuantizer,
    HeldScales,
    float32,
    per_output,
    straight_through,
    straight_through_within,
)
from .passes import extremes, levels

UNDECIDED = -1
"""Stored in the ``signed`` buffer before the first data."""


def uniform(x: Tensor, step: float, lo: int, hi: int) -> Tensor:
    """``step * clamp(floor(x / step + 1/2), lo, hi)``, any shape: halves round up, as the integer contract does.

    The gradient passes where ``x / step`` rounds without clamping.
    """
    return straight_through_within(x, uniform_levels(x, step, lo, hi), (lo - 0.5) * step, (hi + 0.5) * step, "[)")


def uniform_levels(x: Tensor, step: float, lo: int, hi: int) -> Tensor:
    """The levels of :func:`uniform`, without gradient, any shape."""
    return levels("uniform", x, lo, hi, step)


def symmetric_type(bits: int) -> CodeType:
    """Type of weights ``-(2^(M-1)-1) .. 2^(M-1)-1``, which can be negated; at 2 bits they are ternary.

    Raises:
        InputError: bits outside 2..8.
    """
    if not 2 <= bits <= 8:
        raise InputError(f"symmetric signed weights have 2..8 bits, got {bits}; for 1 bit take binary weights")
    return CodeType(Kind.TERNARY, 2) if bits == 2 else CodeType(Kind.SIGNED, bits)


class StepActivation(ActivationQuantizer):
    """Base of activations on the multiples of one step, which comes from data; signed or unsigned likewise.

    Subclasses define :meth:`step_size` and the methods that choose it.

    Args:
        bits: K, 1..8 (signed: 2..8).
        signed: codes with negative values or without; None lets the data decide. It is kept in the ``state_dict``.
    """

    signed: Tensor

    def __init__(self, bits: int = 8, *, signed: bool | None = None) -> None:
        super().__init__()
        CodeType(Kind.UNSIGNED, bits)  # checks the range
        if signed and bits == 1:
            raise InputError("signed uniform activations of 1 bit are never positive; take unsigned or bipolar codes")
        self.bits, self.sign_from_data = bits, signed is None
        state = UNDECIDED if signed is None else int(signed)
        self.register_buffer("signed", torch.tensor(state, dtype=torch.int8))

    def step_size(self) -> float:
        """The step, 0 before the first data."""
        raise NotImplementedError

    @property
    def decided(self) -> bool:
        """Whether the sign is known."""
        return int(self.signed) != UNDECIDED

    @property
    def ready(self) -> bool:
        return self.decided and self.step_size() > 0

    @property
    def code_type(self) -> CodeType:
        if not self.decided:
            raise InputError(f"{self}: has seen no data, or zeros only; train the network, or call calibrate() on it")
        return CodeType(Kind.SIGNED if int(self.signed) else Kind.UNSIGNED, self.bits)

    def decide_sign(self, x: Tensor) -> None:
        """Let training data decide, unless the caller did: signed as soon as a negative input is seen."""
        if not self.sign_from_data or int(self.signed) == 1:
            return
        below, above = processes.largest(extremes(x) * torch.tensor([-1.0, 1.0], device=x.device)).tolist()
        if below > 0:
            if self.bits == 1:
                raise InputError(f"{self}: negative inputs need at least 2 bits")
            self.signed.fill_(1)
        elif above > 0:
            self.signed.fill_(0)

    def scale(self) -> float:
        if not self.ready:
            raise InputError(f"{self}: has seen no data, or zeros only; train the network, or call calibrate() on it")
        return float32(self.step_size())

    def encoder(self) -> Encoder:
        return uniform_encoder(self.code_type, self.scale())

    def extra_repr(self) -> str:
        kind = {UNDECIDED: "undecided", 0: "unsigned", 1: "signed"}[int(self.signed)]
        return f"{self.bits}, {kind}, step={self.step_size():.6g}"


class UniformActivation(StepActivation):
    """Activations of 1 to 8 bits whose range follows the data: a running mean of each batch's largest magnitude.

    While training (and in ``calibrate``) every batch moves the range by ``max(1 / batches seen, momentum)`` of the
    difference, so few batches give their mean and many a moving average; evaluation leaves it. The step is the range
    divided by the largest value.

    Args:
        bits, signed: as in :class:`StepActivation`.
        percentile: of the magnitudes, taken as a batch's range; 100 is the largest, less clips outliers.
        momentum: of the moving average.

    Source: Jacob et al., CVPR 2018, section 3.1 (ranges of activations).
    """

    mixes = True
    range: Tensor
    seen: Tensor

    def __init__(
        self, bits: int = 8, *, signed: bool | None = None, percentile: float = 100.0, momentum: float = 0.05
    ) -> None:
        super().__init__(bits, signed=signed)
        if not 0 < percentile <= 100:
            raise InputError(f"uniform activations: percentile must be above 0 and at most 100, got {percentile}")
        self.percentile, self.momentum = percentile, momentum
        self.register_buffer("range", torch.tensor(0.0))
        self.register_buffer("seen", torch.tensor(0))

    def step_size(self) -> float:
        return float(self.range) / self.code_type.hi if self.decided else 0.0

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        self.decide_sign(x)
        if self.percentile == 100 or not x.numel():
            top = processes.largest(extremes(x).abs().max())
        else:
            magnitudes = processes.gather(x.float().abs().flatten())
            top = magnitudes.kthvalue(max(1, round(self.percentile / 100 * magnitudes.numel()))).values
        if top > 0:
            self.seen += 1
            self.range += (top - self.range) * max(1 / int(self.seen), self.momentum)

    def quantize(self, x: Tensor) -> Tensor:
        if not self.ready:  # nothing but zeros so far
            return x
        return uniform(x, self.scale(), self.code_type.lo, self.code_type.hi)


class UniformWeight(HeldScales):
    """Symmetric weights of 2 to 8 bits, scale ``max |w| / (2^(M-1) - 1)`` per output channel; straight through.

    Source: Jacob et al., CVPR 2018, section 3 (symmetric, so that a channel can be negated).
    """

    def __init__(self, bits: int = 8) -> None:
        super().__init__()
        self.bits = bits
        self._code_type = symmetric_type(bits)

    @property
    def code_type(self) -> CodeType:
        return self._code_type

    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        top = (1 << (self.bits - 1)) - 1
        w = weight.detach().double()
        scale = self.held_or(lambda: w.flatten(1).abs().amax(1) / top)
        step = per_output(scale.double(), weight).clamp_min(torch.finfo(torch.float64).tiny)  # a row may be zero
        values = torch.floor(w / step + 0.5).clamp_(-top, top)
        return values.to(weight.dtype), scale.to(weight.dtype)

    def quantize(self, weight: Tensor) -> Tensor:
        values, scale = self.integers(weight)
        return straight_through(weight, values * per_output(scale, weight))

    def extra_repr(self) -> str:
        return f"{self.bits}"
