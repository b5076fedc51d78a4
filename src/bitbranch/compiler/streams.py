"""Which scale a residual stream has: proven ranges of every real value, and groups of sums that share one scale.

A stream stands for ``scale * v`` with an integer ``v``. Sums that feed one another, through clips only, share their
scale, so that a residual network's trunk is rescaled nowhere. The scale is the finest that holds every proven value
of the group, in 16 bits where that leaves enough steps between the levels of the layers that read it, else in 32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..contract import ACCUMULATOR_MAX, Floats, accumulator_bounds
from . import graph as g

STEPS_PER_LEVEL = 1024
"""A stream of 16 bits needs this many steps between neighbouring levels of a layer that reads it; at that, rounding
moves about one code in 2,500 over a threshold."""

LIMIT_16 = 2**15 - 1
LIMIT_32 = 2**26
"""Largest magnitudes of a stream: the upper one leaves room in int32 for sums, and multipliers fit int32."""


@dataclass(frozen=True)
class Stream:
    """A stream's scale and the magnitude at which it saturates, which no value reaches."""

    scale: float
    limit: int


Interval = tuple[Floats, Floats]
"""Least and greatest real value, ``[C]`` each."""


def intervals(graph: g.Graph) -> list[Interval | None]:
    """Proven range of every value that a quantized layer's accumulators bound; ``None`` before the first layer."""
    ranges: list[Interval | None] = []
    for node, shape in zip(graph.nodes, graph.shapes, strict=True):
        inputs = [ranges[j] for j in node.inputs]
        known = [r for r in inputs if r is not None]
        if isinstance(node, g.Layer):
            bounds = accumulator_bounds(node.weight, node.encoder.code_type)
            slope = node.weight_scale * node.scale
            ranges.append(_between(*(slope * b + node.bias for b in bounds)))
        elif len(known) < len(inputs) or not inputs:
            ranges.append(None)
        else:
            ranges.append(_interval(node, known, shape[0]))
    return ranges


def _between(a: Floats, b: Floats) -> Interval:
    return np.minimum(a, b), np.maximum(a, b)


def _interval(node: g.Node, inputs: list[Interval], channels: int) -> Interval:
    lo, hi = inputs[0]
    if isinstance(node, g.Affine):
        return _between(node.slope * lo + node.intercept, node.slope * hi + node.intercept)
    if isinstance(node, g.Clip):
        return np.clip(lo, node.lo, node.hi), np.clip(hi, node.lo, node.hi)
    if isinstance(node, g.AvgPool):
        if any(node.padding):
            lo, hi = np.minimum(lo, 0.0), np.maximum(hi, 0.0)
        return _between(lo * (node.taps / node.divisor), hi * (node.taps / node.divisor))
    if isinstance(node, g.Add):
        return lo + inputs[1][0], hi + inputs[1][1]
    if isinstance(node, g.Concat):
        return np.concatenate([low for low, _ in inputs]), np.concatenate([high for _, high in inputs])
    if isinstance(node, g.Curve):
        return node.function.image(lo, hi)
    if isinstance(node, g.Flatten):
        return np.repeat(lo, channels // len(lo)), np.repeat(hi, channels // len(hi))
    return lo, hi


def level_distances(graph: g.Graph) -> list[float]:
    """Of every value the smallest distance, in its units, between levels of the layers that read it in the end.

    0 where an output shows the value itself; infinite without any reader.
    """
    distances = [np.inf] * len(graph.nodes)
    for i in reversed(range(len(graph.nodes))):
        node, behind = graph.nodes[i], distances[i]
        if isinstance(node, g.Layer):
            behind = node.scale * node.encoder.code_type.step
        elif isinstance(node, g.Output):
            behind = 0.0
        elif isinstance(node, g.Affine):
            steepest = float(np.abs(node.slope).max())
            behind = behind / steepest if steepest > 0 else np.inf
        elif isinstance(node, g.AvgPool):
            behind *= abs(node.divisor) / node.taps
        elif isinstance(node, g.Curve):
            behind /= node.function.steepness
        for j in node.inputs:
            distances[j] = min(distances[j], float(behind))
    return distances


def choose(magnitude: float, distance: float, taps: int = 1, limits: Sequence[float] = ()) -> Stream:
    """The stream for reals up to a magnitude.

    Args:
        magnitude: largest proven absolute value.
        distance: of the levels of the layers that read the stream, see :func:`level_distances`.
        taps: number of values that are summed before they are rescaled again.
        limits: of the clips before and behind. Many values lie on a limit, so the smallest becomes a whole number of
            steps, where it has no rounding error.
    """
    room = ACCUMULATOR_MAX // taps
    stream = _finest(magnitude, min(LIMIT_16, room), limits)
    if stream.scale * STEPS_PER_LEVEL <= distance:
        return stream
    return _finest(magnitude, min(LIMIT_32, room), limits)


def _finest(magnitude: float, limit: int, limits: Sequence[float]) -> Stream:
    # One step is kept free: two sides that are each rounded up sum to one more than the sum of the reals.
    scale = magnitude / (limit - 1) if magnitude > 0 else 1.0
    smallest = min((abs(x) for x in limits if np.isfinite(x) and x != 0), default=0.0)
    if smallest >= scale:
        scale = smallest / math.floor(smallest / scale)
    return Stream(scale, limit)


def steps_outward(lo: float, hi: float, stream: Stream) -> tuple[int, int]:
    """The whole steps around an interval of reals, within the stream's limit."""

    def steps(real: float, outward: Callable[[float], int]) -> int:
        position = min(max(real / stream.scale, -stream.limit), stream.limit)
        nearest = round(position)
        return nearest if abs(position - nearest) < 1e-6 else outward(position)

    return steps(lo, math.floor), steps(hi, math.ceil)


def stream_of_average(
    graph: g.Graph, number: int, ranges: Sequence[Interval | None], distances: Sequence[float]
) -> Stream:
    """The stream in which an average-pool's or bilinear upsampling's input is, where it has to be rounded for that.

    Args:
        graph: the graph.
        number: of the node.
        ranges: :func:`intervals`.
        distances: :func:`level_distances`.
    """
    node = graph.nodes[number]
    assert isinstance(node, (g.AvgPool, g.Upsample))
    (source,) = node.inputs
    distance = distances[number]
    if isinstance(node, g.AvgPool):
        distance *= abs(node.divisor) / node.taps
    return choose(_magnitude(ranges[source]), distance, node.taps, _limits(graph, source))


def stream_of_sums(graph: g.Graph, ranges: Sequence[Interval | None], distances: Sequence[float]) -> dict[int, Stream]:
    """The stream of every :class:`~bitbranch.compiler.graph.Add`, by its number; arguments as above."""
    group: dict[int, int] = {}
    for i, node in enumerate(graph.nodes):
        if isinstance(node, g.Add):
            group[i] = i
            for source in (_sum_behind(graph, j) for j in node.inputs):
                if source is not None:
                    joined = group[source]
                    group = {k: i if v == joined else v for k, v in group.items()}
    streams: dict[int, Stream] = {}
    for representative in set(group.values()):
        members = [i for i, r in group.items() if r == representative]
        values = [v for i in members for v in (i, *graph.nodes[i].inputs)]
        magnitude = max(_magnitude(ranges[v]) for v in values)
        distance = min(distances[i] for i in members)
        limits = [limit for v in values for limit in _limits(graph, v)]
        limits += [limit for i in members for user in graph.users[i] for limit in _limits(graph, user)]
        streams |= dict.fromkeys(members, choose(magnitude, distance, limits=limits))
    return streams


def _limits(graph: g.Graph, number: int) -> list[float]:
    """The limits of a clip that makes this value."""
    node = graph.nodes[number]
    while isinstance(node, (g.MaxPool, g.Upsample)):
        node = graph.nodes[node.inputs[0]]
    return [*node.lo, *node.hi] if isinstance(node, g.Clip) else []


def _magnitude(interval: Interval | None) -> float:
    return 0.0 if interval is None else float(max(np.abs(interval[0]).max(), np.abs(interval[1]).max()))


def _sum_behind(graph: g.Graph, number: int) -> int | None:
    """The sum that a value is, or is a clip or an enlarged copy of."""
    node = graph.nodes[number]
    while isinstance(node, g.Clip) or (isinstance(node, g.Upsample) and node.mode == "nearest"):
        (number,) = node.inputs
        node = graph.nodes[number]
    return number if isinstance(node, g.Add) else None
