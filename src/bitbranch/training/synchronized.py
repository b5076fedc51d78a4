"""BatchNorm over the parts of a batch that several processes have, on any device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import processes


class _Normalize(torch.autograd.Function):
    """``(x - mean) / sqrt(var + eps)`` over the images and positions of all processes, with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dims, shape = _dims(x)
        values = x.float()
        variance, mean = torch.var_mean(values, dims, correction=0)
        n = torch.full_like(mean, values.numel() / values.shape[1], dtype=torch.float64)
        # In float64 the difference of the squares below loses nothing that float32 has.
        moments = torch.stack([n, n * mean.double(), n * (variance.double() + mean.double().square())])
        n, first, second = processes.total(moments)
        whole = first / n
        spread = (second / n - whole.square()).clamp_min(0)
        inverse = (spread + eps).rsqrt().float()
        y = (values - whole.float().view(shape)) * inverse.view(shape)
        ctx.save_for_backward(y, inverse, n)
        ctx.mark_non_differentiable(whole, spread, n)
        return y.to(x.dtype), whole, spread, n

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: object) -> tuple[Tensor, None]:
        y, inverse, n = ctx.saved_tensors
        dims, shape = _dims(y)
        g = grad.float()
        sums = torch.stack([g.sum(dims), (g * y).sum(dims)]).double()
        plain, along = (processes.total(sums) / n).float()
        return ((g - plain.view(shape) - y * along.view(shape)) * inverse.view(shape)).to(grad.dtype), None


def _dims(x: Tensor) -> tuple[list[int], list[int]]:
    """The dimensions to sum over, and the shape by which channels meet ``x``, ``[N, C, ..]``."""
    return [d for d in range(x.dim()) if d != 1], [1, -1, *[1] * (x.dim() - 2)]


def _forward(norm: _BatchNorm, x: Tensor) -> Tensor:
    """What ``norm(x)`` would give for the whole batch, and its effect on the running statistics."""
    if not norm.training and norm.running_mean is not None:
        return type(norm).forward(norm, x)
    y, mean, variance, n = _Normalize.apply(x, norm.eps)
    if norm.training and norm.track_running_stats:
        assert norm.running_mean is not None and norm.running_var is not None
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked += 1
        share = 1 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
        norm.running_var.lerp_((variance * n / (n - 1).clamp_min(1)).to(norm.running_var.dtype), share)
    if norm.weight is not None:
        shape = _dims(x)[1]
        y = y * norm.weight.view(shape) + norm.bias.view(shape)
    return y.to(x.dtype)


@contextmanager
def synchronized(model: nn.Module) -> Iterator[None]:
    """Let every BatchNorm of a network take the statistics of the whole batch, where several processes have parts.

    In a single process nothing changes.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)] if processes.count() > 1 else []
    for norm in norms:
        norm.forward = partial(_forward, norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward
