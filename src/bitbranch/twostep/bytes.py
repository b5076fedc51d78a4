"""Products of matrices of bytes: exact sums of small integers, some ten times as fast as those of reals."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

INT8 = 127
"""Greatest magnitude that is multiplied as a byte."""

BASE = 128
"""Of the digits, from ``-BASE / 2`` on, that :func:`add_by_digits` takes integers apart into."""


@cache
def multiplies_bytes() -> bool:
    """Whether PyTorch multiplies matrices of bytes, exactly, on this processor.

    Without VNNI it does not: there products of the largest bytes are summed in 16 bits, which they overflow.
    """
    a = torch.randint(-INT8, INT8 + 1, (64, 512), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    a[:32].sign_().mul_(INT8)
    try:
        return torch.equal(torch._int_mm(a, a.T.contiguous()).double(), a.double() @ a.T.double())
    except (AttributeError, RuntimeError):
        return False


def add_by_digits(sums: Tensor, x: Tensor, z: Tensor, digits: int) -> None:
    """Add ``z^T x`` of integers to ``sums [G, O, n]``, exactly, by one product of bytes for each digit of ``z``.

    Args:
        sums: float64.
        x: ``[G, p, n]``, at most :data:`INT8` in magnitude.
        z: ``[G, p, O]``, integers of so many digits.
        digits: of base :data:`BASE`.
    """
    inputs, rest = x.to(torch.int8), z.to(torch.int64 if BASE**digits > 2**31 else torch.int32)
    low, high = (torch.empty(sums.shape[1:], dtype=torch.int32) for _ in range(2))
    for k in range(0, digits, 2):  # two at a time: what is added to sums in int32 costs little
        pair = list[Tensor]()
        for _ in range(2):
            digit = (rest + BASE // 2).bitwise_and_(BASE - 1).sub_(BASE // 2)
            rest = rest.sub_(digit).bitwise_right_shift_(BASE.bit_length() - 1)
            pair.append(_rows(digit.to(torch.int8)))
        for g, total in enumerate(sums):
            torch._int_mm(pair[0][g], inputs[g], out=low)
            if k + 1 < digits:
                low.add_(torch._int_mm(pair[1][g], inputs[g], out=high), alpha=BASE)
            total.add_(low, alpha=BASE**k)


def _rows(columns: Tensor) -> Tensor:
    """``[G, p, O] -> [G, O, p]``, with strides that PyTorch's product of bytes can use.

    Of a single column, turned round, the row would keep the stride 1, with which that product leaves its result as it
    was, and says nothing (pytorch/pytorch#195066).
    """
    groups, count, outputs = columns.shape
    return columns.view(groups, 1, count) if outputs == 1 else columns.transpose(1, 2)
