"""Activation curves: their exact values, and their tables against the encoder of every integer."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds

from bitbranch import CompileError
from bitbranch.compiler import functions
from bitbranch.compiler import graph as g
from bitbranch.compiler.curves import Curved
from bitbranch.contract import CodeType, Encoder, bipolar_encoder, sparse_encoder, uniform_encoder

FUNCTIONS = [
    functions.leaky_relu(0.01), functions.leaky_relu(-0.3), functions.hardswish(), functions.sigmoid(),
    functions.tanh(), functions.silu(), functions.elu(1.0), functions.elu(1.6732632423543772, 1.0507009873554805),
]  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.name)
def test_exact_and_float_values_agree(function: functions.Function) -> None:
    y = np.r_[np.linspace(-40, 40, 801), -1000.0, 1000.0]
    exact = np.array([float(function.exact(Fraction(v))) for v in y])
    np.testing.assert_allclose(function.real(y), exact, rtol=1e-14, atol=1e-17)
    valley = -np.inf if function.valley is None else float(function.valley)
    inner = y[:801]
    steps = np.diff(exact[:801])
    assert (steps[inner[:-1] >= valley] >= 0).all() and (steps[inner[1:] <= valley] <= 0).all()
    assert np.abs(steps).max() <= function.steepness * 0.1 * (1 + 1e-12)


def test_the_valley_of_silu_is_where_its_derivative_is_zero() -> None:
    y = functions.silu().valley
    assert y is not None
    exp = functions._exponential(y)
    assert abs(exp + 1 + y) < Fraction(1, 10**40)


ENCODERS = [
    bipolar_encoder(1), bipolar_encoder(2), bipolar_encoder(4),
    sparse_encoder(2, 0.0, 0.54), sparse_encoder(2, 0.3, 0.6),
    uniform_encoder(CodeType.parse("s4"), 0.11), uniform_encoder(CodeType.parse("u3"), 0.25),
    Encoder(CodeType.parse("t"), (-0.2, 0.0)), uniform_encoder(CodeType.parse("s8"), 0.03),
]  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(
    seed=seeds,
    function=st.sampled_from(FUNCTIONS),
    encoder=st.sampled_from(ENCODERS),
    behind=st.sampled_from([-1, 0, 1]),
)
def test_tables_give_the_code_of_every_integer(
    seed: int, function: functions.Function, encoder: Encoder, behind: int
) -> None:
    """``behind``: the sign of the slopes behind a rising function, 0 for the function itself."""
    rng = np.random.default_rng(seed)
    channels, lo, hi = 4, -150, 170
    slope = rng.choice([0.0, 0.01, 0.04, 1 / 32, 0.5], channels)
    intercept = rng.choice([0.0, -0.5, 0.25, 1.0], channels)
    floor, ceiling = rng.choice([-np.inf, 0.0, -2.5]), rng.choice([np.inf, 6.0])
    limits = np.full(channels, floor), np.full(channels, ceiling)
    curved = Curved.of(g.Curve("act", (0,), function), None, channels)
    if behind:
        signs = behind if function.valley is None else rng.choice([-1, 0, 1], channels)
        gain = signs * rng.uniform(0.5, 2, channels)
        curved = curved.then(g.Affine("bn", (0,), gain, rng.normal(size=channels)))
        curved = curved.then(g.Clip("clip", (0,), np.full(channels, -0.7), np.full(channels, 1.5)))
        if function.valley is None:
            slope = slope * behind  # as the compiler turns the channels
    try:
        thresholds, table = curved.thresholds(slope, intercept, limits, encoder, lo, hi)
    except CompileError as error:
        assert "more than 256" in str(error) and encoder.code_type.bits == 8
        return
    v = np.arange(lo, hi + 1)
    y = np.clip(slope[:, None] * v + intercept[:, None], limits[0][:, None], limits[1][:, None])
    real = curved.slope[:, None] * function.real(y) + curved.intercept[:, None]
    expected = encoder.rank(np.clip(real, curved.lo[:, None], curved.hi[:, None]))
    assert (np.diff(thresholds, axis=1) >= 0).all()
    interval = (v[None, None] >= thresholds[:, :, None]).sum(1)
    got = interval if table is None else table[interval]
    near = np.abs(real[:, :, None] - np.asarray(encoder.thresholds)).min(2) < 1e-12  # float64 decides nothing here
    np.testing.assert_array_equal(got[~near], expected[~near])
    if behind:
        return
    for c, k in np.argwhere(near):
        exact = Fraction(float(slope[c])) * int(v[k]) + Fraction(float(intercept[c]))
        exact = Fraction(float(floor)) if exact < floor else Fraction(float(ceiling)) if exact > ceiling else exact
        z = function.exact(exact)
        passed = [z >= Fraction(t) if encoder.closed else z > Fraction(t) for t in encoder.thresholds]
        assert got[c, k] == sum(passed)


def test_a_tie_is_decided_by_exact_arithmetic() -> None:
    """0.1 as a float is a little more than a tenth, so that 0.1 * -3 is below -0.3 as the rational that it is."""
    encoder = Encoder(CodeType.parse("b1"), (-0.1 * 3,))
    curved = Curved.of(g.Curve("act", (0,), functions.leaky_relu(0.1)), None, 1)
    infinite = np.full(1, np.inf)
    thresholds, table = curved.thresholds(np.ones(1), np.zeros(1), (-infinite, infinite), encoder, -10, 10)
    exactly = [Fraction(0.1) * v >= Fraction(-0.1 * 3) for v in range(-10, 1)]
    assert table is None and thresholds.tolist() == [[-10 + exactly.index(True)]]


def test_more_intervals_than_a_table_has_are_refused() -> None:
    encoder = uniform_encoder(CodeType.parse("s8"), 0.003)
    curved = Curved.of(g.Curve("act", (0,), functions.hardswish()), None, 1)
    infinite = np.full(1, np.inf)
    with pytest.raises(CompileError, match=r"'act': hardswish takes 379 intervals .* more than 256; use fewer bits"):
        curved.thresholds(np.full(1, 1e-4), np.zeros(1), (-infinite, infinite), encoder, -40_000, 40_000)
