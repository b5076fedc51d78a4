"""Learned step size quantization (LSQ): uniform codes whose step is trained."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .. import processes
from ..contract import CodeType
from ..errors import InputError
from .base import WeightQuantizer, float32, per_output
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


def starting_step(x: Tensor, hi: int, dim: int | None = None) -> Tensor:
    """``2 mean |x| / sqrt(Qp)``, of all or over a dimension. Source: Esser et al., ICLR 2020, section 2.1."""
    return x.detach().to(torch.promote_types(x.dtype, torch.float32)).abs().mean(dim) * 2 / math.sqrt(hi)


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
        before = self.code_type.hi if self.decided else 0
        self.decide_sign(x)
        if float(self.step) == 0 and self.decided:
            self.step.copy_(processes.mean(starting_step(x, self.code_type.hi)))
        elif self.decided and before > self.code_type.hi:  # has turned signed: as if it had started so
            self.step.mul_(math.sqrt(before / self.code_type.hi))

    def quantize(self, x: Tensor) -> Tensor:
        if not self.ready:  # nothing but zeros so far
            return x
        return learned_step(x, self.step, self.code_type.lo, self.code_type.hi, x[0].numel())


class LearnedSteps(torch.autograd.Function):
    """:func:`learned_step` between ``-hi`` and ``hi`` with a step for each output channel, in one pass over all."""

    @staticmethod
    def forward(ctx, weight: Tensor, step: Tensor, hi: int) -> Tensor:  # type: ignore[no-untyped-def]
        s = per_output(usable_steps(step, weight), weight)
        position = weight / s
        values = torch.floor(position + 0.5).clamp_(-hi, hi)
        ctx.save_for_backward(position, values)
        ctx.hi = hi
        return values * s

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        position, values = ctx.saved_tensors
        inside = position.abs() < ctx.hi
        slope = values - position * inside
        to_step = (grad * slope).flatten(1).sum(1) / math.sqrt(position[0].numel() * ctx.hi)
        return grad * inside, to_step, None


def usable_steps(step: Tensor, weight: Tensor) -> Tensor:
    """The steps ``[O]`` as positive float32 numbers, in the dtype of the weights."""
    return step.detach().float().clamp_min(STEP_MIN).to(weight.dtype)


class LearnedStepWeight(WeightQuantizer):
    """Symmetric weights of 2 to 8 bits through :func:`learned_step`, one step for the layer, as published.

    Values are ``-(2^(M-1)-1) .. 2^(M-1)-1``: the published range without its lowest value, so that a channel can be
    negated; at 2 bits they are ternary.

    Args:
        bits: M.
        per_channel: a step for each output channel, which a solver may set; ``N`` is then the weights of a channel.
    """

    def __init__(self, bits: int = 2, *, per_channel: bool = False) -> None:
        super().__init__()
        self.bits, self.per_channel = bits, per_channel
        self._code_type = symmetric_type(bits)
        self.top = (1 << (bits - 1)) - 1
        self.step = nn.Parameter(torch.zeros(0) if per_channel else torch.tensor(0.0))

    @property
    def code_type(self) -> CodeType:
        return self._code_type

    @property
    def started(self) -> bool:
        """Whether the steps have been chosen."""
        return bool(self.step.numel()) and bool(self.step.detach().any())

    def start(self, weight: Tensor) -> None:
        if not self.started:
            self.restart(weight)

    @torch.no_grad()
    def restart(self, weight: Tensor) -> None:
        self.step.data = self.first_steps(weight).to(self.step)

    def first_steps(self, weight: Tensor) -> Tensor:
        """What training starts from: a scalar, or ``[O]``."""
        return starting_step(weight.flatten(1), self.top, dim=1 if self.per_channel else None)

    @torch.no_grad()
    def hold(self, scale: Tensor) -> None:
        if self.per_channel:
            self.step.data = scale.detach().to(self.step)

    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        weight = weight.detach()
        if not self.started:
            if weight.any():
                raise InputError(f"{self}: has seen no weights; call start(weight) first")
            return weight, weight.new_full((len(weight),), STEP_MIN)  # all are 0, and no step is known
        steps = usable_steps(self.step.expand(len(weight)), weight)
        values = torch.floor(weight / per_output(steps, weight) + 0.5).clamp_(-self.top, self.top)
        return values, steps

    def quantize(self, weight: Tensor) -> Tensor:
        if not self.per_channel:
            return learned_step(weight, self.step, -self.top, self.top, weight.numel())
        out: Tensor = LearnedSteps.apply(weight, self.step, self.top)
        return out

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        stored = state_dict.get(f"{prefix}step")
        if self.per_channel and not self.step.numel() and stored is not None:  # as many as were stored
            self.step.data = self.step.new_zeros(stored.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return f"{self.bits}, per_channel={self.per_channel}" if self.per_channel else f"{self.bits}"
