"""Two-step quantization (TSQ): sparse activation codes and optimal ternary weights."""

from __future__ import annotations

from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..contract import CodeType, Encoder, Kind, sparse_encoder
from ..errors import InputError
from .base import (
    ActivationQuantizer,
    WeightQuantizer,
    float32,
    per_output,
    straight_through,
    straight_through_within,
)
from .gaussian import optimal_step
from .lsq import LearnedStepWeight
from .passes import levels


def dead_zone(sparsity: float) -> float:
    """``eps = Phi^-1(sparsity)``: below it lies this share of a standard Gaussian.

    Raises:
        InputError: a sparsity outside [0.5, 1).

    Source: Wang et al., CVPR 2018, section 3.1.
    """
    if not 0.5 <= sparsity < 1:
        raise InputError(f"sparse codes: sparsity must be at least 0.5 and below 1, got {sparsity}")
    return NormalDist().inv_cdf(sparsity) if sparsity > 0.5 else 0.0


@cache
def solve_step(eps: float, bits: int) -> float:
    """The step ``D`` that minimises ``E[(Q(x) - x)^2 | x > eps]`` under N(0, 1) for codes of 1..8 bits.

    Where ``eps > 1.5 D`` (many bits, high sparsity) the lowest levels are empty: their cells lie in the dead zone. They
    count nothing here and no input gets their code.

    Source: Wang et al., CVPR 2018, section 3.1.
    """
    n = (1 << bits) - 1
    return optimal_step(range(1, n + 1), [0.0, *(k - 0.5 for k in range(2, n + 1))], eps)


def sparse(x: Tensor, bits: int, eps: float, step: float) -> Tensor:
    """``Q(x) = 0 (x <= eps), D (<= 1.5 D), 2 D (<= 2.5 D), .., n D (above)``, any shape; ``n = 2^K - 1``.

    The gradient passes where ``0 < x < n D``: a real in the dead zone still learns.

    Args:
        x: reals, normalised so that one ``eps`` and ``D`` serve every layer.
        bits: K, 1..8.
        eps: end of the dead zone, at least 0.
        step: ``D``.

    Source: Wang et al., CVPR 2018, equations (4) and (5).
    """
    return straight_through_within(x, sparse_levels(x, bits, eps, step), 0.0, ((1 << bits) - 1) * step)


def sparse_levels(x: Tensor, bits: int, eps: float, step: float) -> Tensor:
    """The levels of :func:`sparse`, without gradient."""
    return levels("sparse", x, eps, (1 << bits) - 1, step)


class SparseActivation(ActivationQuantizer):
    """Unsigned activations of 1 to 8 bits through :func:`sparse`; scale ``D``.

    Args:
        bits: K.
        sparsity: share of codes 0 that a normalised input gets, in [0.5, 1).
        eps, step: given instead of computed from ``sparsity``.

    Raises:
        InputError: bits or sparsity out of range, or ``eps < 0``, or a step that is not positive.
    """

    mixes = True
    normalised = True
    grid: Tensor

    def __init__(
        self, bits: int = 2, *, sparsity: float = 0.625, eps: float | None = None, step: float | None = None
    ) -> None:
        super().__init__()
        self._code_type = CodeType(Kind.UNSIGNED, bits)
        self.bits = bits
        eps = float32(dead_zone(sparsity) if eps is None else eps)
        if not eps >= 0:
            raise InputError(f"sparse codes: eps must be at least 0, got {eps}")
        step = float32(solve_step(eps, bits) if step is None else step)
        if not step > 0:
            raise InputError(f"sparse codes: the step must be positive, got {step}")
        self.register_buffer("grid", torch.tensor([eps, step], dtype=torch.float64))

    @property
    def eps(self) -> float:
        """End of the dead zone."""
        return float(self.grid[0])

    @property
    def step(self) -> float:
        """``D``."""
        return float(self.grid[1])

    @property
    def positive(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The levels above 0, and the threshold below each."""
        levels = tuple(k * self.step for k in range(1, 1 << self.bits))
        return levels, (self.eps, *(max(self.eps, level - self.step / 2) for level in levels[1:]))

    def place(self, eps: float, step: float) -> None:
        """Give the codes another dead zone and step."""
        self.grid.copy_(torch.tensor([float32(eps), float32(step)]))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        state_dict.setdefault(f"{prefix}grid", self.grid)  # older checkpoints hold none
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @property
    def code_type(self) -> CodeType:
        return self._code_type

    def scale(self) -> float:
        return self.step

    def encoder(self) -> Encoder:
        return sparse_encoder(self.bits, self.eps, self.step)

    def quantize(self, x: Tensor) -> Tensor:
        return sparse(x, self.bits, self.eps, self.step)

    def extra_repr(self) -> str:
        return f"{self.bits}, eps={self.eps:.6g}, step={self.step:.6g}"


PART = 1 << 20
"""Weights that :func:`optimal_ternary` takes at once, so that what it computes between stays in the caches."""


def optimal_ternary(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The ternary weights ``t`` and scales ``alpha`` that minimise ``|| w - alpha t ||^2`` per row, exactly.

    The best support of size ``r`` is the ``r`` largest magnitudes, and leaves ``||w||^2 - (sum of them)^2 / r``; so
    one sort finds ``r*`` and the threshold ``|w|_(r*)``, and ``alpha = w^T t / t^T t``. Rows that already are
    ``alpha t`` come back unchanged, bit for bit; a negative ``alpha`` comes back with both signs turned, a row of zeros
    with ``alpha = 0``.

    Args:
        weight: ``[O, n]`` reals.

    Returns:
        ``t [O, n]`` of {-1, 0, 1} and ``alpha [O]``, float32 numbers, both in the dtype of ``weight``.

    Source: Wang et al., CVPR 2018, section 3.2.1 (initialisation).
    """
    rows = max(1, PART // max(1, weight.shape[1]))
    parts = [_optimal_ternary(part) for part in weight.detach().split(rows)]
    t, alpha = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return t, alpha


def _optimal_ternary(weight: Tensor) -> tuple[Tensor, Tensor]:
    magnitude = weight.abs()
    ordered = _sorted(magnitude).flip(1)
    sums = ordered.cumsum(1, dtype=torch.float64)  # where sums of equal float32 numbers are exact
    count = torch.arange(1, ordered.shape[1] + 1, dtype=torch.float64, device=weight.device)
    best = sums.square_().div_(count).argmax(1, keepdim=True)
    support = (magnitude >= ordered.gather(1, best)).logical_and_(magnitude)
    alpha = (magnitude * support).sum(1, dtype=torch.float64) / support.sum(1).clamp_min(1)
    return weight.sign().mul_(support), alpha.float().to(weight.dtype)


def _sorted(x: Tensor) -> Tensor:
    """Rows in ascending order; NumPy sorts values alone, 20 times faster than torch, which sorts their places, too."""
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(np.sort(x.numpy(), axis=1))
    return x.sort(dim=1).values


class TernaryWeight(WeightQuantizer):
    """Ternary weights by :func:`optimal_ternary` of the latent weights, one scale per output channel.

    The gradient passes straight through. To give a layer integers that a solver found, write ``alpha * t`` into its
    latent weights: they are then quantized to exactly these ``t`` and ``alpha``, and can be trained further.
    """

    @property
    def code_type(self) -> CodeType:
        return CodeType(Kind.TERNARY, 2)

    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        t, alpha = optimal_ternary(weight.flatten(1))
        return t.view_as(weight), alpha

    def quantize(self, weight: Tensor) -> Tensor:
        t, alpha = self.integers(weight)
        return straight_through(weight, t * per_output(alpha, weight))


class LearnedTernaryWeight(LearnedStepWeight):
    """Ternary weights whose scales, one per output channel, are learned as LSQ learns steps.

    They start at those of :func:`optimal_ternary`, whose weights these then are, or at those that a solver found.

    Source: Esser et al., ICLR 2020, section 2, from where Wang et al., CVPR 2018, end.
    """

    def __init__(self) -> None:
        super().__init__(2, per_channel=True)

    def first_steps(self, weight: Tensor) -> Tensor:
        return optimal_ternary(weight.flatten(1))[1]

    def extra_repr(self) -> str:
        return ""
