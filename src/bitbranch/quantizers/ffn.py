"""Fixed-point factorized networks (FFN): a weight matrix as ``U diag(d) V`` with ternary factors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..contract import CodeType, Kind
from ..errors import InputError
from .base import WeightQuantizer, straight_through
from .tsq import optimal_ternary

SWEEPS = 20
"""Alternations per term, at most; few are needed until nothing changes."""

POWER_STEPS = 5
"""Of the power iteration that each term starts with."""

RECOVERY_STEPS = 50
"""Gradient steps for each of the float factors."""

REACH = 0.499
"""How far a float factor's element may lie from its ternary one; less than 1/2, so that it rounds back."""

TWO_LAYERS = (
    "FFN's weight is a product of two ternary matrices with reals between them, not integers with one scale per output "
    "channel; bitbranch.split(network) makes two ternary layers of it, which are compiled"
)


def semidiscrete(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ternary ``U``, ``V`` and ``d >= 0`` with ``W ~ U diag(d) V``, one term after the other, greedily.

    Each term minimises ``|| R - d u v^T ||^2`` for what is left, ``R``, by turns over ``u`` and ``v``: with ``v`` fixed
    the best ternary ``u`` is that of ``R v``, which one sort finds
    (:func:`~bitbranch.quantizers.tsq.optimal_ternary`), and ``d = u^T R v / (|u|^2 |v|^2)``. ``v`` starts near the
    leading right singular vector of ``R``. No term makes the error larger.

    Args:
        weight: ``[O, n]`` reals.
        rank: number of terms ``k``, at least 1.

    Returns:
        ``U [O, k]``, ``d [k]``, ``V [k, n]``; ``U`` and ``V`` of {-1, 0, 1}; ``d`` float32 numbers; all in the dtype of
        ``weight``.

    Source: Wang, Cheng, "Fixed-point Factorized Networks", CVPR 2017, section 3.1; the decomposition: Kolda, O'Leary,
    ACM Transactions on Information Systems 16, 1998.
    """
    rest = weight.detach().double().clone()
    left, right, scale = rest.new_zeros(len(rest), rank), rest.new_zeros(rank, rest.shape[1]), rest.new_zeros(rank)
    for k in range(rank):
        v = rest[int(rest.square().sum(1).argmax())]
        for _ in range(POWER_STEPS):
            v = nn.functional.normalize(rest.T @ (rest @ v), dim=0)
        u = torch.zeros_like(rest[:, 0])
        for _ in range(SWEEPS):
            before = u
            u = optimal_ternary((rest @ v)[None])[0][0]
            v = optimal_ternary((u @ rest)[None])[0][0]
            if torch.equal(u, before):
                break
        fit, power = float(u @ rest @ v), float(u.square().sum() * v.square().sum())
        if power == 0:  # nothing is left
            break
        left[:, k], right[k], scale[k] = u, v, float(torch.tensor(fit / power).float())
        rest -= scale[k] * torch.outer(u, v)
    return left.to(weight.dtype), scale.to(weight.dtype), right.to(weight.dtype)


def recovered(weight: Tensor, left: Tensor, scale: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Float factors that round to given ternary ones and whose product with ``d`` is nearer to ``W``.

    Minimises ``|| W - U diag(d) V ||^2`` by turns over ``U`` and ``V``, each element within half a unit of its ternary
    one, by projected gradient steps of safe length; no step makes the error larger.

    Args:
        weight: ``[O, n]``.
        left, scale, right: ``U [O, k]``, ``d [k]``, ``V [k, n]`` from :func:`semidiscrete`.

    Returns:
        Float ``U`` and ``V``, in the dtype of ``weight``; :func:`rounded` gives back the ternary ones.

    Source: Wang, Cheng, CVPR 2017, section 3.2, the recovery of full-precision weights.
    """
    w, d = weight.detach().double(), scale.double()
    u, v = left.double(), right.double()
    u_min, u_max, v_min, v_max = (t + side for t in (u, v) for side in (-REACH, REACH))
    for _ in range(RECOVERY_STEPS):
        u = _descended(w, u, d[:, None] * v).clamp(u_min, u_max)
        v = _descended(w.T, v.T, (u * d).T).T.clamp(v_min, v_max)
    return u.to(weight.dtype), v.to(weight.dtype)


def _descended(w: Tensor, u: Tensor, m: Tensor) -> Tensor:
    """A gradient step of ``1/2 || w - u m ||^2`` in ``u``, of the length that its curvature allows."""
    gram = m @ m.T
    return u - (u @ m - w) @ m.T / torch.linalg.matrix_norm(gram).clamp_min(1e-300)


def rounded(x: Tensor) -> Tensor:
    """-1 below -1/2, +1 above 1/2, else 0, any shape; the gradient passes straight through."""
    return straight_through(x, x.detach().sign() * (x.detach().abs() > 0.5))


class FactorizedWeight(WeightQuantizer):
    """Weights ``U diag(d) V``: factors of the first weights seen by :func:`semidiscrete`, trained further.

    The layer's own weight gives the start; after each step of training :meth:`project` makes it what the factors are.
    Latent ``U`` and ``V`` start from :func:`recovered`, are rounded to ternary ones (:func:`rounded`), and clipped to
    [-1.5, 1.5]. ``d`` is trained as it is. (The paper also balances the sizes of the factors' gradients by constants,
    which is left out; Adam does so.)

    Such a weight is no integer with one scale per output channel: :func:`bitbranch.split` makes of the layer one with
    the ternary ``V`` and scales ``d``, and a pointwise one with the ternary ``U``.

    Args:
        rank: number of terms; None takes as many as the smaller side of the matrix ``[O, n]`` has.

    Raises:
        InputError: a rank below 1.

    Source: Wang, Cheng, CVPR 2017.
    """

    left: Tensor
    right: Tensor
    scale: Tensor

    def __init__(self, *, rank: int | None = None) -> None:
        super().__init__()
        if rank is not None and rank < 1:
            raise InputError(f"FFN: the rank must be at least 1, got {rank}")
        self.rank = rank

    @property
    def started(self) -> bool:
        """Whether there are factors."""
        return "left" in self._parameters

    @property
    def obstacle(self) -> str:
        return TWO_LAYERS

    @property
    def code_type(self) -> CodeType:
        return CodeType(Kind.TERNARY, 2)

    def stored(self, weight: Tensor) -> int:
        rows = weight.flatten(1)
        return sum(rows.shape) * (self.rank or min(rows.shape))

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        if not self.started:
            rows = weight.flatten(1)
            left, scale, right = semidiscrete(rows, self.rank or min(rows.shape))
            self.scale = nn.Parameter(scale)
            self.left, self.right = map(nn.Parameter, recovered(rows, left, scale, right))

    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ternary ``U [O, k]``, ``d [k]``, ternary ``V [k, n]``, with gradient.

        Raises:
            InputError: no weights were seen.
        """
        if not self.started:
            raise InputError(f"{self}: has seen no weights; call start(weight) first")
        return rounded(self.left), self.scale, rounded(self.right)

    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        raise InputError(self.obstacle)

    def quantize(self, weight: Tensor) -> Tensor:
        left, scale, right = self.factors()
        return ((left * scale) @ right).view_as(weight)

    def project(self, weight: Tensor) -> None:
        self.left.clamp_(-1.5, 1.5)
        self.right.clamp_(-1.5, 1.5)
        weight.copy_(self.quantize(weight))

    def extra_repr(self) -> str:
        return f"rank={self.rank}"
