"""One layer of step 2: low-bit weights whose codes are those of the step-1 network, by alternating minimisation.

For one output, ``min over alpha, w of sum_p (y_p - Q(v_p))^2`` with ``v = alpha w^T x + shift`` is relaxed by a
variable ``z`` per sample to ``sum_p (y_p - Q(z_p))^2 + lambda (z_p - v_p)^2``. Each half-step below minimises over one
of ``z``, ``alpha``, or one weight or two at a time, so at a fixed lambda the objective never increases.

All outputs of all groups are solved at once. Shapes: ``G`` groups, ``n`` weights per output, ``O`` outputs per group,
``p`` samples. Inputs are centred (``x`` minus its mean over the samples): a BatchNorm behind the layer removes the mean
anyway, and without one the layer's bias takes it.

Source: Wang et al., Two-Step Quantization for Low-bit Neural Networks, CVPR 2018, section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..layers import FLOAT32_EXACT
from .bytes import BASE, INT8, add_by_digits, multiplies_bytes
from .descent import FLOAT64_EXACT, Cross, Descent, Moments, Solution
from .staircase import Code

AGREEMENT = 1 << 24
"""Codes that are compared to see how many agree; where a layer has more, the first chunks are enough."""

LARGE = 1 << 18
"""Weights of a group from which on its pre-activations are products of bytes."""

LARGE_SUMS = 1 << 12
"""Weights of a group from which on inputs times ``z`` are."""

PAIRS_BELOW = 0.05
"""Share of the weights that change by themselves in a cycle, up to which pairs are tried: many change faster singly."""

Z_RANGE = 8
"""``z`` is kept within so many times the greatest target; it does not leave that but at a hopeless start."""


class Samples(Protocol):
    """Inputs and targets of a layer that can be read again and again in chunks."""

    @property
    def reach(self) -> float:
        """Greatest magnitude of a target."""

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs of inputs ``[G, p, n]`` and target pre-activations ``[G, p, O]``, of one floating dtype."""


def distance(moments: Moments, cross: Cross, s: Solution) -> Tensor:
    """``sum_p (z - v)^2`` of every output, ``[G, O]``, from the statistics alone; with what an anchor adds to them."""
    fit = (cross.product * s.weight).sum(1)
    return cross.power - 2 * s.scale * fit + s.scale**2 * (moments.power(s.weight) + moments.tension(s.weight))


def fit_linear(
    descent: Descent,
    cross: Cross,
    sweeps: int,
    trace: Callable[[str], None] | None = None,
    *,
    enough: float = 0.0,
) -> None:
    """Alternate scale and weights for fixed ``z``, in place, for at most ``sweeps`` cycles.

    In a cycle each weight changes by itself and then, where few did, each together with another one. It ends after a
    cycle that changes no more than a share ``enough`` of the weights. ``trace`` is called with ``"scale"`` or
    ``"weights"`` after every half-step. ``cross`` is :meth:`Descent.anchored`.
    """
    trace = trace or (lambda half_step: None)
    for _ in range(sweeps):
        descent.fit_scale(cross)
        trace("scale")
        changed = descent.fit_weights(cross)
        trace("weights")
        if changed <= PAIRS_BELOW * descent.solution.weight.numel():
            changed += descent.fit_pairs(cross)
            trace("weights")
        if not changed:
            return
        if changed <= enough * descent.solution.weight.numel():
            break
    descent.fit_scale(cross)
    trace("scale")


class PreActivations:
    """``v = alpha w^T (x - mean) + shift`` of chunks of inputs, for weights that stay as they are meanwhile.

    Args:
        moments: of the inputs.
        s: weights and scales.
        shift: ``[G, O]``.
    """

    def __init__(self, moments: Moments, s: Solution, shift: Tensor) -> None:
        largest = float(s.weight.abs().max())
        self.bytes = max(largest, moments.largest) <= INT8 and s.weight[0].numel() >= LARGE and multiplies_bytes()
        exact = moments.largest * largest * s.weight.shape[1] < FLOAT32_EXACT
        self.weight = s.weight.to(torch.int8 if self.bytes else torch.float32 if exact else torch.float64)
        self.scale = s.scale[:, None]
        self.constant = (shift - s.scale * moments.through(s.weight) / moments.count)[:, None]

    def __call__(self, x: Tensor) -> Tensor:
        """``[G, p, n] -> [G, p, O]``, in the dtype of ``x``; the sums over the inputs are exact."""
        inputs = x.to(self.weight.dtype)
        if self.bytes:
            acc = torch.stack([torch._int_mm(a, w) for a, w in zip(inputs, self.weight, strict=True)])
        else:
            acc = torch.bmm(inputs, self.weight)
        return acc.to(x.dtype).mul_(self.scale.to(x.dtype)).add_(self.constant.to(x.dtype))


def agreement(samples: Samples, moments: Moments, s: Solution, code: Code, shift: Tensor) -> Tensor:
    """Share of samples, 0..1, that get the same code as the target, ``[G, O]``; of some thousand samples."""
    equal, total = torch.zeros(shift.shape, dtype=torch.int64), 0
    forward = PreActivations(moments, s, shift)
    for x, t in samples.chunks():
        if total and (total + t.shape[1]) * equal.numel() > AGREEMENT:
            break
        equal += (code(forward(x)) == code(t)).sum(1)
        total += t.shape[1]
    return equal / total


class _Sums:
    """Accumulates :class:`Cross` over chunks."""

    def __init__(self, samples: Samples, moments: Moments, shift: Tensor) -> None:
        self.moments, self.shift = moments, shift[:, None]
        groups, n = moments.mean.shape
        self.limit = Z_RANGE * samples.reach + float(shift.abs().max())
        room = FLOAT64_EXACT / (max(1, moments.count) * max(1, moments.largest) * n)
        self.unit = 2.0 ** math.ceil(math.log2(max(self.limit, 1e-30) / room) + 1)
        self.products = torch.zeros(groups, shift.shape[1], n, dtype=torch.float64)
        self.power, self.total = (torch.zeros(shift.shape, dtype=torch.float64) for _ in range(2))
        small = n * shift.shape[1] < LARGE_SUMS
        self.bytes = moments.largest <= INT8 and not small and multiplies_bytes()
        self.digits = math.ceil((math.log2(max(1.0, self.limit / self.unit)) + 1.1) / math.log2(BASE))

    def add(self, x: Tensor, z: Tensor) -> None:
        """Take in inputs ``[G, p, n]`` and ``z [G, p, O]``."""
        z = (z - self.shift.to(z)).clamp_(-self.limit, self.limit).double().div_(self.unit).round_()
        if self.bytes and x.shape[1] * self.moments.largest * BASE * (BASE + 1) < 2**32:  # sums of two digits
            add_by_digits(self.products, x, z, self.digits)
        else:
            self.products.baddbmm_(z.transpose(1, 2), x.double())
        self.power += z.square().sum(1)
        self.total += z.sum(1)

    def cross(self) -> Cross:
        """The sums."""
        power = self.power * self.unit**2
        bound = self.limit / self.unit * self.moments.count * self.moments.largest
        return Cross(self.products.transpose(1, 2), self.total, self.unit, bound, power, self.moments.mean)


def target_cross(samples: Samples, moments: Moments, shift: Tensor) -> Cross:
    """Statistics for linear reconstruction: ``z`` is the target pre-activation itself.

    Args:
        samples: inputs and targets.
        moments: of the same samples.
        shift: constant part of the pre-activation, ``[G, O]``.
    """
    sums = _Sums(samples, moments, shift)
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
    sums, forward = _Sums(samples, moments, shift), PreActivations(moments, s, shift)
    objective = torch.zeros(shift.shape, dtype=torch.float64)
    for x, t in samples.chunks():
        z, cost = code.update(forward(x), target(t), lam)
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
    descent: Descent,
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
        descent: with the moments of the same samples, and the start, which becomes the result.
        target: what makes the targets ``y`` of the step-1 network's pre-activations.
        code: ``Q``, the same or a relaxation of it.
        shift: constant part of the pre-activation, ``[G, O]``.
        lambdas: schedule, ascending.
        iterations: ``z`` updates at each lambda; each reads the samples once.
        sweeps: cycles of scale and coordinate descent after each.
        trace: called after every half-step.
    """
    moments, s = descent.moments, descent.solution
    for lam in lambdas:
        for _ in range(iterations):
            cross, objective = update_z(samples, moments, s, target, code, shift, lam)
            cross = descent.anchored(cross)
            if trace is None:
                fit_linear(descent, cross, sweeps)
                continue
            objective += lam * descent.tension()
            trace(Step("z", lam, objective))
            codes_term = objective - lam * distance(moments, cross, s)

            def report(name: str, lam: float = lam, cross: Cross = cross, codes_term: Tensor = codes_term) -> None:
                trace(Step(name, lam, codes_term + lam * distance(moments, cross, s)))

            fit_linear(descent, cross, sweeps, report)
