"""The dot-product path: its packing, its thresholds as lines, and what only it plans, against the reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import examples, images, programs

from bitbranch.contract import CodeType
from bitbranch.errors import BitbranchError, FormatError
from bitbranch.runtime import dot, dot_planner, reference, winograd
from bitbranch.runtime import engine as engine_module
from bitbranch.runtime import program as p
from bitbranch.runtime.dot_chains import DotChains

try:
    ISAS = engine_module.instruction_sets()
except BitbranchError:
    pytest.skip("the compiled core is not installed", allow_module_level=True)

code_types = st.sampled_from(["u2", "u1", "b1", "b2", "s3", "u4", "b4", "t", "u8", "s8"]).map(CodeType.parse)
weight_types = st.sampled_from(["t", "b1", "b2", "s4", "s8", "u2", "b8", "u8"]).map(CodeType.parse)


@examples(300)
@given(st.data())
def test_lines_count_the_thresholds(data) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    n, channels = data.draw(st.sampled_from([4, 7, 15, 63, 255])), data.draw(st.integers(1, 5))
    hi = data.draw(st.sampled_from([40, 3000, 10**6, 2**30]))
    lo = -data.draw(st.integers(0, hi))
    slope = rng.uniform(0.1, 3, channels) * (hi - lo) / n
    bars = np.ceil(
        (np.arange(n) + rng.uniform(0, 1, (channels, 1))) * slope[:, None] + rng.uniform(lo, hi / 2, (channels, 1))
    )
    bars = np.clip(bars, -(2**31) + 1, 2**31 - 1).astype(np.int64)
    irregular = data.draw(st.booleans())
    if irregular:  # some that no line fits, and channels whose code never changes
        bars[0] = np.sort(rng.integers(lo, hi, n))
        bars[-1] = rng.choice([lo - 5, hi + 5])
    near = np.concatenate([bars.ravel(), bars.ravel() - 1, [lo, hi], rng.integers(lo, hi, 200)]).clip(lo, hi)
    for real in np.float32, np.float64:
        fitted = dot.fit_lines(bars, lo, hi, real)
        assert fitted.slope.dtype == fitted.intercept.dtype == real
        v = near.astype(np.int32).astype(real)
        for c in range(channels):
            got = np.clip(v * fitted.slope[c] + fitted.intercept[c], real(0), real(n)).astype(np.int64)
            right = (np.searchsorted(bars[c], near, side="right") == got).all()
            assert right or not fitted.right[c]
        assert irregular or real is np.float32 or fitted.right.all()


@examples(100)
@given(
    st.sampled_from([15, 63, 255]),
    st.floats(0.2, 2e6),
    st.floats(-3, 3),
    st.sampled_from([1, 5, 70]),
    st.integers(0, 2**16),
)
def test_uniform_thresholds_are_lines_in_double_precision(
    n: int, step: float, first: float, channels: int, seed: int
) -> None:
    slopes = np.random.default_rng(seed).uniform(0.1, 1, (channels, 1))
    bars = np.ceil((np.arange(n) + first) * step * slopes).astype(np.int64)
    assert dot.fit_lines(bars, -(2**30), 2**30, np.float64).right.all()
    ends = 2**15 + np.arange(len(bars))[:, None] * 100
    reached = bars.clip(-ends, ends + 1)  # some are always passed, some never
    lines = dot.fit_lines(reached, -ends, ends, np.float64)
    assert lines.right.all()
    v = np.concatenate([reached, reached - 1], axis=1).clip(-ends, ends)
    got = np.clip(v * lines.slope[:, None] + lines.intercept[:, None], 0, n).astype(np.int64)
    for c in range(channels):
        np.testing.assert_array_equal(got[c], np.searchsorted(reached[c], v[c], side="right"))


@pytest.mark.parametrize(("passed", "never"), [(0, 0), (1, 0), (0, 3), (5, 7), (255, 0), (0, 255)])
def test_codes_of_a_narrow_clip_are_lines_between_the_flat_ends(passed: int, never: int) -> None:
    """The first thresholds are always passed, the last never: what the line counts begins and ends inside."""
    lo, hi, types = -20_000, 20_000, [CodeType.parse(t) for t in ("s8", "b8", "u8")]
    bars = np.ceil((np.arange(255) - 127) * 11.9 * np.array([[1.0], [0.77], [1.31], [0.4]])).astype(np.int64)
    bars[:, :passed], bars[:, 255 - never :] = lo - 3, hi + 1
    assert dot.same_ends(bars, lo, hi) == (passed, never)
    inside = bars[:, passed : 255 - never]
    assert not inside.size or dot.fit_lines(inside, lo, hi).right.all()
    assert dot.fit_lines(bars, lo, hi).right.all() == (max(passed, never) in (0, 255))

    for code_type in types:
        assert_codes_right(np.ceil(bars / 27), code_type, seed=passed + never)  # sums are within 360


def assert_codes_right(bars: np.ndarray, code_type: CodeType, seed: int) -> None:
    """Thresholds ``[4, n]`` of sums within 360, on every instruction set and both paths."""
    rng = np.random.default_rng(seed)
    weight = rng.integers(0, 2, (4, 40, 3, 3), dtype=np.uint8)
    x = rng.normal(size=(2, 40, 6, 6)).astype(np.float32)
    bit, last = CodeType.parse("b1"), rng.integers(0, 2, (1, 4, 1, 1), dtype=np.uint8)
    program = p.Program(
        (
            p.Encode("input", (), (40, 6, 6), bit, np.zeros(1, np.float32)),
            p.Conv("conv", (0,), weight, bit, (1, 1), (1, 1, 1, 1)),
            p.Threshold("codes", (1,), code_type, bars.astype(np.int32)),
            p.Conv("last", (2,), last, bit),
            p.Scale("scale", (3,), np.ones(1, np.float32), np.zeros(1, np.float32)),
        ),
        ((1, 6, 6),),
    )
    expected = program.reference(x)
    for isa in ISAS:
        for path in ("planar", "products"):
            if path == "products" and dot.refuses(program):
                continue
            got = engine_module.Engine(program, isa=isa, path=path)(x)
            np.testing.assert_array_equal(got, expected, err_msg=f"{isa} {path} {code_type}")


@pytest.mark.parametrize(
    ("bits", "dead", "equal"), [(3, 0.4, 1), (3, 1.9, 2), (4, 0.0, 1), (5, 3.2, 3), (8, 20.2, 20), (8, 0.1, 1)]
)
def test_codes_that_make_zero_of_what_is_small_are_a_line_and_a_jump(bits: int, dead: float, equal: int) -> None:
    """The first thresholds are one, or one off the line: TSQ's and HWGQ's codes."""
    n = (1 << bits) - 1
    steps = 3000.3 / n * np.array([[1.0], [0.77], [1.31], [1.9]])
    places = np.maximum(dead, np.arange(n) + 0.5)
    places[0] = dead
    bars, v = np.ceil(places * steps).astype(np.int64), p.Integers((4, 6, 6), -4000, 8000)
    assert not dot.fit_lines(bars, v.lo, v.hi).right.all()
    found = DotChains._lines(bars, v)
    assert found is not None and found[1] == equal
    got = (np.arange(v.lo, v.hi + 1) >= bars[:, :1]) * equal
    reals = np.arange(v.lo, v.hi + 1, dtype=np.float32) * found[0].slope[:, None] + found[0].intercept[:, None]
    got = got + np.clip(reals, 0, n - equal).astype(np.int64)
    counted = [np.searchsorted(row, np.arange(v.lo, v.hi + 1), side="right") for row in bars]
    np.testing.assert_array_equal(got, counted)
    assert_codes_right(np.ceil(bars / 9), CodeType.parse(f"u{bits}"), seed=bits)


def test_short_numbers_do_for_small_sums() -> None:
    for n, step, right in ((15, 37.3, True), (255, 11.9, True), (255, 4000.1, False)):
        bars = np.ceil((np.arange(n) + 0.5) * step * np.array([[1.0], [0.77], [1.31]])).astype(np.int64)
        assert dot.fit_lines(bars, -(2**20), 2**21).right.all() or not right


@examples(100)
@given(
    weight_types, st.integers(1, 3), st.integers(1, 70), st.integers(1, 40), st.integers(1, 3), st.integers(1, 3),
    st.booleans(),
)  # fmt: skip
def test_packed_weights_come_back(
    weight_type: CodeType, groups: int, depth: int, outputs: int, kh: int, kw: int, gathered: bool
) -> None:
    shape = (groups * outputs, depth, kh, kw)
    weight = np.random.default_rng(depth).integers(0, weight_type.count, shape, dtype=np.uint8)
    op = p.Conv("conv", (0,), weight, weight_type, groups=groups)
    positions = dot.taps(op)
    step = groups * depth if groups * depth <= 4 else -(-groups * depth // 32) * 32
    packed = dot.pack(
        engine_module._core(), op, positions, partial(dot.chunks, positions, step=step, pitch=10, gathered=gathered)
    )
    rows = packed.data.reshape(-1, 64)
    if packed.tables is not None:
        fields = [(rows >> (packed.bits * k)) & (2**packed.bits - 1) for k in range(8 // packed.bits)]
        rows = packed.tables[0][: 2**packed.bits][np.stack(fields, axis=1)].reshape(-1, 64)
    by_chunk = rows.view(np.int8).reshape(
        len(packed.blocks), -1, 2, 16, 16, 4
    )  # block, chunk, half, quad, output, byte
    back = by_chunk.transpose(0, 2, 4, 1, 3, 5).reshape(len(packed.blocks), 32, -1)
    # Every weight once, at the byte that its channel has from the pixel, or its summands there; all else 0.
    values = op.values()
    for block, (first, count, which, _) in zip(back, packed.outputs.tolist(), strict=True):
        for o in range(count):
            group = (first + o) // outputs
            expected: dict[int, int] = {}
            for t in positions:
                for c in range(depth):
                    at = (t.y * 10 + t.x) * step + group * depth + c
                    expected[at] = int(values[first + o, c].ravel()[t.index])
            at = (packed.lists[which][:, None] + np.arange(packed.piece or 64)).ravel()
            if packed.piece:
                beyond = np.full(-len(at) % 64, -1 << 40)
                at = np.concatenate([at, beyond]).reshape(-1, 64)[packed.reads].ravel()
            got: dict[int, int] = {}
            for a, v in zip(at.tolist(), block[o].tolist(), strict=True):
                got[a] = got.get(a, 0) + v
            assert {a: v for a, v in got.items() if v} == {a: v for a, v in expected.items() if v}
            assert len(packed.quads) == len(packed.reads) == len(block[o]) // 64
    np.testing.assert_array_equal(packed.sums, values.reshape(len(values), -1).sum(axis=1))


class Builder:
    """Random values one after the other, all kinds of operations that read earlier ones."""

    def __init__(self, draw, seed: int) -> None:
        self.draw, self.rng = draw, np.random.default_rng(seed)
        self.operations: list[p.Operation] = []
        self.values: list[p.Value] = []

    def add(self, op: p.Operation) -> int:
        self.values.append(op.infer(*(self.values[i] for i in op.inputs)))
        self.operations.append(op)
        return len(self.operations) - 1

    def encode(self, shape: tuple[int, int, int], code_type: CodeType) -> int:
        t = np.sort(self.rng.normal(size=code_type.count - 1)).astype(np.float32)
        return self.add(p.Encode("input", (), shape, code_type, t))

    def conv(self, source: int, outputs: int, k: int = 1, groups: int = 1) -> int:
        weight_type = self.draw(weight_types)
        shape = (outputs, self.values[source].shape[0] // groups, k, k)
        weight = self.rng.integers(0, weight_type.count, shape, dtype=np.uint8)
        return self.add(p.Conv("conv", (source,), weight, weight_type, padding=(k // 2,) * 4, groups=groups))

    def transposed(self, source: int, outputs: int, groups: int = 1) -> int:
        weight_type, rng = self.draw(weight_types), self.rng
        k, s = tuple(map(int, rng.integers(1, 5, 2))), tuple(map(int, rng.integers(1, 4, 2)))
        weight = rng.integers(
            0, weight_type.count, (self.values[source].shape[0], outputs // groups, *k), dtype=np.uint8
        )
        pads = [int(rng.integers(0, k[a])) for a in (0, 1)]
        extra = [int(rng.integers(0, s[a])) for a in (0, 1)]
        padding = (pads[0], pads[0] - extra[0], pads[1], pads[1] - extra[1])
        try:
            return self.add(p.ConvTranspose("up", (source,), weight, weight_type, s, padding, (1, 1), groups))
        except FormatError:
            assume(False)  # the padding leaves nothing
            raise

    def threshold(self, source: int, code_type: CodeType, table: bool = False) -> int:
        v = self.values[source]
        spread, middle, rng = max(2, (v.hi - v.lo) // 6), (v.hi + v.lo) // 2, self.rng
        n = int(rng.integers(1, 40)) if table else code_type.count - 1
        if rng.random() < 0.5:  # one step apart, as those of uniform codes are
            step, origin = rng.uniform(0.2, 1, (2, v.shape[0], 1)) * [[[2 * spread / n]], [[-spread]]]
            t = np.ceil(middle + origin + step * np.arange(n))
        else:
            t = np.sort(rng.integers(middle - spread, middle + spread, (v.shape[0], n)), axis=1)
        t = t.astype(np.int32)
        ranks = rng.integers(0, code_type.count, n + 1, dtype=np.uint8) if table else None
        return self.add(p.Threshold("codes", (source,), code_type, t, ranks))

    def requantize(self, source: int) -> int:
        v, rng = self.values[source], self.rng
        c, top = v.shape[0], max(abs(v.lo), abs(v.hi), 1)
        shift = rng.integers(0, 32, c)
        m = np.clip(rng.normal(size=c) * 2.0**shift * 500 / top, -(2**30), 2**30)
        m = np.abs(m) if rng.random() < 0.5 else m
        wide = 40 if rng.random() < 0.5 else 1
        offset = (rng.normal(size=c) * 100 * 2.0**shift).astype(np.int64)
        return self.add(
            p.Requantize(
                "stream", (source,), m.astype(np.int32), shift.astype(np.uint8), offset, -1000 * wide, 900 * wide
            )
        )

    def program(self, source: int) -> p.Program:
        c, *size = self.values[source].shape
        scale = self.rng.normal(size=c).astype(np.float32)
        self.add(p.Scale("scale", (source,), scale, scale[::-1].copy()))
        return p.Program(tuple(self.operations), ((c, *size),))


@st.composite
def branching(draw):
    """Branches of codes that are concatenated, enlarged and convolved, streams that are added, and a pool first."""
    b = Builder(draw, draw(st.integers(0, 2**16)))
    shape = draw(st.integers(1, 40)), draw(st.integers(2, 14)), draw(st.integers(2, 14))
    x, t = b.encode(shape, draw(code_types)), draw(code_types)
    parts = [
        b.threshold(b.conv(x, draw(st.integers(1, 70)), draw(st.sampled_from([1, 3]))), t)
        for _ in range(draw(st.integers(1, 3)))
    ]
    if draw(st.booleans()):
        parts.append(b.add(p.MaxPool("max", (parts[0],), (3, 3), (1, 1), (1, 1, 1, 1))))
    if draw(st.booleans()):
        parts.append(parts[0])
    v = b.add(p.Concat("concat", tuple(parts)))
    if draw(st.booleans()):
        v = b.add(p.Concat("concat", (v, b.threshold(b.conv(parts[-1], 5), t, draw(st.booleans())))))
    how = draw(st.sampled_from(["nearest", "bilinear", "transposed", "none", "stem", "grouped"]))
    factor = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    if how == "nearest":
        v = b.add(p.Upsample("up", (v,), factor))
    elif how == "bilinear":
        v = b.threshold(b.add(p.Upsample("up", (v,), factor, "bilinear")), draw(code_types))
    elif how == "transposed":
        v = b.transposed(v, draw(st.integers(1, 40)))
        if draw(st.booleans()):
            v = b.requantize(v)
        v = b.threshold(v, draw(code_types))
    elif how == "grouped":
        groups = draw(st.sampled_from([g for g in (1, 2, 3, 5, b.values[v].shape[0]) if b.values[v].shape[0] % g == 0]))
        v = b.threshold(b.conv(v, groups * draw(st.integers(1, 40)), 3, groups), draw(code_types), draw(st.booleans()))
    elif how == "stem":  # a stream and codes, both pooled
        sums = b.conv(v, draw(st.integers(1, 40)), 3)
        window = ((3, 3), (2, 2), (1, 1, 1, 1))
        codes = b.add(p.MaxPool("max", (b.threshold(sums, t),), *window))
        stream = b.add(p.MaxPool("max", (b.requantize(sums),), *window))
        other = b.requantize(b.conv(codes, b.values[codes].shape[0]))
        v = b.threshold(b.add(p.Add("sum", (other, stream), -900, 50000)), t)
        if draw(st.booleans()):  # and codes that are not, or not alike
            v = b.add(p.Concat("skip", (v, b.add(p.MaxPool("thin", (b.threshold(sums, t),), (1, 1), (2, 2))))))
    if draw(st.booleans()):
        left, right = b.requantize(b.conv(v, 7)), b.requantize(b.conv(v, draw(st.integers(1, 40))))
        both = b.add(p.Concat("concat of integers", (left, right)))
        both = b.add(p.Upsample("up", (both,), (2, 1), draw(st.sampled_from(["nearest", "bilinear"]))))
        v = b.threshold(both, draw(code_types))
    size = b.values[v].shape[1:]
    return b.program(b.conv(v, 3) if draw(st.booleans()) else b.add(p.SumPool("mean", (v,), size, size))), draw(
        st.integers(1, 6)
    )


@contextmanager
def gathering(gathered: bool) -> Iterator[None]:
    """Whether chunks are put together, whatever would be faster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dot_planner.DotPlanner, "_gathered", lambda *_: gathered)
        yield


SIDES = [None, 0, 2, 3]
"""Of the outputs of a patch of Winograd's filtering: as the planner chooses, none, and each wherever it is possible."""


@contextmanager
def filtering(side: int | None) -> Iterator[None]:
    """Whether and how convolutions are filtered, whatever would be faster."""
    with pytest.MonkeyPatch.context() as patch:
        if side is not None:
            patch.setattr(winograd, "_effort", lambda other, *_: 0.0 if other == side else np.inf)
            patch.setattr(winograd, "MATRICES", ())
        yield


def compare(program: p.Program, images: int) -> None:
    x = np.random.default_rng(0).normal(size=(images, *program.input.shape)).astype(np.float32)
    expected, output = dict(reference.trace(program, x)), reference.run(program, x)
    for isa in ISAS:
        for threads in (1, 2):
            e = engine_module.Engine(program, threads=threads, isa=isa, path="products")
            np.testing.assert_array_equal(e(x), output, err_msg=isa)
            for number, value in e.trace(x):
                np.testing.assert_array_equal(value, expected[number], err_msg=f"{isa}, operation {number}")


@examples(250)
@given(branching(), st.booleans(), st.sampled_from(SIDES))
def test_branches(case, gathered: bool, side: int | None) -> None:
    program, count = case
    if not dot.refuses(program):
        with gathering(gathered), filtering(side):
            compare(program, count)


@examples(150)
@given(programs(), st.integers(0, 2**16), st.integers(1, 5), st.booleans(), st.sampled_from(SIDES))
def test_programs(program: p.Program, seed: int, count: int, gathered: bool, side: int | None) -> None:
    """Programs of all operations, with several inputs and outputs."""
    if dot.refuses(program):
        return
    x = images(program, seed, count)
    expected, values = reference.run(program, *x), dict(reference.trace(program, *x))
    for isa in ISAS:
        with gathering(gathered), filtering(side):
            e = engine_module.Engine(program, threads=2, isa=isa, path="products")
            np.testing.assert_equal(e(*x), expected, err_msg=isa)
            for number, value in e.trace(*x):
                np.testing.assert_array_equal(value, values[number], err_msg=f"{isa}, operation {number}")


@pytest.mark.parametrize("weight_type", ["t", "s8", "b1", "b8"])
def test_a_depth_beyond_the_scratch(weight_type: str) -> None:
    """A linear layer so deep that its weights are expanded piece by piece."""
    rng = np.random.default_rng(0)
    encode = p.Encode("input", (), (300, 6, 8), CodeType.parse("u2"), np.array([-0.5, 0.2, 0.9], np.float32))
    w = CodeType.parse(weight_type)
    conv = p.Conv("linear", (0,), rng.integers(0, w.count, (40, 300, 6, 8), dtype=np.uint8), w)
    ones = np.ones(40, np.float32)
    program = p.Program((encode, conv, p.Scale("scale", (1,), ones, ones)), ((40,),))
    for count in (1, 7, 40):
        compare(program, count)


@pytest.mark.parametrize("codes", ["u2", "u4", "b2", "b4", "u6", "u8"])
@pytest.mark.parametrize("weights", ["t", "b2", "b4", "s4", "s8", "b8"])
def test_the_largest_sums(codes: str, weights: str) -> None:
    """Deep sums of the largest codes by the largest weights of either sign: none outgrows the 16 bits it is kept in."""
    t, w = CodeType.parse(codes), CodeType.parse(weights)
    encode = p.Encode("input", (), (600, 5, 5), t, np.linspace(-1, 1, t.count - 1).astype(np.float32))
    weight = np.zeros((33, 600, 3, 3), np.uint8)
    weight[1::3], weight[2::3, ::2] = w.count - 1, w.count - 1
    conv = p.Conv("conv", (0,), weight, w, padding=(1, 1, 1, 1))
    ones = np.ones(33, np.float32)
    program = p.Program((encode, conv, p.Scale("scale", (1,), ones, ones)), ((33, 5, 5),))
    x = np.concatenate([np.full((1, 600, 5, 5), v, np.float32) for v in (-9, 9)])
    expected = program.reference(x)
    for side in (0, 2, 3):
        with filtering(side):
            for isa in ISAS:
                np.testing.assert_array_equal(
                    engine_module.Engine(program, isa=isa, path="products")(x), expected, err_msg=f"{isa} {side}"
                )


@pytest.mark.parametrize("images", [2, 3])
def test_one_output_pixel_of_large_maps(images: int) -> None:
    """A tile is a pixel of each image; kernels may read rows of images that are not there."""
    rng = np.random.default_rng(0)
    encode = p.Encode("input", (), (64, 20, 20), CodeType.parse("u2"), np.array([-0.5, 0.2, 0.9], np.float32))
    t = CodeType.parse("t")
    conv = p.Conv("conv", (0,), rng.integers(0, 3, (40, 64, 1, 1), dtype=np.uint8), t, stride=(20, 20))
    ones = np.ones(40, np.float32)
    compare(p.Program((encode, conv, p.Scale("scale", (1,), ones, ones)), ((40, 1, 1),)), images)


@pytest.mark.parametrize("codes", ["u2", "s3", "b1", "u8", "s8"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_inputs_of_few_channels(channels: int, codes: str) -> None:
    """Their pixels lie side by side; rows end at pads, or at rows of another thread."""
    rng, t = np.random.default_rng(channels), CodeType.parse(codes)
    for size, padding, kernel in (((9, 7), 1, 3), ((70, 33), 0, 3), ((5, 40), 2, 5)):
        encode = p.Encode("input", (), (channels, *size), t, np.linspace(-1, 1, t.count - 1).astype(np.float32))
        weight = rng.integers(0, 3, (20, channels, kernel, kernel), dtype=np.uint8)
        conv = p.Conv("conv", (0,), weight, CodeType.parse("t"), padding=(padding,) * 4)
        ones = np.ones(20, np.float32)
        out = tuple(s + 2 * padding - kernel + 1 for s in size)
        program = p.Program((encode, conv, p.Scale("scale", (1,), ones, ones)), ((20, *out),))
        for side in (0, 2):
            with filtering(side):
                compare(program, 3)


@pytest.mark.parametrize(
    ("codes", "weights"), [("u8", "t"), ("s8", "t"), ("u8", "s4"), ("u8", "s8"), ("b4", "b4"), ("u2", "t")]
)
@pytest.mark.parametrize("band", [1, 384 << 10])
def test_the_largest_sums_of_a_band(codes: str, weights: str, band: int) -> None:
    """Of a convolution with a pool behind it: sums as large as 16 bits hold, and a channel more."""
    t, w = CodeType.parse(codes), CodeType.parse(weights)
    ends = max(abs(a * b) for a in (t.lo, t.hi) for b in (w.lo, w.hi))
    for channels in ((2**15 - 1) // (9 * ends), (2**15 - 1) // (9 * ends) + 1):
        if channels > 256:
            continue
        shape = (max(1, channels), 9, 35)
        encode = p.Encode("input", (), shape, t, np.linspace(-1, 1, t.count - 1).astype(np.float32))
        weight = np.random.default_rng(0).integers(0, w.count, (70, shape[0], 3, 3)).astype(np.uint8)
        weight[1::3], weight[2::3] = w.count - 1, 0
        conv = p.Conv("conv", (0,), weight, w, padding=(1, 1, 1, 1))
        pool = p.MaxPool("pool", (1,), (3, 3), (2, 2), (1, 1, 1, 1))
        values = [encode.infer()]
        for op in (conv, pool):
            values.append(op.infer(values[-1]))
        scale = p.Scale("scale", (2,), *np.ones((2, 70), np.float32))
        program = p.Program((encode, conv, pool, scale), (values[-1].shape,))
        x = np.random.default_rng(1).normal(size=(3, *shape)).astype(np.float32)
        x[1:] = np.asarray([-9, 9], np.float32)[:, None, None, None]
        expected = program.reference(x)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dot_planner, "BAND", band)
            for isa in ISAS:
                e = engine_module.Engine(program, isa=isa, path="products")
                np.testing.assert_array_equal(e(x), expected, err_msg=f"{isa}, {channels} channels")


def test_sums_stay_narrow_for_as_long_as_they_fit() -> None:
    def quads(codes: str, weights: str) -> int:
        return dot.narrow_quads(CodeType.parse(codes), CodeType.parse(weights))

    assert quads("u4", "s4") == (2**15 - 1) // (2 * 15 * 8)
    assert quads("b4", "b4") == (2**15 - 1) // (2 * (128 + 15) * 15)
    assert quads("u8", "t") == (2**15 - 1) // (2 * 255)
    assert quads("u8", "s8") == 0

    def pairs(codes: str, weights: str) -> bool:
        return dot.pairs_fit(CodeType.parse(codes), CodeType.parse(weights))

    assert pairs("u8", "s4") and pairs("s8", "u6") and not pairs("u8", "u7") and not pairs("s8", "s8")


def test_what_the_path_refuses() -> None:
    def program(codes: str, weights: str) -> p.Program:
        t = CodeType.parse(codes)
        encode = p.Encode("input", (), (2, 3, 3), t, np.arange(t.count - 1, dtype=np.float32))
        conv = p.Conv("conv", (0,), np.zeros((1, 2, 1, 1), np.uint8), CodeType.parse(weights))
        one = np.ones(1, np.float32)
        return p.Program((encode, conv, p.Scale("scale", (1,), one, one)), ((1, 3, 3),))

    assert "b8" in dot.refuses(program("b8", "t"))
    assert not dot.refuses(program("u8", "s8")) and not dot.refuses(program("u8", "b8"))
    assert not dot.refuses(program("b7", "b7"))


def test_weights_beyond_a_byte_are_several() -> None:
    values = np.arange(-255, 256)
    parts = dot.summands(values)
    np.testing.assert_array_equal(sum(parts), values)
    assert len(parts) == 3 and all((part >= -128).all() and (part <= 127).all() for part in parts)
    assert len(dot.summands(np.asarray([-128, 127]))) == 1


WINDOWS: dict[str, list[p.Operation]] = {
    "sums": [p.SumPool("sums", (0,), (3, 3), (1, 1), (1, 1, 1, 1))],
    "largest": [p.MaxPool("largest", (0,), (3, 3), (1, 1), (1, 1, 1, 1))],
    "between": [p.Upsample("up", (0,), (2, 2), "bilinear"), p.SumPool("sums", (0,), (1, 1), (2, 2))],
}


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("window", WINDOWS)
def test_a_sum_is_not_written_over_what_its_window_still_reads(window: str, first: int) -> None:
    """A window's result plus what it is of: neighbours are read when the first pixels have been written."""
    rng, channels = np.random.default_rng(0), 40
    encode = p.Encode("input", (), (3, 9, 13), CodeType.parse("u2"), np.array([-0.5, 0.2, 0.9], np.float32))
    weight = rng.integers(0, 3, (channels, 3, 1, 1), dtype=np.uint8)
    operations: list[p.Operation] = [encode, p.Conv("conv", (0,), weight, CodeType.parse("t"))]
    for op in WINDOWS[window]:
        operations.append(op.reading((len(operations) - 1,)))
    last = len(operations) - 1
    operations.append(p.Add("add", (last, 1) if first else (1, last), -10000, 10000))
    operations.append(p.MaxPool("pool", (last + 1,), (2, 2), (2, 2)))
    ones = np.ones(channels, np.float32)
    operations.append(p.Scale("output", (last + 2,), ones, ones))
    compare(p.Program(tuple(operations), ((channels, 4, 6),)), 3)
