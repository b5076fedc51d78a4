"""Planar kernels: concatenation, upsampling, transposed and depthwise convolution, tables of codes, on every form."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from engines import ISAS, Builder, activations, kinds, preferred, weights
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import examples, images, pixels, programs

from bitbranch.contract import CodeType
from bitbranch.errors import FormatError
from bitbranch.runtime import concat, layout, reference, transposed
from bitbranch.runtime import engine as engine_module
from bitbranch.runtime import program as p

PLANAR = [isa for isa in ISAS if isa in engine_module.PLANAR_SETS]


pytestmark = pytest.mark.usefixtures("planar_kernels")


def compare(program: p.Program, x: tuple[np.ndarray, ...]) -> None:
    """Every value and the outputs, on all instruction sets."""
    expected, values = reference.run(program, *x), dict(reference.trace(program, *x))
    for isa in PLANAR:
        for threads in (1, 2):
            engine = engine_module.Engine(program, threads=threads, isa=isa)
            np.testing.assert_equal(engine(*x), expected, err_msg=isa)
            np.testing.assert_equal(engine(*x), expected, err_msg=f"second call, {isa}")
        for number, value in engine.trace(*x):
            where = f"{isa}, operation {number} {program.operations[number]!r:.80}"
            np.testing.assert_array_equal(value, values[number], err_msg=where)
            assert value.dtype == values[number].dtype


@st.composite
def joined(draw):
    """Branches of codes or of integers, concatenated, perhaps twice, and what reads a concatenation."""
    b = Builder(
        (draw(st.integers(1, 12)), draw(st.integers(1, 9)), draw(st.integers(1, 20))),
        draw(activations),
        draw(st.integers(0, 2**16)),
    )
    code_type, size = draw(activations), b.values[0].shape[1:]
    sizes = st.sampled_from([8, 16, 24, 3, 1, 5, 12, 48])

    def stream(source: int) -> int:
        k = draw(st.sampled_from([1, 3]))
        conv = b.conv(source, draw(sizes), draw(weights), (k, k), padding=(k // 2,) * 4)
        return b.requantize(conv) if draw(st.integers(0, 3)) == 0 else conv

    def codes(source: int) -> int:
        v = b.threshold(stream(source), code_type)
        if draw(st.integers(0, 3)) == 0:
            v = b.add(p.MaxPool("max", (v,), (3, 3), (1, 1), (1, 1, 1, 1)))
        return v

    v = 0
    for _ in range(draw(st.integers(1, 3))):
        if draw(st.booleans()):
            parts = [codes(v) for _ in range(draw(st.integers(1, 3)))]
            if draw(st.integers(0, 2)) == 0 and b.values[v] == p.Codes(b.values[v].shape, code_type):
                parts.insert(0, v)  # as DenseNet does
            if draw(st.integers(0, 4)) == 0:
                parts.append(parts[0])
            v = b.add(p.Concat("concat", tuple(parts)))
        else:
            parts = [stream(v) for _ in range(draw(st.integers(1, 3)))]
            v = b.threshold(b.add(p.Concat("concat", tuple(parts))), code_type, draw(st.booleans()))
        if draw(st.integers(0, 3)) == 0 and max(b.values[v].shape[1:]) < 30:
            v = b.add(p.Upsample("up", (v,), (draw(st.integers(1, 2)), draw(st.integers(1, 3)))))
    if draw(st.booleans()):
        size = b.values[v].shape[1:]
        v = b.add(p.SumPool("mean", (v,), size, size))
        return b.program(v), b.batch(draw(st.integers(1, 5)))
    stride = draw(st.integers(1, 2))
    return b.program(b.conv(v, 5, draw(weights), (1, 1), stride=(stride, stride))), b.batch(draw(st.integers(1, 5)))


@st.composite
def enlarging(draw, channels: int = 40):
    """A transposed convolution, and what its accumulators go into."""
    groups = draw(st.integers(1, 4))
    shape = (groups * draw(st.integers(1, channels // groups)), draw(st.integers(1, 9)), draw(st.integers(1, 24)))
    b = Builder(shape, draw(activations), draw(st.integers(0, 2**16)))
    kernel, stride, dilation = (draw(st.tuples(st.integers(1, n), st.integers(1, n))) for n in (4, 3, 2))
    padding = (draw(st.integers(0, 2)), draw(st.integers(-2, 2)), draw(st.integers(0, 2)), draw(st.integers(-2, 2)))
    weight_type = draw(weights)
    per_group = draw(st.integers(1, 12))
    weight = b.rng.integers(0, weight_type.count, (shape[0], per_group, *kernel), dtype=np.uint8)
    try:
        up = b.add(p.ConvTranspose("up", (0,), weight, weight_type, stride, padding, dilation, groups))
    except FormatError:
        assume(False)
    v, what = up, draw(st.sampled_from(["codes", "stream", "sum", "both", "concat", "pool", "accumulators"]))
    if what == "accumulators":
        return b.program(up), b.batch(draw(st.integers(1, 4)))
    if what == "stream":
        v = b.requantize(up)
    elif what == "sum":
        v = b.add(p.Add("sum", (b.requantize(up), b.requantize(up)), -900, 1500))
    elif what == "concat":
        v = b.add(p.Concat("concat", (b.requantize(up), b.requantize(up), up)))
    elif what == "pool":
        v = b.add(p.MaxPool("pool", (up,), (2, 2), (1, 1), (1, 1, 1, 1)))
    codes = b.threshold(v, draw(activations))
    out = b.conv(codes, 3, draw(weights), (1, 1))
    if what == "both":
        out = b.add(p.Concat("outputs", (out, up)))
    return b.program(out), b.batch(draw(st.integers(1, 4)))


@st.composite
def by_table(draw):
    """A convolution and thresholds with a table, alone or beside others."""
    shape = (draw(st.integers(1, 20)), draw(st.integers(1, 9)), draw(st.integers(1, 70)))
    b = Builder(shape, draw(activations), draw(st.integers(0, 2**16)))
    k = draw(st.sampled_from([1, 3]))
    conv = b.conv(0, draw(st.integers(1, 24)), draw(weights), (k, k), padding=(k // 2,) * 4)
    source = b.requantize(conv) if draw(st.booleans()) else conv
    v, code_type = b.values[source], draw(activations)
    count = draw(st.sampled_from([1, 2, 3, 7, 15, 16, 40, 255]))
    rows = draw(st.sampled_from([1, v.shape[0]]))
    thresholds = np.sort(b.rng.integers(v.lo, v.hi + 2, (rows, count)), axis=1).astype(np.int32)
    table = b.rng.integers(0, code_type.count, count + 1).astype(np.uint8)
    codes = b.add(p.Threshold("table", (source,), code_type, thresholds, table))
    out = b.conv(codes, draw(st.integers(1, 9)), draw(weights), (k, k), padding=(k // 2,) * 4)
    if draw(st.booleans()):
        out = b.add(p.Concat("outputs", (out, b.conv(b.threshold(conv, draw(activations)), 2, draw(weights)))))
    return b.program(out), b.batch(draw(st.integers(1, 4)))


@st.composite
def depthwise(draw):
    """A depthwise convolution, its accumulators or codes or a stream."""
    channels, size = draw(st.integers(2, 40)), (draw(st.integers(1, 20)), draw(st.integers(1, 40)))
    b = Builder((channels, *size), draw(activations), draw(st.integers(0, 2**16)))
    kernel = draw(st.sampled_from([(3, 3), (5, 5), (1, 1), (3, 1), (2, 4), (7, 7)]))
    where = {
        "stride": draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        "dilation": draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        "padding": tuple(draw(st.integers(0, 3)) for _ in range(4)),
    }
    try:
        v = b.conv(0, channels, draw(weights), kernel, channels, **where)
    except FormatError:
        assume(False)
    after = draw(st.sampled_from(["codes", "accumulators", "stream"]))
    if after == "stream":
        v = b.requantize(v)
    if after != "accumulators":
        v = b.conv(b.threshold(v, draw(activations), draw(st.booleans())), 3, draw(weights))
    return b.program(v), b.batch(draw(st.integers(1, 5)), draw(st.booleans()))


CASES = {"joined": joined(), "enlarging": enlarging(), "by_table": by_table(), "depthwise": depthwise()}


@pytest.mark.parametrize("what", CASES)
def test_operations(what: str) -> None:
    @examples(120)
    @given(CASES[what], kinds)
    def check(case: tuple[p.Program, np.ndarray], family: str | None) -> None:
        program, x = case
        with preferred(family):
            compare(program, (x,))

    check()


@examples(150)
@given(programs(), st.integers(0, 2**16), st.integers(1, 5), st.booleans(), kinds)
def test_programs(program: p.Program, seed: int, count: int, uint8: bool, family: str | None) -> None:
    """Programs of all operations, with several inputs and outputs."""
    uint8 = uint8 and all(op.table is not None for op in program.inputs)
    with preferred(family):
        compare(program, (pixels if uint8 else images)(program, seed, count))


@pytest.mark.long
@examples(3000)
@given(st.one_of(*CASES.values()), kinds)
def test_many(case: tuple[p.Program, np.ndarray], family: str | None) -> None:
    program, x = case
    with preferred(family):
        compare(program, (x,))


def families(program: p.Program, isa: str) -> list[str]:
    """The families of a plan's steps."""
    engine = engine_module.Engine(program, isa=isa)
    return [step.family for step in engine._plan(1).steps]


@pytest.mark.parametrize("code_type", ["u1", "u2", "u3", "u4", "u8"])
def test_parts_are_written_in_place(code_type: str) -> None:
    """A concatenation of whole chunks moves nothing; another moves only the parts that are not."""
    t = CodeType.parse(code_type)

    def moved(*channels: int) -> int:
        b = Builder((4, 6, 6), CodeType.parse("u8"), 1)
        parts = tuple(b.threshold(b.conv(0, c, CodeType.parse("t")), t) for c in channels)
        program = b.program(b.conv(b.add(p.Concat("concat", parts)), 3, CodeType.parse("t")))
        x = b.batch(2)
        compare(program, (x,))
        operations, values = program.operations, program.values
        whole = next(i for i, op in enumerate(operations) if isinstance(op, p.Concat))
        homes = concat.homes(operations, values)
        return sum(homes.get(j, (0, 0))[0] != whole for j in operations[whole].inputs)

    assert moved(16, 8, 24) == 0
    assert moved(8, 5) == 0
    assert moved(8, 5, 16) == 2
    assert moved(3, 8) == 2


def lanes(form: layout.Form, unit: int) -> Iterator[int]:
    yield from range(unit * form.channels_per_unit, (unit + 1) * form.channels_per_unit)


@pytest.mark.parametrize("bits", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("first", range(9))
@pytest.mark.parametrize("channels", [1, 2, 3, 7, 8, 9, 21])
def test_pieces_cover_every_channel_once(bits: int, first: int, channels: int) -> None:
    """The masks of a part's pieces, together, are its channels."""
    form = layout.Form(bits, False, 1, 0)
    per_channel = {0: 8, 1: 1}.get(bits, 2)
    total = 0
    for plane, _, source, left, right, mask in concat.pieces(form, 0, channels, first):
        assert min(left, right) == 0 and 0 <= source < form.plane_count(channels) and mask > 0
        assert set(lanes(form, plane // form.planes_per_unit)) & set(range(first, first + channels))
        total += mask.bit_count()
    assert total == channels * per_channel * form.planes_per_unit


@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 2), (4, 4)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 3)])
def test_phases_do_all_of_the_work(stride: p.Pair, dilation: p.Pair) -> None:
    """Every output pixel belongs to one phase; the phases' multiply-accumulates are the operation's."""
    op = p.ConvTranspose(
        "up", (0,), np.zeros((4, 6, 3, 2), np.uint8), CodeType.parse("t"), stride, (0, 0, 0, 0), dilation
    )
    source = p.Codes((4, 5, 7), CodeType.parse("u2"))
    out = op.infer(source).shape[1:]
    parts = transposed.phases(op, source.shape[1:], out)
    seen = np.zeros(out, int)
    for part in parts:
        seen[part.first[0] :: stride[0], part.first[1] :: stride[1]] += 1
        assert seen[part.first[0] :: stride[0], part.first[1] :: stride[1]].shape == part.size
    assert (seen == 1).all() and sum(part.macs for part in parts) == op.macs(source)


@pytest.mark.parametrize("factor", [(2, 2), (3, 1), (1, 4), (5, 3)])
def test_a_batch_larger_than_a_part_with_several_inputs_and_outputs(factor: p.Pair) -> None:
    b = Builder((5, 4, 6), CodeType.parse("s8"), 9)
    left = b.threshold(b.conv(0, 16, CodeType.parse("t")), CodeType.parse("u2"))
    levels = np.linspace(-1, 1, 3).astype(np.float32)
    right = b.add(p.Encode("other", (), (3, 4, 6), CodeType.parse("u2"), levels))
    up = b.add(p.Upsample("up", (b.add(p.Concat("concat", (left, right))),), factor))
    first = b.conv(up, 7, CodeType.parse("t"), (2, 2))
    ones = np.ones(7, np.float32)
    b.add(p.Scale("first", (first,), ones, ones))
    big = b.add(p.Upsample("big", (b.conv(left, 3, CodeType.parse("s4")),), factor, "bilinear"))
    b.add(p.Scale("second", (big,), ones[:3], ones[:3]))
    shapes = tuple(v.shape for v in b.values if isinstance(v, p.Reals))
    program = p.Program(tuple(b.operations), shapes)
    for isa in PLANAR:
        engine = engine_module.Engine(program, threads=2, isa=isa)
        engine._part = 4
        for n in (0, 1, 4, 5, 11):
            x = images(program, n, n) if n else tuple(np.zeros((0, *op.shape), np.float32) for op in program.inputs)
            if n:
                np.testing.assert_equal(engine(*x), program.reference(*x))
            assert [y.shape for y in engine(*x)] == [(n, *shape) for shape in shapes]
        profile = engine.profile(*images(program, 1, 3), repeat=2)
        assert sum(row.macs for row in profile.rows) == 3 * program.macs
