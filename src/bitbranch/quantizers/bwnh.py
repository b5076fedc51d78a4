"""Binary weight networks via hashing (BWNH): signs and scales that keep a layer's inner products."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import signs
from .bwn import BinaryWeight

SWEEPS = 20
"""Cycles of coordinate descent, at most."""


def hashed(weight: Tensor, gram: Tensor, cross: Tensor, *, sweeps: int = SWEEPS) -> tuple[Tensor, Tensor]:
    """Signs ``B`` and scales ``alpha`` that minimise ``|| s - alpha X^T b ||^2`` per row, by turns.

    ``s`` are the inner products to keep, ``X`` the inputs as the layer gets them. With ``b`` fixed, ``alpha = s^T X^T b
    / || X^T b ||^2``; with the rest fixed, a sign is best at ``sign(c_n - alpha sum_{j != n} A_nj b_j)``, one after the
    other. It starts at the signs of the float weights, and no step makes the error larger.

    Args:
        weight: ``[O, n]`` float weights.
        gram: ``A = X X^T``, ``[n, n]``.
        cross: ``c = X s`` of every row, ``[O, n]``.
        sweeps: cycles, at most; it ends as soon as nothing changes.

    Returns:
        ``B [O, n]`` of {-1, +1} and ``alpha [O]``, at least 0, float32 numbers, both in the dtype of ``weight``.

    Source: Hu, Wang, Cheng, "From Hashing to CNNs: Training Binary Weight Networks via Hashing", AAAI 2018, the
    alternating optimisation of section 3.
    """
    a, c = gram.double(), cross.double()
    b = signs(weight).double()
    alpha = _scale(a, c, b)
    for _ in range(sweeps):
        b *= signs(alpha)[:, None]  # a negative scale turns its row
        alpha = alpha.abs()
        product, changed = b @ a, False
        for n in range(b.shape[1]):
            old = b[:, n].clone()
            pull = c[:, n] - alpha * (product[:, n] - a[n, n] * old)
            b[:, n] = torch.where(pull == 0, old, signs(pull))
            difference = b[:, n] - old
            changed = changed or bool(difference.any())
            product += difference[:, None] * a[n]
        alpha = _scale(a, c, b)
        if not changed:
            break
    b *= signs(alpha)[:, None]
    return b.to(weight.dtype), alpha.abs().float().to(weight.dtype)


def _scale(a: Tensor, c: Tensor, b: Tensor) -> Tensor:
    power = (b * (b @ a)).sum(1)
    return torch.where(power > 0, (c * b).sum(1) / power.clamp_min(1e-300), 0.0)


class HashedWeight(BinaryWeight):
    """Binary weights that :func:`bitbranch.twostep.hash_weights` solves by :func:`hashed`, layer by layer.

    Before that, and when trained after it, they are those of :class:`~bitbranch.quantizers.bwn.BinaryWeight`, which
    reads ``alpha b`` as exactly ``alpha`` and ``b``.

    Source: Hu, Wang, Cheng, AAAI 2018.
    """
