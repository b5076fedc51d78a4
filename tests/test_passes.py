"""Every pass keeps the meaning of random graphs, is idempotent, and does what its name says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bitbranch.compiler import functions, passes
from bitbranch.compiler import graph as g
from bitbranch.contract import CodeType, Kind, uniform_encoder

IMAGES = (3, 4, 7, 6)
"""Shape of the random graphs' inputs, [N, C, H, W]."""


def affine(rng: np.random.Generator, x: int, channels: int) -> g.Affine:
    slope = rng.choice([-1.5, 0.0, 1.0, 0.3, 2.0], channels) if rng.random() < 0.7 else np.full(channels, 0.5)
    return g.Affine("affine", (x,), slope, rng.normal(size=channels) * float(rng.random() < 0.8))


def clip(rng: np.random.Generator, x: int, channels: int) -> g.Clip:
    if rng.random() < 0.3:
        ends = np.sort(rng.normal(size=(2, channels)), axis=0)
        return g.Clip("clip", (x,), ends[0], ends[1])
    lo, hi = [(0.0, np.inf), (-1.0, 1.0), (0.0, 6.0), (-np.inf, np.inf)][int(rng.integers(4))]
    return g.Clip("clip", (x,), np.full(channels, lo), np.full(channels, hi))


def layer(rng: np.random.Generator, x: int, shape: g.Shape) -> g.Layer:
    kernel = (1, 1) if min(shape[1:]) < 3 else (3, 3)
    outputs = int(rng.integers(1, 5))
    return g.Layer(
        "layer",
        (x,),
        weight=rng.integers(-1, 2, (outputs, shape[0], *kernel)),
        weight_type=CodeType(Kind.TERNARY, 2),
        weight_scale=rng.uniform(0.5, 2, outputs),
        bias=rng.normal(size=outputs),
        encoder=uniform_encoder(CodeType(Kind.SIGNED, 3), 0.37),
        scale=0.37,
    )


def transposed(rng: np.random.Generator, x: int, shape: g.Shape) -> g.Layer:
    groups = 2 if shape[0] % 2 == 0 else 1
    weight = rng.integers(-1, 2, (2 * groups, shape[0] // groups, 3, 2))
    plain = layer(rng, x, (1, 3, 3))
    numbers = {"weight_scale": rng.uniform(0.5, 2, 2 * groups), "bias": rng.normal(size=2 * groups)}
    geometry = {"stride": (2, 1), "padding": (1, 0, 0, 0), "dilation": (1, 2), "groups": groups}
    return replace(plain, weight=weight, transposed=True, **numbers, **geometry)


def random_node(rng: np.random.Generator, x: int, shapes: tuple[g.Shape, ...]) -> g.Node:
    shape = shapes[x]
    kinds = ["affine", "clip", "max", "average", "flatten", "add", "identity", "layer", "curve", "upsample", "concat"]
    kind = str(rng.choice([*kinds, "transposed"]))
    window = tuple(int(k) for k in np.minimum(rng.integers(1, 4, 2), shape[1:]))
    stride = (int(rng.integers(1, 3)), 1)
    if kind == "affine":
        return affine(rng, x, shape[0])
    if kind == "clip":
        return clip(rng, x, shape[0])
    if kind == "max":
        return g.MaxPool("max", (x,), window, stride, (0, int(window[0] > 1), 0, 0))
    if kind == "average":
        padding = (int(window[0] > 1), 0, 0, 0) if rng.random() < 0.3 else (0, 0, 0, 0)
        return g.AvgPool("average", (x,), window, stride, padding, float(rng.choice([1, 3, window[0] * window[1]])))
    if kind == "flatten":
        return g.Flatten("flatten", (x,))
    if kind == "add":
        return g.Add("add", (x, int(rng.choice([i for i, s in enumerate(shapes) if s == shape]))))
    if kind == "curve":
        return g.Curve("curve", (x,), [functions.leaky_relu(0.1), functions.hardswish()][int(rng.integers(2))])
    if kind == "upsample" and max(shape[1:]) < 15:
        factor = (int(rng.integers(1, 4)), int(rng.integers(1, 3)))
        return g.Upsample("upsample", (x,), factor, str(rng.choice(["nearest", "bilinear"])))
    if kind == "concat":
        alike = [i for i, s in enumerate(shapes) if s[1:] == shape[1:]]
        return g.Concat("concat", (x, *(int(i) for i in rng.choice(alike, int(rng.integers(0, 3))))))
    if kind == "transposed" and max(shape[1:]) < 15:
        return transposed(rng, x, shape)
    return layer(rng, x, shape) if kind == "layer" else g.Identity("identity", (x,))


def random_graph(seed: int) -> g.Graph:
    rng = np.random.default_rng(seed)
    nodes: list[g.Node] = [g.Input("input", (), IMAGES[1:])]
    for _ in range(int(rng.integers(3, 14))):
        x = len(nodes) - 1 if rng.random() < 0.8 else int(rng.integers(len(nodes)))
        nodes.append(random_node(rng, x, g.Graph(tuple(nodes)).shapes))
    shapes = g.Graph(tuple(nodes)).shapes
    outputs = {int(rng.integers(len(nodes))), len(nodes) - 1}
    return g.Graph((*nodes, *(g.Output(f"output{i}", (i,), (int(np.prod(shapes[i])),)) for i in sorted(outputs))))


def same(a: g.Graph, b: g.Graph) -> None:
    x = np.random.default_rng(7).normal(size=IMAGES)
    for expected, got in zip(g.evaluate(a, x), g.evaluate(b, x), strict=True):
        np.testing.assert_allclose(expected, got, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("apply", passes.PASSES, ids=lambda apply: apply.__name__)
def test_keeps_the_meaning_and_is_idempotent(apply: passes.Pass) -> None:
    used = 0
    for seed in range(300):
        before = random_graph(seed)
        after, changed = apply(before)
        assert changed or after is before
        same(before, after)
        again, changed_again = apply(after)
        assert again is after and not changed_again
        used += changed
    assert used >= 5, "the random graphs do not exercise this pass"


def test_all_passes_together() -> None:
    for seed in range(300):
        before = random_graph(seed)
        after = passes.simplify(before)
        same(before, after)
        assert passes.simplify(after) is after


def kinds(graph: g.Graph) -> list[str]:
    return [type(node).__name__ for node in graph.nodes[1:-1]]


def line(*nodes: g.Node) -> g.Graph:
    """A graph of one node after the other, of 4 channels; the nodes' own inputs are replaced."""
    whole = [g.Input("input", (), IMAGES[1:]), *nodes]
    chained = [type(n)(**{**vars(n), "inputs": (i - 1,) if i else ()}) for i, n in enumerate(whole)]
    shape = g.Graph(tuple(chained)).shapes[-1]
    return g.Graph((*chained, g.Output("output", (len(chained) - 1,), (int(np.prod(shape)),))))


SLOPES = np.array([1.0, 2.0, 0.0, 0.5])
RELU = g.Clip("relu", (), np.zeros(4), np.full(4, np.inf))
HTANH = g.Clip("htanh", (), np.full(4, -1.0), np.ones(4))
POOL = g.MaxPool("pool", (), (2, 2), (2, 2))
AVERAGE = g.AvgPool("average", (), (2, 2), (2, 2), (0, 0, 0, 0), 4.0)
LEAKY = g.Curve("leaky", (), functions.leaky_relu(0.1))
SWISH = g.Curve("swish", (), functions.hardswish())
TWICE = g.Upsample("twice", (), (2, 2), "nearest")
SMOOTH = g.Upsample("smooth", (), (2, 3), "bilinear")
RISING = g.Affine("rising", (), SLOPES, np.arange(4.0))
MIXED = g.Affine("mixed", (), -SLOPES, np.arange(4.0))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (line(MIXED, g.Identity("dropout", ()), RISING), ["Affine"]),
        (line(RELU, HTANH), ["Clip"]),
        (line(POOL, RISING, RELU), ["Affine", "Clip", "MaxPool"]),
        (line(POOL, RELU, MIXED), ["Clip", "MaxPool", "Affine"]),
        (line(RELU, MIXED), ["Affine", "Clip"]),
        (line(MIXED, AVERAGE, RISING), ["AvgPool", "Affine"]),
        (line(RELU, RISING, AVERAGE), ["Clip", "AvgPool", "Affine"]),
        (line(RISING, RELU, AVERAGE), ["Affine", "Clip", "AvgPool"]),
        (line(g.Flatten("flatten", ()), g.Identity("dropout", ())), []),
        (line(g.AvgPool("sum", (), (1, 1), (1, 1), (0, 0, 0, 0), 2.0)), ["AvgPool"]),
        (line(g.Affine("one", (), np.ones(4), np.zeros(4))), []),
        (line(POOL, LEAKY), ["Curve", "MaxPool"]),
        (line(POOL, SWISH), ["MaxPool", "Curve"]),
        (line(TWICE, MIXED, RELU, SWISH), ["Affine", "Clip", "Curve", "Upsample"]),
        (line(MIXED, SMOOTH, RISING), ["Upsample", "Affine"]),
        (line(RELU, SMOOTH), ["Clip", "Upsample"]),
        (line(SWISH, MIXED, RELU, HTANH), ["Curve", "Affine", "Clip"]),
        (line(replace(TWICE, factor=(1, 1)), g.Concat("one", ())), []),
    ],
    ids=lambda value: "-".join(value) or "nothing" if isinstance(value, list) else "",
)
def test_canonical_order(before: g.Graph, after: list[str]) -> None:
    simple = passes.simplify(before)
    assert kinds(simple) == after
    same(before, simple)


def test_linear_layer_behind_flatten_becomes_a_full_kernel() -> None:
    rng = np.random.default_rng(0)
    flat = int(np.prod(IMAGES[1:]))
    linear = layer(rng, 0, (flat, 1, 1))
    uniform = g.Clip("relu", (), np.zeros(flat), np.full(flat, np.inf))
    before = line(g.Flatten("flatten", ()), uniform, linear)
    after = passes.simplify(before)
    assert kinds(after) == ["Clip", "Layer"]
    (new,) = (node for node in after.nodes if isinstance(node, g.Layer))
    assert new.weight.shape[1:] == IMAGES[1:]
    same(before, after)


def test_pointwise_nodes_move_into_the_parts_of_a_concat() -> None:
    rng = np.random.default_rng(0)
    parts = (layer(rng, 0, IMAGES[1:]), layer(rng, 0, IMAGES[1:]))
    channels = len(parts[0].weight) + len(parts[1].weight)
    slope, intercept = rng.normal(size=(2, channels))
    before = g.Graph(
        (
            g.Input("input", (), IMAGES[1:]),
            *parts,
            g.Concat("cat", (1, 2)),
            g.Affine("bn", (3,), slope, intercept),
            g.Clip("relu", (4,), np.zeros(channels), np.full(channels, np.inf)),
            g.MaxPool("pool", (5,), (2, 2), (2, 2)),
            g.Output("output", (6,), (channels, 2, 2)),
        )
    )
    after = passes.simplify(before)
    assert kinds(after)[:2] == ["Layer", "Layer"] and kinds(after)[-2:] == ["Concat", "MaxPool"]
    assert sorted(kinds(after)[2:-2]) == ["Affine", "Affine", "Clip", "Clip"]
    same(before, after)


def test_flattened_parts_of_one_size_are_joined_before_they_are_flattened() -> None:
    flat = int(np.prod(IMAGES[1:]))
    nodes = (
        g.Input("input", (), IMAGES[1:]),
        g.Clip("relu", (0,), np.zeros(4), np.full(4, np.inf)),
        g.Flatten("a", (0,)),
        g.Flatten("b", (1,)),
        g.Concat("cat", (2, 3)),
        layer(np.random.default_rng(0), 4, (2 * flat, 1, 1)),
    )
    outputs = g.Graph(nodes).shapes[-1][0]
    before = g.Graph((*nodes, g.Output("output", (5,), (outputs,))))
    after = passes.simplify(before)
    assert kinds(after) == ["Clip", "Concat", "Layer"]
    same(before, after)


def test_a_value_that_is_read_twice_stays() -> None:
    nodes = (
        g.Input("input", (), IMAGES[1:]),
        g.Affine("bn", (0,), SLOPES, np.arange(4.0)),
        g.Affine("bn2", (1,), -SLOPES, np.ones(4)),
        g.Add("add", (1, 2)),
        g.Output("output", (3,), IMAGES[1:]),
    )
    after = passes.simplify(g.Graph(nodes))
    assert kinds(after) == ["Affine", "Affine", "Add"]
    same(g.Graph(nodes), after)
