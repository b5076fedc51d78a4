"""Small rewrites of the graph that keep its meaning, each ``pass(graph) -> (graph, changed)`` and idempotent.

Together they bring everything between two quantized layers into one order: an affine map, then a clip, then a curve,
then what codes can go through (concat, max-pool, nearest upsampling); with average-pools and bilinear upsampling
taken as early, and affine maps as late, as they commute. That is the form in which
:mod:`~bitbranch.compiler.lower` turns it into integer thresholds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from . import graph as g

Pass = Callable[[g.Graph], tuple[g.Graph, bool]]


class _Rewriter:
    """The new graph while a rule goes over the old one.

    A rule is called with each node, its inputs already being numbers of the new graph. It returns the number of the
    value that takes the node's place, or ``None`` to keep the node.
    """

    def __init__(self) -> None:
        self.nodes: list[g.Node] = []
        self.shapes: list[g.Shape] = []

    def append(self, node: g.Node) -> int:
        self.shapes.append(node.infer(*(self.shapes[j] for j in node.inputs)))
        self.nodes.append(node)
        return len(self.nodes) - 1

    def source(self, node: g.Node) -> g.Node | None:
        """The node that made the first input."""
        return self.nodes[node.inputs[0]] if node.inputs else None


Rule = Callable[[_Rewriter, g.Node], "int | None"]


def _apply(graph: g.Graph, rule: Rule) -> tuple[g.Graph, bool]:
    """Use a rule on every node, again and again until it finds nothing; then drop what is no longer read."""
    changed = False
    while True:
        new, found = _Rewriter(), False
        places: list[int] = []
        for old in graph.nodes:
            node = replace(old, inputs=tuple(places[j] for j in old.inputs))
            place = rule(new, node)
            found |= place is not None
            places.append(new.append(node) if place is None else place)
        if not found:
            return graph, changed
        graph, _ = drop_dead_nodes(g.Graph(tuple(new.nodes)))
        changed = True


def drop_dead_nodes(graph: g.Graph) -> tuple[g.Graph, bool]:
    """Remove nodes that no output depends on; inputs stay."""
    live = {i for i, node in enumerate(graph.nodes) if isinstance(node, (g.Input, g.Output))}
    for i in range(len(graph.nodes) - 1, -1, -1):
        if i in live:
            live.update(graph.nodes[i].inputs)
    if len(live) == len(graph.nodes):
        return graph, False
    place = {old: new for new, old in enumerate(sorted(live))}
    kept = (replace(graph.nodes[i], inputs=tuple(place[j] for j in graph.nodes[i].inputs)) for i in sorted(live))
    return g.Graph(tuple(kept)), True


def drop_identities(graph: g.Graph) -> tuple[g.Graph, bool]:
    """Remove nodes that return their input: identities, ``1 x + 0``, an infinite clip, a pool of one pixel, .."""
    return _apply(graph, _identity)


def _identity(new: _Rewriter, node: g.Node) -> int | None:
    nothing = (
        isinstance(node, g.Identity)
        or (isinstance(node, g.Affine) and bool((node.slope == 1).all() and (node.intercept == 0).all()))
        or (isinstance(node, g.Clip) and bool((node.lo == -np.inf).all() and (node.hi == np.inf).all()))
        or (isinstance(node, (g.MaxPool, g.AvgPool)) and node.kernel == node.stride == (1, 1) and not any(node.padding))
        or (isinstance(node, g.Upsample) and node.factor == (1, 1))
        or (isinstance(node, g.Concat) and len(node.inputs) == 1)
        or (isinstance(node, g.Flatten) and new.shapes[node.inputs[0]][1:] == (1, 1))
    )
    nothing = nothing and not (isinstance(node, g.AvgPool) and node.divisor != 1)
    return node.inputs[0] if nothing else None


def merge_affine(graph: g.Graph) -> tuple[g.Graph, bool]:
    """``s (a x + b) + t`` becomes ``(s a) x + (s b + t)``."""
    return _apply(graph, _merge_affine)


def _merge_affine(new: _Rewriter, node: g.Node) -> int | None:
    inner = new.source(node)
    if not (isinstance(node, g.Affine) and isinstance(inner, g.Affine)):
        return None
    slope, intercept = node.slope * inner.slope, node.slope * inner.intercept + node.intercept
    return new.append(g.Affine(node.name, inner.inputs, slope, intercept))


def merge_clips(graph: g.Graph) -> tuple[g.Graph, bool]:
    """Two clips become one: the outer clip of the inner limits."""
    return _apply(graph, _merge_clips)


def _merge_clips(new: _Rewriter, node: g.Node) -> int | None:
    inner = new.source(node)
    if not (isinstance(node, g.Clip) and isinstance(inner, g.Clip)):
        return None
    return new.append(
        g.Clip(node.name, inner.inputs, np.clip(inner.lo, node.lo, node.hi), np.clip(inner.hi, node.lo, node.hi))
    )


def affine_after_average(graph: g.Graph) -> tuple[g.Graph, bool]:
    """An affine map before an average-pool moves behind it, so that the pool can sum plain accumulators.

    Padding counts as the real 0, so under padding a map with an intercept stays.
    """
    return _apply(graph, _affine_after_average)


def _affine_after_average(new: _Rewriter, node: g.Node) -> int | None:
    inner = new.source(node)
    if not (isinstance(node, g.AvgPool) and isinstance(inner, g.Affine)):
        return None
    if any(node.padding) and (inner.intercept != 0).any():
        return None
    pool = new.append(replace(node, inputs=inner.inputs))
    return new.append(replace(inner, inputs=(pool,), intercept=inner.intercept * (node.taps / node.divisor)))


def affine_after_bilinear(graph: g.Graph) -> tuple[g.Graph, bool]:
    """An affine map before a bilinear upsampling moves behind it, as the interpolation's weights sum to 1."""
    return _apply(graph, _affine_after_bilinear)


def _affine_after_bilinear(new: _Rewriter, node: g.Node) -> int | None:
    inner = new.source(node)
    if not (isinstance(node, g.Upsample) and node.mode == "bilinear" and isinstance(inner, g.Affine)):
        return None
    return new.append(replace(inner, inputs=(new.append(replace(node, inputs=inner.inputs)),)))


def before_nearest(graph: g.Graph) -> tuple[g.Graph, bool]:
    """What is done to every number by itself moves before the nearest upsampling that it follows."""
    return _apply(graph, _before_nearest)


def _before_nearest(new: _Rewriter, node: g.Node) -> int | None:
    inner = new.source(node)
    pointwise = isinstance(node, (g.Affine, g.Clip, g.Curve))
    if not (pointwise and isinstance(inner, g.Upsample) and inner.mode == "nearest"):
        return None
    return new.append(replace(inner, inputs=(new.append(replace(node, inputs=inner.inputs)),)))


def into_concat(graph: g.Graph) -> tuple[g.Graph, bool]:
    """What is done to channels by themselves, apart from what codes can go through, moves into a concat's parts."""
    return _apply(graph, _into_concat)


def _into_concat(new: _Rewriter, node: g.Node) -> int | None:
    inner = new.source(node)
    mine = isinstance(node, (g.Affine, g.Clip, g.Curve, g.AvgPool)) or (
        isinstance(node, g.Upsample) and node.mode == "bilinear"
    )
    if not (mine and isinstance(inner, g.Concat)):
        return None
    parts, start = [], 0
    for j in inner.inputs:
        channels = slice(start, start + new.shapes[j][0])
        numbers: dict[str, Any] = {f: v[channels] for f, v in vars(node).items() if isinstance(v, np.ndarray)}
        parts.append(new.append(replace(node, inputs=(j,), **numbers)))
        start = channels.stop
    return new.append(replace(inner, inputs=tuple(parts)))


def flatten_after_concat(graph: g.Graph) -> tuple[g.Graph, bool]:
    """A concat of flattened values of one size becomes the flattened concat."""
    return _apply(graph, _flatten_after_concat)


def _flatten_after_concat(new: _Rewriter, node: g.Node) -> int | None:
    if not isinstance(node, g.Concat):
        return None
    parts = [new.nodes[j] for j in node.inputs]
    sources = tuple(part.inputs[0] for part in parts if isinstance(part, g.Flatten))
    if len(sources) < len(parts) or len({new.shapes[j][1:] for j in sources}) != 1:
        return None
    return new.append(replace(parts[0], inputs=(new.append(replace(node, inputs=sources)),)))


def affine_before_clip(graph: g.Graph) -> tuple[g.Graph, bool]:
    """An affine map behind a clip moves before it and takes the limits along."""
    return _apply(graph, _affine_before_clip)


def _affine_before_clip(new: _Rewriter, node: g.Node) -> int | None:
    inner = new.source(node)
    if not (isinstance(node, g.Affine) and isinstance(inner, g.Clip)):
        return None
    affine = new.append(replace(node, inputs=inner.inputs))
    return new.append(g.Clip(node.name, (affine,), *node.limits(inner.lo, inner.hi)))


def before_max_pool(graph: g.Graph) -> tuple[g.Graph, bool]:
    """A clip, a rising curve, or an affine map without negative slopes moves before the max-pool that it follows."""
    return _apply(graph, _before_max_pool)


def _before_max_pool(new: _Rewriter, node: g.Node) -> int | None:
    inner = new.source(node)
    monotone = (
        isinstance(node, g.Clip)
        or (isinstance(node, g.Affine) and bool((node.slope >= 0).all()))
        or (isinstance(node, g.Curve) and node.function.valley is None)
    )
    if not (monotone and isinstance(inner, g.MaxPool)):
        return None
    return new.append(replace(inner, inputs=(new.append(replace(node, inputs=inner.inputs)),)))


def before_flatten(graph: g.Graph) -> tuple[g.Graph, bool]:
    """A curve, or a clip or affine map that is the same within each channel's image, moves before the flatten."""
    return _apply(graph, _before_flatten)


def _before_flatten(new: _Rewriter, node: g.Node) -> int | None:
    inner = new.source(node)
    if not (isinstance(node, (g.Affine, g.Clip, g.Curve)) and isinstance(inner, g.Flatten)):
        return None
    channels = new.shapes[inner.inputs[0]][0]
    images: dict[str, Any] = {f: v.reshape(channels, -1) for f, v in vars(node).items() if isinstance(v, np.ndarray)}
    if any((image != image[:, :1]).any() for image in images.values()):
        return None
    moved = new.append(replace(node, inputs=inner.inputs, **{f: image[:, 0] for f, image in images.items()}))
    return new.append(replace(inner, inputs=(moved,)))


def absorb_flatten(graph: g.Graph) -> tuple[g.Graph, bool]:
    """A linear layer behind a flatten becomes a convolution whose kernel covers the image; the output needs none."""
    return _apply(graph, _absorb_flatten)


def _absorb_flatten(new: _Rewriter, node: g.Node) -> int | None:
    inner = new.source(node)
    if not isinstance(inner, g.Flatten):
        return None
    if isinstance(node, g.Output):
        return new.append(replace(node, inputs=inner.inputs))
    if not (
        isinstance(node, g.Layer)
        and node.groups == 1
        and node.weight.shape[2:] == (1, 1)
        and not any(node.padding)
        and not node.transposed
    ):
        return None
    weight = node.weight.reshape(-1, *new.shapes[inner.inputs[0]])
    return new.append(replace(node, inputs=inner.inputs, weight=weight, stride=(1, 1), dilation=(1, 1)))


PASSES: tuple[Pass, ...] = (
    drop_dead_nodes,
    drop_identities,
    flatten_after_concat,
    before_flatten,
    absorb_flatten,
    merge_affine,
    into_concat,
    affine_after_average,
    affine_after_bilinear,
    before_nearest,
    before_max_pool,
    affine_before_clip,
    merge_clips,
)
"""In the order of use: a map that can pass an average or a max-pool does so before it would pass a clip."""


def simplify(graph: g.Graph) -> g.Graph:
    """All passes, until none changes anything."""
    changed = True
    while changed:
        changed = False
        for apply in PASSES:
            graph, here = apply(graph)
            changed |= here
    return graph
