"""One layer of step 2: low-bit weights whose codes are those of the step-1 network, by alternating minimisation.

For one output, ``min over alpha, w of sum_p (y_p - Q(v_p))^2`` with ``v = alpha w^T x + shift`` is relaxed by a
variable ``z`` per sample to ``sum_p (y_p - Q(z_p))^2 + lambda (z_p - v_p)^2``. Each half-step below minimises over one
of ``z``, ``alpha``, or one weight at a time, so at a fixed lambda the objective never increases.

All outputs of all groups are solved at once. Shapes: ``G`` groups, ``n`` weights per output, ``O`` outputs per group,
``p`` samples. Inputs are centred (``x`` minus its mean over the samples): a BatchNorm behind the layer removes the mean
anyway, and without one the layer's bias takes it.

Source: Wang et al., Two-Step Quantization for Low-bit Neural Networks, CVPR 2018, section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..contract import CodeType, Kind
from ..errors import InputError
from .staircase import Code

BLOCK = 64
"""Weights whose residual is kept up to date singly during coordinate descent; the rest follows by one product."""


@dataclass(frozen=True)
class Levels:
    """The integers a weight may take: ``-top, -top + step, .., top``."""

    top: int
    step: int

    @classmethod
    def of(cls, code_type: CodeType) -> Levels:
        """Levels of a weight code type; a signed type's lone minimum is left out, so that negation stays possible.

        Raises:
            InputError: unsigned weights.
        """
        if code_type.kind is Kind.UNSIGNED:
            raise InputError(f"weights of type {code_type} cannot be negative; step 2 needs symmetric levels")
        return cls(code_type.hi, code_type.step)

    def nearest(self, u: Tensor) -> Tensor:
        """The level nearest to each real, any shape. For ternary weights a half rounds to 0."""
        return (((u + self.top) / self.step).round() * self.step - self.top).clamp(-self.top, self.top)


@dataclass(frozen=True)
class Moments:
    """Statistics of a layer's inputs, over all samples.

    Attributes:
        count: number of samples ``P``.
        mean: ``[G, n]``.
        gram: ``A = X X^T`` of the centred inputs, ``[G, n, n]`` float64.
    """

    count: int
    mean: Tensor
    gram: Tensor

    def power(self, weight: Tensor) -> Tensor:
        """``||w^T X||^2`` of every output, ``[G, n, O] -> [G, O]``."""
        return (weight * (self.gram @ weight)).sum(1).clamp_(min=0)


@dataclass(frozen=True)
class Cross:
    """What the weights need to know of ``z``.

    Attributes:
        product: ``b = X (z - shift)``, ``[G, n, O]`` float64.
        power: ``||z - shift||^2``, ``[G, O]`` float64.
    """

    product: Tensor
    power: Tensor


@dataclass
class Solution:
    """Low-bit weights of a layer: ``v = scale * weight^T x + shift``.

    Attributes:
        weight: levels ``[G, n, O]``, float64.
        scale: ``alpha >= 0``, ``[G, O]`` float64.
    """

    weight: Tensor
    scale: Tensor


class Samples(Protocol):
    """Inputs and targets of a layer that can be read again and again in chunks."""

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs of inputs ``[G, p, n]`` and target pre-activations ``[G, p, O]``, of one floating dtype."""


def distance(moments: Moments, cross: Cross, s: Solution) -> Tensor:
    """``sum_p (z - v)^2`` of every output, ``[G, O]``, from the statistics alone."""
    fit = (cross.product * s.weight).sum(1)
    return cross.power - 2 * s.scale * fit + s.scale**2 * moments.power(s.weight)


def fit_scale(moments: Moments, cross: Cross, s: Solution) -> None:
    """``alpha = z^T X^T w / ||X^T w||^2``, in place; a negative one turns the weights around instead."""
    fit, power = (cross.product * s.weight).sum(1), moments.power(s.weight)
    usable = (power > 0) & (fit != 0)
    s.weight *= torch.where(usable & (fit < 0), -1.0, 1.0)[:, None]
    s.scale = torch.where(usable, fit.abs() / power.clamp(min=1e-300), s.scale)


def fit_weights(moments: Moments, cross: Cross, s: Solution, levels: Levels) -> int:
    """One cycle of coordinate descent over the weights, in place.

    With the others fixed, weight ``n`` is best at the level nearest to ``(b_n - alpha sum_{j != n} A_nj w_j) / (alpha
    A_nn)``: for ternary levels ``-sign(l_n)`` where ``|l_n| > alpha A_nn``, else 0; for binary ones ``-sign(l_n)``. The
    product ``A w`` is carried along instead of computed anew. Inputs that never vary keep their weight.

    Returns:
        How many weights changed.
    """
    gram, weight, changed = moments.gram, s.weight, 0
    residual = cross.product - s.scale[:, None] * (gram @ weight)
    for start in range(0, weight.shape[1], BLOCK):
        rows = slice(start, start + BLOCK)
        block, before = residual[:, rows].clone(), weight[:, rows].clone()
        for i in range(block.shape[1]):
            curvature = s.scale * gram[:, start + i, start + i, None]
            old = weight[:, start + i]
            new = levels.nearest(old + block[:, i] / curvature)
            delta = torch.where(curvature > 0, new - old, 0.0)
            weight[:, start + i] += delta
            block -= gram[:, rows, start + i, None] * (s.scale * delta)[:, None]
        delta = weight[:, rows] - before
        changed += int(torch.count_nonzero(delta))
        residual -= s.scale[:, None] * (gram[:, :, rows] @ delta)
    return changed


def fit_linear(
    moments: Moments,
    cross: Cross,
    s: Solution,
    levels: Levels,
    sweeps: int,
    trace: Callable[[str], None] | None = None,
) -> None:
    """Alternate scale and weights for fixed ``z``, in place, until no weight changes or ``sweeps`` cycles are done.

    ``trace`` is called with ``"scale"`` or ``"weights"`` after every half-step.
    """
    trace = trace or (lambda half_step: None)
    for _ in range(sweeps):
        fit_scale(moments, cross, s)
        trace("scale")
        changed = fit_weights(moments, cross, s, levels)
        trace("weights")
        if not changed:
            return
    fit_scale(moments, cross, s)
    trace("scale")


def pre_activations(x: Tensor, moments: Moments, s: Solution, shift: Tensor) -> Tensor:
    """``v = alpha w^T (x - mean) + shift`` of a chunk of inputs, ``[G, p, n] -> [G, p, O]``, in its dtype."""
    slope = s.weight * s.scale[:, None]
    constant = shift - (moments.mean[:, :, None] * slope).sum(1)
    return torch.baddbmm(constant[:, None].to(x), x, slope.to(x))


def agreement(samples: Samples, moments: Moments, s: Solution, code: Code, shift: Tensor) -> float:
    """Share of samples and outputs, 0..1, that get the same code as the targets."""
    equal = total = 0
    for x, t in samples.chunks():
        equal += int((code(pre_activations(x, moments, s, shift)) == code(t)).sum())
        total += t.numel()
    return equal / total


class _Sums:
    """Accumulates :class:`Cross` over chunks."""

    def __init__(self, moments: Moments, shift: Tensor) -> None:
        self.moments = moments
        self.shift = shift[:, None]
        self.product = torch.zeros(*moments.mean.shape, shift.shape[1], dtype=torch.float64)
        self.power, self.total = (torch.zeros(shift.shape, dtype=torch.float64) for _ in range(2))

    def add(self, x: Tensor, z: Tensor) -> None:
        """Take in inputs ``[G, p, n]`` and ``z [G, p, O]``."""
        z = z - self.shift.to(z)
        self.product += x.transpose(1, 2) @ z
        self.power += z.square().sum(1)
        self.total += z.sum(1)

    def cross(self) -> Cross:
        """The sums, with the inputs centred."""
        return Cross(self.product - self.moments.mean[:, :, None] * self.total[:, None], self.power)


def target_cross(samples: Samples, moments: Moments, shift: Tensor) -> Cross:
    """Statistics for linear reconstruction: ``z`` is the target pre-activation itself.

    Args:
        samples: inputs and targets.
        moments: of the same samples.
        shift: constant part of the pre-activation, ``[G, O]``.
    """
    sums = _Sums(moments, shift)
    for x, t in samples.chunks():
        sums.add(x, t)
    return sums.cross()


def update_z(
    samples: Samples, moments: Moments, s: Solution, target: Code, code: Code, shift: Tensor, lam: float
) -> tuple[Cross, Tensor]:
    """The ``z`` half-step for all samples, in one pass.

    Returns:
        Statistics of the new ``z``, and the relaxed objective of every output, ``[G, O]``.
    """
    sums = _Sums(moments, shift)
    objective = torch.zeros(shift.shape, dtype=torch.float64)
    for x, t in samples.chunks():
        z, cost = code.update(pre_activations(x, moments, s, shift), target(t), lam)
        objective += cost.sum(1)
        sums.add(x, z)
    return sums.cross(), objective


@dataclass(frozen=True)
class Step:
    """One half-step of the alternation, as reported to ``trace``.

    Attributes:
        name: ``"z"``, ``"scale"`` or ``"weights"``.
        lam: lambda.
        objective: the relaxed objective of every output after it, ``[G, O]``.
    """

    name: str
    lam: float
    objective: Tensor


def fit_codes(
    samples: Samples,
    moments: Moments,
    s: Solution,
    levels: Levels,
    target: Code,
    code: Code,
    shift: Tensor,
    *,
    lambdas: Sequence[float],
    iterations: int,
    sweeps: int,
    trace: Callable[[Step], None] | None = None,
) -> None:
    """The alternation of step 2, in place: ``z``, then scale and weights, ``iterations`` times at each lambda.

    Args:
        samples: inputs and target pre-activations.
        moments: of the same samples.
        s: start; replaced by the result.
        levels: of the weights.
        target: what makes the targets ``y`` of the step-1 network's pre-activations.
        code: ``Q``, the same or a relaxation of it.
        shift: constant part of the pre-activation, ``[G, O]``.
        lambdas: schedule, ascending.
        iterations: ``z`` updates at each lambda; each reads the samples once.
        sweeps: cycles of scale and coordinate descent after each.
        trace: called after every half-step.
    """
    for lam in lambdas:
        for _ in range(iterations):
            cross, objective = update_z(samples, moments, s, target, code, shift, lam)
            if trace is None:
                fit_linear(moments, cross, s, levels, sweeps)
                continue
            trace(Step("z", lam, objective))
            codes_term = objective - lam * distance(moments, cross, s)

            def report(name: str, lam: float = lam, cross: Cross = cross, codes_term: Tensor = codes_term) -> None:
                trace(Step(name, lam, codes_term + lam * distance(moments, cross, s)))

            fit_linear(moments, cross, s, levels, sweeps, report)
