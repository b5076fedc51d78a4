"""Step 1: sparsity, BatchNorms with affine parts, uneven levels, scales that are learned."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from strokes import batches, small_net, stroke_images
from torch import Tensor, nn

from bitbranch import quantize
from bitbranch.compiler import compile
from bitbranch.compiler.verify import verify
from bitbranch.errors import InputError
from bitbranch.layers import QuantizedLayer
from bitbranch.quantizers.lloyd import LloydActivation, lloyd_levels
from bitbranch.quantizers.lsq import LearnedStepWeight
from bitbranch.quantizers.mbn import BipolarWeight
from bitbranch.quantizers.registry import parse_scheme, tsq
from bitbranch.quantizers.tsq import LearnedTernaryWeight, SparseActivation
from bitbranch.quantizers.uniform import UniformWeight
from bitbranch.training.loop import fit
from bitbranch.twostep import convert, learn_codes, learn_transforms
from bitbranch.twostep.codes import codes_network, has_low_bit_weight
from bitbranch.twostep.histogram import Histogram, equalize

torch.set_num_threads(1)  # small problems; the machine may be shared
pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize("sparsity", [0.5, 0.75])
def test_sparsity_is_measured_while_training(sparsity):
    loader, shares, lines = batches(*stroke_images(400, 0)), [], []
    special = {"8": parse_scheme("tsq:wt-a3", tsq(sparsity=0.9))}
    q = quantize(small_net(), parse_scheme("tsq:wt-a2", tsq(sparsity=sparsity)), layers=special)
    learn_codes(q, loader, epochs=2, on_sparsity=shares.append, progress=lines.append)
    assert len(shares) == 2 and set(shares[0]) == {"3", "8", "13"}
    assert abs(shares[0]["3"] - sparsity) < 0.06 and 0.9**4 - 0.05 < shares[0]["8"] < 0.9  # behind 2x2 max-pool
    assert "zeros 3 " in lines[1] and len(lines) == 4


def test_affine_batchnorm_stays_and_learns():
    net = small_net()
    for module in net:
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
            nn.init.uniform_(module.weight, 0.2, 3)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    q, loader = quantize(net, "tsq:wt-a2"), batches(*stroke_images(300, 0))
    learned = learn_codes(q, loader, epochs=2, affine=True, progress=None)
    assert learned[1].weight.requires_grad and learned[1].weight.std() > 0.05 and learned[1].bias.abs().max() > 0
    student = learn_transforms(q, learned, loader, samples=1000, progress=None)
    x = stroke_images(20, 1)[0]
    assert verify(student, compile(student, x), [x]).mismatches == 0


@torch.no_grad()
def test_equalized_channels_keep_the_function():
    net = small_net().eval()
    for module in net:
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
            module.weight.uniform_(0.2, 3)
            module.bias.uniform_(-0.5, 0.5)
    x, q = torch.randn(4, 1, 12, 12), quantize(net, "tsq:wt-a2").eval()
    assert equalize(q, lambda norm, _: Histogram.normal(norm.bias, norm.weight)) == []
    assert q[1].weight.std() < 0.8 * net[1].weight.std()
    for layer in q.modules():
        if isinstance(layer, QuantizedLayer):
            layer.input_quantizer = layer.weight_quantizer = None
    torch.testing.assert_close(q(x), net(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_best_steps_have_the_least_error(bits):
    x = torch.rand(3, 20_000) ** torch.tensor([[1.0], [2.0], [4.0]]) * 5
    histogram = Histogram(3)
    histogram.add(x)
    top = 2**bits - 1

    def error(step):
        return ((x / step[:, None]).round().clamp(0, top) * step[:, None] - x).square().mean(1)

    found = error(histogram.best_steps(bits).float())
    grid = torch.stack([error(torch.full((3,), s)) for s in np.geomspace(0.01, 6, 400).astype(np.float32).tolist()])
    assert (found <= 1.03 * grid.amin(0)).all()


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("sparsity", [0.5, 0.625, 0.75])
def test_lloyd_levels_are_the_means_of_their_cells(bits, sparsity):
    q, uniform = LloydActivation(bits, sparsity=sparsity), SparseActivation(bits, sparsity=sparsity)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal(400_000)).float()
    above, levels = x[x > q.eps], lloyd_levels(q.eps, bits)
    middle = torch.tensor([(a + b) / 2 for a, b in itertools.pairwise(levels)])
    for k, level in enumerate(levels):
        assert abs(float(above[torch.bucketize(above, middle) == k].mean()) - level) < 0.02
    errors = [float((f(above) - above).square().mean()) for f in (q.eval(), uniform.eval())]
    best = float((torch.tensor(levels)[torch.bucketize(above, middle)] - above).square().mean())
    assert best <= errors[0] < min(1.03 * best, errors[1]), (best, errors)
    assert torch.equal(q.quantize(x), q(x)) and len(q(x).unique()) == 2**bits


def test_uneven_levels_are_learned_solved_and_compiled():
    q, loader = quantize(small_net(), parse_scheme("tsq:wt-a2", tsq(lloyd=True))), batches(*stroke_images(600, 0))
    teacher, reports = learn_codes(q, loader, epochs=3, lr=5e-3, progress=None), []
    student = learn_transforms(q, teacher, loader, samples=1500, progress=None, on_layer=reports.append)
    assert all(r.target == "codes" and r.solved > r.start for r in reports[:2])
    x = stroke_images(20, 1)[0]
    assert verify(student, compile(student, x), [x]).mismatches == 0
    with pytest.raises(InputError, match=r"layer 3: Lloyd's levels are for normalised inputs"):
        convert(small_net(), loader, parse_scheme("tsq:wt-a2", tsq(lloyd=True)), progress=None)


def float_weights(network: nn.Module) -> nn.Module:
    """A copy of a network whose layers of few bits have float weights, as step 1 leaves them."""
    copied = copy.deepcopy(network)
    for layer in copied.modules():
        if isinstance(layer, QuantizedLayer) and has_low_bit_weight(layer):
            layer.weight_quantizer = None
    return copied


def test_scales_start_anew_where_float_weights_have_changed():
    for weights in (UniformWeight(3), BipolarWeight(2), LearnedTernaryWeight(), LearnedStepWeight(4, per_channel=True)):
        weights.start(torch.randn(4, 9))
        weights.hold(torch.full((4,), 10.0))
        assert weights.integers(torch.randn(4, 9))[1].tolist() == [10] * 4
        fresh, weight = copy.deepcopy(weights), torch.randn(4, 9)
        weights.restart(weight)
        fresh.step = nn.Parameter(torch.zeros(0))
        fresh.held = torch.zeros(0)
        fresh.start(weight)
        for found, expected in zip(weights.integers(weight), fresh.integers(weight), strict=True):
            assert torch.equal(found, expected)


def test_learned_scales_go_on_from_the_solved_ones():
    """Step 2 gives the weights that it gives without them; fine-tuning then trains scales and weights."""
    loader = batches(*stroke_images(600, 0))
    students = {}
    for scheme in ("tsq:wt-a2", "tsq(learned=true):wt-a2"):
        torch.manual_seed(0)
        q = quantize(small_net(), scheme)
        teacher = learn_codes(q, loader, epochs=2, lr=5e-3, affine=True, seed=0, progress=None)
        students[scheme] = learn_transforms(q, teacher, loader, samples=1000, progress=None)
    layers = [[m for m in s.modules() if isinstance(m, QuantizedLayer)] for s in students.values()]
    learned = [(a, b) for a, b in zip(*layers, strict=True) if isinstance(b.weight_quantizer, LearnedTernaryWeight)]
    for computed, held in learned:
        (values, scale, _), (read, steps, _) = computed.integer_weight(), held.integer_weight()
        assert torch.equal(values, read)
        torch.testing.assert_close(steps, scale, rtol=1e-6, atol=0)
    student = students["tsq(learned=true):wt-a2"]
    kept = learn_transforms(student, float_weights(student), loader, method="start", reestimate=False, progress=None)
    assert all(torch.equal(kept.state_dict()[name], value) for name, value in student.state_dict().items())
    before = [b.weight_quantizer.step.detach().clone() for _, b in learned]
    fit(student, loader, epochs=1, lr=5e-3, seed=0, progress=None)
    for step, (_, layer) in zip(before, learned, strict=True):
        assert not torch.equal(layer.weight_quantizer.step, step)
    x = stroke_images(20, 1)[0]
    assert verify(student, compile(student, x), [x]).mismatches == 0


@pytest.mark.parametrize("lloyd", [False, True])
def test_channels_of_any_size_start_with_their_best_codes(lloyd: bool) -> None:
    net = small_net().eval()
    for module in net:
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
            module.weight.data.uniform_(0.3, 3)
    q = quantize(net, parse_scheme("tsq:wt-a2", tsq(lloyd=lloyd)))
    step_1 = codes_network(q, affine=True)
    reader, deviation = step_1[3].input_quantizer, step_1[1].weight.detach()[:, None]
    x = torch.randn(20_000) * deviation

    def error(scale: float) -> Tensor:
        return (reader(x * scale) / scale - x.relu()).square().mean(1) / deviation[:, 0] ** 2

    best = torch.stack([error(s) for s in torch.linspace(0.3, 3, 60).tolist()]).amin(0)
    assert (error(1.0) < 1.05 * best).all()
