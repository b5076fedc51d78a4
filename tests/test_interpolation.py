"""Upsampling and sums of neighbours at once: the same numbers, in one step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from bitbranch.contract import CodeType
from bitbranch.errors import BitbranchError
from bitbranch.runtime import engine as engine_module
from bitbranch.runtime import program as p
from bitbranch.runtime import reference, rewrite
from bitbranch.runtime.interpolation import Axis, Interpolation, interpolation

Chain = list[p.Operation]


def pool(kernel: p.Pair, stride: p.Pair = (1, 1), padding: tuple[int, int, int, int] = (0, 0, 0, 0)) -> p.SumPool:
    return p.SumPool("sum", (0,), kernel, stride, padding)


def larger(factor: p.Pair, mode: str) -> p.Upsample:
    return p.Upsample("up", (0,), factor, mode)


@st.composite
def chains(draw: st.DrawFn) -> tuple[p.Pair, Chain]:
    """Sizes, and operations one after the other that begin with upsampling."""
    size = draw(st.integers(1, 9)), draw(st.integers(1, 40))
    factors = st.tuples(st.integers(1, 5), st.integers(1, 5))
    ops: Chain = [larger(draw(factors), draw(st.sampled_from(["nearest", "bilinear"])))]
    now = [n * f for n, f in zip(size, ops[0].factor, strict=True)]  # type: ignore[attr-defined]
    for _ in range(draw(st.integers(0, 2))):
        if draw(st.booleans()) and max(now) < 60:
            ops.append(larger(draw(factors), draw(st.sampled_from(["nearest", "bilinear"]))))
            now = [n * f for n, f in zip(now, ops[-1].factor, strict=True)]  # type: ignore[attr-defined]
            continue
        kernel = tuple(draw(st.integers(1, min(3, n))) for n in now)
        stride = draw(st.integers(1, 2)), draw(st.integers(1, 2))
        top, bottom, left, right = (draw(st.sampled_from([0, 0, 1, 3])) for _ in range(4))  # also windows of nothing
        ops.append(pool(kernel, stride, (top, bottom, left, right)))
        pads = top + bottom, left + right
        now = [(n + a - k) // s + 1 for n, a, k, s in zip(now, pads, kernel, stride, strict=True)]
    return size, ops


def values(op: p.Operation, v: np.ndarray) -> np.ndarray:
    return reference.upsample(op, v) if isinstance(op, p.Upsample) else reference.sum_pool(op, v)


def along(axis: Axis, v: np.ndarray, dim: int) -> np.ndarray:
    shape = [-1 if d == dim else 1 for d in range(v.ndim)]
    after = v.take(np.minimum(axis.at + 1, v.shape[dim] - 1), dim)
    return v.take(axis.at, dim) * axis.weight.reshape(shape) + after * axis.next.reshape(shape)


@examples(300)
@given(chains(), st.integers(0, 99))
def test_an_interpolation_is_what_the_operations_are(case: tuple[p.Pair, Chain], seed: int) -> None:
    size, ops = case
    v = np.random.default_rng(seed).integers(-99, 99, (1, 2, *size))
    source, now, so_far = p.Integers((2, *size), -99, 99), v, None
    for op in ops:
        so_far, now = interpolation(op, source, so_far), values(op, now)
        if so_far is None:
            return
        assert all((np.diff(axis.at) >= 0).all() for axis in (so_far.rows, so_far.columns))
        got = along(so_far.columns, along(so_far.rows, v, 2), 3)
        np.testing.assert_array_equal(got, now)


def test_what_lies_between_more_than_two_is_none() -> None:
    source = p.Integers((1, 4, 4), -9, 9)
    twice = interpolation(larger((2, 2), "bilinear"), source)
    assert twice is not None
    assert interpolation(pool((1, 3)), source, twice) is None
    assert interpolation(pool((2, 1)), source, interpolation(larger((1, 2), "bilinear"), source)) is not None
    assert interpolation(pool((2, 2)), source) is None  # a sum alone is a pool
    assert interpolation(larger((2, 2), "nearest"), p.Codes((1, 4, 4), CodeType.parse("u2"))) is None


try:
    ISAS = engine_module.instruction_sets()
except BitbranchError:
    ISAS = []


def network(size: p.Pair, ops: Chain, source: str, end: str, channels: int = 11) -> p.Program:
    """Codes or integers of a convolution, the operations, and thresholds or an output, or both and the integers too."""
    rng = np.random.default_rng(0)
    t = CodeType.parse("u2" if source == "integers" else source)
    encode = p.Encode("input", (), (3, *size), t, np.sort(rng.normal(size=t.count - 1)).astype(np.float32))
    weight = rng.integers(0, 3, (channels, 3, 1, 1), dtype=np.uint8)
    operations: list[p.Operation] = [encode, p.Conv("conv", (0,), weight, CodeType.parse("t"))]
    values: list[p.Value] = [encode.infer()]
    values.append(operations[1].infer(values[0]))

    def add(op: p.Operation, *inputs: int) -> int:
        op = op.reading(inputs)
        values.append(op.infer(*(values[i] for i in inputs)))
        operations.append(op)
        return len(operations) - 1

    def threshold(value: int, bits: str) -> int:
        code_type, v = CodeType.parse(bits), values[value]
        assert isinstance(v, p.Integers)
        bars = np.sort(rng.integers(v.lo, v.hi + 1, (channels, code_type.count - 1)), axis=1).astype(np.int32)
        return add(p.Threshold("codes", (0,), code_type, bars), value)

    def output(value: int, name: str) -> int:
        ones = np.ones(values[value].shape[0], np.float32)
        return add(p.Scale(name, (0,), 0.3 * ones, ones), value)

    last = 1 if source == "integers" else threshold(1, source)
    for op in ops:
        last = add(op, last)
    if end in ("codes", "all"):
        again = threshold(last, "u2")
        codes = rng.integers(0, 3, (5, channels, 1, 1), dtype=np.uint8)
        output(add(p.Conv("after", (0,), codes, CodeType.parse("t")), again), "of codes")
    if end in ("output", "all"):
        output(last, "output")
    outputs = [v.shape for op, v in zip(operations, values, strict=True) if isinstance(op, p.Scale)]
    return p.Program(tuple(operations), tuple(outputs))


odd: Chain = [larger((2, 1), "bilinear"), larger((1, 2), "nearest"), pool((1, 2))]
CASES = [
    ((7, 9), odd),
    ((5, 100), [larger((1, 3), "bilinear")]),  # rows longer than an epilogue takes at once
    ((1, 1), [larger((4, 4), "bilinear")]),
    ((3, 40), [larger((2, 1), "bilinear")]),
    ((3, 5), [larger((1, 1), "nearest")]),
    ((4, 6), [larger((2, 2), "nearest"), pool((2, 2), (2, 2))]),
    ((3, 9), [larger((1, 2), "bilinear"), pool((1, 1), (1, 1), (0, 0, 2, 0))]),  # windows of padding alone
    ((3, 100), [larger((2, 2), "nearest"), pool((1, 1), (1, 1), (1, 2, 2, 3))]),
    ((9, 7), [larger((2, 2), "nearest"), pool((2, 2), (3, 3), (1, 1, 1, 1))]),  # every other pixel and a half
]


@pytest.mark.skipif(not ISAS, reason="the compiled core is not installed")
@pytest.mark.parametrize("end", ["codes", "output", "all"])
@pytest.mark.parametrize("source", ["integers", "u2", "b4"])
def test_the_engine_takes_them_at_once(source: str, end: str) -> None:
    for size, ops in CASES:
        if source != "integers" and ops[0].mode == "nearest":  # type: ignore[attr-defined]
            continue
        program = network(size, ops, source, end)
        x = np.random.default_rng(1).normal(size=(3, 3, *size)).astype(np.float32)
        expected = reference.run(program, x)
        for isa in ISAS:
            for path in ("planar", "products"):
                e = engine_module.Engine(program, isa=isa, path=path, threads=2)
                np.testing.assert_equal(e(x), expected, err_msg=f"{isa} {path} {ops}")
                families = [row.family for row in e.profile(x, repeat=1).rows]
                assert "upsample" not in families and families.count("interpolate") == 1


def test_a_value_that_others_read_too_is_kept() -> None:
    program = network((4, 4), [larger((2, 2), "bilinear"), larger((2, 2), "nearest")], "integers", "all")
    rewritten = rewrite.interpolate_at_once(rewrite.pool_first(program))
    assert [type(op) for op in rewritten.operations].count(Interpolation) == 1
    first, *_ = (i for i, op in enumerate(program.operations) if isinstance(op, p.Upsample))
    both = p.Program(
        (*program.operations, p.Scale("between", (first,), np.ones(11, np.float32), np.ones(11, np.float32))),
        (*program.output_shapes, (11, 8, 8)),
    )
    rewritten = rewrite.interpolate_at_once(rewrite.pool_first(both))
    assert [type(op) for op in rewritten.operations].count(Interpolation) == 2
