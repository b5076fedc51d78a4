"""The published methods against their formulas in plain loops, brute force, and gradients taken by other means."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bitbranch as bb
from bitbranch.contract import Kind
from bitbranch.errors import InputError
from bitbranch.layers import QuantizedLayer, quantized_layer
from bitbranch.quantizers.base import ActivationQuantizer, WeightQuantizer, float32
from bitbranch.quantizers.binaryconnect import BinaryConnectWeight, hard_sigmoid, stochastic_signs
from bitbranch.quantizers.binarynet import BinaryNetActivation, BinaryNetWeight, linear
from bitbranch.quantizers.bwn import binary
from bitbranch.quantizers.bwnh import hashed
from bitbranch.quantizers.dorefa import DoReFaActivation, DoReFaWeight, quantized_gradient, squashed
from bitbranch.quantizers.ffn import FactorizedWeight, recovered, rounded, semidiscrete
from bitbranch.quantizers.inq import PowerOfTwoWeight, exponents, power_of_two
from bitbranch.quantizers.registry import binaryconnect, ffn, parse_scheme, xnor
from bitbranch.quantizers.ttq import TrainedTernaryWeight, trained_ternary
from bitbranch.quantizers.twn import ThresholdTernaryWeight, threshold_ternary
from bitbranch.quantizers.xnor import XnorActivation, XnorWeight, input_scale
from bitbranch.training.loop import fit

torch.set_num_threads(1)


def reals(*shape: int, spread: float = 0.3, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * spread


def gradient(quantizer: nn.Module, x: torch.Tensor, upstream: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    quantizer.train()(x).backward(upstream)
    assert x.grad is not None
    return x.grad


# BinaryConnect


def test_binaryconnect_by_loops() -> None:
    quantizer, w = BinaryConnectWeight(magnitude=0.25), reals(5, 7)
    w[0, 0], w[1, 1] = 0.0, -0.0
    by_loops = [[0.25 if v >= 0 else -0.25 for v in row] for row in w.tolist()]
    assert quantizer(w).tolist() == by_loops
    assert gradient(quantizer, w * 10, torch.full_like(w, 2.0)).unique().tolist() == [2.0]  # straight, everywhere
    quantizer.project(w)
    assert float(w.min()) >= -0.25 and float(w.max()) <= 0.25


def test_stochastic_signs_have_the_published_probabilities_and_repeat() -> None:
    w = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.2, 1.0, 3.0]) * 0.5
    published = [min(max((v / 0.5 + 1) / 2, 0), 1) for v in w.tolist()]
    assert hard_sigmoid(w / 0.5).tolist() == pytest.approx(published)
    torch.manual_seed(3)
    drawn = stochastic_signs(w.expand(20_000, -1), 0.5)
    assert ((drawn + 1) / 2).mean(0).tolist() == pytest.approx(published, abs=0.015)
    quantizer = BinaryConnectWeight(magnitude=0.5, stochastic=True)
    big = reals(30, 30)
    draws = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        draws.append(quantizer(big))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert gradient(quantizer, big, torch.ones_like(big)).unique().tolist() == [1.0]
    quantizer.eval()
    assert torch.equal(quantizer(big), torch.where(big >= 0, 0.5, -0.5))


# BinaryNet and QNN


@pytest.mark.parametrize("bits", range(1, 9))
def test_linear_quantization_by_loops(bits: int) -> None:
    x = torch.cat([reals(300, spread=0.8), torch.tensor([0.0, -0.0, 1.0, -1.0, 5.0, -5.0])])
    step, top = 2.0 ** (1 - bits), 2 ** (bits - 1)
    loops = []
    for v in x.tolist():
        if bits == 1:
            loops.append(1.0 if v >= 0 else -1.0)
        else:
            loops.append(min(max(math.floor(v / step + 0.5), -top), top - 1) * step)
    assert linear(x, bits).tolist() == loops
    leaf = x.clone().requires_grad_()
    linear(leaf, bits).sum().backward()
    assert leaf.grad is not None and leaf.grad.tolist() == [float(abs(v) <= 1) for v in x.tolist()]
    weights = BinaryNetWeight(bits)
    expected = loops if bits == 1 else [max(v, -(top - 1) * step) for v in loops]
    assert weights(x[None]).tolist() == [expected]
    assert gradient(weights, x[None], torch.ones(1, len(x))).unique().tolist() == [1.0]


# XNOR-Net


@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 0, 1), (2, 1, 1), (1, 2, 2)])
def test_input_scale_is_the_box_filter_of_mean_magnitudes(stride: int, padding: int, dilation: int) -> None:
    conv = nn.Conv2d(3, 4, (3, 2), stride=stride, padding=padding, dilation=dilation)
    layer = quantized_layer(conv, XnorActivation(), XnorWeight())
    x = reals(2, 3, 9, 8, spread=1)
    mean = x.abs().mean(1, keepdim=True)
    box = F.conv2d(mean, torch.full((1, 1, 3, 2), 1 / 6), stride=stride, padding=padding, dilation=dilation)
    torch.testing.assert_close(input_scale(x, layer), box)

    alpha = conv.weight.detach().abs().mean((1, 2, 3))
    w = torch.where(conv.weight >= 0, 1.0, -1.0) * alpha[:, None, None, None]
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}
    published = F.conv2d(torch.where(x >= 0, 1.0, -1.0), w, **geometry) * box  # type: ignore[arg-type]
    assert conv.bias is not None
    published = published + conv.bias[:, None, None]
    for mode in (True, False):
        torch.testing.assert_close(layer.train(mode)(x), published, rtol=1e-4, atol=1e-5)


def test_input_scale_of_other_layers_by_loops() -> None:
    x = reals(2, 4, 6, spread=1)
    grouped = quantized_layer(nn.Conv1d(4, 6, 3, groups=2), XnorActivation(), XnorWeight())
    k = input_scale(x, grouped)
    for n, o, t in itertools.product(range(2), range(6), range(4)):
        window = x[n, 2 * (o // 3) : 2 * (o // 3) + 2, t : t + 3]
        assert k[n, o, t].item() == pytest.approx(window.abs().mean().item(), rel=1e-5)
    transposed = quantized_layer(nn.ConvTranspose1d(4, 6, 3), XnorActivation(), XnorWeight())
    k = input_scale(x, transposed)
    padded = F.pad(x.abs(), (2, 2))
    for n, t in itertools.product(range(2), range(8)):
        assert k[n, 0, t].item() == pytest.approx(padded[n, :, t : t + 3].sum().item() / 12, rel=1e-5)
    linear_layer = quantized_layer(nn.Linear(6, 5), XnorActivation(), XnorWeight())
    torch.testing.assert_close(input_scale(x, linear_layer), x.abs().mean(-1, keepdim=True))


def test_xnor_gradients() -> None:
    w, g = reals(3, 8, spread=0.8), reals(3, 8, seed=1)
    for row, up, found in zip(w.tolist(), g.tolist(), gradient(XnorWeight(), w, g).tolist(), strict=True):
        alpha = sum(map(abs, row)) / 8
        assert found == pytest.approx([u * (1 / 8 + alpha * (abs(v) <= 1)) for v, u in zip(row, up, strict=True)])
    x = torch.tensor([-1.5, -1.0, -0.2, 0.0, 1.0, 1.1])
    assert gradient(XnorActivation(), x, torch.ones(6)).tolist() == [0, 1, 1, 1, 1, 0]


# TWN


def test_twn_by_loops() -> None:
    w = reals(6, 3, 3, 3)
    w[2] = 0
    t, alpha = ThresholdTernaryWeight().integers(w)
    for i, row in enumerate(w.flatten(1).double().tolist()):
        delta = 0.7 * sum(map(abs, row)) / len(row)
        kept = [abs(v) for v in row if abs(v) > delta]
        assert t[i].flatten().tolist() == [float(np.sign(v)) if abs(v) > delta else 0.0 for v in row]
        assert alpha[i].item() == pytest.approx(sum(kept) / len(kept) if kept else 0.0)
    whole, scale = ThresholdTernaryWeight(per_layer=True).integers(w)
    expected, one = threshold_ternary(w.reshape(1, -1))
    assert torch.equal(whole.reshape(1, -1), expected) and scale.tolist() == [one.item()] * 6
    assert gradient(ThresholdTernaryWeight(), w, torch.ones_like(w)).unique().tolist() == [1.0]


def test_twn_scale_is_the_best_for_its_support() -> None:
    w = reals(1, 50)
    t, alpha = threshold_ternary(w)
    errors = [float((w - a * t).square().sum()) for a in (alpha * 0.99, alpha, alpha * 1.01)]
    assert min(errors) == errors[1]


# TTQ


def test_ttq_by_loops() -> None:
    w, g = reals(4, 9), reals(4, 9, seed=1)
    positive, negative = torch.tensor(0.4, requires_grad=True), torch.tensor(0.7, requires_grad=True)
    leaf = w.clone().requires_grad_()
    out = trained_ternary(leaf, positive, negative, 0.2)
    out.backward(g)
    delta = 0.2 * w.abs().max().item()
    to_positive = to_negative = 0.0
    assert leaf.grad is not None and positive.grad is not None and negative.grad is not None
    for v, u, o, d in zip(*(a.flatten().tolist() for a in (w, g, out, leaf.grad)), strict=True):
        if v > delta:
            level, slope, to_positive = 0.4, 0.4, to_positive + u
        elif v < -delta:
            level, slope, to_negative = -0.7, 0.7, to_negative - u
        else:
            level, slope = 0.0, 1.0
        assert (o, d) == pytest.approx((level, slope * u))
    assert (positive.grad.item(), negative.grad.item()) == pytest.approx((to_positive, to_negative), rel=1e-4)


def test_ttq_level_gradients_are_those_of_the_loss() -> None:
    """Finite differences: a loss changes with the levels as their gradients say."""
    quantizer, w, target = TrainedTernaryWeight(), reals(5, 6).double(), reals(5, 6, seed=2).double()
    quantizer.double().start(w)
    start = [float(quantizer.positive.detach()), float(quantizer.negative.detach())]
    assert start == pytest.approx(
        [w[w > 0.05 * w.abs().max()].mean().item(), -w[w < -0.05 * w.abs().max()].mean().item()]
    )
    (quantizer(w) - target).square().sum().backward()
    for level in (quantizer.positive, quantizer.negative):
        losses = []
        for step in (1e-4, -2e-4):
            with torch.no_grad():
                level += step
                losses.append(float((quantizer(w) - target).square().sum()))
        with torch.no_grad():
            level += 1e-4
        assert level.grad is not None
        assert (losses[0] - losses[1]) / 2e-4 == pytest.approx(level.grad.item(), rel=1e-5)


# DoReFa


@pytest.mark.parametrize("bits", range(1, 9))
def test_dorefa_weights_by_loops(bits: int) -> None:
    w = reals(4, 11, spread=1.0).double()
    flat, n = w.flatten().tolist(), 2**bits - 1
    if bits == 1:
        size = sum(map(abs, flat)) / len(flat)
        published = [size if v >= 0 else -size for v in flat]
    else:
        most = max(abs(math.tanh(v)) for v in flat)
        published = [2 * math.floor(n * (math.tanh(v) / (2 * most) + 0.5) + 0.5) / n - 1 for v in flat]
    quantizer = DoReFaWeight(bits)
    assert quantizer(w).flatten().tolist() == pytest.approx(published, rel=1e-6, abs=1e-7)


def test_dorefa_weight_gradient_is_that_of_the_squashed_weight() -> None:
    w, g = reals(3, 5, spread=1.0).double(), reals(3, 5, seed=1).double()
    found = gradient(DoReFaWeight(3), w, g)
    for i, j in itertools.product(range(3), range(5)):
        step = torch.zeros_like(w)
        step[i, j] = 1e-6
        slope = ((squashed(w + step) - squashed(w - step)) * g).sum() / 2e-6
        assert found[i, j].item() == pytest.approx(slope.item(), abs=1e-7)
    assert torch.equal(gradient(DoReFaWeight(1), w, g), g)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_dorefa_activations_by_loops(bits: int) -> None:
    quantizer, n = DoReFaActivation(bits), 2**bits - 1
    x = torch.cat([reals(200), torch.tensor([0.0, 1.0, -1.0, 2.0])])
    published = [math.floor(n * min(max(v, 0), 1) + 0.5) / n for v in x.tolist()]
    assert quantizer(x).tolist() == pytest.approx(published)
    assert gradient(quantizer, x, torch.ones(len(x))).tolist() == [float(0 <= v <= 1) for v in x.tolist()]


def test_dorefa_gradients_are_rounded_without_bias() -> None:
    g = reals(2, 6, spread=1.0)
    torch.manual_seed(0)
    drawn = torch.stack([quantized_gradient(g, 2) for _ in range(4000)])
    most = g.abs().amax(1)
    for i in range(2):
        levels = torch.tensor([-1, -1 / 3, 1 / 3, 1]) * most[i]
        nearest = (drawn[:, i, :, None] - levels).abs().min(-1).values
        assert float(nearest.max()) < 1e-6
    torch.testing.assert_close(drawn.mean(0), g, atol=0.05, rtol=0)
    halves = quantized_gradient(reals(2, 4000, spread=1.0).bfloat16(), 8)
    assert halves.dtype == torch.bfloat16 and abs(float(halves.float().mean() - reals(2, 4000).mean() / 0.3)) < 0.01


def test_dorefa_layers_pass_low_bit_gradients_back() -> None:
    """Rounded where they enter a layer's two backward passes, as in the paper's algorithm 1."""
    q = bb.quantize(nn.Sequential(*(nn.Linear(6, 6) for _ in range(3))), "dorefa(gradient_bits=2):w2-a2").train()
    seen: list[torch.Tensor] = []
    accumulate = q[1].accumulate

    def recorded(*args: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = accumulate(*args)
        if out.requires_grad:
            out.register_hook(seen.append)
        return out

    q[1].accumulate = recorded
    out = q(reals(5, 6, spread=1.0))
    (out * reals(5, 6, seed=1)).sum().backward()
    (entering,) = seen
    for row in entering:
        places = row / row.abs().max() * 3
        assert float((places - places.round()).abs().max()) < 1e-5 and (places.round() % 2 == 1).all()
    q.eval()
    assert torch.isfinite(q(reals(5, 6))).all()


# INQ


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_inq_by_loops(bits: int) -> None:
    w = torch.cat([reals(500), torch.tensor([0.0, -0.0])])
    s = w.abs().max().item()
    n1 = math.floor(math.log2(4 * s / 3))
    n2 = n1 + 1 - 2 ** (bits - 1) // 2
    assert exponents(s, bits) == (n1, n2)
    levels = [0.0, *(2.0**k for k in range(n2, n1 + 1))]
    assert 2 * len(levels[1:]) == 2 ** (bits - 1)
    for v, found in zip(w.tolist(), power_of_two(w, n1, n2).tolist(), strict=True):
        expected = 0.0
        for a, b in itertools.pairwise(levels):
            if (a + b) / 2 <= abs(v) < 3 * b / 2:
                expected = math.copysign(b, v)
        assert found == expected, v


def test_inq_is_exact_between_levels() -> None:
    """At every boundary, its neighbours in float32, and beyond the largest level."""
    for k, step in itertools.product(range(-4, 1), (-1, 0, 1)):
        edge = torch.tensor(1.5 * 2.0**k)
        v = edge if step == 0 else torch.nextafter(edge, edge * (1 + step))
        expected = 2.0 ** min(k + 1 if v >= edge else k, 0)
        assert power_of_two(v, 0, -4).item() == expected
    half = torch.tensor(2.0**-5)
    assert power_of_two(half, 0, -4).item() == 2.0**-4
    assert power_of_two(torch.nextafter(half, torch.tensor(0.0)), 0, -4).item() == 0
    assert power_of_two(torch.tensor(-100.0), 0, -4).item() == -1


def test_inq_fixes_the_largest_first_and_they_stay() -> None:
    quantizer, w = PowerOfTwoWeight(5), reals(8, 9)
    original = w.clone()
    quantizer.start(w)
    assert torch.equal(quantizer(w), original) and "0 %" in quantizer.obstacle
    previous = torch.zeros_like(w, dtype=torch.bool)
    for portion in (0.5, 0.75, 0.875):
        quantizer.fix(w, portion)
        fixed = quantizer.fixed.clone()
        assert int(fixed.sum()) == round(portion * 72) and bool((fixed | ~previous).all())
        assert bool((w[fixed] == power_of_two(w[fixed], *quantizer.exponents())).all())
        if portion == 0.5:
            assert float(original[fixed].abs().min()) >= float(original[~fixed].abs().max())
        assert torch.equal(gradient(quantizer, w, torch.ones_like(w)), (~fixed).float())
        before = w.clone()
        w += 0.3 * reals(8, 9, seed=5)  # a step with momentum
        quantizer.project(w)
        assert torch.equal(w[fixed], before[fixed]) and not torch.equal(w[~fixed], before[~fixed])
        previous = fixed
    with pytest.raises(InputError, match=r"87.5 % of its weights"):
        quantizer.integers(w)
    quantizer.fix(w, 1.0)
    values, scale = quantizer.integers(w)
    assert quantizer.obstacle == "" and torch.equal(values * scale[:, None], w)
    assert set(values.abs().unique().tolist()) <= {0.0, *(2.0**k for k in range(8))}


# FFN


def test_first_term_of_a_small_matrix_is_the_best_of_all() -> None:
    """Alternation finds only local minima; on matrices with one strong term that is the global one."""
    torch.manual_seed(0)
    u0, v0 = torch.tensor([1.0, -1, 0, 1]), torch.tensor([1.0, 0, -1, 1, 1])
    w = 0.7 * torch.outer(u0, v0) + 0.05 * torch.randn(4, 5)
    best = math.inf
    for u, v in itertools.product(itertools.product((-1, 0, 1), repeat=4), itertools.product((-1, 0, 1), repeat=5)):
        if any(u) and any(v):
            a, b = np.array(u), np.array(v)
            fit = a @ w.double().numpy() @ b
            best = min(best, float(w.double().square().sum()) - fit**2 / ((a @ a) * (b @ b)))
    left, scale, right = semidiscrete(w, 1)
    assert float((w - (left * scale) @ right).square().sum()) == pytest.approx(best, rel=1e-4)


def test_every_term_lowers_the_error() -> None:
    w = reals(12, 20)
    errors = []
    for rank in range(0, 13, 3):
        left, scale, right = semidiscrete(w, max(rank, 1))
        assert set(left.unique().tolist()) | set(right.unique().tolist()) <= {-1.0, 0.0, 1.0}
        assert float(scale.min()) >= 0
        errors.append(float((w - (left * scale) @ right).square().sum()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.2 * float(w.square().sum())
    exact = 0.3 * torch.outer(torch.tensor([1.0, -1, 0]), torch.tensor([0, 1.0, 1, -1]))
    left, scale, right = semidiscrete(exact, 3)
    torch.testing.assert_close((left * scale) @ right, exact)
    assert scale[1:].tolist() == [0, 0]  # nothing was left


@pytest.mark.parametrize("shape", [(12, 20), (5, 9), (1, 4)])
def test_recovered_factors_round_back_and_come_nearer(shape: tuple[int, int]) -> None:
    w = reals(*shape)
    left, scale, right = semidiscrete(w, min(shape))
    u, v = recovered(w, left, scale, right)
    assert torch.equal(rounded(u), left) and torch.equal(rounded(v), right)
    ternary, floats = (float((w - (a * scale) @ b).square().sum()) for a, b in ((left, right), (u, v)))
    assert floats < 0.5 * ternary
    quantizer = FactorizedWeight()
    quantizer.start(w)
    torch.testing.assert_close(quantizer(w), (left * scale) @ right)


def test_what_ffn_has_learned_is_what_follows_it_starts_from() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    q = bb.quantize(net, "ffn(rank=3):wt-a8").train()
    data = [(reals(20, 6, seed=i), torch.arange(20) % 3) for i in range(4)]
    fit(q, data, epochs=3, lr=1e-2, progress=None, seed=0)
    assert torch.equal(q[2].weight, q[2].quantized_weight()) and not torch.equal(q[2].weight, net[2].weight)
    assert torch.equal(bb.quantize(q, "tsq:wt-a8", first=None, last=None)[2].weight, q[2].quantized_weight())


def test_ffn_gradients_are_those_of_the_product() -> None:
    quantizer, w, g = FactorizedWeight(rank=3), reals(4, 6), reals(4, 6, seed=1)
    quantizer.start(w)
    quantizer(w).backward(g)
    left, scale, right = (a.detach().clone().requires_grad_() for a in quantizer.factors())
    (left @ torch.diag(scale) @ right).backward(g)
    for found, expected in ((quantizer.left, left), (quantizer.scale, scale), (quantizer.right, right)):
        assert found.grad is not None and expected.grad is not None
        torch.testing.assert_close(found.grad, expected.grad)
    assert rounded(torch.tensor([-2.0, -0.5, 0.5, 0.51])).tolist() == [-1, 0, 0, 1]
    with torch.no_grad():
        quantizer.left.mul_(0).add_(1.4)
        quantizer.right.mul_(0).sub_(1.7)
        quantizer.project(w)
    assert quantizer.left.unique().tolist() == pytest.approx([1.4]) and quantizer.right.unique().tolist() == [-1.5]
    assert quantizer.stored(w) == 3 * (4 + 6)


# BWNH


@pytest.mark.parametrize("seed", range(6))
def test_hashing_against_all_signs(seed: int) -> None:
    """No single sign can be turned for the better, and the error is near the least of all 2^n."""
    torch.manual_seed(seed)
    x, w = torch.randn(40, 8).double(), torch.randn(3, 8).double()
    s = w @ x.T
    b, alpha = hashed(w, x.T @ x, s @ x)

    def error(row: int, signs: np.ndarray) -> float:
        p = x.numpy() @ signs
        t = s[row].numpy()
        return float(t @ t - (t @ p) ** 2 / (p @ p))

    for row in range(3):
        found = b[row].numpy()
        least = min(error(row, np.array(signs)) for signs in itertools.product((-1.0, 1.0), repeat=8))
        own = error(row, found)
        start = error(row, np.where(w[row].numpy() >= 0, 1.0, -1.0))
        assert own <= start + 1e-9 and own <= 1.5 * least + 1e-9
        p = x.numpy() @ found
        assert alpha[row].item() == pytest.approx(float(s[row].numpy() @ p / (p @ p)), rel=1e-6)
        for n in range(8):
            turned = found.copy()
            turned[n] *= -1
            q = x.numpy() @ turned  # at the same scale, as the descent sees it
            t = s[row].numpy()
            assert ((t - alpha[row].item() * q) ** 2).sum() >= ((t - alpha[row].item() * p) ** 2).sum() - 1e-6


def test_hashing_of_white_inputs_gives_binary_weights() -> None:
    """With ``X X^T = I`` the problem is ``|| w - alpha b ||^2``, whose solution is BWN's."""
    w = reals(5, 12)
    b, alpha = hashed(w, torch.eye(12), w)
    signs, means = binary(w)
    assert torch.equal(b, signs)
    torch.testing.assert_close(alpha, means)


# Every method: levels, warnings, spelling

SCHEMES = ["binaryconnect:w1", "binarynet:w1-a1", "binarynet:w3-a3", "xnor:w1-a1", "twn:wt-a2", "dorefa:w1-a1",
           "dorefa:w3-a2", "bwnh:w1-a4", "bwn:w1-a2", "inq:w5-a4", "ttq:wt-a2", "ffn:wt-a2"]  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_train_on_the_levels_that_they_evaluate_to(scheme: str) -> None:
    quantizer, w = parse_scheme(scheme).weight(), reals(6, 5, 3, 3)
    assert isinstance(quantizer, WeightQuantizer)
    if isinstance(quantizer, PowerOfTwoWeight):
        quantizer.fix(w, 1.0)
    trained = quantizer(w).detach()
    quantizer.eval()
    torch.testing.assert_close(trained, quantizer(w), rtol=0, atol=0)
    if quantizer.obstacle:
        with pytest.raises(InputError, match=r"bitbranch\.split"):
            quantizer.integers(w)
        return
    values, scale = quantizer.integers(w)
    assert values.dtype == w.dtype and scale.shape == (6,)
    torch.testing.assert_close(trained, values * scale[:, None, None, None], rtol=0, atol=0)
    if scheme != "inq:w5-a4":  # +128 is one too many for 8 bits; the compiler knows
        quantizer.code_type.negate(quantizer.code_type.encode(values.numpy()))
    values64, scale64 = quantizer.double().integers(w.double())
    assert torch.equal(values64.float(), values) and torch.equal(scale64.float(), scale)


@pytest.mark.parametrize("make", [BinaryNetActivation, DoReFaActivation])
@pytest.mark.parametrize("bits", range(1, 9))
def test_activations_train_on_the_levels_that_they_evaluate_to(make: type[ActivationQuantizer], bits: int) -> None:
    quantizer, x = make(bits), reals(4000, spread=1.0)  # type: ignore[call-arg]
    trained = quantizer(x)
    quantizer.eval()
    torch.testing.assert_close(trained, quantizer(x), rtol=0, atol=0)
    np.testing.assert_array_equal(
        quantizer.code_type.decode(quantizer.encoder().codes(x.numpy())), quantizer.values(x).numpy()
    )
    assert quantizer.scale() == float32(quantizer.scale())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_of_zeros_give_finite_weights(scheme: str) -> None:
    quantizer, w = parse_scheme(scheme).weight(), reals(4, 7)
    assert quantizer is not None
    for zeros in (w[1], w):
        zeros.zero_()
        out = quantizer(w.clone().requires_grad_())
        out.sum().backward()
        assert torch.isfinite(out).all()


def small(*, norm: bool = True, size: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    blocks: list[nn.Module] = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU()]
    blocks += [nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU()]
    network = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(8 * 36, 5))
    with torch.no_grad():
        for p in network.parameters():
            p *= size
    return network


@pytest.mark.parametrize(
    ("scheme", "options", "text"),
    [
        ("binaryconnect:w1", {"norm": False}, "no BatchNorm"),
        ("binarynet:w1-a1", {"norm": False}, "no BatchNorm"),
        ("dorefa:w2-a2", {"norm": False}, "no BatchNorm"),
        ("binaryconnect:w1", {"size": 20.0}, "beyond -H..H are clipped"),
        (parse_scheme("binaryconnect:w1", binaryconnect(stochastic=True)), {}, "coin flips"),
        ("binarynet:w1-a1", {"size": 20.0}, "beyond -1..1 are clipped"),
        ("binarynet:w2-a2", {"size": 0.1}, "100 % round to 0"),
        ("bwn:w1", {"size": 20.0}, "never change"),
        ("xnor:w1-a1", {"size": 20.0}, "hardly have a gradient"),
    ],
)
def test_known_traps_are_warned_of(scheme: object, options: dict[str, float], text: str) -> None:
    with pytest.warns(UserWarning, match=rf"quantize: 3: .*{text}"):
        bb.quantize(small(**options), scheme)  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", ["binarynet:w1-a1", "xnor:w1-a1", "mbn:w1-a1", "mbn:w2-a2", "tsq:wt-a2"])
@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), lambda x: F.max_pool2d(x, 2)], ids=["module", "function"])
def test_signs_of_pooled_numbers_are_warned_of(scheme: str, pool: Callable[[Tensor], Tensor]) -> None:
    class Pooled(nn.Module):
        def __init__(self, first: bool) -> None:
            super().__init__()
            self.first, self.pool = first, pool
            self.stem, self.norm, self.relu = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
            self.inner, self.inner_norm, self.last = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = self.norm(self.pool(x)) if self.first else self.pool(self.norm(x))
            return self.last(F.relu(self.inner_norm(self.inner(self.relu(x)))).mean((2, 3)))

    def messages(first: bool) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            bb.quantize(Pooled(first), scheme)
        return [str(w.message) for w in caught if "pool" in str(w.message)]

    assert messages(first=True) == []
    found = messages(first=False)
    assert len(found) == (1 if scheme.endswith("a1") else 0)
    assert all(text.startswith("quantize: inner: most of what max-pooling takes") for text in found)


def test_an_outlier_traps_ttq() -> None:
    network = small()
    with torch.no_grad():
        network[3].weight[0, 0, 0, 0] = 1000.0  # type: ignore[index, union-attr, operator]
    with pytest.warns(UserWarning, match="3: an outlier sets TTQ's threshold"):
        bb.quantize(network, "ttq:wt-a2")


def test_traps_of_activations_are_warned_of_by_their_first_batch() -> None:
    for make in (BinaryNetActivation, XnorActivation):
        with pytest.warns(UserWarning, match="ReLU in front"):
            make()(reals(50).relu())
    with pytest.warns(UserWarning, match="most positive inputs lie above 1"):
        DoReFaActivation(2)(reals(50).abs() + 1)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_good_starts_have_no_warning(scheme: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        large_enough = 4.0 if scheme == "binarynet:w3-a3" else 1.0  # that some weights do not round to 0
        q = bb.quantize(small(size=large_enough), scheme)
        q(reals(4, 1, 8, 8, spread=1.0))
    assert isinstance(q[2], nn.Hardtanh) == scheme.startswith(("binarynet", "xnor"))  # type: ignore[index]


def test_weights_alone_can_be_named() -> None:
    assert parse_scheme("twn:wt").name == "twn:wt-a32" and parse_scheme("inq:w4").activation() is None
    assert parse_scheme("ffn:wt", ffn(rank=2)).name == "ffn:wt-a32"
    for bad in ("twn:w2", "nope:w1", "w8", "t:w"):
        with pytest.raises(InputError, match="unknown scheme"):
            parse_scheme(bad)


@pytest.mark.parametrize(
    "make",
    [
        lambda: BinaryConnectWeight(magnitude=0),
        lambda: BinaryConnectWeight(magnitude=math.inf),
        lambda: BinaryNetActivation(9),
        lambda: BinaryNetWeight(0),
        lambda: DoReFaActivation(2, gradient_bits=9),
        lambda: DoReFaWeight(9),
        lambda: TrainedTernaryWeight(threshold=1.0),
        lambda: PowerOfTwoWeight(6),
        lambda: FactorizedWeight(rank=0),
        lambda: PowerOfTwoWeight(4).fix(reals(2, 2), 1.5),
        lambda: FactorizedWeight().factors(),
    ],
)
def test_arguments_out_of_range(make: type[WeightQuantizer]) -> None:
    with pytest.raises(InputError):
        make()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.filterwarnings("ignore:.*round to 0")
def test_networks_train_evaluate_and_reload(scheme: str) -> None:
    q = bb.quantize(small(), scheme)
    x = reals(6, 1, 8, 8, spread=1.0)
    F.cross_entropy(q(x), torch.arange(6) % 5).backward()
    layer = q[3]  # type: ignore[index]
    assert isinstance(layer, QuantizedLayer) and isinstance(layer.weight_quantizer, WeightQuantizer)
    if not isinstance(layer.weight_quantizer, FactorizedWeight):  # which trains its factors instead
        assert layer.weight.grad is not None and float(layer.weight.grad.abs().max()) > 0
    q.eval()
    again = bb.quantize(small(), scheme).eval()
    again.load_state_dict(q.state_dict())
    assert torch.equal(again(x), q(x))
    table = bb.summary(q, x)
    assert table.layers[1].accumulator is None or not layer.obstacle
    assert xnor(input_scale=False).scheme("xnor", "1", "1").activation().obstacle == ""  # type: ignore[union-attr]
    if scheme.startswith("binarynet:w1"):
        assert table.layers[1].weight is not None and table.layers[1].weight.kind is Kind.BIPOLAR
