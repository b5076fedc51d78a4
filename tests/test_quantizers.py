"""Quantizers against closed forms, brute force, published constants and gradients taken by other means."""

from __future__ import annotations

import copy
import doctest
import itertools
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitbranch.contract import Encoder, Kind
from bitbranch.errors import InputError
from bitbranch.quantizers import passes, registry
from bitbranch.quantizers.base import ActivationQuantizer, WeightQuantizer, float32, per_output
from bitbranch.quantizers.bwn import BinaryWeight, binary
from bitbranch.quantizers.hwgq import HalfWaveActivation, half_wave
from bitbranch.quantizers.lloyd import LloydActivation
from bitbranch.quantizers.lsq import LearnedStepActivation, LearnedStepWeight, learned_step
from bitbranch.quantizers.mbn import BipolarActivation, BipolarWeight, bipolar, cosine_slope, gaussian_scale
from bitbranch.quantizers.registry import METHODS, Scheme, mbn, parse_scheme, tsq
from bitbranch.quantizers.tsq import (
    LearnedTernaryWeight,
    SparseActivation,
    TernaryWeight,
    dead_zone,
    optimal_ternary,
    solve_step,
    sparse,
)
from bitbranch.quantizers.uniform import UniformActivation, UniformWeight

ACTIVATIONS = [
    *(lambda b=b, c=c: BipolarActivation(b, clip=c) for b in range(1, 9) for c in ("htanh", "hrelu-affine")),
    *(lambda b=b: BipolarActivation(b, clip="hrelu") for b in range(2, 9)),
    *(lambda b=b, s=s: SparseActivation(b, sparsity=s) for b in (1, 2, 3, 4, 8) for s in (0.5, 0.625, 0.9)),
    *(lambda b=b: HalfWaveActivation(b) for b in (1, 2, 4)),
    *(lambda b=b, s=s: LearnedStepActivation(b, signed=s) for b in (2, 4, 8) for s in (False, True)),
    *(lambda b=b, s=s: UniformActivation(b, signed=s) for b in (2, 4, 8) for s in (False, True)),
    *(lambda make=make: make(1, signed=False) for make in (LearnedStepActivation, UniformActivation)),
]
WEIGHTS = [
    *(lambda b=b, f=f: BipolarWeight(b, fixed_range=f) for b in range(1, 9) for f in (False, True)),
    *(lambda b=b: UniformWeight(b) for b in range(2, 9)),
    *(lambda b=b, c=c: LearnedStepWeight(b, per_channel=c) for b in range(2, 9) for c in (False, True)),
    LearnedTernaryWeight,
    TernaryWeight,
    BinaryWeight,
]


def reals(n: int = 4000, spread: float = 1.0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(0)) * spread


def rank_by_counting(encoder: Encoder, x: torch.Tensor) -> np.ndarray:
    """The definition of a rank, one threshold at a time, in float64."""
    y, passes = x.double().numpy(), np.greater_equal if encoder.closed else np.greater
    return sum((passes(y, t).astype(int) for t in encoder.thresholds), np.zeros(y.shape, int))


# Every quantizer


@pytest.mark.parametrize("make", ACTIVATIONS)
def test_activations_train_on_the_levels_that_they_evaluate_to(make: type[ActivationQuantizer]) -> None:
    quantizer, x = make(), reals()
    trained = quantizer(x).detach()
    quantizer.eval()
    torch.testing.assert_close(trained, quantizer(x), rtol=0, atol=0)
    assert quantizer.scale() == float32(quantizer.scale())
    values = quantizer.values(x)
    t = quantizer.code_type
    np.testing.assert_array_equal(values.numpy(), t.lo + t.step * rank_by_counting(quantizer.encoder(), x))
    np.testing.assert_array_equal(t.decode(quantizer.encoder().codes(x.numpy())), values.numpy())


@pytest.mark.parametrize("make", ACTIVATIONS)
def test_activation_values_are_exact_at_the_thresholds(make: type[ActivationQuantizer]) -> None:
    quantizer = make()
    quantizer(reals())
    encoder = quantizer.encoder()
    t64 = torch.tensor([t for t in encoder.thresholds if abs(t) < 1e30], dtype=torch.float64)
    inf = torch.tensor(math.inf, dtype=torch.float64)
    ties = torch.cat([t64, torch.nextafter(t64, inf), torch.nextafter(t64, -inf)])
    t32 = t64.float()
    ties32 = torch.cat([t32, torch.nextafter(t32, inf.float()), torch.nextafter(t32, -inf.float())])
    for x in (ties, ties32):
        expected = encoder.code_type.lo + encoder.code_type.step * rank_by_counting(encoder, x)
        np.testing.assert_array_equal(quantizer.values(x).numpy(), expected)


@pytest.mark.parametrize("make", WEIGHTS)
def test_weights_train_on_the_levels_that_they_evaluate_to(make: type[WeightQuantizer]) -> None:
    quantizer, w = make(), reals(6 * 5 * 9, 0.3).view(6, 5, 3, 3)
    trained = quantizer(w).detach()
    quantizer.eval()
    torch.testing.assert_close(trained, quantizer(w), rtol=0, atol=0)
    values, scale = quantizer.integers(w)
    assert values.dtype == w.dtype and scale.shape == (6,)
    torch.testing.assert_close(trained, values * per_output(scale, w), rtol=0, atol=0)
    t = quantizer.code_type
    t.negate(t.encode(values.numpy()))  # all values are the type's, and a channel can be negated
    values64, scale64 = quantizer.double().integers(w.double())
    assert torch.equal(values64.float(), values) and torch.equal(scale64, scale.double())


@pytest.mark.parametrize("make", WEIGHTS)
def test_rows_of_zeros_give_finite_weights(make: type[WeightQuantizer]) -> None:
    quantizer, w = make(), reals(4 * 7).view(4, 7)
    w[1] = 0
    w.requires_grad_()
    out = quantizer(w)
    out.sum().backward()
    assert w.grad is not None and torch.isfinite(out).all() and torch.isfinite(w.grad).all()
    values, scale = quantizer.integers(w)
    quantizer.code_type.encode(values.numpy())
    assert torch.isfinite(scale).all()


@pytest.mark.parametrize("scheme", ["mbn:w2-a2", "tsq:wt-a2", "lsq:w3-a3", "w8a8", "hwgq:w1-a2"])
def test_quantizers_survive_state_dict_and_deepcopy(scheme: str) -> None:
    parsed, w, x = parse_scheme(scheme), reals(40, 0.1).view(4, 10), reals()
    weight, activation = parsed.weight(), parsed.activation()
    assert weight is not None and activation is not None
    weight(w), activation(x)
    fresh_weight, fresh_activation = parsed.weight(), parsed.activation()
    assert fresh_weight is not None and fresh_activation is not None
    fresh_weight.load_state_dict(weight.state_dict())
    fresh_activation.load_state_dict(activation.state_dict())
    for other_weight, other in (
        (fresh_weight, fresh_activation),
        (copy.deepcopy(weight), copy.deepcopy(activation).double()),
    ):
        assert torch.equal(other.values(x), activation.values(x)) and other.scale() == activation.scale()
        assert other.code_type == activation.code_type
        assert all(torch.equal(a, b) for a, b in zip(other_weight.integers(w), weight.integers(w), strict=True))


# MBN


@pytest.mark.parametrize("bits", range(1, 9))
def test_bipolar_levels_are_the_published_formula(bits: int) -> None:
    n, x = 2**bits - 1, reals().double()
    published = 2 * (np.floor(n * (x.clamp(-1, 1).numpy() + 1) / 2 + 0.5) / n - 0.5)
    np.testing.assert_allclose(bipolar(x, bits), published, rtol=1e-6)
    unit = x.clamp(0, 1).numpy()
    affine = (2 * (np.floor(n * unit + 0.5) / n - 0.5) + 1) / 2
    np.testing.assert_allclose(bipolar(x, bits, clip="hrelu-affine"), affine, rtol=1e-6, atol=1e-12)


def test_bipolar_sign_of_zero_is_plus_one() -> None:
    assert bipolar(torch.tensor([0.0, -0.0]), 1).tolist() == [1, 1]
    assert BipolarActivation(1).values(torch.tensor([0.0, -0.0])).tolist() == [1, 1]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_faithful_hrelu_uses_the_upper_half_of_the_levels(bits: int) -> None:
    quantizer = BipolarActivation(bits, clip="hrelu")
    values = quantizer.values(torch.tensor([-1e30, -5.0, -0.1, 0.0, *np.linspace(0, 2, 100)], dtype=torch.float32))
    assert sorted(set(values.tolist())) == list(range(1, 2**bits, 2))
    assert values[:4].tolist() == [1] * 4


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("clip", ["htanh", "hrelu", "hrelu-affine"])
def test_cosine_gradient_is_that_of_the_sines(bits: int, clip: str) -> None:
    if clip == "hrelu" and bits == 1:
        pytest.skip("a constant, refused")
    n = 2**bits - 1
    x = (reals(500).double() * 0.8).requires_grad_()
    bipolar(x, bits, clip=clip, gradient="cosine").sum().backward()  # type: ignore[arg-type]

    smooth_x = x.detach().clone().requires_grad_()
    at = 2 * smooth_x - 1 if clip == "hrelu-affine" else smooth_x
    branches = [-torch.sin(n / 2**m * math.pi * at) for m in range(1, bits)]
    branches.append(torch.sin(n / 2**bits * math.pi * at))
    smooth = sum(2**i * branch for i, branch in enumerate(branches)) / n
    ((smooth + 1) / 2 if clip == "hrelu-affine" else smooth).sum().backward()
    assert x.grad is not None and smooth_x.grad is not None
    inside = (x.detach() >= (-1 if clip == "htanh" else 0)) & (x.detach() <= 1)
    torch.testing.assert_close(x.grad, smooth_x.grad * inside)


def test_cosine_slope_of_two_bits_by_hand() -> None:
    at = torch.tensor([0.0, 2 / 3, 1.0], dtype=torch.float64)
    by_hand = [0.0, math.pi / 2 * (0 - math.cos(math.pi)), math.pi / 2 * (math.cos(0.75 * math.pi) - 0)]
    torch.testing.assert_close(cosine_slope(at, 2), torch.tensor(by_hand, dtype=torch.float64))


def test_straight_through_gradient_of_the_clips() -> None:
    x = torch.tensor([-1.5, -1.0, -0.2, 0.0, 0.7, 1.0, 1.1], requires_grad=True)
    for clip, expected in (("htanh", [0, 1, 1, 1, 1, 1, 0]), ("hrelu", [0, 0, 0, 1, 1, 1, 0])):
        (gradient,) = torch.autograd.grad(bipolar(x, 2, clip=clip).sum(), x)  # type: ignore[arg-type]
        assert gradient.tolist() == expected


def test_gaussian_scales_are_max_1960_and_minimal() -> None:
    table = {1: 1.596, 2: 0.9957, 3: 0.5860, 4: 0.3352, 5: 0.1881}
    for bits, step in table.items():
        assert round(2 * gaussian_scale(bits), 4 if bits > 1 else 3) == step

    x = (np.arange(400_000) + 0.5) / 400_000 * 8  # positive half, by symmetry
    density = np.exp(-(x**2) / 2)

    def error(bits: int, scale: float) -> float:
        level = np.minimum(2 * np.floor(x / (2 * scale)) + 1, 2**bits - 1) * scale
        return float(((x - level) ** 2 * density).sum())

    for bits in range(1, 7):
        best = gaussian_scale(bits)
        assert error(bits, best) < min(error(bits, best * 0.995), error(bits, best * 1.005))


def test_bipolar_weights_of_one_bit_are_binary_weights() -> None:
    w = reals(60).view(5, 12)
    for a, b in zip(BipolarWeight(1).integers(w), BinaryWeight().integers(w), strict=True):
        assert torch.equal(a, b)


def test_bipolar_weight_range() -> None:
    fixed, w = BipolarWeight(2, fixed_range=True), torch.tensor([[-1.7, -0.5, 0.0, 0.9, 1.2]])
    assert fixed.integers(w)[0].tolist() == [[-3, -1, 1, 3, 3]]
    assert fixed.integers(w)[1].tolist() == [float32(1 / 3)]
    fixed.project(w)
    assert w.tolist() == [[-1, -0.5, 0, pytest.approx(0.9), 1]]

    scaled = BipolarWeight(2)
    w = reals(1000, 0.1).view(1, -1).requires_grad_()
    scaled(w).sum().backward()
    reach = 4 * scaled.integers(w)[1].item()  # one cell beyond the level 3 s
    assert w.grad is not None
    assert torch.equal(w.grad[0], (w.detach()[0].abs() <= reach).float())
    before = w.detach().clone()
    scaled.project(w)
    assert torch.equal(w, before)


def test_htanh_warns_of_a_relu_in_front() -> None:
    quantizer = BipolarActivation(2)
    with pytest.warns(UserWarning, match="ReLU in front"):
        quantizer(reals().relu())
    quantizer(reals().relu())  # said once


# TSQ


@pytest.mark.parametrize(
    ("sparsity", "eps", "step"),
    [
        (0.5, 0, 0.5388),
        (0.5625, 0.1573, 0.5906),
        (0.625, 0.3186, 0.6483),
        (0.6875, 0.4888, 0.7136),
        (0.75, 0.6745, 0.7868),
    ],
)
def test_sparse_constants_are_the_published_ones(sparsity: float, eps: float, step: float) -> None:
    assert round(dead_zone(sparsity), 4) == eps
    assert round(solve_step(dead_zone(sparsity), 2), 4) == step
    quantizer = SparseActivation(2, sparsity=sparsity)
    assert (quantizer.eps, round(quantizer.scale(), 4)) == (float32(dead_zone(sparsity)), step)


def test_authors_constants_can_be_given() -> None:
    quantizer = SparseActivation(2, eps=0.32, step=0.6487)
    assert quantizer.encoder().thresholds == (float32(0.32), 1.5 * float32(0.6487), 2.5 * float32(0.6487))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("sparsity", [0.5, 0.625, 0.75, 0.9, 0.97])
def test_sparse_step_is_the_global_minimum(bits: int, sparsity: float) -> None:
    eps, n = dead_zone(sparsity), 2**bits - 1
    x = eps + (np.arange(20_000) + 0.5) / 20_000 * 7
    density = np.exp(-(x**2) / 2)

    def error(step: float) -> float:
        return float(((np.clip(np.ceil(x / step - 0.5), 1, n) * step - x) ** 2 * density).sum())

    scanned = min(error(s) for s in np.geomspace(eps + 0.3, eps + 8, 400) / n)
    assert error(solve_step(eps, bits)) <= scanned * (1 + 1e-3)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_levels_in_the_dead_zone_are_never_used(bits: int) -> None:
    quantizer = SparseActivation(bits, sparsity=0.9)
    values = quantizer.values(torch.linspace(-1, 6, 50_000))
    used = set(values.tolist())
    swallowed = [k for k in range(1, 2**bits) if (k + 0.5) * quantizer.scale() <= quantizer.eps]
    assert swallowed and not used & set(swallowed)
    assert used == set(range(2**bits)) - set(swallowed)


def test_sparse_gradients() -> None:
    step = 0.5
    x = torch.tensor([-0.1, 0.0, 0.1, 0.4, 1.49, 1.5, 1.6], requires_grad=True)
    (gradient,) = torch.autograd.grad(sparse(x, 2, 0.3, step).sum(), x)
    assert gradient.tolist() == [0, 0, 1, 1, 1, 0, 0]
    (gradient,) = torch.autograd.grad(half_wave(x, 2, step).sum(), x)
    assert gradient.tolist() == [0, 0, 1, 1, 1, 1, 0]


def test_half_wave_is_the_sparse_case_without_a_dead_zone() -> None:
    assert HalfWaveActivation(2).encoder() == SparseActivation(2, sparsity=0.5).encoder()
    assert HalfWaveActivation(2).encoder().thresholds[0] == 0


def test_sparsity_of_a_gaussian() -> None:
    x = reals(200_000)
    for sparsity in (0.5, 0.625, 0.75):
        zeros = (SparseActivation(2, sparsity=sparsity).values(x) == 0).float().mean().item()
        assert zeros == pytest.approx(sparsity, abs=0.005)


def brute_force_ternary(w: np.ndarray) -> float:
    """Least ``|| w - alpha t ||^2`` over all supports; the signs of the support are those of ``w``."""
    best = float((w**2).sum())
    for support in itertools.product((False, True), repeat=len(w)):
        if any(support):
            part = np.abs(w[list(support)])
            best = min(best, float((w**2).sum() - part.sum() ** 2 / len(part)))
    return best


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=12))
def test_optimal_ternary_against_all_supports(row: list[float]) -> None:
    w = np.array(row, np.float64)
    t, alpha = optimal_ternary(torch.tensor([row], dtype=torch.float64))
    assert set(t[0].tolist()) <= {-1.0, 0.0, 1.0}
    error = float(((w - alpha.item() * t[0].numpy()) ** 2).sum())
    assert error <= brute_force_ternary(w) + 1e-6 * (1 + float((w**2).sum()))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=300),
    st.floats(2**-60, 2**60, width=32),
)
def test_ternary_rows_come_back_bit_for_bit(row: list[float], alpha: float) -> None:
    t = torch.tensor([row, [0.0] * len(row)])
    scale = torch.tensor([alpha, 1.0])
    found_t, found_alpha = TernaryWeight().integers(t * scale[:, None])
    assert torch.equal(found_t, t)
    assert found_alpha.tolist() == [scale[0].item() if any(row) else 0.0, 0.0]
    if all(row):
        found_t, found_alpha = binary(t[:1] * scale[0])
        assert torch.equal(found_t, t[:1]) and found_alpha.item() == scale[0].item()


def test_ternary_of_a_negative_scale_turns_both_signs() -> None:
    t, alpha = optimal_ternary(torch.tensor([[1.0, 0.0, -1.0]]) * -0.3)
    assert t.tolist() == [[-1, 0, 1]] and alpha.tolist() == [float32(0.3)]


# Uniform, LSQ


def test_lsq_gradients_by_the_formula() -> None:
    x = torch.tensor([[-3.0, -0.6, 0.2, 0.74, 5.0]], requires_grad=True)
    step, lo, hi, features = torch.tensor(0.5, requires_grad=True), -4, 3, 5
    upstream = torch.tensor([[1.0, -2.0, 3.0, 0.5, 0.25]])
    out = learned_step(x, step, lo, hi, features)
    assert out.tolist() == [[-2.0, -0.5, 0.0, 0.5, 1.5]]
    out.backward(upstream)
    # round(x / s) - x / s inside, lo or hi outside
    by_hand = 1 * -4 + -2 * (-1 + 1.2) + 3 * (0 - 0.4) + 0.5 * (1 - 1.48) + 0.25 * 3
    assert step.grad is not None and x.grad is not None
    assert step.grad.item() == pytest.approx(by_hand / math.sqrt(features * hi), rel=1e-6)
    assert x.grad.tolist() == [[0.0, -2.0, 3.0, 0.5, 0.0]]


@pytest.mark.parametrize("per_channel", [False, True])
def test_lsq_modules_scale_the_gradient_by_what_shares_a_step(per_channel: bool) -> None:
    """``N`` is the weights of a step; of activations the features of one image."""
    weight, upstream = reals(6 * 40, 0.3).view(6, 40), reals(6 * 40).view(6, 40).flip(1)
    quantizer = LearnedStepWeight(3, per_channel=per_channel)
    quantizer.start(weight)
    quantizer(weight).backward(upstream)
    step = quantizer.step.detach().view(-1, 1)
    places = weight / step
    slope = torch.where(places.abs() < 3, places.add(0.5).floor() - places, places.clamp(-3, 3))
    by_hand = (
        (slope * upstream).sum(1) / math.sqrt(40 * 3) if per_channel else (slope * upstream).sum() / math.sqrt(720)
    )
    torch.testing.assert_close(quantizer.step.grad, by_hand)

    inputs = LearnedStepActivation(2)
    x = reals(5 * 8, 0.5).view(5, 8).relu()
    inputs(x).backward(torch.ones(5, 8))
    places = x / inputs.step.detach()
    slope = torch.where(places < 3, places.add(0.5).floor() - places, 3.0)
    torch.testing.assert_close(inputs.step.grad, slope.sum() / math.sqrt(8 * 3))


def test_steps_of_channels_have_the_gradients_of_layers_of_their_own() -> None:
    weight, upstream = reals(5 * 12, 0.4).view(5, 3, 2, 2), reals(200)[-60:].view(5, 3, 2, 2)
    for bits in (2, 3, 8):
        whole, w = LearnedStepWeight(bits, per_channel=True), weight.clone().requires_grad_()
        out = whole(w)
        out.backward(upstream)
        assert w.grad is not None and whole.step.grad is not None
        for o in range(5):
            alone, row = LearnedStepWeight(bits), weight[o : o + 1].clone().requires_grad_()
            expected = alone(row)
            expected.backward(upstream[o : o + 1])
            assert torch.equal(out[o : o + 1], expected) and torch.equal(w.grad[o : o + 1], row.grad)
            assert float(whole.step[o].detach()) == alone.step.item()
            torch.testing.assert_close(whole.step.grad[o], alone.step.grad, rtol=1e-5, atol=1e-7)


def test_steps_of_channels_are_loaded_as_many_as_there_are() -> None:
    whole, fresh = LearnedStepWeight(3, per_channel=True), LearnedStepWeight(3, per_channel=True)
    whole.start(reals(30).view(5, 6))
    fresh.load_state_dict(whole.state_dict())
    assert torch.equal(fresh.step, whole.step)
    fresh.load_state_dict({"step": whole.step.half()})
    assert fresh.step.dtype == torch.float32
    for other in (LearnedStepWeight(3), LearnedStepWeight(3, per_channel=True)):
        other.start(reals(24).view(4, 6))
        with pytest.raises(RuntimeError, match="size mismatch for step"):
            whole.load_state_dict(other.state_dict())


def test_learned_ternary_weights_start_at_the_best_and_move() -> None:
    weight = reals(6 * 40, 0.3).view(6, 40)
    quantizer = LearnedTernaryWeight()
    quantizer.start(weight)
    best, alpha = TernaryWeight().integers(weight)
    values, scale = quantizer.integers(weight)
    assert torch.equal(values, best) and torch.equal(scale, alpha)
    quantizer(weight * 3)  # starts once
    assert torch.equal(quantizer.step.detach(), alpha)
    wanted = torch.randn(6, 40) * 0.1
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.1)
    before = (quantizer(weight) - wanted).square().sum()
    before.backward()
    optimizer.step()
    assert (quantizer(weight) - wanted).square().sum() < before
    with torch.no_grad():
        quantizer.step.fill_(-1.0)
    assert (quantizer.integers(weight)[1] > 0).all()


def test_lsq_starts_once_and_stays_positive() -> None:
    quantizer, x = LearnedStepActivation(2), reals().relu()
    quantizer(torch.zeros(4))  # says nothing about a step
    assert not quantizer.ready
    quantizer(x)
    start = 2 * x.mean().item() / math.sqrt(3)
    assert quantizer.scale() == pytest.approx(start, rel=1e-6) and quantizer.code_type.kind is Kind.UNSIGNED
    quantizer(x * 100)
    assert quantizer.scale() == pytest.approx(start, rel=1e-6)
    with torch.no_grad():
        quantizer.step.fill_(-0.5)
    assert quantizer.scale() > 0 and torch.isfinite(quantizer(x)).all()


@pytest.mark.parametrize(
    "make", [LearnedStepWeight, lambda: LearnedStepWeight(2, per_channel=True), LearnedTernaryWeight]
)
def test_weights_of_zeros_are_evaluated_and_start_later(make: type[LearnedStepWeight]) -> None:
    quantizer, zeros = make(), torch.zeros(4, 9)
    quantizer.start(zeros)
    quantizer(zeros)
    quantizer.eval()
    values, scale = quantizer.integers(zeros)
    assert not values.any() and (scale > 0).all() and not quantizer(zeros).any()
    quantizer.train()(reals(36).view(4, 9))
    assert quantizer.started and quantizer.integers(reals(36).view(4, 9))[0].any()


def test_a_step_that_turns_signed_is_that_of_signed_codes() -> None:
    turned, fresh = LearnedStepActivation(4), LearnedStepActivation(4, signed=True)
    x = reals(400).abs()
    turned(x)
    fresh(x)
    turned(torch.cat([x, torch.tensor([-0.1])]))
    assert turned.scale() == pytest.approx(fresh.scale(), rel=1e-6) and turned.code_type == fresh.code_type


@pytest.mark.parametrize("percentile", [100, 99.0])
def test_batches_without_images_move_no_range(percentile: float) -> None:
    quantizer = UniformActivation(8, percentile=percentile)
    quantizer(reals(50))
    before = quantizer.scale()
    assert quantizer(torch.zeros(0, 3)).shape == (0, 3) and quantizer.scale() == before


def test_lloyds_dead_zone_has_a_gradient() -> None:
    quantizer = LloydActivation(2, sparsity=0.75)
    x = torch.tensor([-0.1, 0.1, quantizer.eps - 0.01, quantizer.eps + 0.1, 9.0], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 1, 1, 1, 0]


def test_halves_round_up() -> None:
    quantizer = UniformActivation(4, signed=True)
    quantizer.start(torch.tensor([7.0]))
    assert quantizer.scale() == 1
    x = torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5])
    assert quantizer.quantize(x).tolist() == quantizer.values(x).tolist() == [-1, 0, 1, 2, 3]


def test_uniform_range_is_the_mean_of_the_first_batches() -> None:
    quantizer = UniformActivation(8)
    for top in (1.0, 2.0, 3.0):
        quantizer(torch.tensor([0.1, top]))
    assert quantizer.scale() == pytest.approx(2 / 255)
    quantizer.eval()
    before = quantizer.scale()
    quantizer(torch.tensor([50.0]))
    assert quantizer.scale() == before


def test_percentile_leaves_outliers_out() -> None:
    x = torch.linspace(0, 1, 1001)
    x[-1] = 1000
    quantizer = UniformActivation(8, percentile=99.9)
    quantizer(x)
    assert quantizer.scale() == pytest.approx(0.999 / 255, rel=1e-3)


@pytest.mark.parametrize("make", [UniformActivation, LearnedStepActivation])
def test_no_data_is_said(make: type[UniformActivation]) -> None:
    with pytest.raises(InputError, match="has seen no data"):
        make(4).eval()(reals())


def test_signed_is_decided_by_data() -> None:
    for x, kind in ((reals(), Kind.SIGNED), (reals().relu(), Kind.UNSIGNED)):
        for quantizer in (UniformActivation(4), LearnedStepActivation(4)):
            quantizer(torch.zeros(3))
            assert not quantizer.ready  # zeros decide nothing
            quantizer(x)
            assert quantizer.code_type.kind is kind
            quantizer(reals())
            assert quantizer.code_type.kind is Kind.SIGNED  # rather than clip what turned up later
    fixed = UniformActivation(4, signed=False)
    fixed(reals())
    assert fixed.code_type.kind is Kind.UNSIGNED


# Registry


@pytest.mark.parametrize("method", METHODS)
def test_every_spelling_of_every_method(method: str) -> None:
    row = METHODS[method]
    for w, a in itertools.product([*row.weights, "32"], [*row.activations, "32"]):
        scheme = parse_scheme(f"{method}:w{w}-a{a}")
        assert scheme.name == f"{method}:w{w}-a{a}"
        weight, activation = scheme.weight(), scheme.activation()
        assert (weight is None) == (w == "32") and (activation is None) == (a == "32")
        if weight is not None and w != "t":
            stored = {"4": 5, "5": 8}.get(w, int(w)) if method == "inq" else int(w)  # integers up to 2^3 and 2^7
            assert weight.code_type.bits == stored
        if weight is not None and w == "t":
            assert weight.code_type.kind is Kind.TERNARY


def test_short_spelling_and_objects() -> None:
    assert parse_scheme("w8a8").name == "uniform:w8-a8"
    scheme = Scheme("mine", TernaryWeight)
    assert parse_scheme(scheme) is scheme and scheme.activation() is None
    activation = parse_scheme("tsq:wt-a2", tsq(sparsity=0.75)).activation()
    assert isinstance(activation, SparseActivation) and round(activation.eps, 4) == 0.6745
    activation = parse_scheme("mbn:w2-a2", mbn(clip="hrelu-affine")).activation()
    assert activation is not None and activation.code_type.kind is Kind.UNSIGNED


@pytest.mark.parametrize(
    "scheme", ["", "w8", "tsq", "tsq:w9-a2", "tsq:wt-a9", "nope:w1-a1", "w0a0", "mbn:wt-a2", None, 8]
)
def test_unknown_schemes_are_named_in_one_line(scheme: str) -> None:
    with pytest.raises(InputError) as error:
        parse_scheme(scheme)
    assert "unknown scheme" in str(error.value) and "\n" not in str(error.value)
    assert not scheme or str(scheme) in str(error.value) or "uniform:" in str(error.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: BipolarActivation(9),
        lambda: BipolarActivation(1, clip="hrelu"),
        lambda: BipolarActivation(2, clip="relu"),  # type: ignore[arg-type]
        lambda: BipolarWeight(2, gradient="sine"),  # type: ignore[arg-type]
        lambda: SparseActivation(2, sparsity=1.0),
        lambda: SparseActivation(2, sparsity=0.4),
        lambda: SparseActivation(0),
        lambda: SparseActivation(2, eps=-1.0),
        lambda: SparseActivation(2, step=0.0),
        lambda: UniformActivation(9),
        lambda: UniformActivation(8, percentile=0),
        lambda: UniformActivation(1, signed=True),
        lambda: UniformWeight(1),
        lambda: LearnedStepWeight(1),
    ],
)
def test_arguments_out_of_range(make: type[ActivationQuantizer]) -> None:
    with pytest.raises(InputError):
        make()


def test_example_of_the_registry() -> None:
    assert doctest.testmod(registry).failed == 0


def test_schemes_with_options() -> None:
    scheme = parse_scheme("tsq(sparsity=0.75):wt-a2")
    assert scheme.name == "tsq(sparsity=0.75):wt-a2" and scheme.activation().eps == pytest.approx(0.6745, abs=1e-4)
    assert parse_scheme("mbn(gradient=cosine, clip=hrelu):w2-a2").activation().gradient == "cosine"
    assert parse_scheme("binaryconnect(stochastic=true):w1").weight().stochastic
    assert parse_scheme("ffn(rank=3):wt").weight().rank == 3
    for wrong, said in (
        ("tsq(spars=1):wt-a2", "'spars=1' is no option of tsq, which has sparsity"),
        ("tsq(sparsity=few):wt-a2", "sparsity = few should be like 0.625"),
        ("mbn(fixed_range=1):w2-a2", "should be like False"),
        ("mbn(clip=relu):w2-a2", "one of htanh, hrelu, hrelu-affine, learned, got 'relu'"),
        ("ffn(rank=1.5):wt-a2", "rank = 1.5 should be a whole number, or none"),
        ("bwn(bits=1):w1-a2", "bwn has no options"),
        ("tsq(sparsity=0.75:wt-a2", "expected METHOD:wM-aK"),
        ("w8", "expected METHOD:wM-aK"),
    ):
        with pytest.raises(InputError, match=re.escape(said)):
            parse_scheme(wrong)


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "gaps"])
def test_quantizers_give_the_same_in_parts(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Levels and gradients do not depend on how large the parts are, or on how a tensor lies in memory."""
    x = reals(3 * 8 * 5 * 7).reshape(3, 8, 5, 7)
    x = {"contiguous": x, "channels last": x.to(memory_format=torch.channels_last), "gaps": x[:, ::2]}[layout]

    def results() -> list[torch.Tensor]:
        found = []
        for scheme in ("tsq:w32-a2", "hwgq:w32-a2", "lsq:w32-a3", "mbn:w32-a2", "w32a4"):
            quantizer, at = parse_scheme(scheme).activation(), x.detach().clone().requires_grad_()
            y = quantizer.train()(at)
            (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum().backward()
            assert at.grad is not None
            torch.testing.assert_close(y.detach(), quantizer.eval()(x), rtol=1e-6, atol=0)
            found += [y.detach(), at.grad, *(p.grad for p in quantizer.parameters())]
        return found

    whole = results()
    monkeypatch.setattr(passes, "_vectors", lambda: None)  # torch, which goes by parts
    monkeypatch.setattr(passes, "PART", 11)
    for expected, got in zip(whole, results(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)
