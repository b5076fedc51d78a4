"""First layers, whose taps are paired: exact on every instruction set, whatever else reads the input."""

from __future__ import annotations

import numpy as np
import pytest
from engines import ISAS, Builder, assert_equal
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import examples

from bitbranch.contract import CodeType
from bitbranch.runtime import engine as engine_module
from bitbranch.runtime import layout
from bitbranch.runtime import program as p

PLANAR = [isa for isa in ISAS if isa in engine_module.PLANAR_SETS]
pytestmark = pytest.mark.usefixtures("planar_kernels")
INPUTS = ["u8", "s8", "b8", "u5", "s6"]
pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))


@st.composite
def first_layers(draw):
    """An encoder, a convolution, and thresholds, a max-pool before them or neither."""
    channels, dilation, stride = draw(st.integers(1, 5)), draw(st.tuples(*[st.integers(1, 3)] * 2)), draw(pairs)
    kernel = draw(st.tuples(st.integers(1, 11), st.integers(1, 11)))
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    padding = tuple(draw(st.integers(0, reach[axis])) for axis in (0, 0, 1, 1))
    size = tuple(
        draw(st.integers(max(1, reach[a] + 1 - padding[2 * a] - padding[2 * a + 1]), reach[a] + 24)) for a in (0, 1)
    )
    b = Builder((channels, *size), CodeType.parse(draw(st.sampled_from(INPUTS))), draw(st.integers(0, 2**16)))
    weight_type = CodeType.parse(draw(st.sampled_from(["s8", "s4", "b8", "t"])))
    v = b.conv(0, draw(st.integers(1, 20)), weight_type, kernel, stride=stride, padding=padding, dilation=dilation)
    if draw(st.booleans()) and min(b.values[v].shape[1:]) >= 2:
        v = b.add(p.MaxPool("pool", (v,), (2, 2), draw(st.sampled_from([(1, 1), (2, 2)])), (0, 1, 1, 0)))
    if draw(st.booleans()):
        v = b.threshold(v, CodeType.parse(draw(st.sampled_from(["u1", "u2", "u4", "t", "u8"]))))
        v = b.conv(v, 3, CodeType.parse("t"))
    return b.program(v), b.batch(draw(st.integers(1, 5)), draw(st.booleans()))


@examples(200)
@given(first_layers())
def test_first_layer(case) -> None:
    program, x = case
    assert_equal(program, x, PLANAR, threads=(1,))


@examples(40)
@given(first_layers())
def test_several_threads(case) -> None:
    assert_equal(*case, PLANAR, threads=(3,))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("others", [(), ("conv",), ("pool",)])
def test_other_readers(channels: int, others: tuple[str, ...]) -> None:
    """Taps are paired only where nothing but the convolution reads the input."""
    b = Builder((channels, 23, 17), CodeType.parse("u8"), 5)
    v = b.conv(0, 9, CodeType.parse("s8"), (7, 5), stride=(2, 2), padding=(3, 3, 2, 2))
    v = b.requantize(v)
    if "conv" in others:
        w = b.requantize(b.conv(0, 9, CodeType.parse("s8"), (1, 1), stride=(2, 2)))
        v = b.add(p.Add("add", (v, w), -2000, 2000))
    if "pool" in others:
        pooled = b.add(p.MaxPool("pool", (0,), (2, 2), (2, 2), (0, 1, 0, 1)))
        w = b.requantize(b.conv(pooled, 9, CodeType.parse("s4")))
        v = b.add(p.Add("add", (v, w), -2000, 2000))
    program, x = b.program(v), b.batch(2, uint8=True)
    assert_equal(program, x, PLANAR)
    for isa in PLANAR:
        families = [row.family for row in program.engine(isa=isa).profile(x, repeat=1).rows]
        assert ("pair" in families) == (not others), isa


def test_saturated_sums() -> None:
    """Sums far beyond int16 between thresholds that are within it, and thresholds at and beyond its ends."""
    b = Builder((3, 16, 16), CodeType.parse("u8"), 3)
    v = b.conv(0, 16, CodeType.parse("s8"), (5, 5), stride=(2, 2), padding=(2, 2, 2, 2))
    assert b.values[v].hi > 10 * 2**15
    most, least = b.values[v].hi, b.values[v].lo
    rows = [
        [-32767, 0, 32767], [-32768, 5, 32766], [-32768, 32766, 32767], [-32768, 32767, 32768], [-32769, 0, 1],
        [0, 1, 40000], [-40000, 0, 1], [least, 0, most], [0, 1, most + 1], [-5, 7, 32000],
    ]  # fmt: skip
    for at in rows:
        t = np.broadcast_to(np.asarray(at, np.int32), (16, 3)) + np.zeros((16, 1), np.int32)
        c = Builder((3, 16, 16), CodeType.parse("u8"), 3)
        c.operations, c.values = list(b.operations[: v + 1]), list(b.values[: v + 1])
        w = c.add(p.Threshold("threshold", (v,), CodeType.parse("u2"), t))
        w = c.conv(w, 4, CodeType.parse("t"))
        program = c.program(w)
        x = c.batch(3, uint8=True)
        x[0] = 0
        assert_equal(program, x, PLANAR, threads=(1,))


@examples(100)
@given(st.integers(1, 5), pairs, st.tuples(st.integers(1, 11), st.integers(1, 11)), st.integers(1, 3))
def test_every_weight_has_one_place(channels: int, stride: p.Pair, kernel: p.Pair, dilation: int) -> None:
    size = (40, 44)
    op = p.Conv(
        "conv", (0,), np.zeros((1, channels, *kernel), np.uint8), CodeType.parse("s8"), stride, (0, 0, 0, 0),
        (dilation, dilation),
    )  # fmt: skip
    out = tuple((size[a] - dilation * (kernel[a] - 1) - 1) // stride[a] + 1 for a in (0, 1))
    assume(min(out) > 0)
    found = layout.tap_pairs(layout.convolution_taps(op, size, out, stride), channels, kernel)
    count = channels * kernel[0] * kernel[1]
    assert sorted(w for w in found.weights.ravel() if w < count) == list(range(count))
    assert len(found.weights) == -(-count // 2)
    assert all(distance >= 0 for _, _, distance in found.halves())
