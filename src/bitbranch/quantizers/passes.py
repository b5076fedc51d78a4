"""What quantizers compute on every activation of a training step: levels forwards, gradients backwards.

Float32 and bfloat16 tensors on a CPU are taken through the compiled core in one pass, everything else, or without it,
through torch in parts that stay in the caches. Both compute in float32 (float64 for float64) and give the same numbers,
bit for bit; only the gradient of a step, a sum, may differ by its rounding. The core uses one thread: a pass is bound
by memory, and threads of its own would compete with torch's.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import BitbranchError
from ..runtime.engine import chosen_isa, compiled_core

PART = 1 << 16
"""Elements that torch computes at once: what lies between two of its operations stays in the caches."""

HALVES = (torch.bfloat16, torch.float16)
"""Dtypes of half precision."""

Kind = Literal["uniform", "sparse", "bipolar", "affine"]

FILLS: dict[Kind, Callable[[Tensor, Tensor, float, float, float], object]] = {
    "uniform": lambda x, out, lo, hi, step: torch.div(x, step, out=out).add_(0.5).floor_().clamp_(lo, hi).mul_(step),
    # a clamp to 1/2 before rounding up is one to 1 behind it; then 0 where x <= lo
    "sparse": lambda x, out, lo, hi, step: torch.ops.aten.threshold_backward(
        torch.div(x, step, out=out).sub_(0.5).clamp_(0.5, hi).ceil_().mul_(step), x, lo, grad_input=out
    ),
    "bipolar": lambda x, out, lo, hi, step: (
        torch.clamp(x, lo, 1, out=out).mul_(hi).div_(2).floor_().mul_(2).add_(1).mul_(step)
    ),
    "affine": lambda x, out, lo, hi, step: torch.clamp(x, lo, 1, out=out).mul_(hi).add_(0.5).floor_().mul_(step),
}
"""Of each kind of levels: writes those of its first argument into its second."""


def levels(kind: Kind, x: Tensor, lo: float, hi: float, step: float) -> Tensor:
    """The levels nearest to reals, without gradient.

    ========= =====================================================================
    uniform   ``step clamp(floor(x / step + 1/2), lo, hi)``
    sparse    0 where ``x <= lo``, else ``step ceil(clamp(x / step - 1/2, 1/2, hi))``
    bipolar   ``step (2 floor(clamp(x, lo, 1) hi / 2) + 1)``
    affine    ``step floor(clamp(x, lo, 1) hi + 1/2)``
    ========= =====================================================================

    Args:
        kind: one of these.
        x: any shape; the result has its layout and dtype, too.
        lo, hi, step: float32 numbers.
    """
    x = dense(x.detach())
    out = torch.empty_like(x)
    core = _core(x)
    if core is not None:
        core.levels(_machine(), kind, lo, hi, step, _stored(x), _stored(out))
        return out
    fill = FILLS[kind]
    for part, target in parts(x, out):
        if x.dtype in HALVES:
            wide = part.float()
            filled = torch.empty_like(wide)
            fill(wide, filled, lo, hi, step)
            target.copy_(filled)
        else:
            fill(part, target, lo, hi, step)
    return out


def window(grad: Tensor, x: Tensor, lo: float, hi: float) -> Tensor:
    """The gradient where ``lo < x < hi``, else 0; any shape. Half precision is compared as float32.

    It can be differentiated once more, as ``create_graph`` wants it.
    """
    x, grad = _alike(x, grad)
    core = None if torch.is_grad_enabled() and grad.requires_grad else _core(x)
    if core is not None:
        out = torch.empty_like(x)
        core.window(_machine(), lo, hi, _stored(x), _stored(grad), _stored(out))
        return out
    if x.dtype not in HALVES:
        return _inside(grad, x, lo, hi)
    out = torch.empty_like(x)
    for part, gradient, target in parts(x, grad, out):
        target.copy_(_inside(gradient.float(), part.float(), lo, hi))
    return out


def step_gradient(grad: Tensor, x: Tensor, lo: float, hi: float, step: float) -> tuple[Tensor, Tensor]:
    """The gradients of ``uniform`` levels to reals and to their step.

    Returns:
        The gradient where ``lo < x / step < hi``, else 0, as ``x``; and, float64 scalar, the sum of the gradient times
        ``round(x / step) - x / step`` there and times ``lo`` or ``hi`` outside.
    """
    x, grad = _alike(x, grad)
    out = torch.empty_like(x)
    core = _core(x)
    if core is not None:
        total = core.step_gradient(_machine(), lo, hi, step, _stored(x), _stored(grad), _stored(out))
        return out, torch.tensor(total, dtype=torch.float64, device=x.device)
    sums = torch.zeros((), dtype=torch.float64, device=x.device)
    wide = torch.promote_types(x.dtype, torch.float32)
    for part, given, target in parts(x, grad, out):
        position, gradient = part.to(wide) / step, given.to(wide)
        values = (position + 0.5).floor_().clamp_(lo, hi)
        slope = values - _inside(position, position, lo, hi)
        sums += torch.dot(gradient, slope)
        target.copy_(_inside(gradient, position, lo, hi))
    return out, sums


def extremes(x: Tensor) -> Tensor:
    """The least and the greatest element, ``[2]`` in at least float32; zeros where there is none.

    A tensor with NaN has no order: it may give NaN or the extremes of the rest.
    """
    x = dense(x.detach())
    if not x.numel():
        return torch.zeros(2, device=x.device)
    core = _core(x)
    if core is not None:
        return torch.tensor(core.extremes(_machine(), _stored(x)), device=x.device)
    return torch.stack(x.aminmax()).to(torch.promote_types(x.dtype, torch.float32))


def dense(x: Tensor) -> Tensor:
    """The tensor itself if its elements fill a piece of memory, in any order of dimensions; else a contiguous copy."""
    size = 1
    for stride, length in sorted(zip(x.stride(), x.shape, strict=True)):
        if length != 1 and stride != size:
            return x.contiguous()
        size *= length
    return x


def row(x: Tensor) -> Tensor:
    """The elements of a dense tensor in the order of memory, a view ``[n]``."""
    return x.as_strided((x.numel(),), (1,))


def parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Pieces ``[n]`` of dense tensors of one layout, as views; on an accelerator everything is one piece."""
    count = tensors[0].numel()
    rows = [row(t) for t in tensors]
    size = PART if tensors[0].device.type == "cpu" else max(1, count)
    for start in range(0, count, size):
        yield tuple(row[start : start + size] for row in rows)


def _inside(grad: Tensor, x: Tensor, lo: float, hi: float) -> Tensor:
    out: Tensor = torch.ops.aten.hardtanh_backward(grad, x, lo, hi)
    return out


def _alike(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Both dense, in the dtype and layout of the first."""
    x = dense(x)
    same = grad.stride() == x.stride() and grad.dtype == x.dtype
    return x, grad if same else torch.empty_like(x).copy_(grad)


def _stored(x: Tensor) -> npt.NDArray[np.generic]:
    """The elements of a dense tensor as the compiled core takes them; NumPy knows bfloat16 by its bits alone."""
    elements = row(x.detach())
    return (elements.view(torch.int16) if x.dtype == torch.bfloat16 else elements).numpy()


def _core(x: Tensor) -> Any:
    """The compiled core, if it is there and takes this tensor."""
    return _vectors() if x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) else None


@lru_cache(maxsize=1)
def _vectors() -> Any:
    """The compiled core, or None where it is not installed or has no vectors for this processor."""
    try:
        core = compiled_core()
    except BitbranchError:
        return None
    return core if chosen_isa() != "scalar" else None


@lru_cache(maxsize=1)
def _machine() -> Any:
    atexit.register(_machine.cache_clear)  # before the core looks for what has been left
    return compiled_core().Machine(chosen_isa(), 1)
