"""The native engine equals the NumPy reference in every bit, on every instruction set and for any number of threads."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import examples

from bitbranch import contract
from bitbranch.contract import ACCUMULATOR_MAX, CodeType
from bitbranch.errors import BitbranchError, FormatError, InputError
from bitbranch.runtime import choice, layout, reference, rewrite
from bitbranch.runtime import engine as engine_module
from bitbranch.runtime import program as p

try:
    ISAS = engine_module.instruction_sets()
except BitbranchError:
    pytest.skip("the compiled core is not installed", allow_module_level=True)

ACTIVATIONS = ["u1", "u2", "u3", "u4", "b1", "b2", "b3", "b4", "t", "s2", "s3", "s4", "u8", "s8", "b8", "b5", "u6"]
WEIGHTS = ["b1", "t", "b2", "b3", "b4", "s4", "s8", "b8", "u1", "u2", "s2", "u8"]
kinds = st.sampled_from([None, "dictionary", "xnor", "byte16"])
# Hypothesis shrinks these towards their first element: the plainest case first.
activations, weights = st.sampled_from(ACTIVATIONS).map(CodeType.parse), st.sampled_from(WEIGHTS).map(CodeType.parse)


@contextmanager
def preferred(family: str | None) -> Iterator[None]:
    """Kernels of a family wherever they are exact, whatever is fastest; ``None``: the engine's choice."""
    if family is None:
        yield
        return
    os.environ["BITBRANCH_FAMILY"] = family
    try:
        yield
    finally:
        del os.environ["BITBRANCH_FAMILY"]


def assert_equal(
    program: p.Program, x: np.ndarray, isas: list[str] = ISAS, threads: tuple[int, ...] = (1, 2), family: str = ""
) -> None:
    """Every materialised value and the output, on all instruction sets and thread counts.

    ``family`` is forced where it is exact.
    """
    expected = dict(reference.trace(program, x))
    output = reference.run(program, x)
    for isa in isas:
        for n in threads:
            engine = engine_module.Engine(program, threads=n, isa=isa, families={"*": family} if family else {})
            got = engine(x)
            assert got.dtype == np.float32 and got.shape == output.shape
            for number, value in engine.trace(x):
                where = f"operation {number} {program.operations[number]!r:.80}, {isa}, {n} threads"
                np.testing.assert_array_equal(value, expected[number], err_msg=where)
                assert value.dtype == expected[number].dtype
            np.testing.assert_array_equal(got, output, err_msg=f"output, {isa}, {n} threads")
            np.testing.assert_array_equal(engine(x), output, err_msg=f"second call, {isa}, {n} threads")


class Builder:
    """Makes a program operation by operation, with parameters from a seed."""

    def __init__(self, shape: tuple[int, int, int], code_type: CodeType, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        t = np.sort(self.rng.normal(size=code_type.count - 1)).astype(np.float32)
        table = self.rng.integers(0, code_type.count, (shape[0], 256), dtype=np.uint8)
        self.operations: list[p.Operation] = []
        self.values: list[p.Value] = []
        self.add(p.Encode("input", (), shape, code_type, t, table))

    def add(self, op: p.Operation) -> int:
        self.values.append(op.infer(*(self.values[i] for i in op.inputs)))
        self.operations.append(op)
        return len(self.operations) - 1

    def conv(
        self, source: int, outputs: int, weight_type: CodeType, kernel: p.Pair = (1, 1), groups: int = 1, **where
    ) -> int:
        channels = self.values[source].shape[0]
        shape = (outputs, channels // groups, *kernel)
        weight = self.rng.integers(0, weight_type.count, shape, dtype=np.uint8)
        return self.add(p.Conv("conv", (source,), weight, weight_type, groups=groups, **where))

    def set_weight(self, conv: int, weight: np.ndarray) -> None:
        """Give a convolution other weights than the seed's."""
        self.operations[conv] = dataclasses.replace(self.operations[conv], weight=weight)

    def threshold(self, source: int, code_type: CodeType, shared: bool = False) -> int:
        v = self.values[source]
        count = 1 if shared else v.shape[0]
        spread = max(2, (v.hi - v.lo) // 6)
        middle = (v.hi + v.lo) // 2
        t = np.sort(self.rng.integers(middle - spread, middle + spread, (count, code_type.count - 1)), axis=1)
        return self.add(p.Threshold("threshold", (source,), code_type, t.astype(np.int32)))

    def requantize(self, source: int, negative: bool = True) -> int:
        c = self.values[source].shape[0]
        top = max(abs(self.values[source].lo), abs(self.values[source].hi), 1)
        shift = self.rng.integers(0, 32, c)
        factor = self.rng.normal(size=c) if negative else np.abs(self.rng.normal(size=c))
        multiplier = np.clip(factor * 2.0**shift * 500 / top, -(2**30), 2**30).astype(np.int32)
        offset = (self.rng.normal(size=c) * 100 * 2.0**shift).astype(np.int64)
        return self.add(p.Requantize("stream", (source,), multiplier, shift.astype(np.uint8), offset, -1000, 900))

    def conv_like(self, source: int, weight_type: CodeType, kernel: int, outputs: int) -> int:
        """A convolution that keeps the image's size."""
        pads = ((kernel - 1) // 2, kernel // 2) * 2
        return self.conv(source, outputs, weight_type, (kernel, kernel), padding=pads)

    def program(self, source: int) -> p.Program:
        c, *size = self.values[source].shape
        scale = self.rng.normal(size=c).astype(np.float32)
        self.add(p.Scale("scale", (source,), scale, self.rng.normal(size=c).astype(np.float32)))
        return p.Program(self.needed(), ((c, *size),), {"name": "test"})

    def needed(self) -> tuple[p.Operation, ...]:
        """The operations that the last one depends on."""
        keep = {len(self.operations) - 1}
        for i in reversed(range(len(self.operations))):
            keep.update(self.operations[i].inputs if i in keep else ())
        number = {old: new for new, old in enumerate(sorted(keep))}
        return tuple(
            dataclasses.replace(self.operations[i], inputs=tuple(number[j] for j in self.operations[i].inputs))
            for i in sorted(keep)
        )

    def batch(self, n: int, uint8: bool = False) -> np.ndarray:
        shape = (n, *self.values[0].shape)
        if uint8:
            return self.rng.integers(0, 256, shape, dtype=np.uint8)
        return self.rng.normal(size=shape).astype(np.float32)


@st.composite
def convolutions(draw, channels: int = 70, size: int = 40, wide: bool = True):
    """A program of one convolution, with or without thresholds, and its batch."""
    code_type, weight_type = draw(activations), draw(weights)
    depthwise = draw(st.sampled_from([False, False, False, True]))
    groups = draw(st.integers(1, channels if depthwise else 4))
    per_group = 1 if depthwise else draw(st.integers(1, max(1, channels // groups)))
    outputs = groups * draw(st.integers(1, max(1, (3 if depthwise else channels) // groups)))
    height, width = draw(st.integers(1, size)), draw(st.integers(1, size))
    kernel = draw(st.sampled_from([1, 3, 2, 5, 7, 4])), draw(st.sampled_from([1, 3, 2, 5, 7]))
    stride = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    dilation = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    padding = tuple(draw(st.integers(0, 3)) for _ in range(4))
    b = Builder((groups * per_group, height, width), code_type, draw(st.integers(0, 2**16)))
    try:
        v = b.conv(0, outputs, weight_type, kernel, groups, stride=stride, padding=padding, dilation=dilation)
    except FormatError:
        assume(False)  # the window does not fit
    if draw(st.booleans()):
        v = b.threshold(v, draw(activations), draw(st.booleans()))
        v = b.conv(v, draw(st.integers(1, 9)), CodeType.parse("s4"))
    return b.program(v), b.batch(draw(st.integers(1, 5)), draw(st.booleans()))


@st.composite
def depthwise_networks(draw):
    """A depthwise convolution behind its input or another layer, and all that may follow it."""
    channels, kernel = draw(st.integers(2, 40)), draw(st.sampled_from([3, 5, 7, 2, 1]))
    b = Builder((channels, draw(st.integers(1, 30)), draw(st.integers(1, 30))), draw(activations), 0)
    b.rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    v = 0
    if draw(st.booleans()):
        v = b.threshold(b.conv(v, channels, CodeType.parse("t")), draw(activations))
    where = {
        "stride": (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        "padding": tuple(draw(st.integers(0, kernel)) for _ in range(4)),
        "dilation": (draw(st.integers(1, 3)), draw(st.integers(1, 2))),
    }
    try:
        v = b.conv(v, channels, draw(weights), (kernel, draw(st.sampled_from([kernel, 3]))), channels, **where)
    except FormatError:
        assume(False)  # the window does not fit
    if draw(st.booleans()) and min(b.values[v].shape[1:]) > 1:
        v = b.add(p.MaxPool("pool", (v,), (2, 2), (2, 2)))
    if draw(st.booleans()):
        v = b.requantize(v)
    v = b.threshold(v, draw(activations), draw(st.booleans()))
    if draw(st.booleans()):
        v = b.conv(v, draw(st.integers(1, 9)), CodeType.parse("s4"))
    else:
        v = b.conv(v, channels, draw(weights), (1, 1), channels)
    return b.program(v), b.batch(draw(st.integers(1, 5)), draw(st.booleans()))


@st.composite
def networks(draw):
    """A few convolutions, pools and a residual sum, and a linear layer behind them."""
    b = Builder(
        (draw(st.integers(1, 20)), draw(st.integers(4, 20)), draw(st.integers(4, 20))),
        draw(activations),
        draw(st.integers(0, 2**16)),
    )
    v = 0
    for _ in range(draw(st.integers(1, 3))):
        _, height, width = b.values[v].shape
        what = draw(st.sampled_from(["conv", "max", "residual", "max of integers"]))
        if what == "max":
            k = draw(st.integers(1, min(3, height, width)))
            pad = draw(st.integers(0, k - 1))
            v = b.add(p.MaxPool("max", (v,), (k, k), (draw(st.integers(1, 3)),) * 2, (pad, 0, 0, pad)))
            continue
        k = draw(st.sampled_from([1, 3]))
        outputs, stride = draw(st.integers(1, 24)), draw(st.integers(1, 2)) if what == "conv" else 1
        pads = (k // 2,) * 4
        a = b.conv(v, outputs, draw(weights), (k, k), padding=pads, stride=(stride, stride))
        if what == "residual":
            c = b.conv(v, outputs, draw(weights), (1, 1))
            a = b.add(p.Add("sum", (b.requantize(a), b.requantize(c)), -1500, 1200))
        if what == "max of integers" and min(height, width) > 1:
            a = b.add(p.MaxPool("max", (a,), (2, 2), (1, 2), (1, 0, 0, 1)))
        v = b.threshold(a, draw(activations), draw(st.booleans()))
    c, height, width = b.values[v].shape
    tail = draw(st.sampled_from(["linear", "sum pool", "integers"]))
    if tail == "sum pool":
        k = draw(st.integers(1, min(height, width)))
        v = b.add(p.SumPool("average", (v,), (k, k), (1, 1), (0, k - 1, k - 1, 0)))
        v = b.threshold(v, draw(activations))
    if tail != "integers":
        v = b.conv(v, draw(st.integers(1, 40)), draw(weights), b.values[v].shape[1:])
    else:
        v = b.conv(v, 5, draw(weights), (1, 1))
        v = b.requantize(v)
    return b.program(v), b.batch(draw(st.integers(1, 20)), draw(st.booleans()))


@st.composite
def residual_networks(draw):
    """Blocks of convolutions around a residual stream, as ResNets have them, and all readers that a stream can have."""
    b = Builder((draw(st.integers(1, 9)), draw(st.integers(3, 17)), draw(st.integers(3, 17))), draw(activations), 0)
    b.rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    channels, weight_type = draw(st.integers(1, 20)), draw(weights)
    kernel, stride = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    acc = b.conv_like(0, weight_type, draw(st.integers(1, 3)), channels)
    stream = b.requantize(acc, negative=draw(st.booleans()))
    v = b.threshold(acc, draw(activations))
    if draw(st.booleans()) and kernel <= min(b.values[v].shape[1:]):
        where = ((kernel, kernel), (stride, stride), (kernel - 1, 0, 0, kernel - 1))
        v = b.add(p.MaxPool("pool", (v,), *where))
        stream = b.add(p.MaxPool("pool", (stream,), *where))
    for _ in range(draw(st.integers(1, 3))):
        lo = draw(st.sampled_from([-1500, 0, 100]))
        if draw(st.booleans()):
            v = b.threshold(b.conv_like(v, weight_type, 3, channels + 3), draw(activations))
        if draw(st.booleans()):
            step = draw(st.integers(2, 3))
            left = b.conv(v, channels, weight_type, (3, 3), padding=(1,) * 4, stride=(step, step))
            right = b.conv(v, channels, weight_type, stride=(step, step))
            pair = (b.requantize(left), b.requantize(right, negative=True))
        else:
            pair = (b.requantize(b.conv_like(v, weight_type, draw(st.integers(1, 3)), channels)), stream)
        if b.values[pair[0]].shape != b.values[pair[1]].shape:
            pair = (pair[0], pair[0])
        stream = b.add(p.Add("sum", pair if draw(st.booleans()) else pair[::-1], lo, draw(st.integers(150, 1700))))
        v = b.threshold(stream, draw(activations), draw(st.booleans()))
        if draw(st.booleans()):  # a second encoding of the same stream
            other = b.requantize(b.conv_like(b.threshold(stream, draw(activations)), weight_type, 1, channels))
            stream = b.add(p.Add("sum", (stream, other), -1200, 1200))
    tail = (
        b.add(p.Add("sum", (b.requantize(b.conv_like(v, weight_type, 1, channels)), stream), -900, 900))
        if b.values[v].shape[1:] == b.values[stream].shape[1:]
        else b.conv_like(v, weight_type, 1, channels)
    )
    if draw(st.booleans()):
        tail = b.add(p.SumPool("average", (b.requantize(tail),), b.values[tail].shape[1:], (1, 1)))
    return b.program(tail), b.batch(draw(st.integers(1, 5)))


@examples(300)
@given(convolutions(channels=24, size=14), kinds)
def test_convolution(case, family: str | None) -> None:
    with preferred(family):
        assert_equal(*case)


@examples(100)
@given(convolutions(), kinds)
def test_larger_convolution(case, family: str | None) -> None:
    with preferred(family):
        assert_equal(*case)


@examples(300)
@given(depthwise_networks(), st.sampled_from(["", "dictionary", "byte16", "byte"]))
def test_depthwise(case, family: str) -> None:
    assert_equal(*case, family=family)


@examples(250)
@given(networks(), kinds)
def test_network(case, family: str | None) -> None:
    with preferred(family):
        assert_equal(*case)


@examples(200)
@given(residual_networks(), kinds)
def test_residual_network(case, family: str | None) -> None:
    with preferred(family):
        assert_equal(*case)


@pytest.mark.long
@examples(3000)
@given(st.one_of(convolutions(), convolutions(channels=24, size=14), networks(), residual_networks()), kinds)
def test_many(case, family: str | None) -> None:
    with preferred(family):
        assert_equal(*case)


# ---- every row of the kernel table ----------------------------------------------------------------------------------

core = engine_module._core()
PLANAR = [isa for isa in ISAS if isa in engine_module.PLANAR_SETS]
"""The others have the kernels of one of these, for what their dot products do not take (tests/test_dot.py)."""
KERNELS = [(isa, k.family, k.bits, k.outputs, k.pixels) for isa in PLANAR for k in core.kernels(isa)]


def test_constants_agree_with_the_core() -> None:
    assert (layout.CHUNK, layout.MAX_PIXELS) == (core.chunk, core.max_pixels)
    assert set(choice.DICTIONARY_BITS) >= set(ISAS)


@pytest.mark.usefixtures("planar_kernels")
@pytest.mark.parametrize(("isa", "family", "bits", "outputs", "pixels"), KERNELS)
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_kernel(isa: str, family: str, bits: int, outputs: int, pixels: int, extra: int) -> None:
    """A layer that takes this kernel, at its tile's size and one less and more; the plan says that it was taken."""
    t = CodeType.parse
    if family == "dictionary":
        b = Builder((9, 1, pixels + extra), t(f"u{bits}"), 1)
        v = b.threshold(b.conv(0, outputs + extra, t("t"), (1, 3), padding=(0, 0, 1, 1)), t("u2"))
        n = 1
    elif family.startswith("sextets"):
        b = Builder((5, 1, pixels - 2 + extra), t("s8"), 1)
        v = b.threshold(b.conv(0, 10, t("s8")), t(f"u{bits}"))
        weight_type = t("t" if family == "sextets" else f"b{bits}")
        v = b.threshold(b.conv(v, outputs + extra, weight_type, (1, 3), padding=(0, 0, 1, 1)), t("u2"))
        n = 1
    elif family.startswith("xnor"):
        b = Builder((9, 1, pixels + extra), t(f"u{bits}"), 1)
        weight_type = t("t" if family == "xnor_ternary" else "b1")
        v = b.threshold(b.conv(0, outputs + extra, weight_type, (1, 3), padding=(0, 0, 1, 1)), t("u2"))
        n = 1
    elif family.startswith("byte"):
        code_type = t("s8" if family == "byte_signed" else "u8")
        b = Builder((10, 2, pixels + extra), code_type, 2)
        groups = 10 if outputs == 2 else 1
        v = b.conv(0, 10 if groups > 1 else outputs + extra, t("t" if family == "byte16" else "s8"), (1, 1), groups)
        n = 1
    else:
        weight_type = {"linear1": "b1", "linear2": "t", "linear4": "b4", "linear8": "s8", "linear16": "b8"}[family]
        b = Builder((7, 3, 1), t("s8" if bits == 8 else "u8"), 3)
        v = b.conv(0, outputs + extra, t(weight_type), (3, 1))
        n = pixels + 1 + extra
    program = b.program(b.conv(v, 3, t("s4")) if family in choice.BIASED else v)
    forced = (
        "dictionary" if family in choice.DICTIONARIES else family if family.startswith("byte") else family.split("_")[0]
    )
    with preferred(None if family.startswith("linear") else forced):
        assert_equal(program, b.batch(n), [isa], (1,))
        engine = program.engine(isa=isa)
        engine(b.batch(n))
    taken = {s.family for plan in engine._plans.values() for s in plan.steps}
    assert ("linear" if family.startswith("linear") else family) in taken


@pytest.mark.usefixtures("planar_kernels")
@examples(60)
@given(st.sampled_from(["b1", "u1", "t", "b2", "s2", "u2", "b3", "s3", "b4", "u4"]), activations, st.data())
def test_linear_layers_of_few_bit_weights(weight_type: str, code_type: CodeType, data) -> None:
    """Weights are packed where activations are int8; any depth, with and without thresholds, more images than one."""
    channels, size = data.draw(st.integers(1, 90)), data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    b = Builder((channels, *size), code_type, data.draw(st.integers(0, 2**16)))
    v = b.conv(0, data.draw(st.integers(1, 70)), CodeType.parse(weight_type), size)
    if data.draw(st.booleans()):
        v = b.conv(
            b.threshold(v, CodeType.parse(data.draw(st.sampled_from(["u2", "s8", "b8"])))), 5, CodeType.parse("t")
        )
    assert_equal(b.program(v), b.batch(data.draw(st.integers(1, 9))), PLANAR, (1, 2))


@pytest.mark.usefixtures("planar_kernels")
@pytest.mark.parametrize("weight_type", ["b1", "t", "b4"])
@pytest.mark.parametrize("value", [-99, 99])
def test_largest_sums_of_packed_weights(weight_type: str, value: float) -> None:
    """Weights and activations at their extremes over a long depth: no part of a sum passes int16 on the way."""
    b = Builder((600, 2, 2), CodeType.parse("s8"), 4)
    v = b.conv(0, 40, CodeType.parse(weight_type), (2, 2))
    weight = b.operations[v].weight.copy()
    weight[:20], weight[20:] = weight.max(), 0
    b.set_weight(v, weight)
    assert_equal(b.program(v), np.full((5, 600, 2, 2), value, np.float32), PLANAR)


# ---- edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code_type", ["u1", "u2", "u3", "u4", "b2", "b4"])
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_sums_at_the_16_bit_bound(code_type: str, extra: int) -> None:
    """The largest sum just within, at and beyond int16; only the last needs 32 bits."""
    t = CodeType.parse(code_type)
    channels = (2**15 - 1) // (t.count - 1 if code_type[0] == "u" else t.hi) + extra
    b = Builder((channels, 1, 2), t, 4)
    v = b.conv(0, 9, CodeType.parse("t"))
    weight = b.operations[v].weight.copy()
    weight[0], weight[1], weight[2] = 2, 0, np.arange(channels).reshape(-1, 1, 1) % 2 * 2
    b.set_weight(v, weight)
    limits = np.array([[t.hi * channels], [-t.hi * channels + 1], [0]] * 3, np.int32)
    v = b.add(p.Threshold("threshold", (v,), CodeType.parse("u1"), limits))
    x = np.concatenate([np.full((1, channels, 1, 2), s, np.float32) for s in (100, -100)])
    program = b.program(b.conv(v, 9, CodeType.parse("b1")))
    for family in ("dictionary", "xnor", "byte16"):
        with preferred(family):
            assert_equal(program, x, threads=(1,))


@pytest.mark.parametrize(("code_type", "magnitude"), [("u8", 128), ("u5", 1057), ("b5", 1057), ("s4", 2184)])
@pytest.mark.parametrize("extra", [0, 1])
def test_depthwise_at_the_16_bit_bound(code_type: str, magnitude: int, extra: int) -> None:
    """The largest sum of ranks just within int16, or beyond; accumulators of signed codes differ from it."""
    weight_type = CodeType.parse("s8")
    b = Builder((9, 6, 13), CodeType.parse(code_type), 12)
    v = b.conv(0, 9, weight_type, (5, 5), 9, padding=(2, 2, 2, 2))
    weight = b.operations[v].weight.copy()
    for channel in range(9):
        size = magnitude + (extra if channel == 5 else 0)
        shares = size // 25 + (np.arange(25) < size % 25)
        weight[channel] = weight_type.encode((-1) ** channel * shares).reshape(1, 5, 5)
    b.set_weight(v, weight)
    program = b.program(v)
    assert_equal(program, np.concatenate([np.full((1, 9, 6, 13), s, np.float32) for s in (100, -100)]))
    found = choice.candidates_of(program, 1)
    assert ("byte16" in found and found["byte16"].span > 25) == (extra == 0)


def test_thresholds_that_always_or_never_pass() -> None:
    for code_type in ("u1", "b2", "u4", "s8"):
        count = CodeType.parse(code_type).count - 1
        b = Builder((3, 5, 5), CodeType.parse("b2"), 5)
        v = b.conv(0, 4, CodeType.parse("t"), (3, 3), padding=(1, 1, 1, 1))
        low, high = np.iinfo(np.int32).min, np.iinfo(np.int32).max
        rows = [np.full(count, low), np.full(count, high), np.repeat([low, high], [count // 2, count - count // 2])]
        limits = np.array([*rows, np.zeros(count)], np.int64).astype(np.int32)
        v = b.add(p.Threshold("threshold", (v,), CodeType.parse(code_type), limits))
        assert_equal(b.program(b.conv(v, 3, CodeType.parse("s4"))), b.batch(2))


@pytest.mark.parametrize("code_type", ["u1", "t", "u3", "s8", "b8", "u8", "b5"])
@pytest.mark.parametrize("spread", ["even", "uneven", "equal", "extreme"])
def test_encoding_at_every_threshold(code_type: str, spread: str) -> None:
    """Reals at each threshold and its two neighbours, and the infinities."""
    t = CodeType.parse(code_type)
    n, rng = t.count - 1, np.random.default_rng(6)
    thresholds = {
        "even": (np.arange(n) - n / 2) * 0.0173,
        "uneven": np.sort(np.concatenate([rng.normal(size=n - n // 2), rng.normal(size=n // 2) * 1e-3])),
        "equal": np.zeros(n),
        "extreme": np.sort(rng.choice([-3e38, 3e38, 1e-45, 0.0, 1.0], n)),
    }[spread].astype(np.float32)
    down, up = np.nextafter(thresholds, np.float32(-np.inf)), np.nextafter(thresholds, np.float32(np.inf))
    x = np.concatenate([thresholds, down, up, np.float32([np.inf, -np.inf, 0, -0.0, 3.4e38, -3.4e38])])
    x = np.resize(x, 2 * len(x)).reshape(1, 2, 1, -1)
    b = Builder(x.shape[1:], t, 7)
    b.operations[0] = p.Encode("input", (), x.shape[1:], t, thresholds)
    assert_equal(b.program(b.conv(0, 2, CodeType.parse("t"))), x, threads=(1,))


@pytest.mark.parametrize("even", [True, False])
def test_many_thresholds(even: bool) -> None:
    """255 thresholds on every accumulator in their range, evenly spaced or not."""
    b = Builder((1, 40, 250), CodeType.parse("u8"), 8)
    v = b.conv(0, 9, CodeType.parse("s8"))
    limits = np.linspace(-9000, 9000, 255).astype(np.int32)
    limits = limits if even else np.sort(b.rng.integers(-9000, 9000, (9, 255), dtype=np.int32), axis=1)
    v = b.add(p.Threshold("threshold", (v,), CodeType.parse("s8"), np.atleast_2d(limits)))
    assert_equal(b.program(b.conv(v, 3, CodeType.parse("t"))), b.batch(2, uint8=True), threads=(1,))


def test_batches_larger_than_a_part() -> None:
    b = Builder((5, 9, 9), CodeType.parse("s8"), 9)
    v = b.threshold(b.conv(0, 20, CodeType.parse("t"), (3, 3), padding=(1, 1, 1, 1)), CodeType.parse("u2"))
    program = b.program(b.conv(v, 7, CodeType.parse("t"), (9, 9)))
    engine = program.engine(threads=2)
    engine._part = 4
    for n in (1, 4, 5, 11, 3):
        x = b.batch(n)
        np.testing.assert_array_equal(engine(x), program.reference(x))


def small_program() -> tuple[p.Program, np.ndarray]:
    b = Builder((3, 12, 12), CodeType.parse("s8"), 10)
    v = b.threshold(b.conv(0, 16, CodeType.parse("s8"), (3, 3), padding=(1, 1, 1, 1)), CodeType.parse("b2"))
    v = b.add(p.MaxPool("pool", (v,), (2, 2), (2, 2)))
    v = b.threshold(b.conv(v, 24, CodeType.parse("b1"), (3, 3), padding=(1, 1, 1, 1)), CodeType.parse("b1"))
    return b.program(b.conv(v, 10, CodeType.parse("t"), (6, 6))), b.batch(6)


def test_no_images() -> None:
    program, x = small_program()
    for isa in ISAS:
        engine = program.engine(isa=isa)
        assert engine(x[:0]).shape == (0, 10, 1, 1)
        values = 5 if engine_module.takes_dot(program, isa) else 6
        assert [len(value) for _, value in engine.trace(x[:0])] == [0] * values


def test_several_inputs_and_outputs() -> None:
    b = Builder((3, 5, 6), CodeType.parse("u4"), 0)
    t = np.array([-0.5, 0.1, 1.2], np.float32)
    other = b.add(p.Encode("other", (), (2, 5, 6), CodeType.parse("u2"), t))
    left, right = (b.requantize(b.conv(v, 4, CodeType.parse("s4"))) for v in (0, other))
    for name, v in (("sum", b.add(p.Add("add", (left, right), -900, 900))), ("right", right)):
        b.add(p.Scale(name, (v,), np.full(4, 0.1, np.float32), np.ones(4, np.float32)))
    program = p.Program(tuple(b.operations), ((4, 5, 6), (120,)))
    x = tuple(b.rng.normal(size=(7, c, 5, 6)).astype(np.float32) for c in (3, 2))
    expected, values = reference.run(program, *x), dict(reference.trace(program, *x))
    for isa in ISAS:
        engine = program.engine(threads=2, isa=isa)
        engine._part = 3
        for got, wanted in zip(engine(*x), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)
        for number, value in engine.trace(*x):
            np.testing.assert_array_equal(value, values[number])
        assert sum(row.macs for row in engine.profile(*x, repeat=1).rows) == 7 * program.macs
        with pytest.raises(InputError, match="takes 2 inputs"):
            engine(x[0])


def test_wrong_inputs() -> None:
    program, x = small_program()
    engine = program.engine()
    for wrong in (x[0], x[:, :2], x[:, :, :5], x.astype(np.int64), np.where(x > 2, np.nan, x)):
        with pytest.raises(InputError):
            engine(wrong)
    np.testing.assert_array_equal(engine(x[:, :, ::-1].astype(np.float64)), program.reference(x[:, :, ::-1]))


def test_wrong_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    program, _ = small_program()
    with pytest.raises(InputError, match="scalar"):
        program.engine(isa="avx1024")
    with pytest.raises(InputError, match="threads"):
        program.engine(threads=0)
    with pytest.raises(InputError):
        engine_module.Engine(tmp_path / "missing.bb")
    with pytest.raises(InputError, match="path 'products': families"):
        engine_module.Engine(program, families={"*": "byte"}, path="products")
    for families in (None, {"*": "byte"}):
        with pytest.raises(InputError, match="path 'nonsense'"):
            engine_module.Engine(program, families=families, path="nonsense")
    with pytest.raises(InputError, match="families must say one by name"):
        engine_module.Engine(program, families="byte")
    with pytest.raises(InputError, match="repeat"):
        program.engine().profile(np.zeros((1, *program.input.shape), np.float32), repeat=0)
    monkeypatch.setenv("BITBRANCH_ISA", "scalar")
    assert program.engine().isa == "scalar"
    assert program.engine(isa=ISAS[0]).isa == ISAS[0]
    monkeypatch.setenv("BITBRANCH_ISA", "none")
    with pytest.raises(InputError, match="'none'"):
        program.engine()


def test_without_the_core(monkeypatch: pytest.MonkeyPatch) -> None:
    program, _ = small_program()
    engine_module._core.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "bitbranch.runtime._core", None)
    with pytest.raises(BitbranchError, match="pip install"):
        program.engine()
    engine_module._core.cache_clear()


def test_from_a_file(tmp_path) -> None:
    program, x = small_program()
    program.save(tmp_path / "net.bb")
    np.testing.assert_array_equal(engine_module.Engine(tmp_path / "net.bb")(x), program.reference(x))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_calls_from_several_threads(threads: int) -> None:
    """Calls and traces of one engine at once, with batches of several sizes."""
    program, x = small_program()
    engine, expected = program.engine(threads=threads), program.reference(x)
    wrong: list[str] = []

    def work(n: int) -> None:
        for _ in range(20):
            if not np.array_equal(engine(x[:n]), expected[:n]):
                wrong.append(f"call with {n}")
            if not np.array_equal([v for _, v in engine.trace(x[:n])][-1], expected[:n]):
                wrong.append(f"trace with {n}")

    workers = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 3, 6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_a_forked_child_runs_too() -> None:
    program, x = small_program()
    engine, expected = program.engine(threads=2), program.reference(x)
    engine(x)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(engine(x), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(engine(x), expected)


def test_profile() -> None:
    program, x = small_program()
    for isa in ISAS:
        profile = program.engine(isa=isa).profile(x, repeat=3)
        assert sum(row.macs for row in profile.rows) == program.macs * len(x)
        assert profile.seconds > 0 and 0 <= profile.glue <= 1 and profile.images == len(x)
        families = {row.family for row in profile.rows}
        if engine_module.takes_dot(program, isa):
            assert families >= {"encode", "dot", "max-pool"} and families <= {"encode", "dot", "dot16", "max-pool"}
        elif isa != "scalar":
            assert families >= {"encode", "byte_signed", "max-pool", "linear", "scale"}
            assert families & set(choice.DICTIONARIES)


def test_accumulators_reach_the_contract_bound() -> None:
    """8-bit bipolar codes times 8-bit bipolar weights, all at their extremes: the widest sums, and border terms."""
    b = Builder((70, 6, 6), CodeType.parse("b8"), 11)
    v = b.conv(0, 3, CodeType.parse("b8"), (3, 3), padding=(1, 1, 1, 1))
    weight = b.operations[v].weight.copy()
    weight[0], weight[1] = 255, 0
    b.set_weight(v, weight)
    program = b.program(v)
    assert program.values[v].hi == 70 * 9 * 255 * 255 < ACCUMULATOR_MAX
    assert_equal(program, np.full((2, 70, 6, 6), 99, np.float32))
    assert_equal(program, np.full((1, 70, 6, 6), -99, np.float32))
    assert contract.accumulator_bounds(b.operations[v].values(), CodeType.parse("b8"))[1][0] == program.values[v].hi


@pytest.mark.parametrize("size", [(9, 12), (34, 7)])
@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("kernel", [3, 9])  # of many members, too
def test_a_stream_is_pooled_before_it_is_requantized(size: p.Pair, negative: bool, kernel: int) -> None:
    """Beside codes that are not pooled, as a U-Net's first layer has them; not with negative multipliers."""
    t, w, b = CodeType.parse("u2"), CodeType.parse("t"), Builder((5, *size), CodeType.parse("u3"), seed=1)
    window = ((kernel, kernel), (2, 2), (kernel // 2,) * 4)
    sums = b.conv_like(0, w, 3, 20)
    skip = b.threshold(sums, t)
    pooled = b.add(p.MaxPool("pool", (b.threshold(sums, t),), *window))
    requantized = b.requantize(sums, negative=negative)
    stream = b.add(p.MaxPool("pool", (requantized,), *window))
    v = b.threshold(b.add(p.Add("sum", (b.requantize(b.conv_like(pooled, w, 3, 20)), stream), -900, 50000)), t)
    thin = b.add(p.MaxPool("thin", (skip,), (1, 1), (2, 2)))
    program = b.program(b.conv_like(b.add(p.Concat("both", (v, thin))), w, 1, 3))
    whole = rewrite.Rewritten(program.operations, program.values, tuple(range(len(program.operations))))
    found = rewrite.requantize_last(whole)
    kinds = [type(op) for op in program.operations]
    if not negative:
        kinds[requantized], kinds[stream] = p.MaxPool, p.Requantize
        assert found.origin[requantized] == -1
        assert found.operations[stream].inputs == (requantized,)
        assert found.values[requantized].shape == found.values[stream].shape == program.values[stream].shape
    assert [type(op) for op in found.operations] == kinds
    x = b.batch(3)
    for isa in ISAS:
        engine = engine_module.Engine(program, isa=isa, path="products")
        np.testing.assert_array_equal(engine(x), program.reference(x))
        expected = dict(reference.trace(program, x))
        for number, value in engine.trace(x):
            np.testing.assert_array_equal(value, expected[number], err_msg=f"{isa}, operation {number}")
