"""Where the reals of each channel lie, and the steps that suit them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..chains import Graph, scale_inputs
from ..layers import QuantizedLayer
from ..quantizers.lloyd import LloydActivation
from ..quantizers.tsq import SparseActivation

SPARSE = (SparseActivation, LloydActivation)
"""Codes with a dead zone."""

BINS_PER_OCTAVE, OCTAVES = 16, 32
"""Resolution and range (2^-16 to 2^16) of the histograms."""

AT_ONCE = 1 << 18
"""Reals of a batch that a histogram takes in, about."""

SPREAD = 4.0
"""A channel's step is at most so many times smaller or larger than that of its tensor."""


class Histogram:
    """Positive reals by channel, in bins of equal ratio: number and sum of each, ``[C, bins]`` float64."""

    def __init__(self, channels: int) -> None:
        self.count = torch.zeros(channels, BINS_PER_OCTAVE * OCTAVES, dtype=torch.float64)
        self.total = torch.zeros_like(self.count)

    def add(self, x: Tensor) -> None:
        """Take in ``[C, N]``, or evenly spread ones where they are more than :data:`AT_ONCE`."""
        every = -(-x.numel() // AT_ONCE) | 1  # odd: not always the same column of an image
        x = x[:, ::every].clamp(min=0)
        bins = self.count.shape[1]
        where = ((x.log2() + OCTAVES / 2) * BINS_PER_OCTAVE).floor_().clamp_(0, bins - 1).to(torch.int64)
        self.count.scatter_add_(1, where, (x > 0).double())
        self.total.scatter_add_(1, where, x.double())

    @classmethod
    def normal(cls, mean: Tensor, deviation: Tensor) -> Histogram:
        """Of Gaussians, ``[C]`` each."""
        out = cls(len(mean))
        edges = (torch.arange(out.count.shape[1] + 1, dtype=torch.float64) / BINS_PER_OCTAVE - OCTAVES / 2).exp2()
        z = (edges - mean.double()[:, None]) / deviation.double().clamp(min=1e-30)[:, None]
        out.count = torch.special.ndtr(z).diff(dim=1)
        out.total = out.count * (edges[1:] * edges[:-1]).sqrt()
        return out

    def merged(self, channels: int) -> Histogram:
        """With neighbouring rows put together, so that there are this many."""
        out = Histogram(channels)
        out.count = self.count.view(channels, -1, self.count.shape[1]).sum(1)
        out.total = self.total.view(channels, -1, self.count.shape[1]).sum(1)
        return out

    def whole(self) -> Histogram:
        """All channels as one."""
        return self.merged(1)

    def best_steps(self, bits: int) -> Tensor:
        """``D`` with the least ``sum (Q(x) - x)^2`` for levels ``0, D, .., n D``, ``n = 2^K - 1``, ``[C]``."""
        levels = [float(k) for k in range(1, 1 << bits)]
        return self.best_factors(levels, [k - 0.5 for k in levels])

    def best_factors(self, levels: Sequence[float], thresholds: Sequence[float]) -> Tensor:
        """What levels must be multiplied by for the least ``sum (Q(x) - x)^2``, ``[C]``; 1 without reals.

        Candidates are the bins' edges divided by the top level; the squares of the reals themselves do not matter.

        Args:
            levels: above 0, rising.
            thresholds: below each of them; up to the first, the level is 0.
        """
        edges = torch.arange(self.count.shape[1], dtype=torch.float64) / BINS_PER_OCTAVE - OCTAVES / 2
        mean = self.total / self.count.clamp(min=1e-300)
        table, bounds = torch.tensor([0.0, *levels], dtype=torch.float64), torch.tensor(thresholds, dtype=torch.float64)
        best, least = torch.ones(len(mean), dtype=torch.float64), torch.zeros(len(mean), dtype=torch.float64)
        for factor in (edges.exp2() / levels[-1]).tolist():
            level = table[torch.bucketize(mean / factor, bounds)].mul_(factor)
            error = (level * (level * self.count - 2 * self.total)).sum(1)
            best, least = torch.where(error < least, factor, best), torch.minimum(error, least)
        return best


@torch.no_grad()
def equalize(network: nn.Module, histogram: Callable[[_BatchNorm, str], Histogram]) -> list[str]:
    """Scale the channels of BatchNorms that only sparse codes read, so that the common step is each channel's best.

    A channel times ``a`` has codes with ``eps / a`` and ``D / a``; the weights behind take ``1 / a``, so the function
    without codes is kept, and the program costs no more.

    Args:
        network: with quantized layers; changed in place.
        histogram: of a BatchNorm's channels ``[C]``, given it and the name of a layer that reads them.

    Returns:
        Names of the BatchNorms that feed such codes and could not be scaled, as other things read them, too.

    Raises:
        InputError: ``forward`` cannot be traced.
    """
    graph, left = Graph(network), []
    for node in graph.calls(_BatchNorm):
        norm = graph.module(node)
        readers, obstacles = graph.readers(node)
        behind = [layer for r in readers if isinstance(layer := graph.modules[r.layer], QuantizedLayer)]
        quantizers = [q for b in behind if isinstance(q := b.input_quantizer, SPARSE)]
        if not quantizers or not isinstance(norm, _BatchNorm) or norm.weight is None:
            continue
        plain = all(r.lo in (0, -math.inf) and r.hi == math.inf and not r.joined for r in readers)
        q = quantizers[0]
        if obstacles or not plain or any(o.positive != q.positive for o in quantizers):
            left.append(str(node.target))
            continue
        factors = histogram(norm, readers[0].layer).best_factors(*q.positive)
        scale = (1 / factors.clamp(1 / SPREAD, SPREAD)).to(norm.weight)
        norm.weight.mul_(scale)
        norm.bias.mul_(scale)
        for layer in behind:
            scale_inputs(layer, 1 / scale)
    return left
