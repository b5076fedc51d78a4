"""Programs: what is valid, the shapes and bounds of values, and the reference against loops and against torch."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import code_types, examples, images, pixels, programs, seeds

from bitbranch.contract import ACCUMULATOR_MAX, REQUANTIZE_OFFSET_MAX, CodeType
from bitbranch.errors import FormatError, InputError
from bitbranch.runtime import program as p
from bitbranch.runtime import reference

U2, B2, T, S8 = map(CodeType.parse, ("u2", "b2", "t", "s8"))


def encode(shape: tuple[int, int, int] = (2, 5, 6), code_type: CodeType = U2, **changes: object) -> p.Encode:
    thresholds = np.linspace(-1, 1, code_type.count - 1).astype(np.float32)
    return replace(p.Encode("in", (), shape, code_type, thresholds), **changes)


def threshold(rows: object) -> p.Threshold:
    return p.Threshold("threshold", (1,), U2, np.array(rows, np.int32))


def conv(outputs: int = 3, channels: int = 2, kernel: p.Pair = (3, 3), **changes: object) -> p.Conv:
    weight = (np.arange(outputs * channels * kernel[0] * kernel[1]) % 3).astype(np.uint8)
    return replace(p.Conv("conv", (0,), weight.reshape(outputs, channels, *kernel), T), **changes)


def transposed(outputs: int = 3, channels: int = 2, kernel: p.Pair = (3, 3), **changes: object) -> p.ConvTranspose:
    weight = (np.arange(outputs * channels * kernel[0] * kernel[1]) % 3).astype(np.uint8)
    return replace(p.ConvTranspose("up", (0,), weight.reshape(channels, outputs, *kernel), T), **changes)


def scale(channels: int = 3, source: int = 1, **changes: object) -> p.Scale:
    return replace(p.Scale("out", (source,), *np.ones((2, channels), np.float32)), **changes)


def shape_of(*operations: p.Operation) -> tuple[int, int, int]:
    values: list[p.Value] = []
    for op in operations:
        values.append(op.infer(*(values[j] for j in op.inputs)))
    return values[-1].shape


# Validation.


def test_a_plain_program_is_valid() -> None:
    program = p.Program((encode(), conv(), scale()), ((3, 3, 4),))
    assert [v.shape for v in program.values] == [(2, 5, 6), (3, 3, 4), (3, 3, 4)]
    assert program.macs == 3 * 2 * 9 * 12
    assert program == p.Program((encode(), conv(), scale()), ((3, 3, 4),))
    assert hash(program) == hash(p.Program((encode(), conv(), scale()), ((3, 3, 4),)))


def test_a_program_is_shown_in_a_line() -> None:
    program = p.Program((encode(), conv(), scale()), ((3, 3, 4),), info={"name": "net"})
    assert repr(program) == "<Program 'net': 3 operations, 648 multiply-accumulates>"


def test_equality_sees_every_field() -> None:
    table = np.zeros((2, 256), np.uint8)
    assert encode() != encode(table=table) and encode(table=table) != encode()
    assert encode(table=table) == encode(table=table.copy()) != encode(table=table + 1)
    assert conv() != conv(weight=conv().weight.astype(np.int64))
    assert conv() != conv(stride=(1, 2))
    assert conv() != scale()


f32, i32, u8, i64 = np.float32, np.int32, np.uint8, np.int64
nan = np.full(3, np.nan, f32)


@pytest.mark.parametrize(
    "operations",
    [
        (),
        (encode(),),
        [encode(), conv(), scale()],
        (encode(), "conv", scale()),
        (conv(), scale()),
        (encode(), encode(), scale(2)),
        (encode(), conv(), scale(), scale()),
        (encode(), encode(), conv(inputs=(1,)), scale(source=2)),
        (encode(), conv(), conv(), scale()),
        (encode(inputs=(0,)), conv(), scale()),
        (encode(name=3), conv(), scale()),
        (encode(name="\ud800"), conv(), scale()),
        (encode(name="x" * 2000), conv(), scale()),
        (encode((0, 5, 6)), conv(), scale()),
        (encode((2, 5, -6)), conv(), scale()),
        (encode((2, 5, True)), conv(), scale()),
        (encode((2, 5, 6.0)), conv(), scale()),
        (encode((2, 5)), conv(), scale()),
        (encode((1 << 20, 1 << 20, 1 << 20)), conv(), scale()),
        (replace(encode(), code_type="u2"), conv(), scale()),
        (encode(thresholds=np.zeros(2, f32)), conv(), scale()),
        (encode(thresholds=np.zeros(3)), conv(), scale()),
        (encode(thresholds=[0.0, 1.0, 2.0]), conv(), scale()),
        (encode(thresholds=np.array([0, 2, 1], f32)), conv(), scale()),
        (encode(thresholds=nan), conv(), scale()),
        (encode(table=np.zeros((1, 256), u8)), conv(), scale()),
        (encode(table=np.full((2, 256), 4, u8)), conv(), scale()),
        (encode(), conv(inputs=(1,)), scale()),
        (encode(), conv(inputs=(-1,)), scale()),
        (encode(), conv(inputs=(0.0,)), scale()),
        (encode(), conv(inputs=(False,)), scale()),
        (encode(), conv(inputs=(0, 0)), scale()),
        (encode(), conv(inputs=[0]), scale()),
        (encode(), conv(channels=3), scale()),
        (encode(), conv(groups=2), scale()),
        (encode(), conv(groups=0), scale()),
        (encode(), conv(groups=1.0), scale()),
        (encode(), conv(weight=np.full((3, 2, 3, 3), 3, u8)), scale()),
        (encode(), conv(weight=np.zeros((3, 2, 0, 3), u8)), scale()),
        (encode(), conv(weight=np.zeros((3, 2, 9), u8)), scale()),
        (encode(), conv(weight=np.zeros((3, 2, 3, 3), np.int8)), scale()),
        (encode(), conv(weight_type=2), scale()),
        (encode(), conv(kernel=(6, 6)), scale()),
        (encode(), conv(stride=(0, 1)), scale()),
        (encode(), conv(stride=(1,)), scale()),
        (encode(), conv(stride=1), scale()),
        (encode(), conv(dilation=(1, 1 << 21)), scale()),
        (encode(), conv(dilation=(True, True)), scale()),
        (encode(), conv(padding=(0, 0, -1, 0)), scale()),
        (encode(), conv(padding=(1, 1)), scale()),
        (encode(), conv(padding=(1 << 20,) * 4, stride=(1 << 20,) * 2), scale()),
        (encode(), conv(), scale(2)),
        (encode(), conv(), scale(scale=nan)),
        (encode(), conv(), scale(bias=np.full(3, np.inf, f32))),
        (encode(), conv(), scale(scale=np.ones(3))),
        (encode(), scale(2, source=0)),
        (encode(), conv(), threshold([[0] * 3] * 2), conv(3, 3, inputs=(2,)), scale(3, 3)),
        (encode(), conv(), threshold([[0] * 4] * 3), conv(3, 3, inputs=(2,)), scale(3, 3)),
        (encode(), conv(), threshold([[2, 1, 3]]), conv(3, 3, inputs=(2,)), scale(3, 3)),
        (encode(), conv(), p.Add("a", (1, 1), 1, 0), scale(3, 2)),
        (encode(), conv(), p.Add("a", (1, 1), 0, 2**40), scale(3, 2)),
        (encode(), conv(), p.Add("a", (1, 1), 0.5, 2), scale(3, 2)),
        (encode(), conv(), p.Add("a", (0, 1), 0, 2), scale(3, 2)),
        (encode(), p.MaxPool("m", (0,), (2, 2), (2, 2), (3, 0, 0, 0)), conv(inputs=(1,)), scale(3, 2)),
        (encode(), p.MaxPool("m", (0,), (2, 2), (1, 1), (0, 5, 0, 0)), conv(inputs=(1,)), scale(3, 2)),
        (encode(), p.MaxPool("m", (0,), (9, 9), (1, 1)), conv(inputs=(1,)), scale(3, 2)),
        (encode(), p.MaxPool("m", (0,), (2, 1), (1, 1), (2, 2, 0, 0), (8, 1)), conv(inputs=(1,)), scale(3, 2)),
        (encode(code_type=S8), p.SumPool("s", (0,), (1 << 15, 1 << 15), (1, 1), (1 << 14,) * 4), scale(2, 1)),
    ],
)  # fmt: skip
def test_malformed_programs_are_refused(operations: tuple[p.Operation, ...]) -> None:
    with pytest.raises(FormatError) as error:
        p.Program(operations, ((3, 3, 4),))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("op", "reason"),
    [
        (p.MaxPool("m", (2,), (1, 1), (1, 1)), "got reals"),
        (p.SumPool("s", (2,), (1, 1), (1, 1)), "got reals"),
        (p.Upsample("u", (2,), (1, 1)), "got reals"),
        (p.Concat("c", (2, 1)), "got reals"),
        (p.Concat("c", (1, 2)), "codes and integers"),
        (p.Concat("c", (0, 1)), "codes and integers"),
        (p.Concat("c", (1, 4)), "shapes"),
        (p.Concat("c", (0, 3)), "code types u2, u3"),
        (p.Concat("c", ()), "1 integers"),
        (p.Upsample("u", (1,), (0, 1)), "factor"),
        (p.Upsample("u", (1,), (2, 1025)), "factor"),
        (p.Upsample("u", (1,), (2, 65), "bilinear"), "factor"),
        (p.Upsample("u", (1,), (2, 2), "cubic"), "cubic"),
        (p.Threshold("t", (1,), U2, np.array([[1, 2]], i32), np.zeros(4, u8)), "table must have shape"),
        (p.Threshold("t", (1,), U2, np.array([[1]], i32), np.array([0, 4], u8)), "beyond the code type"),
        (p.Threshold("t", (1,), U2, np.zeros((1, 256), i32), np.zeros(257, u8)), "256 thresholds"),
        (transposed(padding=(-1, 0, 0, 0)), "before the image is negative"),
        (transposed(padding=(0, -2, 0, 0), stride=(2, 2)), "output padding 2 must be below 2"),
        (transposed(padding=(9, 9, 0, 0)), "leaves no output"),
        (transposed(groups=3), "3 groups"),
        (transposed(weight=np.zeros((3, 2, 3, 3), u8)), "2 input channels"),
        (transposed(weight=np.full((2, 3, 3, 3), 3, u8)), "beyond its type"),
        (transposed(stride=(0, 1)), "stride"),
        (transposed(stride=(1 << 20, 1 << 20)), "too large"),
        (transposed(inputs=(1,)), "takes codes"),
    ],
)  # fmt: skip
def test_operations_say_what_does_not_fit(op: p.Operation, reason: str) -> None:
    """After an input, integers, an output, codes of another type, and integers of another size."""
    before = [encode(), conv(), scale(), encode(code_type=CodeType.parse("u3"), name="b"), conv(kernel=(2, 2))]
    with pytest.raises(FormatError, match=reason):
        p.Program((*before, op), ((36,),))


@pytest.mark.parametrize(
    "changes",
    [
        {"multiplier": np.ones(2, i32)},
        {"multiplier": np.ones(3, i64)},
        {"shift": np.full(3, 62, u8)},
        {"offset": np.full(3, REQUANTIZE_OFFSET_MAX + 1, i64)},
        {"offset": np.full(3, -(2**63), i64)},
        {"lo": 1, "hi": 0},
        {"hi": ACCUMULATOR_MAX + 1},
        {"lo": False},
    ],
)
def test_malformed_rescaling_is_refused(changes: dict[str, object]) -> None:
    good = p.Requantize("r", (1,), np.ones(3, i32), np.zeros(3, u8), np.zeros(3, i64), -9, 9)
    assert p.Program((encode(), conv(), good, scale(3, 2)), ((36,),))
    with pytest.raises(FormatError, match="Requantize"):
        p.Program((encode(), conv(), replace(good, **changes), scale(3, 2)), ((36,),))


@pytest.mark.parametrize("output_shape", [(), (36.0,), (35,), [36], (3, 4, 3), (1, 36), "36", None])
def test_output_shapes_that_do_not_hold_the_output(output_shape: object) -> None:
    assert p.Program((encode(), conv(), scale()), ((36,),)).output_shape == (36,)
    with pytest.raises(FormatError, match="output shape"):
        p.Program((encode(), conv(), scale()), (output_shape,))  # type: ignore[arg-type]


@pytest.mark.parametrize("info", [None, [], {"a": 1}, {1: "a"}, {"a": "\udfff"}])
def test_info_is_text(info: object) -> None:
    with pytest.raises(FormatError, match="info"):
        p.Program((encode(), conv(), scale()), ((36,),), info)  # type: ignore[arg-type]


def test_accumulators_beyond_32_bits_are_refused() -> None:
    # 255 * 255 * 33026 is just below 2^31, one more channel is above.
    for channels, good in ((33025, True), (33026, False)):
        weight = np.full((1, channels, 1, 1), 255, np.uint8)
        ops = (
            encode((channels, 1, 1), CodeType.parse("u8")),
            p.Conv("conv", (0,), weight, CodeType.parse("u8")),
            scale(1),
        )
        if good:
            assert p.Program(ops, ((1,),)).values[1].hi == 255 * 255 * channels  # type: ignore[union-attr]
        else:
            with pytest.raises(FormatError, match="32 bits"):
                p.Program(ops, ((1,),))


# Inputs.


def test_inputs_are_checked() -> None:
    program = p.Program((encode(), conv(), scale()), ((3, 3, 4),))
    x = np.zeros((2, 2, 5, 6), np.float32)
    for bad, words in (
        (x[0], "expected shape (N, 2, 5, 6), got (2, 5, 6)"),
        (x[:, :, :4], "expected shape"),
        (x.astype(np.int32), "expected float32"),
        (x.astype(np.uint8), "uint8"),
        (x * np.nan, "NaN"),
        ("text", "expected shape"),
    ):
        with pytest.raises(InputError) as error:
            program.reference(bad)
        assert words in str(error.value) and "\n" not in str(error.value)
    assert program.reference(x).shape == (2, 3, 3, 4)
    assert program.reference(x[:0]).shape == (0, 3, 3, 4)
    np.testing.assert_array_equal(program.reference(x[:, ::-1]), program.reference(x))
    np.testing.assert_array_equal(program.reference(x.astype(">f4")), program.reference(x))
    assert np.isfinite(program.reference(np.full_like(x, np.inf))).all()


def two_by_two() -> p.Program:
    """Two inputs, ``a`` and ``b``, and two outputs, ``sum`` of both and ``first``."""
    ops = (
        encode(name="a"),
        encode((1, 5, 6), name="b"),
        conv(inputs=(0,)),
        conv(channels=1, inputs=(1,)),
        scale(name="first", source=2),
        p.Add("add", (2, 3), -999, 999),
        scale(name="sum", source=5),
    )
    return p.Program(ops, ((3, 3, 4), (36,)))


def test_several_inputs_and_outputs() -> None:
    program, one = two_by_two(), p.Program((encode(), conv(), scale()), ((36,),))
    assert program.input_names == ("a", "b") and program.output_names == ("first", "sum")
    assert [op.shape for op in program.inputs] == [(2, 5, 6), (1, 5, 6)]
    x, y = (np.random.default_rng(0).normal(size=(4, *op.shape)).astype(f32) for op in program.inputs)
    first, total = program.reference(x, y)
    np.testing.assert_array_equal(first.reshape(4, -1), one.reference(x))
    codes = [reference.encode(op, a) for op, a in zip(program.inputs, (x, y), strict=True)]
    sums = reference.conv(conv(), codes[0], U2) + reference.conv(conv(channels=1), codes[1], U2)
    np.testing.assert_array_equal(total, (sums + f32(1)).reshape(4, 36))
    assert total.shape == (4, 36)
    with pytest.raises(InputError, match=r"takes 2 inputs \(a, b\), got 1"):
        program.reference(x)
    with pytest.raises(InputError, match="batch sizes: 4, 3"):
        program.reference(x, y[:3])
    with pytest.raises(InputError, match="input 'b': expected shape"):
        program.reference(x, x)
    with pytest.raises(InputError, match="2 inputs"):
        _ = program.input
    with pytest.raises(InputError, match="2 outputs"):
        _ = program.output_shape


def test_inputs_and_outputs_have_names_of_their_own() -> None:
    ops = two_by_two().operations
    for number, name in ((1, "a"), (6, "first")):
        with pytest.raises(FormatError, match="have one name"):
            p.Program((*ops[:number], replace(ops[number], name=name), *ops[number + 1 :]), ((36,), (36,)))
    with pytest.raises(FormatError, match="2 outputs"):
        p.Program(ops, ((36,),))


@examples(100)
@given(program=programs(), seed=seeds)
def test_every_value_keeps_its_shape_and_bounds(program: p.Program, seed: int) -> None:
    has_tables = all(op.table is not None for op in program.inputs)
    for x in [images(program, seed), *([pixels(program, seed)] if has_tables else [])]:
        for i, v in reference.trace(program, *x):
            expected = program.values[i]
            assert v.shape == (len(x[0]), *expected.shape)
            if isinstance(expected, p.Codes):
                assert v.dtype == np.uint8 and v.max() < expected.code_type.count
            elif isinstance(expected, p.Integers):
                assert expected.lo <= v.min() and v.max() <= expected.hi
        outputs = program.reference(*x)
        outputs = (outputs,) if isinstance(outputs, np.ndarray) else outputs
        assert [y.shape for y in outputs] == [(len(x[0]), *shape) for shape in program.output_shapes]


# The reference, against loops that know nothing of it.

windows = st.tuples(st.integers(1, 4), st.integers(1, 4))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[p.Conv, np.ndarray, CodeType]:
    groups, outputs, channels = (draw(st.integers(1, 3)) for _ in range(3))
    height, width = draw(st.tuples(st.integers(1, 8), st.integers(1, 8)))
    kernel, stride, dilation = draw(windows), draw(windows), draw(windows)
    need = [dilation[a] * (kernel[a] - 1) + 1 - size for a, size in enumerate((height, width))]
    before = [max(0, n) + draw(st.integers(0, 3)) for n in need]
    padding = (before[0], draw(st.integers(0, 3)), before[1], draw(st.integers(0, 3)))
    rng = np.random.default_rng(draw(seeds))
    weight_type, code_type = draw(code_types), draw(code_types)
    weight = rng.integers(0, weight_type.count, (groups * outputs, channels, *kernel)).astype(np.uint8)
    x = rng.integers(0, code_type.count, (2, groups * channels, height, width)).astype(np.uint8)
    return p.Conv("conv", (0,), weight, weight_type, stride, padding, dilation, groups), x, code_type


def window_loop(
    v: np.ndarray, y: int, x: int, op: p.MaxPool | p.SumPool | p.Conv, dilation: p.Pair
) -> list[tuple[int, int, int, int]]:
    """(kernel row, kernel column, image row, image column) of every tap inside the image."""
    taps = []
    for i in range(op.kernel[0]):
        for j in range(op.kernel[1]):
            row = y * op.stride[0] - op.padding[0] + i * dilation[0]
            column = x * op.stride[1] - op.padding[2] + j * dilation[1]
            if 0 <= row < v.shape[2] and 0 <= column < v.shape[3]:
                taps.append((i, j, row, column))
    return taps


@examples(60)
@given(convolutions())
def test_convolution_equals_nested_loops(case: tuple[p.Conv, np.ndarray, CodeType]) -> None:
    op, codes, code_type = case
    w, v = op.weight_type.decode(op.weight).tolist(), code_type.decode(codes)
    acc = reference.conv(op, codes, code_type)
    outputs, channels = len(op.weight) // op.groups, op.weight.shape[1]
    assert acc.shape[1:] == op.infer(p.Codes(codes.shape[1:], code_type)).shape
    for n, o, y, x in np.ndindex(acc.shape):
        total = 0
        for i, j, row, column in window_loop(v, y, x, op, op.dilation):
            for c in range(channels):
                total += w[o][c][i][j] * int(v[n, o // outputs * channels + c, row, column])
        assert acc[n, o, y, x] == total


@examples(100)
@given(convolutions())
def test_convolution_equals_torch_in_float64(case: tuple[p.Conv, np.ndarray, CodeType]) -> None:
    torch = pytest.importorskip("torch")
    op, codes, code_type = case
    top, bottom, left, right = op.padding
    x = torch.nn.functional.pad(torch.from_numpy(code_type.decode(codes)).double(), (left, right, top, bottom))
    w = torch.from_numpy(op.values()).double()
    expected = torch.nn.functional.conv2d(x, w, None, op.stride, 0, op.dilation, op.groups)
    np.testing.assert_array_equal(reference.conv(op, codes, code_type), expected.numpy())


@st.composite
def transposed_convolutions(draw: st.DrawFn) -> tuple[p.ConvTranspose, np.ndarray, CodeType]:
    groups, outputs, channels, height, width = (draw(st.integers(1, n)) for n in (3, 3, 3, 5, 5))
    kernel, stride, dilation = draw(windows), draw(windows), draw(windows)
    padding: list[int] = []
    for a, size in enumerate((height, width)):
        full = (size - 1) * stride[a] + dilation[a] * (kernel[a] - 1) + 1
        padding += [
            draw(st.integers(0, (full - 1) // 2)),
            draw(st.integers(1 - max(stride[a], dilation[a]), full // 2)),
        ]
    rng = np.random.default_rng(draw(seeds))
    weight_type, code_type = draw(code_types), draw(code_types)
    weight = rng.integers(0, weight_type.count, (groups * channels, outputs, *kernel)).astype(np.uint8)
    x = rng.integers(0, code_type.count, (2, groups * channels, height, width)).astype(np.uint8)
    op = p.ConvTranspose("up", (0,), weight, weight_type, stride, tuple(padding), dilation, groups)
    return op, x, code_type


@examples(60)
@given(transposed_convolutions())
def test_transposed_convolution_scatters_every_pixel(case: tuple[p.ConvTranspose, np.ndarray, CodeType]) -> None:
    op, codes, code_type = case
    w, v = op.values().tolist(), code_type.decode(codes)
    out = op.infer(p.Codes(codes.shape[1:], code_type))
    expected = np.zeros((len(v), *out.shape), np.int64)
    inputs, per_group = len(w) // op.groups, len(w[0])
    for n, c, y, x in np.ndindex(v.shape):
        for o, i, j in np.ndindex(per_group, *op.kernel):
            row = y * op.stride[0] + i * op.dilation[0] - op.padding[0]
            column = x * op.stride[1] + j * op.dilation[1] - op.padding[2]
            if 0 <= row < out.shape[1] and 0 <= column < out.shape[2]:
                expected[n, c // inputs * per_group + o, row, column] += w[c][o][i][j] * int(v[n, c, y, x])
    np.testing.assert_array_equal(reference.conv_transpose(op, codes, code_type, out.shape[1:]), expected)
    assert reference.conv_transpose(op, codes[:0], code_type, out.shape[1:]).shape == (0, *out.shape)
    assert out.lo <= expected.min() and expected.max() <= out.hi


@examples(60)
@given(transposed_convolutions(), st.tuples(st.integers(0, 2), st.integers(0, 2)))
def test_transposed_convolution_equals_torch_in_float64(
    case: tuple[p.ConvTranspose, np.ndarray, CodeType], extra: p.Pair
) -> None:
    torch = pytest.importorskip("torch")
    op, codes, code_type = case
    top, left = op.padding[0], op.padding[2]
    extra = tuple(min(e, max(op.stride[a], op.dilation[a]) - 1) for a, e in enumerate(extra))  # type: ignore[assignment]
    op = replace(op, padding=(top, top - extra[0], left, left - extra[1]))
    x, w = (torch.from_numpy(a).double() for a in (code_type.decode(codes), op.values()))
    expected = torch.nn.functional.conv_transpose2d(
        x, w, None, op.stride, (top, left), extra, op.groups, op.dilation
    ).numpy()
    got = reference.conv_transpose(op, codes, code_type, op.infer(p.Codes(codes.shape[1:], code_type)).shape[1:])
    np.testing.assert_array_equal(got, expected)


@examples(60)
@given(
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.sampled_from(["nearest", "bilinear"]),
    seeds,
)
def test_upsampling_equals_torch_in_float64(size: p.Pair, factor: p.Pair, mode: str, seed: int) -> None:
    torch = pytest.importorskip("torch")
    v = np.random.default_rng(seed).integers(-99, 99, (2, 3, *size))
    op = p.Upsample("up", (0,), factor, mode)
    x, scale = torch.from_numpy(v).double(), [float(f) for f in factor]
    expected = torch.nn.functional.interpolate(x, scale_factor=scale, mode=mode).numpy()
    unit = 4 * factor[0] * factor[1] if mode == "bilinear" else 1
    got = reference.upsample(op, v)
    np.testing.assert_allclose(got, unit * expected, rtol=0, atol=1e-9)
    out = op.infer(p.Integers((3, *size), -99, 99))
    assert isinstance(out, p.Integers) and out.shape == got.shape[1:]
    assert out.lo <= got.min() and got.max() <= out.hi


def test_concatenation_and_tables_equal_plain_indexing() -> None:
    ops = (
        encode((2, 1, 2), thresholds=np.array([0.5, 1.5, 2.5], f32)),
        p.Concat("cat", (0, 0, 0)),
        p.SumPool("sum", (1,), (1, 1), (1, 1)),
        p.Threshold("swish", (2,), U2, np.array([[1, 2, 3]], i32), np.array([2, 0, 1, 3], u8)),
        p.Upsample("twice", (3,), (2, 1), "bilinear"),
        scale(6, 4, bias=np.zeros(6, f32)),
    )
    x = np.arange(4, dtype=f32).reshape(1, 2, 1, 2)
    y = p.Program(ops, ((6, 2, 2),)).reference(x)
    expected = 8 * np.array([2, 0, 1, 3]).reshape(2, 1, 2).repeat(2, axis=1)
    np.testing.assert_array_equal(y[0], np.concatenate([expected] * 3))


@st.composite
def pools(draw: st.DrawFn) -> tuple[p.Pair, p.Pair, p.Padding, p.Pair, np.ndarray]:
    rng = np.random.default_rng(draw(seeds))
    v = rng.integers(-99, 99, (2, 2, draw(st.integers(1, 7)), draw(st.integers(1, 7))))
    return draw(windows), draw(windows), draw(st.tuples(*[st.integers(0, 4)] * 4)), draw(windows), v


@examples(300)
@given(pools())
def test_max_pool_equals_nested_loops_and_refuses_empty_windows(case: tuple) -> None:  # type: ignore[type-arg]
    kernel, stride, padding, dilation, v = case
    op = p.MaxPool("max", (0,), kernel, stride, padding, dilation)
    try:
        height, width = p.window_size("", v.shape[2:], kernel, stride, padding, dilation)
    except FormatError:
        return
    taps = {(y, x): window_loop(v, y, x, op, dilation) for y in range(height) for x in range(width)}
    if not all(taps.values()):
        with pytest.raises(FormatError, match="only padding"):
            op.infer(p.Integers(v.shape[1:], -99, 99))
        return
    assert op.infer(p.Integers(v.shape[1:], -99, 99)) == p.Integers((2, height, width), -99, 99)
    got = reference.max_pool(op, v)
    for n, c, y, x in np.ndindex(got.shape):
        assert got[n, c, y, x] == max(int(v[n, c, row, column]) for _, _, row, column in taps[y, x])


@examples(100)
@given(pools())
def test_sum_pool_equals_nested_loops(case: tuple) -> None:  # type: ignore[type-arg]
    kernel, stride, padding, _, v = case
    op = p.SumPool("sum", (0,), kernel, stride, padding)
    try:
        shape = op.infer(p.Integers(v.shape[1:], -99, 99)).shape
    except FormatError:
        return
    got = reference.sum_pool(op, v)
    assert got.shape[1:] == shape
    for n, c, y, x in np.ndindex(got.shape):
        taps = window_loop(v, y, x, op, (1, 1))
        assert got[n, c, y, x] == sum(int(v[n, c, row, column]) for _, _, row, column in taps)


def test_max_pool_of_codes_goes_by_value() -> None:
    codes = np.array([0x7F, 0x80, 0xFF, 0x00], np.uint8).reshape(1, 1, 2, 2)  # 127, -128, -1, 0
    ops = (
        encode((1, 2, 2), S8, thresholds=np.arange(-127, 128).astype(np.float32)),
        p.MaxPool("max", (0,), (1, 2), (1, 2)),
        p.SumPool("sum", (1,), (1, 1), (1, 1)),
        scale(1, 2, bias=np.zeros(1, np.float32)),
    )
    y = p.Program(ops, ((1, 2, 1),)).reference(S8.decode(codes).astype(np.float32))
    assert y.reshape(-1).tolist() == [127, 0]


@examples(100)
@given(seed=seeds)
def test_integer_operations_equal_plain_arithmetic(seed: int) -> None:
    rng = np.random.default_rng(seed)
    v, w = rng.integers(-5000, 5000, (2, 2, 3, 2, 2))
    m, s, o = rng.integers(-999, 999, 3), rng.integers(0, 12, 3), rng.integers(-9999, 9999, 3)
    requantize = p.Requantize("r", (0,), m.astype(i32), s.astype(u8), o.astype(i64), -300, 400)
    got = reference.requantize_stream(requantize, v)
    total = reference.add(p.Add("a", (0, 1), -4000, 6000), v, w)
    thresholds = np.sort(rng.integers(-5000, 5000, (3, 3)), axis=1).astype(i32)
    codes = reference.threshold(p.Threshold("t", (0,), U2, thresholds), v)
    factor, bias = rng.normal(size=(2, 3)).astype(f32)
    reals = reference.scale(p.Scale("s", (0,), factor, bias), v)
    for n, c, y, x in np.ndindex(v.shape):
        a = int(v[n, c, y, x])
        half = 2 ** (int(s[c]) - 1) if s[c] else 0
        assert got[n, c, y, x] == min(400, max(-300, (a * int(m[c]) + int(o[c]) + half) // 2 ** int(s[c])))
        assert total[n, c, y, x] == min(6000, max(-4000, a + int(w[n, c, y, x])))
        assert codes[n, c, y, x] == sum(a >= int(t) for t in thresholds[c])
        assert reals[n, c, y, x] == f32(f32(f32(a) * factor[c]) + bias[c])


def test_encoding_by_thresholds_and_by_table() -> None:
    table = np.tile(np.arange(256, dtype=np.uint8) // 64, (2, 1))
    op = encode((2, 1, 4), thresholds=np.array([-1, 0, 2], f32), table=table)
    x = np.array([-1.5, -1.0, 0.0, 2.5], f32).reshape(1, 1, 1, 4).repeat(2, 1)
    assert reference.encode(op, x)[0, 1, 0].tolist() == [0, 1, 2, 3]
    raw = np.array([0, 63, 64, 255], np.uint8).reshape(1, 1, 1, 4).repeat(2, 1)
    assert reference.encode(op, raw)[0, 0, 0].tolist() == [0, 0, 1, 3]


def test_output_rounds_after_each_step() -> None:
    op = p.Scale("s", (0,), np.array([0.1], f32), np.array([1e-9], f32))
    v = np.array([16777217], np.int64).reshape(1, 1, 1, 1)  # 2^24 + 1 is no float32
    assert reference.scale(op, v)[0, 0, 0, 0] == f32(16777216) * f32(0.1) + f32(1e-9)
