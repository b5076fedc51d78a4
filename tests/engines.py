"""Programs for engines: made operation by operation, or drawn by hypothesis, and compared with the NumPy reference."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import assume
from hypothesis import strategies as st

from bitbranch.contract import CodeType
from bitbranch.errors import BitbranchError, FormatError
from bitbranch.runtime import engine as engine_module
from bitbranch.runtime import program as p
from bitbranch.runtime import reference

try:
    ISAS = engine_module.instruction_sets()
except BitbranchError:
    pytest.skip("the compiled core is not installed", allow_module_level=True)

PLANAR = [isa for isa in ISAS if isa in engine_module.PLANAR_SETS]
"""The others have the kernels of one of these, for what their dot products do not take (tests/test_dot.py)."""

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


def small_program() -> tuple[p.Program, np.ndarray]:
    b = Builder((3, 12, 12), CodeType.parse("s8"), 10)
    v = b.threshold(b.conv(0, 16, CodeType.parse("s8"), (3, 3), padding=(1, 1, 1, 1)), CodeType.parse("b2"))
    v = b.add(p.MaxPool("pool", (v,), (2, 2), (2, 2)))
    v = b.threshold(b.conv(v, 24, CodeType.parse("b1"), (3, 3), padding=(1, 1, 1, 1)), CodeType.parse("b1"))
    return b.program(b.conv(v, 10, CodeType.parse("t"), (6, 6))), b.batch(6)


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
