"""Learned step size quantization (LSQ): uniform codes whose step is trained."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .. import processes
from ..contract import CodeType
from ..errors import InputError
from .base import WeightQuantizer, float32
from .passes import step_gradient
from .uniform import StepActivation, symmetric_type, uniform_levels

STEP_MIN = 1e-8
"""Smallest step: an optimiser that drives a step through zero meets it."""


class LearnedStep(torch.autograd.Function):
    """``s clamp(floor(x / s + 1/2), lo, hi)`` with the gradients of LSQ; see :func:`learned_step`."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, x: Tensor, step: Tensor, lo: int, hi: int, features: int
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.levels = usable_step(step), lo, hi
        ctx.gradient_scale = 1 / math.sqrt(features * hi)
        return uniform_levels(x, *ctx.levels)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        s, lo, hi = ctx.levels
        to_x, to_step = step_gradient(grad, x, lo, hi, s)
        dtype = torch.promote_types(x.dtype, torch.float32)
        return to_x, (to_step * ctx.gradient_scale).to(dtype), None, None, None


def learned_step(x: Tensor, step: Tensor, lo: int, hi: int, features: int) -> Tensor:
    """``s clamp(round(x / s), lo, hi)``, any shape, with gradients to ``x`` and to the step ``s``.

    To ``x``: 1 where ``lo < x / s < hi``, else 0. To ``s``: ``round(x / s) - x / s`` inside, ``lo`` or ``hi`` outside,
    summed and multiplied by ``1 / sqrt(N hi)``. Halves round up, as the integer
    contract does.

    Args:
        x: reals.
        step: scalar tensor; taken as a float32 number, at least ``STEP_MIN``.
        lo, hi: least and greatest value, ``-Qn`` and ``Qp``.
        features: ``N``, the number of weights, or of activations per image.

    Source: Esser et al., ICLR 2020, equations (1) to (5) and section 2.2.
    """
    out: Tensor = LearnedStep.apply(x, step, lo, hi, features)
    return out


def starting_step(x: Tensor, hi: int) -> Tensor:
    """``2 mean |x| / sqrt(Qp)``, a scalar. Source: Esser et al., ICLR 2020, section 2.1."""
    return x.detach().to(torch.promote_types(x.dtype, torch.float32)).abs().mean() * 2 / math.sqrt(hi)


def usable_step(step: Tensor) -> float:
    """The step as the positive float32 number that every executor uses."""
    return float32(max(float(step.detach()), STEP_MIN))


class LearnedStepActivation(StepActivation):
    """Activations of 1 to 8 bits through :func:`learned_step`; the first training batch gives the starting step.

    Args:
        bits, signed: as in :class:`StepActivation`; unsigned ``0 .. 2^K-1``, signed ``-2^(K-1) .. 2^(K-1)-1``.
    """

    mixes = True

    def __init__(self, bits: int = 2, *, signed: bool | None = None) -> None:
        super().__init__(bits, signed=signed)
        self.step = nn.Parameter(torch.tensor(0.0))

    def step_size(self) -> float:
        return usable_step(self.step) if float(self.step.detach()) != 0 else 0.0

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        self.decide_sign(x)
        if float(self.step) == 0 and self.decided:
            self.step.copy_(processes.mean(starting_step(x, self.code_type.hi)))

    def quantize(self, x: Tensor) -> Tensor:
        if not self.ready:  # nothing but zeros so far
            return x
        return learned_step(x, self.step, self.code_type.lo, self.code_type.hi, x[0].numel())


class LearnedStepWeight(WeightQuantizer):
    """Symmetric weights of 2 to 8 bits through :func:`learned_step`, one step for the layer, as published.

    Values are ``-(2^(M-1)-1) .. 2^(M-1)-1``: the published range without its lowest value, so that a channel can be
    negated; at 2 bits they are ternary.
    """

    def __init__(self, bits: int = 2) -> None:
        super().__init__()
        self.bits = bits
        self._code_type = symmetric_type(bits)
        self.top = (1 << (bits - 1)) - 1
        self.step = nn.Parameter(torch.tensor(0.0))

    @property
    def code_type(self) -> CodeType:
        return self._code_type

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        if float(self.step) == 0:
            self.step.copy_(starting_step(weight, self.top))

    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        if float(self.step.detach()) == 0:
            raise InputError(f"{self}: has seen no weights; call start(weight) first")
        step = usable_step(self.step)
        values = torch.floor(weight.detach() / step + 0.5).clamp_(-self.top, self.top)
        return values, torch.full_like(weight.detach().flatten(1)[:, 0], step)

    def quantize(self, weight: Tensor) -> Tensor:
        return learned_step(weight, self.step, -self.top, self.top, weight.numel())

    def extra_repr(self) -> str:
        return f"{self.bits}"
