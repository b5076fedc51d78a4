"""The laws of the integer contract, against exact fractions and brute force."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from strategies import CODE_TYPES, code_types, seeds

from bitbranch import contract as c
from bitbranch.contract import CodeType, Encoder, Kind
from bitbranch.errors import InputError

reals = st.floats(-1e6, 1e6)


def all_codes(code_type: CodeType) -> np.ndarray:
    return np.arange(code_type.count, dtype=np.uint8)


def published_value(code_type: CodeType, u: int) -> int:
    """The table of the contract, written out."""
    k = code_type.bits
    return {
        Kind.UNSIGNED: u,
        Kind.BIPOLAR: 2 * u - (2**k - 1),
        Kind.TERNARY: u - 1,
        Kind.SIGNED: u - 2**k if u >= 2 ** (k - 1) else u,
    }[code_type.kind]


# Codes.


@pytest.mark.parametrize("code_type", CODE_TYPES, ids=str)
def test_encode_is_the_inverse_of_decode(code_type: CodeType) -> None:
    codes = all_codes(code_type)
    values = code_type.decode(codes)
    assert values.tolist() == [published_value(code_type, u) for u in range(code_type.count)]
    np.testing.assert_array_equal(code_type.encode(values), codes)
    assert (code_type.lo, code_type.hi) == (values.min(), values.max())
    assert code_type.has_zero == (0 in values)


@pytest.mark.parametrize("code_type", CODE_TYPES, ids=str)
def test_rank_orders_the_values(code_type: CodeType) -> None:
    ordered = code_type.decode(code_type.from_rank(np.arange(code_type.count)))
    assert ordered.tolist() == sorted(code_type.decode(all_codes(code_type)).tolist())
    assert (np.diff(ordered) == code_type.step).all()
    np.testing.assert_array_equal(
        code_type.to_rank(code_type.from_rank(np.arange(code_type.count))), all_codes(code_type)
    )


@pytest.mark.parametrize("code_type", CODE_TYPES, ids=str)
def test_values_without_a_code_are_refused(code_type: CodeType) -> None:
    values = set(code_type.decode(all_codes(code_type)).tolist())
    for value in range(-300, 300):
        if value not in values:
            with pytest.raises(InputError):
                code_type.encode([value])


@pytest.mark.parametrize("code_type", CODE_TYPES, ids=str)
def test_negation(code_type: CodeType) -> None:
    for u in range(code_type.count):
        value = published_value(code_type, u)
        if any(published_value(code_type, v) == -value for v in range(code_type.count)):
            assert code_type.decode(code_type.negate([u])) == -value
        else:
            with pytest.raises(InputError):
                code_type.negate([u])


@pytest.mark.parametrize("code_type", CODE_TYPES, ids=str)
def test_a_value_is_the_weighted_sum_of_its_branches(code_type: CodeType) -> None:
    codes = all_codes(code_type)
    weights, constant = c.branch_weights(code_type)
    branches = c.branches(codes, code_type)
    assert set(branches.reshape(-1).tolist()) == {-1, 1}
    for u in range(code_type.count):
        total = sum((w * int(b) for w, b in zip(weights, branches[:, u], strict=True)), constant)
        assert total == published_value(code_type, u)
    if code_type.kind is Kind.BIPOLAR:
        assert weights == [2**m for m in range(code_type.bits)] and constant == 0


@pytest.mark.parametrize("code_type", CODE_TYPES, ids=str)
def test_spelling(code_type: CodeType) -> None:
    assert CodeType.parse(str(code_type)) == code_type


@pytest.mark.parametrize(
    "text", ["", "u", "u0", "u9", "u10", "t2", "t3", "x2", "2u", " u2", "u2 ", "u+2", "u\u0662", "U2", "w2"]
)
def test_other_spellings_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="code type"):
        CodeType.parse(text)


@pytest.mark.parametrize(
    ("kind", "bits"),
    [(Kind.UNSIGNED, 0), (Kind.SIGNED, 9), (Kind.TERNARY, 1), (Kind.TERNARY, 3), ("u", 2), (Kind.BIPOLAR, 1.5)],
)
def test_code_types_that_do_not_exist(kind: Kind, bits: int) -> None:
    with pytest.raises(InputError):
        CodeType(kind, bits)


# Sine encoders are the integer encoder.


def interesting_points(bits: int) -> np.ndarray:
    """Every level, every boundary and the floats next to both, the ends, and random points."""
    n = 2**bits - 1
    grid = np.array([k / n for k in range(-n, n + 1)])
    near = [np.nextafter(grid, side) for side in (-2, 2)]
    random = np.random.default_rng(bits).uniform(-1, 1, 200_000)
    return np.clip(np.concatenate([grid, *near, random, [0.0, -0.0]]), -1, 1)


@pytest.mark.parametrize("bits", range(1, 9))
def test_sine_encoders_equal_the_integer_encoder(bits: int) -> None:
    x = interesting_points(bits)
    encoder = c.bipolar_encoder(bits)
    np.testing.assert_array_equal(c.sine_branches(x, bits), c.branches(encoder.codes(x), encoder.code_type))


def test_the_encoders_of_one_and_two_bits_as_they_are_published() -> None:
    x = np.linspace(-0.999, 0.999, 999)  # no zero of a sine among them
    assert (c.sine_branches(x, 1)[0] == np.sign(np.sin(np.pi * x / 2))).all()
    low, top = c.sine_branches(x, 2)
    assert (top == np.sign(np.sin(3 / 4 * np.pi * x)))[x != 0].all()
    assert (low == np.sign(-np.sin(3 / 2 * np.pi * x)))[x != 0].all()
    assert c.sine_branches(0.0, 4).tolist() == [-1, -1, -1, 1]


# Encoders.


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_bipolar_encoder_rounds_halves_up(bits: int) -> None:
    n = 2**bits - 1
    encoder = c.bipolar_encoder(bits)
    for k in range(-4 * n, 4 * n + 1):  # quarters of a level: boundaries among them
        y = Fraction(k, 4 * n) * 3
        clipped = max(Fraction(-1), min(Fraction(1), y))
        exact = math.floor(n * (clipped + 1) / 2 + Fraction(1, 2))
        assert encoder.codes(float(y)) == exact


@given(code_type=code_types, step=st.floats(1e-3, 1e3), y=reals)
def test_the_uniform_encoder_takes_the_nearest_value(code_type: CodeType, step: float, y: float) -> None:
    values = [v * step for v in sorted(code_type.decode(all_codes(code_type)).tolist())]
    chosen = code_type.decode(c.uniform_encoder(code_type, step).codes(y)) * step
    assert abs(chosen - y) <= min(abs(v - y) for v in values) * (1 + 1e-12) + 1e-12 * step


def test_the_sparse_encoder_is_open() -> None:
    encoder = c.sparse_encoder(2, eps=0.32, step=0.6487)
    edges = [0.32, 1.5 * 0.6487, 2.5 * 0.6487]
    assert encoder.codes([-1.0, 0.0, *edges]).tolist() == [0, 0, 0, 1, 2]
    assert encoder.codes(np.nextafter(edges, 9)).tolist() == [1, 2, 3]
    assert c.sparse_encoder(3, eps=2.0, step=1.0).codes([2.0, 2.1, 2.6]).tolist() == [0, 2, 3]


@given(
    st.lists(st.floats(-1e30, 1e30), min_size=3, max_size=3),
    st.booleans(),
    st.lists(st.floats(width=32, allow_nan=False), max_size=5),
)
@example([1e300, 1e300, 1e300], True, [3e38, np.inf])
@example([-1e300, 0.0, 1e-60], False, [-3e38, -np.inf, 0.0, 1e-45])
def test_float32_thresholds_decide_as_the_real_ones(thresholds: list[float], closed: bool, y: list[float]) -> None:
    encoder = Encoder(CodeType(Kind.UNSIGNED, 2), tuple(sorted(thresholds)), closed)
    t32 = encoder.float32_thresholds()
    with np.errstate(over="ignore"):
        near = [np.nextafter(t32, np.float32(side)) for side in (-np.inf, np.inf)]
    for value in np.concatenate([t32, *near, np.array(y, np.float32)]):
        exact = [float(value) >= t if closed else float(value) > t for t in encoder.thresholds]
        assert (value >= t32).tolist() == exact


@pytest.mark.parametrize("thresholds", [(), (1.0,), (1.0, 0.0, 2.0), (0.0, 1.0, np.inf), (np.nan, 1.0, 2.0)])
def test_bad_encoders_are_refused(thresholds: tuple[float, ...]) -> None:
    with pytest.raises(InputError):
        Encoder(CodeType(Kind.UNSIGNED, 2), thresholds)
    for step in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(InputError):
            c.uniform_encoder(CodeType(Kind.UNSIGNED, 2), step)


# Folding.


def exact_rank(a: float, b: float, acc: int, encoder: Encoder, clip: tuple[float, float]) -> int:
    """``rank(clip(a * acc + b))`` in fractions."""
    y = Fraction(a) * acc + Fraction(b)
    for bound, choose in ((clip[0], max), (clip[1], min)):
        y = choose(y, Fraction(bound)) if math.isfinite(bound) else y
    return sum(y >= Fraction(t) if encoder.closed else y > Fraction(t) for t in encoder.thresholds)


def check_folding(
    slopes: list[float], intercepts: list[float], encoder: Encoder, bound: int, clip: tuple[float, float]
) -> None:
    """The integer thresholds against every accumulator in ``-bound .. bound + 3``."""
    lo = np.array([-bound if a >= 0 else -bound - 3 for a in slopes])
    hi = np.array([bound + 3 if a >= 0 else bound for a in slopes])
    folded = c.fold_thresholds(slopes, intercepts, encoder, lo, hi, clip)
    assert folded.shape == (len(slopes), len(encoder.thresholds))
    assert (np.diff(folded) >= 0).all() and (folded >= lo[:, None]).all() and (folded <= hi[:, None] + 1).all()
    for a, b, row in zip(slopes, intercepts, folded, strict=True):
        for acc in range(-bound, bound + 4):
            seen = -acc if a < 0 else acc
            assert int((seen >= row).sum()) == exact_rank(a, b, acc, encoder, clip), (a, b, acc)


slopes = st.one_of(st.floats(-3, 3), st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.1, -0.1, 1 / 3, 1e-300, -5e-324, 1e300]))
clips = st.sampled_from([(-np.inf, np.inf), (0.0, np.inf), (-1.0, 1.0), (0.0, 1.0), (0.25, 0.75), (-np.inf, 6.0)])


@st.composite
def encoders(draw: st.DrawFn) -> Encoder:
    thresholds = draw(st.lists(st.one_of(st.floats(-20, 20), st.integers(-20, 20).map(float)), min_size=3, max_size=3))
    return Encoder(CodeType(Kind.UNSIGNED, 2), tuple(sorted(thresholds)), draw(st.booleans()))


@settings(deadline=None)
@given(st.lists(slopes, min_size=1, max_size=3), st.floats(-20, 20), encoders(), clips)
def test_folding_equals_brute_force(slopes: list[float], b: float, encoder: Encoder, clip: tuple[float, float]) -> None:
    check_folding(slopes, [b] * len(slopes), encoder, 25, clip)


@settings(deadline=None)
@given(
    a=slopes,
    b=st.floats(-2, 2),
    points=st.lists(st.integers(-25, 25), min_size=3, max_size=3),
    closed=st.booleans(),
    nudge=st.integers(-1, 1),
)
def test_folding_decides_ties_exactly(a: float, b: float, points: list[int], closed: bool, nudge: int) -> None:
    """Thresholds that the float value of ``a * k + b`` hits, and the floats next to it: only fractions decide."""
    with np.errstate(all="ignore"):
        hit = np.sort(np.array([a * k + b for k in points]))
        hit = np.nextafter(hit, nudge * np.inf) if nudge else hit
    assume(np.isfinite(hit).all())
    check_folding(
        [a, -a], [b, b], Encoder(CodeType(Kind.UNSIGNED, 2), tuple(hit.tolist()), closed), 25, (-np.inf, np.inf)
    )


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("a", [1.0, -1.0, 0.5, 2.0**-40, 3.0, -7.0])
def test_folding_of_exact_ties(a: float, closed: bool) -> None:
    encoder = Encoder(CodeType(Kind.UNSIGNED, 2), tuple(sorted(a * k + 0.5 for k in (-3, 0, 4))), closed)
    check_folding([a], [0.5], encoder, 9, (-np.inf, np.inf))


def test_folding_near_the_largest_accumulators() -> None:
    top = c.ACCUMULATOR_MAX
    encoder = Encoder(CodeType(Kind.UNSIGNED, 1), (0.1 * (top - 1),))
    (folded,) = c.fold_thresholds([0.1], [0.0], encoder, [-top], [top])
    exact = Fraction(0.1 * (top - 1)) / Fraction(0.1)
    assert folded == math.ceil(exact)
    (never,) = c.fold_thresholds([0.1], [-1e12], encoder, [-top], [top])
    assert never == top + 1 and never <= np.iinfo(np.int32).max


def test_folding_refuses_what_is_not_finite() -> None:
    encoder = c.bipolar_encoder(1)
    for a, b in ((np.nan, 0), (np.inf, 0), (0, np.nan), (1, -np.inf)):
        with pytest.raises(InputError, match="finite"):
            c.fold_thresholds([a], [b], encoder, [-1], [1])


# Rescaling.


def half_up(x: Fraction) -> int:
    return math.floor(x + Fraction(1, 2))


@given(
    m=st.integers(-(2**31) + 1, 2**31 - 1),
    s=st.integers(0, 61),
    o=st.integers(-(2**61), 2**61),
    acc=st.integers(-(2**31) + 2, 2**31 - 2),
)
@example(m=1, s=1, o=0, acc=-1)
@example(m=1, s=1, o=0, acc=1)
@example(m=2**31 - 1, s=61, o=2**61, acc=2**31 - 2)
@example(m=2**31 - 1, s=0, o=-(2**61), acc=-(2**31) + 2)
def test_requantize_rounds_halves_up(m: int, s: int, o: int, acc: int) -> None:
    got = c.requantize([acc], np.array([m]), np.array([s]), np.array([o]), -(2**31), 2**31)
    assert got == max(-(2**31), min(2**31, half_up(Fraction(acc * m + o, 2**s))))


@given(ratio=st.floats(-(2.0**29), 2.0**29), bound=st.integers(0, c.ACCUMULATOR_MAX))
def test_fixed_point_is_as_near_as_its_bits_allow(ratio: float, bound: int) -> None:
    (m,), (s,) = (v.tolist() for v in c.fixed_point([ratio], [bound]))
    assert 0 <= s <= 61 and abs(m) <= 2**30 and abs(m) * bound < 2**62
    error = abs(Fraction(m, 2**s) - Fraction(ratio))
    assert error <= max(Fraction(abs(ratio)) / 2**30, Fraction(1, 2**62))


@pytest.mark.parametrize(("ratio", "bound"), [(np.nan, 1), (np.inf, 1), (2.0**31, 1), (1.0, 2**33)])
def test_ratios_that_do_not_fit_are_refused(ratio: float, bound: int) -> None:
    with pytest.raises(InputError, match="ratio"):
        c.fixed_point([ratio], [bound])


# Bounds.


@settings(deadline=None)
@given(weight_type=code_types, code_type=st.sampled_from([t for t in CODE_TYPES if t.bits <= 2]), seed=seeds)
def test_bounds_are_reached(weight_type: CodeType, code_type: CodeType, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, weight_type.count, (2, 3)).astype(np.uint8)
    weights = weight_type.decode(codes)
    values = code_type.decode(all_codes(code_type)).tolist()
    sums = np.array([weights @ x for x in itertools.product(values, repeat=3)])
    lo, hi = c.accumulator_bounds(weights, code_type)
    assert lo.tolist() == sums.min(0).tolist() and hi.tolist() == sums.max(0).tolist()
    if 0 not in values:  # padding replaces values by 0, which stays inside
        assert (lo <= 0).all() and (hi >= 0).all()


@pytest.mark.parametrize("code_type", CODE_TYPES, ids=str)
def test_narrow_values_and_their_sums_equal_wide_ones(code_type: CodeType) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, code_type.count, (5, 3, 7)).astype(np.uint8)
    codes[0] = code_type.from_rank(0)  # every weight the smallest value, as -128
    codes[1] = code_type.from_rank(code_type.count - 1)
    narrow, wide = code_type.decode(codes, code_type.dtype), code_type.decode(codes)
    assert wide.dtype == np.int32 and narrow.dtype == code_type.dtype and np.array_equal(narrow, wide)
    for sums, expected in zip(c.weight_sums(narrow), (wide, abs(wide)), strict=True):
        assert sums.dtype == np.int64 and np.array_equal(sums, expected.sum((1, 2)))
