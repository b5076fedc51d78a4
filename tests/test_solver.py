"""Step 2's solver against brute force, and its statistics against direct sums."""

from __future__ import annotations

import itertools
import math
import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bitbranch.layers import quantized_layer
from bitbranch.quantizers.bwn import BinaryWeight
from bitbranch.quantizers.mbn import BipolarActivation, BipolarWeight
from bitbranch.quantizers.tsq import SparseActivation, TernaryWeight
from bitbranch.runtime.engine import instruction_sets
from bitbranch.twostep.descent import Anchor, Descent, Levels, Moments, Solution
from bitbranch.twostep.solver import Step, agreement, distance, fit_codes, fit_linear, target_cross
from bitbranch.twostep.staircase import Clip, Staircase
from bitbranch.twostep.statistics import SampleFile, draw_positions, patches

torch.set_num_threads(1)  # small problems; the machine may be shared
pytestmark = pytest.mark.usefixtures("seeded")

TERNARY = Levels(1, 1)
TWO_BITS = Staircase.of(SparseActivation(2))


def sample_file(x: Tensor, t: Tensor, **options) -> SampleFile:
    """Inputs ``[p, G, n]`` and targets ``[p, G, O]`` as a file."""
    file = SampleFile(x.shape[1], x.shape[2], t.shape[2], np.dtype(np.uint8), **options)
    file.append(x, t)
    return file


def layer_problem(n: int, outputs: int, count: int, groups: int = 1, weight=TernaryWeight, **options):
    """A float layer on 2-bit codes, normalised as by BatchNorm, started as its weight quantizer would."""
    x = (torch.randn(count, groups, n) + 0.8 * torch.randn(count, groups, 1)).clamp(0, 3).round()
    w = torch.randn(groups, n, outputs)
    t = torch.einsum("pgn,gno->pgo", x, w)
    deviation = t.std(0)
    t = (t - t.mean(0)) / deviation
    file = sample_file(x, t, precision=torch.float64, **options)
    rows, scale = weight().integers(w.transpose(1, 2).flatten(0, 1))
    start = Solution(
        rows.view(groups, outputs, n).transpose(1, 2).contiguous().double(),
        scale.view(groups, outputs).double() / deviation.double(),
    )
    return file, file.moments(), start


# The solver


QUANTIZER = {TERNARY: TernaryWeight, Levels(1, 2): BinaryWeight, Levels(3, 2): lambda: BipolarWeight(2)}


@pytest.mark.parametrize("levels", QUANTIZER, ids=["ternary", "binary", "bipolar2"])
def test_coordinate_descent_against_brute_force(levels):
    """``min ||z - alpha X^T w||^2`` over all weights of at most 8 inputs (bipolar2: 5): how often it is reached."""
    reached = total = 0
    excess = []
    for n in range(2, 9 if levels.top == 1 else 6):
        values = torch.arange(-levels.top, levels.top + 1, levels.step, dtype=torch.float64)
        every = torch.tensor(list(itertools.product(values.tolist(), repeat=n)), dtype=torch.float64).T[None]
        file, moments, s = layer_problem(n, 40, 400, weight=QUANTIZER[levels])
        cross = target_cross(file, moments, torch.zeros(1, 40))
        fit_linear(Descent(moments, s, levels), cross, 50)
        found = distance(moments, cross, s)[0]
        power = moments.power(every)[0].clamp_min(1e-12)
        best = cross.power[0] - ((every[0].T @ cross.product[0]) ** 2 / power[:, None]).amax(0)
        assert (found >= best - 1e-6 * cross.power[0]).all()
        hit = found <= best + 1e-6 * cross.power[0]
        reached, total = reached + int(hit.sum()), total + hit.numel()
        excess += ((found - best) / cross.power[0])[~hit].tolist()
    share, worst = reached / total, np.median(excess)
    print(
        f"\n{levels}: optimum reached {reached}/{total} = {share:.1%}; where not, median excess {worst:.2%} of ||z||^2"
    )
    assert share > 0.8
    assert worst < 0.03


def test_coordinate_descent_ends_where_no_single_weight_improves():
    file, moments, s = layer_problem(100, 12, 500)
    cross = target_cross(file, moments, torch.zeros(1, 12))
    descent = Descent(moments, s, TERNARY)
    while descent.fit_weights(cross):
        pass
    best = distance(moments, cross, s)
    for i, level in itertools.product(range(100), (-1.0, 0.0, 1.0)):
        other = Solution(s.weight.clone(), s.scale)
        other.weight[:, i] = level
        assert (distance(moments, cross, other) >= best - 1e-9 * cross.power).all()


@pytest.mark.parametrize("levels", [TERNARY, Levels(3, 2)], ids=["ternary", "bipolar2"])
def test_pairs_end_where_no_two_weights_improve(levels):
    """All changes of a weight by one level or two together with any of another, or none; 30 inputs are all partners."""
    file, moments, s = layer_problem(30, 12, 500, weight=QUANTIZER[levels])
    cross = target_cross(file, moments, torch.zeros(1, 12))
    descent = Descent(moments, s, levels)
    descent.fit_scale(cross)
    while descent.fit_weights(cross) + descent.fit_pairs(cross):
        pass
    best = distance(moments, cross, s)
    values = torch.arange(-levels.top, levels.top + 1, levels.step, dtype=torch.float64)
    for i, j in itertools.combinations(range(30), 2):
        for a, b in itertools.product(values, values):
            other = Solution(s.weight.clone(), s.scale)
            near = (other.weight[:, i] - a).abs() <= 2 * levels.step
            other.weight[:, i] = torch.where(near, a, other.weight[:, i])
            other.weight[:, j] = b
            assert (distance(moments, cross, other) >= best - 1e-7 * cross.power).all()


def test_pairs_free_weights_that_hold_each_other_in_place():
    """Two inputs that are almost one: no single weight can change, but both in opposite directions."""
    x = torch.randint(0, 4, (4000, 1, 1)).expand(-1, 1, 2).clone()
    x[::50, :, 1] = 3 - x[::50, :, 1]
    file = sample_file(x, (x[..., :1] - x[..., 1:]).float(), precision=torch.float64)
    moments = file.moments()
    cross = target_cross(file, moments, torch.zeros(1, 1))
    s = Solution(torch.tensor([[[-1.0], [1.0]]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    descent = Descent(moments, s, TERNARY)
    s.weight.zero_()
    descent.products.zero_()
    assert descent.fit_pairs(cross) == 1
    assert s.weight.flatten().tolist() == [1, -1]


def test_partners_are_the_inputs_that_correlate_most():
    x = torch.randint(0, 4, (300, 2, 50))
    x[:, :, 25:] = (x[:, :, :25] + torch.randint(-1, 2, (300, 2, 25))).clamp(0, 3)
    x[:, :, 7] = 2
    moments = sample_file(x, torch.zeros(300, 2, 1)).moments()
    index, covariance = moments.partners
    for g in range(2):
        likeness = torch.corrcoef(x[:, g].T.double()).abs().nan_to_num(-1)
        for i in set(range(50)) - {7}:
            others = likeness[i].clone()
            others[i] = -2
            assert set(index[g, i].tolist()) == set(others.topk(32).indices.tolist())
            assert index[g, i, 0] == (i + 25) % 50 or i == 32
            torch.testing.assert_close(covariance[g, i], moments.gram[g, i, index[g, i].long()])


@given(
    n=st.integers(1, 150),
    outputs=st.integers(1, 9),
    groups=st.integers(1, 2),
    levels=st.sampled_from([TERNARY, Levels(1, 2), Levels(3, 2), Levels(3, 1), Levels(127, 1)]),
    largest=st.sampled_from([1, 3, 255]),
    constant=st.booleans(),
    coarse=st.booleans(),
    hold=st.sampled_from([0.0, 0.3, 40.0]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_the_compiled_core_descends_as_the_plain_loop(
    n, outputs, groups, levels, largest, constant, coarse, hold, seed
):
    """Bit for bit, on every instruction set, with 1 and 2 threads; also with many ties (a few values of ``z``)."""
    torch.manual_seed(seed)
    x = torch.randint(0, largest + 1, (60, groups, n))
    if constant:
        x[:, :, ::3] = largest
    t = torch.randn(60, groups, outputs)
    file = sample_file(x, t.round() if coarse else t)
    moments, start = file.moments().holding(hold), levels.nearest(levels.top * torch.randn(groups, n, outputs).double())
    anchor = Anchor(torch.randn(groups, outputs, n), torch.rand(groups, outputs).double())
    cross = target_cross(file, moments, torch.zeros(groups, outputs))
    cross = Descent(moments, Solution(start, start[:, 0]), levels, anchor).anchored(cross)
    found = []
    for isa, count in [(None, 1), *itertools.product(instruction_sets(), (1, 2))]:
        torch.set_num_threads(count)
        s = Solution(start.clone(), torch.ones(groups, outputs, dtype=torch.float64))
        descent = Descent(moments, s, levels, native=isa is not None, isa=isa)
        changed = []
        for _ in range(3):
            descent.fit_scale(cross)
            changed += [descent.fit_weights(cross), descent.fit_pairs(cross)]
        assert torch.equal(descent.products, moments.times(s.weight))
        found.append((changed, s.weight, s.scale))
    torch.set_num_threads(1)
    for changed, weight, scale in found[1:]:
        assert changed == found[0][0] and torch.equal(weight, found[0][1]) and torch.equal(scale, found[0][2])


def test_a_layer_does_not_depend_on_threads(threads):
    results = []
    for count, native in ((1, False), (1, True), (2, True), (2, False)):
        torch.manual_seed(2)
        threads(1)
        file, moments, s = layer_problem(300, 24, 3000)
        file.precision = torch.float32
        threads(count)
        descent = Descent(moments, s, TERNARY, native=native)
        fit_codes(
            *(file, descent, TWO_BITS, TWO_BITS.relaxed(), torch.full((1, 24), 0.1)),
            lambdas=(0.1, 1.0), iterations=2, sweeps=3,
        )  # fmt: skip
        results.append(s)
    for other in results[1:]:
        assert torch.equal(results[0].weight, other.weight) and torch.equal(results[0].scale, other.scale)


@pytest.mark.parametrize("relaxed", [False, True], ids=["staircase", "clipped"])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("hold", [0.0, 0.5])
def test_objective_never_increases(relaxed, groups, hold):
    file, moments, s = layer_problem(70, 10, 800, groups, chunk=300)
    moments, anchor = moments.holding(hold), Anchor(torch.randn(groups, 10, 70), torch.full((groups, 10), 0.1).double())
    code = TWO_BITS.relaxed() if relaxed else TWO_BITS
    steps: list[Step] = []
    fit_codes(
        *(file, Descent(moments, s, TERNARY, anchor), TWO_BITS, code, torch.zeros(groups, 10)),
        lambdas=(0.01, 0.1, 1.0), iterations=3, sweeps=2, trace=steps.append,
    )  # fmt: skip
    assert [step.name for step in steps].count("z") == 3 * 3 and {"scale", "weights"} <= {step.name for step in steps}
    for before, after in itertools.pairwise(steps):
        if before.lam == after.lam:
            assert (after.objective <= before.objective * (1 + 1e-9) + 1e-9).all(), after.name


@pytest.mark.parametrize("lam", [0.01, 0.3, 1.0])
@pytest.mark.parametrize(
    "code",
    [
        TWO_BITS,
        TWO_BITS.relaxed(),
        Staircase.of(BipolarActivation(2)),
        Staircase.of(SparseActivation(3)),
        Clip(0, math.inf),
    ],
    ids=["sparse2", "clipped", "bipolar2", "sparse3", "relu"],
)
def test_z_update_is_the_minimum(code, lam):
    v = 2 * torch.randn(100, dtype=torch.float64)
    y = code(2 * torch.randn(100, dtype=torch.float64))
    z, cost = code.update(v, y, lam)
    grid = torch.linspace(-8, 8, 20_001, dtype=torch.float64)[:, None]
    best = ((y - code(grid)) ** 2 + lam * (grid - v) ** 2).amin(0)
    assert (cost <= best + 1e-12).all()
    torch.testing.assert_close(cost, best, atol=8e-3, rtol=0)
    inside = z + 1e-9 * torch.randn_like(z).sign()  # the minimum may lie on an open end
    reached = torch.minimum(*((y - code(u)) ** 2 + lam * (u - v) ** 2 for u in (inside, 2 * z - inside)))
    torch.testing.assert_close(reached, cost, atol=1e-7, rtol=0)


def test_codes_agree_better_than_at_the_start():
    x = (torch.randn(6000, 1, 60) + 0.8 * torch.randn(6000, 1, 1)).clamp(0, 3).round()
    t = torch.einsum("pgn,gno->pgo", x, torch.randn(1, 60, 20))
    t = (t - t.mean(0)) / t.std(0)
    fresh = sample_file(x[3000:], t[3000:])
    _, _, s = layer_problem(60, 20, 10)
    file = sample_file(x[:3000], t[:3000])
    moments, shift = file.moments(), torch.zeros(1, 20)
    cross = target_cross(file, moments, shift)
    s.weight = TERNARY.nearest(torch.linalg.solve(moments.gram, cross.product) * 8)
    s.scale = torch.full((1, 20), 0.1, dtype=torch.float64)
    start = agreement(fresh, moments, s, TWO_BITS, shift).mean()
    descent = Descent(moments, s, TERNARY)
    fit_linear(descent, cross, 15)
    linear = agreement(fresh, moments, s, TWO_BITS, shift).mean()
    fit_codes(file, descent, TWO_BITS, TWO_BITS, shift, lambdas=(0.01, 0.1, 1.0), iterations=3, sweeps=3)
    solved = agreement(fresh, moments, s, TWO_BITS, shift).mean()
    print(f"\ncodes that agree on fresh samples: start {start:.3f}, linear {linear:.3f}, codes {solved:.3f}")
    assert start < linear < solved


@pytest.mark.parametrize("largest", [3, 255])
def test_held_statistics_are_those_of_more_samples(largest):
    """An input that is 1 alone, ``held`` times, with targets ``u``, would hold its weight alike."""
    groups, n, outputs, count = 2, 7, 5, 60
    x, t = torch.randint(0, largest + 1, (count, groups, n)).double(), torch.randn(count, groups, outputs).double()
    file = sample_file(x, t, precision=torch.float64)
    anchor = Anchor(torch.randn(groups, outputs, n), torch.rand(groups, outputs).double() / largest)
    s = Solution(torch.randint(-1, 2, (groups, n, outputs)).double(), torch.rand(groups, outputs).double())
    moments = file.moments().holding(0.3)
    descent = Descent(moments, s, TERNARY, anchor)
    cross = descent.anchored(target_cross(file, moments, torch.zeros(groups, outputs)))

    assert moments.held is not None and torch.equal(moments.held, (0.3 * file.moments().curvature).round())
    u, centred = anchor.weight(slice(None)).transpose(1, 2), x - x.mean(0)
    v = torch.einsum("pgn,gno->pgo", centred, s.weight * s.scale[:, None])
    apart = (moments.held[:, :, None] * (s.scale[:, None] * s.weight - u) ** 2).sum(1)
    torch.testing.assert_close(descent.tension(), apart)
    torch.testing.assert_close(distance(moments, cross, s), ((t - v) ** 2).sum(0) + apart, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(moments.power(s.weight), ((v / s.scale) ** 2).sum(0), rtol=1e-9, atol=1e-6)
    assert torch.equal(cross.products, cross.products.round()) and cross.products.abs().max() <= cross.bound


def test_holding_more_than_32_bits_hold():
    products = torch.full((1, 1, 1), 2**31 - 10, dtype=torch.int32)
    held = Moments(100, torch.zeros(1, 1, dtype=torch.float64), products, 5000).holding(0.5)
    assert held.products.dtype == torch.float64
    assert held.products.item() == 2**31 - 10 + round(0.5 * (2**31 - 10))


def test_weights_held_at_the_real_ones_serve_other_samples_better():
    """As many samples as weights: what is least for these is far from least for others."""
    n, outputs, count = 200, 40, 250
    mixed = torch.randn(count + 4000, n) @ (torch.eye(n) + 0.2 * torch.randn(n, n) / n**0.5)
    x, w = (mixed + 0.5).clamp(0, 3).round()[:, None], torch.randn(n, outputs)
    t = x @ w
    t = (t - t.mean(0)) / t.std(0)
    factor = 1 / (x[:, 0] @ w).std(0).double()
    few, fresh = sample_file(x[:count], t[:count]), sample_file(x[count:], t[count:])
    rows, scale = TernaryWeight().integers(w.T)
    left = []
    for hold in (0.0, 0.3):
        s = Solution(rows.T.contiguous().double()[None], scale.double()[None] * factor)
        moments = few.moments().holding(hold)
        descent = Descent(moments, s, TERNARY, Anchor(w.T[None], factor[None]))
        fit_linear(descent, descent.anchored(target_cross(few, moments, torch.zeros(1, outputs))), 15)
        shift = torch.zeros(1, outputs)
        left.append(
            float(distance(fresh.moments(), target_cross(fresh, fresh.moments(), shift), s).mean()) / fresh.count
        )
    print(f"\nleft of fresh targets' variance: {left[0]:.3f} by the samples alone, {left[1]:.3f} held")
    assert left[1] < 0.8 * left[0]


@pytest.mark.parametrize("levels", [TERNARY, Levels(1, 2), Levels(3, 2)])
def test_a_start_that_points_the_wrong_way_is_turned_round(levels):
    """A negative scale is none: the weights take its sign, and the objective falls from the first half-step on."""
    file, moments, s = layer_problem(30, 8, 300, weight=QUANTIZER[levels])
    cross = target_cross(file, moments, torch.zeros(1, 8))
    s.weight.neg_()
    wrong = s.weight.clone()
    descent = Descent(moments, s, levels)
    descent.fit_scale(cross)
    assert torch.equal(s.weight, -wrong) and (s.scale > 0).all()
    assert (distance(moments, cross, s) < cross.power).all()


def test_sums_of_the_largest_numbers_are_exact():
    """Every product of the statistics is an integer times a unit; their sums must fit the 53 bits of float64."""
    count, n = 3000, 40
    x = torch.full((count, 1, n), 255.0)
    t = torch.linspace(-9, 9, count)[:, None, None].expand(-1, 1, 2).contiguous()
    file = sample_file(x, t, precision=torch.float64)
    moments = file.moments()
    cross = target_cross(file, moments, torch.zeros(1, 2))
    assert torch.equal(cross.products, cross.products.round())
    assert cross.products.abs().max() <= cross.bound and cross.bound * n <= 2.0**53


_BYTES = """
import torch
from bitbranch.twostep.descent import Solution
import numpy as np
from types import SimpleNamespace
from bitbranch.twostep.bytes import multiplies_bytes
from bitbranch.twostep.solver import PreActivations, _Sums
from bitbranch.twostep.descent import Moments
from bitbranch.twostep import statistics
n, outputs, count = 576, 512, 64
x = torch.randint(0, 128, (1, count, n), generator=torch.Generator().manual_seed(0)).float()
weight = (torch.randint(0, 128, (1, n, outputs)) * 2 - 127).double()
moments = Moments(count, x.double().sum(1), x.double().transpose(1, 2) @ x.double(), 127)
found = PreActivations(moments, Solution(weight, torch.ones(1, outputs).double()), torch.zeros(1, outputs))(x.double())
assert torch.equal(found.round(), ((x.double() - moments.mean[:, None]) @ weight).round())
statistics.PANEL = 200
with statistics.SampleFile(1, n, 1, np.dtype(np.uint8), chunk=30) as file:
    file.append(x.transpose(0, 1), torch.zeros(count, 1, 1))
    assert torch.equal(file.moments().products.double(), moments.products)
# One output, more samples than sums of 32 bits hold, and numbers that take one digit more than their size says.
for n, outputs, count in ((576, 512, 64), (4608, 1, 64), (32, 128, 4096), (1024, 4, 129)):
    x = torch.full((1, count, n), 127.0) if count > 1000 else torch.randint(0, 128, (1, count, n)).float()
    moments = Moments(count, x.double().sum(1), x.double().transpose(1, 2) @ x.double(), 127)
    for reach in (1e-3, 0.99 * 4, 1e5):
        sums = _Sums(SimpleNamespace(reach=reach), moments, torch.zeros(1, outputs))
        assert sums.bytes == multiplies_bytes()
        z = (torch.randn(1, count, outputs) + count // 1000).clamp(-1, 1)
        z = reach * 9 * z.double()  # up to the ends, and beyond
        sums.add(x, z)
        sums.add(x, z)
        whole = (z.clamp(-sums.limit, sums.limit) / sums.unit).round()
        assert torch.equal(sums.cross().products, 2 * (x.double().transpose(1, 2) @ whole))
"""


@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE", "DEFAULT"])
def test_bytes_are_multiplied_where_that_is_exact(isa):
    """Without VNNI PyTorch's products of bytes overflow 16 bits."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa}
    done = subprocess.run([sys.executable, "-c", _BYTES], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_variances_of_very_many_samples():
    count = 30_000_000
    half = torch.full((1, 1), 255.0 * count / 2, dtype=torch.float64)
    moments = Moments(count, half, 255 * half[:, None], 255)
    assert moments.curvature.item() == pytest.approx(count * 127.5**2) and moments.holding(0.5).held.item() > 0


def test_inputs_that_never_vary_change_nothing():
    x = torch.randint(0, 4, (200, 1, 6)).float()
    x[:, :, 2] = 1
    file = sample_file(x, torch.randn(200, 1, 3))
    moments = file.moments()
    s = Solution(torch.ones(1, 6, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64))
    fit_linear(Descent(moments, s, TERNARY), target_cross(file, moments, torch.zeros(1, 3)), 5)
    assert (s.weight[:, 2].abs() == 1).all() and torch.isfinite(s.scale).all()


# Statistics


@pytest.mark.parametrize("chunk", [1, 7, 1000, 5000])
def test_streamed_statistics_are_the_direct_sums(chunk):
    x = torch.randint(0, 4, (1000, 2, 12))
    t = torch.randn(1000, 2, 5)
    file = sample_file(x, t, chunk=chunk, precision=torch.float64)
    moments = file.moments()
    cross = target_cross(file, moments, torch.full((2, 5), 0.25))
    xs, ts = x.double().transpose(0, 1), t.double().transpose(0, 1) - 0.25
    whole = sample_file(x, t).moments()
    assert torch.equal(moments.gram, whole.gram) and torch.equal(moments.mean, whole.mean)
    centred = xs - xs.mean(1, keepdim=True)
    torch.testing.assert_close(moments.gram, centred.transpose(1, 2) @ centred)
    torch.testing.assert_close(cross.product, centred.transpose(1, 2) @ ts)
    torch.testing.assert_close(cross.power, ts.square().sum(1))


def test_result_does_not_depend_on_chunks():
    results = []
    for chunk in (13, 200, 10_000):
        torch.manual_seed(1)
        file, moments, s = layer_problem(40, 8, 600, chunk=chunk)
        fit_codes(
            *(file, Descent(moments, s, TERNARY), TWO_BITS, TWO_BITS, torch.zeros(1, 8)),
            lambdas=(0.1, 1.0), iterations=2, sweeps=2,
        )  # fmt: skip
        results.append(s)
    for other in results[1:]:
        assert torch.equal(results[0].weight, other.weight)
        torch.testing.assert_close(results[0].scale, other.scale)


def test_memory_does_not_grow_with_the_samples():
    peaks = []
    for repeats in (3, 15):
        with SampleFile(1, 300, 20, np.dtype(np.uint8), chunk=500) as file:
            for _ in range(repeats):
                file.append(torch.randint(0, 4, (1000, 1, 300)), torch.randn(1000, 1, 20))
            tracemalloc.start()
            assert max(x.shape[1] for x, _ in file.chunks()) == 500
            moments = file.moments()
            target_cross(file, moments, torch.zeros(1, 20))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            assert file.count == 1000 * repeats
    assert peaks[1] < 1.2 * peaks[0] < 2_000_000


LAYERS = {
    "linear": (nn.Linear(12, 5), (6, 12)),
    "tokens": (nn.Linear(12, 5), (6, 4, 12)),
    "conv1d": (nn.Conv1d(4, 6, 5, stride=2, padding=2, dilation=2, groups=2), (3, 4, 21)),
    "conv2d": (nn.Conv2d(6, 8, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2), (3, 6, 9, 8)),
    "same": (nn.Conv2d(3, 4, (4, 3), padding="same"), (2, 3, 7, 6)),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6), (2, 6, 7, 6)),
    "transposed": (
        nn.ConvTranspose2d(
            6, 4, (3, 4), stride=(2, 3), padding=(1, 0), output_padding=(1, 0), dilation=(2, 1), groups=2
        ),
        (2, 6, 5, 4),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_patches_times_weights_are_the_layer(name):
    plain, shape = LAYERS[name]
    layer = quantized_layer(plain, SparseActivation(2), TernaryWeight())
    x = torch.randint(0, 4, shape).float()
    expected = layer.accumulate(x, layer.weight, None).detach()
    expected = expected if isinstance(layer, nn.Linear) else expected.movedim(1, -1)
    positions = draw_positions(expected.shape[:-1], 10_000, torch.Generator())
    assert len(positions) == expected[..., 0].numel()
    rows = patches(layer, x, positions)
    groups = getattr(layer, "groups", 1)
    weight = layer.outputs_first(layer.weight).detach().flatten(1).view(groups, -1, rows.shape[2])
    torch.testing.assert_close(
        torch.einsum("pgn,gon->pgo", rows, weight).flatten(1), expected[tuple(positions.T)], atol=1e-4, rtol=1e-4
    )


def test_cross_and_moments_describe_the_residual():
    """``distance`` from statistics is the sum over samples."""
    file, moments, s = layer_problem(9, 4, 300)
    cross = target_cross(file, moments, torch.zeros(1, 4))
    ((x, t),) = file.chunks()
    v = (x - moments.mean[:, None]) @ (s.weight * s.scale[:, None])
    torch.testing.assert_close(distance(moments, cross, s), (t - v).square().sum(1))


@pytest.mark.long
@pytest.mark.parametrize(("what", "seconds"), [("fc6", 180), ("resnet18", 600)])
def test_large_layers_and_networks_are_solved_in_time(what, seconds):
    """On 2 idle cores; processor time, as other work on the machine does not count."""
    script = Path(__file__).parents[1] / "benchmarks" / "solve.py"
    said = subprocess.run([sys.executable, script, what], check=True, capture_output=True, text=True).stdout
    _, busy, peak = map(float, re.search(r"(\d+) s, (\d+) processor seconds, peak ([\d.]+) GiB", said).groups())
    assert busy < 2 * seconds and peak < 4, said
