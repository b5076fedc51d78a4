"""Winograd's filtering in integers: its ranges, its summands, and 3 x 3 convolutions of all sizes by the engine."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from bitbranch.contract import CodeType
from bitbranch.errors import BitbranchError
from bitbranch.runtime import dot, winograd
from bitbranch.runtime import engine as engine_module
from bitbranch.runtime import program as p

try:
    ISAS = engine_module.instruction_sets()
except BitbranchError:
    pytest.skip("the compiled core is not installed", allow_module_level=True)

CODES = ["u1", "u2", "u3", "u4", "u6", "b1", "b2", "b4", "s3", "t"]
WEIGHTS = ["t", "b1", "b2", "b4", "s3", "s4", "u2"]


def has_narrow_sums(isa: str) -> bool:
    core = engine_module._core()
    return core.dot_has_narrow_sums(core.Machine(isa, 1))


def byte(values: np.ndarray, codes: CodeType) -> np.ndarray:
    return values + dot.zero(codes)


@pytest.mark.parametrize("side", [2, 3])
@pytest.mark.parametrize("codes", CODES)
def test_transformed_codes_fill_their_range(side: int, codes: str) -> None:
    t, n = CodeType.parse(codes), side + 2
    least, most = winograd._range(side, t)
    values = np.unique([*t.decode(np.arange(t.count, dtype=np.uint8)).tolist(), 0])  # of a pad
    b = winograd.PIXELS[side]
    for i, j in product(range(n), repeat=2):
        factor = np.outer(b[i], b[j])
        for bound, patch in (
            (least, np.where(factor > 0, values.min(), values.max())),
            (most, np.where(factor > 0, values.max(), values.min())),
        ):
            assert (factor * patch).sum() == bound[i, j]
    if (most - least).max() <= 255:
        x = np.random.default_rng(0).choice(values, (50, n, n))
        numbers = (b @ byte(x, t) @ b.T + winograd.summands(side, t).reshape(n, n)) % 256
        np.testing.assert_array_equal(numbers, b @ x @ b.T - least)


def convolution(
    codes: str, weights: str, channels: int, outputs: int, size: tuple[int, int], padding: tuple[int, int, int, int]
) -> p.Program:  # fmt: skip
    t, w = CodeType.parse(codes), CodeType.parse(weights)
    rng = np.random.default_rng(channels + outputs)
    encode = p.Encode("input", (), (channels, *size), t, np.linspace(-1.5, 1.5, t.count - 1).astype(np.float32))
    weight = rng.binomial(w.count - 1, 0.5, (outputs, channels, 3, 3)).astype(np.uint8)
    conv = p.Conv("conv", (0,), weight, w, padding=padding)
    values = [encode.infer()]
    values.append(conv.infer(values[0]))
    scale = p.Scale("scale", (1,), np.ones(outputs, np.float32), np.zeros(outputs, np.float32))
    return p.Program((encode, conv, scale), (values[1].shape,))


def test_what_fits_a_byte() -> None:
    def fits(side: int, codes: str, weights: str, code: int | None = None) -> bool:
        """With weights of a type, or with small ones but for one kernel, all of one code."""
        conv = convolution(codes, weights, 3, 40, (4, 4), (1, 1, 1, 1)).operations[1]
        assert isinstance(conv, p.Conv)
        if code is not None:
            weight = np.full(conv.weight.shape, conv.weight_type.count // 2, np.uint8)
            weight[17, 2] = code
            conv = p.Conv("conv", (0,), weight, conv.weight_type)
        return winograd.fits(side, CodeType.parse(codes), conv)

    assert fits(3, "u2", "t") and fits(3, "u3", "t") and not fits(3, "u4", "t")
    assert fits(2, "u4", "t") and fits(2, "u6", "s4") and fits(2, "b4", "b2")
    assert not fits(2, "u2", "s8") and not fits(2, "u8", "t") and not fits(2, "u2", "b8")
    # 9 times 15, and 49 times 3, are beyond a byte; 9 times 13 is not.
    assert (
        fits(2, "b4", "b4", 7)
        and fits(2, "b4", "b4", 14)
        and not fits(2, "b4", "b4", 15)
        and not fits(2, "b4", "b4", 0)
    )
    assert fits(3, "u2", "b2", 2) and not fits(3, "u2", "b2", 3) and not fits(3, "u2", "b2", 0)


@examples(120)
@given(
    st.sampled_from(CODES), st.sampled_from(WEIGHTS), st.sampled_from([1, 3, 16, 32, 33, 64, 70, 130]),
    st.sampled_from([1, 8, 31, 32, 33, 70]), st.tuples(st.integers(1, 16), st.integers(1, 16)),
    st.tuples(*[st.integers(0, 2)] * 4), st.sampled_from([2, 3]), st.sampled_from([1, 1 << 12, 384 << 10]),
    st.integers(1, 3),
)  # fmt: skip
def test_convolutions_of_all_sizes(codes, weights, channels, outputs, size, padding, side, held, images) -> None:
    """Odd sizes, few patches and many, weights of all outputs at once and of 32 after 32, groups that are cut."""
    size = tuple(max(s, 3 - before - after) for s, before, after in zip(size, padding[::2], padding[1::2], strict=True))
    program = convolution(codes, weights, channels, outputs, size, padding)
    x = np.random.default_rng(0).normal(size=(images, *program.input.shape)).astype(np.float32)
    expected, t, w = program.reference(x), CodeType.parse(codes), CodeType.parse(weights)
    fits = winograd.fits(side, t, program.operations[1])
    slow = dot.narrow_quads(t, w) > 0 and winograd.narrow_quads(side, t, w) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "_effort", lambda other, *_: 0.0 if other == side else np.inf)
        patch.setattr(winograd, "MATRICES", ())
        patch.setattr(winograd, "HELD", held)
        for isa in ISAS:
            for threads in (1, 2):
                e = engine_module.Engine(program, threads=threads, isa=isa, path="products")
                np.testing.assert_array_equal(e(x), expected, err_msg=isa)
                np.testing.assert_array_equal(e(x[:1]), expected[:1], err_msg=isa)
                families = {row.family for row in e.profile(x, repeat=1).rows}
                assert any(f.startswith("winograd") for f in families) == (fits and not (has_narrow_sums(isa) and slow))


def test_the_choice() -> None:
    """Large maps with many channels are filtered, with the larger patches if codes leave room; few pixels are not."""

    def choose(codes: str, weights: str, channels: int, size: int, isa: str = "avx512_vnni") -> int:
        program = convolution(codes, weights, channels, 64, (size, size), (1, 1, 1, 1))
        conv, narrow = program.operations[1], isa in ("avx512", "avx2")
        assert isinstance(conv, p.Conv)
        sums = program.values[1]
        assert isinstance(sums, p.Integers)
        side, share = winograd.choose(conv, CodeType.parse(codes), sums, isa, narrow)
        if side:  # what is divided in the end would not fit
            large = p.Integers(sums.shape, 0, -(-(2**31) // winograd.DIVISORS[side]))
            assert winograd.choose(conv, CodeType.parse(codes), large, isa, narrow)[0] != side
        assert (share < winograd.GAIN) == (side > 0)
        return side

    assert choose("u2", "t", 64, 32) == 3 and choose("u4", "t", 64, 32) == 2 and choose("u4", "b4", 64, 32) == 2
    assert choose("u8", "t", 64, 32) == 0 and choose("u2", "t", 64, 3) == 0
    assert choose("u2", "t", 64, 32, "amx") == 0 and choose("u2", "t", 64, 32, "avx512") == 3
    assert choose("u4", "s4", 64, 32) == 2 and choose("u4", "s4", 64, 32, "avx512") == 0  # sums would outgrow 16 bits


def test_sums_that_stay_narrow() -> None:
    def quads(side: int, codes: str, weights: str) -> int:
        return winograd.narrow_quads(side, CodeType.parse(codes), CodeType.parse(weights))

    assert quads(2, "u2", "t") == (2**15 - 1) // (2 * 12 * 9)
    assert quads(3, "u2", "t") == (2**15 - 1) // (2 * 3 * 18 * 18)  # of no plane is 6 * 6 * 3 times 7 * 7
    assert quads(2, "u4", "s4") == 0


@pytest.mark.parametrize("side", [2, 3])
@pytest.mark.parametrize(("channels", "half"), [(303, True), (304, False)])
def test_products_modulo_65536(side: int, channels: int, half: bool) -> None:
    """Outputs at both ends of 14 bits, and a bit beyond, where the products are kept whole."""
    u2, t = CodeType.parse("u2"), CodeType.parse("t")
    encode = p.Encode("input", (), (channels, 7, 7), u2, np.linspace(-1, 1, 3).astype(np.float32))
    weight = np.zeros((40, channels, 3, 3), np.uint8)  # -1
    weight[::2] = 2  # 1
    conv = p.Conv("conv", (0,), weight, t, padding=(1, 1, 1, 1))
    values = [encode.infer()]
    sums = conv.infer(values[0])
    assert (-sums.lo, sums.hi) == (27 * channels, 27 * channels)
    assert winograd.fits_half(side, u2, t, sums, True) == half
    assert winograd.fits_half(side, u2, t, p.Integers(sums.shape, -8192, 8191), True)
    assert not winograd.fits_half(side, u2, t, p.Integers(sums.shape, -8193, 0), False)
    assert not winograd.fits_half(side, u2, t, p.Integers(sums.shape, 0, 8192), False)
    u6, s6, small = CodeType.parse("u6"), CodeType.parse("s6"), p.Integers(sums.shape, 0, 1)
    assert winograd.fits_half(2, u6, s6, small, False)
    assert not winograd.fits_half(2, u6, s6, small, True)  # pairs of products would be cut
    program = p.Program((encode, conv, p.Scale("scale", (1,), *np.ones((2, 40), np.float32))), (sums.shape,))
    x = np.full((2, channels, 7, 7), 9, np.float32)
    x[1, :, 3, 4] = -9
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "_effort", lambda other, *_: 0.0 if other == side else np.inf)
        patch.setattr(winograd, "MATRICES", ())
        for isa in ISAS:
            e = engine_module.Engine(program, isa=isa, path="products")
            np.testing.assert_array_equal(e(x), program.reference(x), err_msg=isa)


def test_a_profile_compares_with_the_products_alone() -> None:
    assert winograd.family_of("winograd2") == ("dot", 16 / 36) and winograd.family_of("dot") is None
    program = convolution("u2", "t", 64, 64, (30, 30), (1, 1, 1, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "_effort", lambda side, *_: 0.0 if side == 3 else np.inf)
        patch.setattr(winograd, "MATRICES", ())
        for isa in ISAS:
            x = np.zeros((1, *program.input.shape), np.float32)
            profile = engine_module.Engine(program, isa=isa, path="products").profile(x, repeat=3)
            row = next(r for r in profile.rows if r.macs)
            assert row.family == winograd.family(3, has_narrow_sums(isa))
            assert row.of_ceiling is not None and row.of_ceiling > 0


def test_patches_read_no_codes_of_another_type() -> None:
    """A value takes over another's memory; of images that are not there, the earlier codes stay behind the last one."""
    rng = np.random.default_rng(0)
    types = [CodeType.parse(t) for t in ("s2", "t", "u2", "s4")]
    shape, pads = (32, 4, 4), (1, 1, 1, 1)
    encode = p.Encode("input", (), shape, types[0], np.linspace(-1, 1, types[0].count - 1).astype(np.float32))
    operations: list[p.Operation] = [encode]
    values: list[p.Value] = [encode.infer()]

    def add(op: p.Operation) -> int:
        operations.append(op)
        values.append(op.infer(*(values[i] for i in op.inputs)))
        return len(values) - 1

    source = 0
    for k in range(6):
        weight = rng.integers(0, 3, (32, 32, 3, 3), dtype=np.uint8)
        sums = add(p.Conv(f"conv{k}", (source,), weight, CodeType.parse("t"), padding=pads))
        t = types[1] if k % 2 == 0 else types[3]  # of one zero, so that they lie alike
        bars = np.sort(rng.integers(-60, 60, (32, t.count - 1)), axis=1).astype(np.int32)
        source = add(p.Threshold(f"codes{k}", (sums,), t, bars))
    weight = rng.integers(0, 3, (32, 32, 3, 3), dtype=np.uint8)
    sums = add(p.Conv("last", (source,), weight, CodeType.parse("t"), padding=pads))
    ones = np.ones(32, np.float32)
    program = p.Program((*operations, p.Scale("scale", (sums,), ones, 0 * ones)), (shape,))
    x = rng.normal(size=(4, *shape)).astype(np.float32)
    expected = program.reference(x)
    for isa in ISAS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(winograd, "_effort", lambda side, *_: 1.0 / side)
            patch.setattr(winograd, "MATRICES", ())
            e = engine_module.Engine(program, isa=isa, path="products")
            for count in (4, 3, 4, 3):
                np.testing.assert_array_equal(e(x[:count]), expected[:count], err_msg=isa)
