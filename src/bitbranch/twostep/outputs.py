"""Layers of many bits behind solved ones, fitted anew to the codes that now arrive: a network's outputs, mostly.

Step 2 changes what the last layer reads. Its weights are as good as real, so those that come nearest to the step-1
network's outputs are a system of linear equations: Wang et al., CVPR 2018, section 3.3, reconstruct every layer from
what the layers in front give; this is the same for a layer whose weights need no rounding to few levels.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, fx

from ..chains import Graph
from ..layers import QuantizedLayer
from ..training.threads import using_threads
from .codes import has_low_bit_weight
from .descent import Cross, Moments
from .solver import target_cross
from .statistics import SampleFile

RIDGE = 0.5
"""Changes of weights are held back by the mean power of an input, times so many weights a sample.

So layers with more weights than samples keep nearly what they have, and those with many samples are free.
"""

TAPS_MOST = 8192
"""Weights of an output up to which it is fitted: some matrices have so many rows and columns of float64."""


def output_calls(graph: Graph, solved: list[fx.Node]) -> list[fx.Node]:
    """The calls of layers that can be fitted behind solved ones.

    They have codes as input, a bias and no BatchNorm, weights of their own that are used once and nothing else that
    multiplies them, and not more than :data:`TAPS_MOST` of them for an output.
    """
    times = Counter(node.target for node in graph.calls(QuantizedLayer))
    owners = Counter(id(m.weight) for m in set(graph.modules.values()) if isinstance(m, QuantizedLayer))
    first = min(map(graph.nodes.index, solved))
    found = []
    for node in graph.nodes[first + 1 :]:
        layer = graph.module(node)
        if not isinstance(layer, QuantizedLayer) or has_low_bit_weight(layer) or layer.obstacle:
            continue
        once = times[node.target] == 1 and owners[id(layer.weight)] == 1
        plain = layer.input_quantizer is not None and layer.bias is not None and graph.chain(node).batchnorm is None
        if once and plain and layer.outputs_first(layer.weight)[0].numel() <= TAPS_MOST:
            found.append(node)
    return found


@torch.no_grad()
def fit_outputs(layer: QuantizedLayer, file: SampleFile) -> tuple[float, float]:
    """Give a layer the weights and the bias that come nearest to its targets, in place, if its own are not nearer.

    They minimise ``sum_p (t_p - w^T x_p - b)^2 + r ||w - w'||^2`` for the layer's present weights ``w'``, with ``r``
    as :data:`RIDGE` says, and are then rounded by the layer's quantizer.

    Args:
        layer: of real weights or of many bits, with codes as input and a bias.
        file: its inputs and the step-1 network's outputs.

    Returns:
        What is left of the targets' variance, before and after, 0 for all alike.

    Raises:
        InputError: no samples.
    """
    assert layer.input_quantizer is not None and layer.bias is not None
    moments, mean = file.moments(), file.target_mean()
    cross, scale = target_cross(file, moments, mean), layer.input_quantizer.scale()
    kept = layer.weight.detach().clone(), layer.bias.detach().clone()
    shape = layer.outputs_first(layer.weight).shape

    def columns(rows: Tensor) -> Tensor:
        """Weights outputs first as factors of integer inputs, ``[G, n, O]``."""
        rows = layer.outputs_first(rows).detach().double().flatten(1)
        return rows.view(file.groups, -1, rows.shape[1]).transpose(1, 2) * scale

    def error(weight: Tensor, bias: Tensor) -> float:
        offset = mean - moments.through(weight) / moments.count - bias.double().view_as(mean)
        return float((_distance(moments, cross, weight) + moments.count * offset.square()).sum())

    with using_threads(1):  # sums of reals depend on how they are split
        before = error(columns(layer.quantized_weight()), layer.bias)
        wanted = _nearest(moments, cross, columns(layer.weight))
        rows = (wanted / scale).transpose(1, 2).reshape(shape)
        layer.weight.copy_(layer.native_order(rows.to(layer.weight.dtype)))
        weight = columns(layer.quantized_weight())
        layer.bias.copy_((mean - moments.through(weight) / moments.count).flatten())
        after = error(weight, layer.bias)
    if after >= before:  # the quantizer cannot hold them
        layer.weight.copy_(kept[0])
        layer.bias.copy_(kept[1])
        after = before
    whole = float(cross.power.sum())
    alike = moments.count * file.reach**2 * torch.finfo(torch.float32).eps ** 2  # as targets of float32 can be
    return (before / whole, after / whole) if whole > alike else (0.0, 0.0)


def _nearest(moments: Moments, cross: Cross, present: Tensor) -> Tensor:
    """The weights that minimise the error, held back at the present ones, ``[G, n, O]``."""
    gram = moments.gram
    missing = cross.product - gram @ present
    power = gram.diagonal(dim1=1, dim2=2)
    held = RIDGE * gram.shape[1] / moments.count * power.mean(1).clamp_min(torch.finfo(torch.float32).tiny)
    power += held[:, None]
    return present + torch.cholesky_solve(missing, torch.linalg.cholesky(gram))


def _distance(moments: Moments, cross: Cross, weight: Tensor) -> Tensor:
    """``sum_p (z - w^T (x - mean))^2`` of every output for real weights, ``[G, O]``."""
    power = (weight * moments.times(weight)).sum(1) - moments.through(weight).square() / moments.count
    return cross.power - 2 * (cross.product * weight).sum(1) + power
