"""Two-step quantization of whole networks: step 1, step 2, and both without training or interrupted."""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitbranch import coverage, quantize
from bitbranch.compiler import compile
from bitbranch.compiler.verify import verify
from bitbranch.contract import CodeType
from bitbranch.errors import InputError
from bitbranch.layers import QuantizedLayer, quantized_layer
from bitbranch.quantizers.bwn import BinaryWeight
from bitbranch.quantizers.lloyd import LloydActivation, lloyd_levels
from bitbranch.quantizers.lsq import LearnedStepWeight
from bitbranch.quantizers.mbn import BipolarWeight
from bitbranch.quantizers.registry import Scheme, parse_scheme, tsq
from bitbranch.quantizers.tsq import LearnedTernaryWeight, SparseActivation, TernaryWeight
from bitbranch.quantizers.uniform import UniformActivation, UniformWeight
from bitbranch.training.loop import fit
from bitbranch.twostep import Recipe, convert, learn_codes, learn_transforms, reestimate_batchnorm, strip_affine
from bitbranch.twostep.chains import Graph, Reader
from bitbranch.twostep.codes import codes_network, has_low_bit_weight
from bitbranch.twostep.convert import float_twin
from bitbranch.twostep.descent import Levels, Solution
from bitbranch.twostep.front import Front
from bitbranch.twostep.histogram import Histogram, equalize
from bitbranch.twostep.layer import LayerProblem, holds_any_weights, loosen, write_weight
from bitbranch.twostep.solver import agreement
from bitbranch.twostep.staircase import Staircase
from bitbranch.twostep.statistics import SampleFile

torch.set_num_threads(1)  # small problems; the machine may be shared
pytestmark = pytest.mark.usefixtures("seeded")


# Whole networks


def small_net() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 24, 3, padding=1, groups=2), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.0)),
        *(nn.Conv2d(24, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(24 * 9, 48), nn.BatchNorm1d(48), nn.ReLU()),
        nn.Linear(48, 4),
    )


def stroke_images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy 12x12 images of a stroke in one of four directions."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4, count)
    rows, columns = np.mgrid[:12, :12] - 5.5
    angle = (label * np.pi / 4 + rng.normal(0, 0.15, count))[:, None, None]
    offset = rng.normal(0, 1.5, (count, 1, 1))
    across = rows * np.cos(angle) + columns * np.sin(angle) - offset
    along = -rows * np.sin(angle) + columns * np.cos(angle)
    image = np.exp(-(across**2)) * (np.abs(along) < 4) + rng.normal(0, 0.45, (count, 12, 12))
    return torch.from_numpy(image[:, None].astype(np.float32)), torch.from_numpy(label)


def batches(x: Tensor, y: Tensor, size: int = 50) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))


@pytest.fixture(scope="module")
def trained():
    """Network, step-1 network, calibration batches and test set; small, so that it takes seconds."""
    torch.manual_seed(3)
    loader = batches(*stroke_images(1500, 0))
    q = quantize(small_net(), "tsq:wt-a2")
    teacher = learn_codes(q, loader, epochs=5, lr=5e-3, seed=0, progress=None)
    return q, teacher, loader, stroke_images(800, 1)


def accuracy(net: nn.Module, test: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return float((net(test[0]).argmax(1) == test[1]).float().mean())


def inner_layers(net: nn.Module) -> list[QuantizedLayer]:
    return [
        m for m in net.modules() if isinstance(m, QuantizedLayer) and not isinstance(m.weight_quantizer, UniformWeight)
    ]


def test_step_one_learns_with_float_weights(trained):
    q, teacher, _, test = trained
    assert accuracy(teacher, test) > 0.8
    assert not teacher.training
    assert all(layer.weight_quantizer is None for layer in inner_layers(teacher))
    assert all(layer.weight_quantizer is not None for layer in inner_layers(q))
    coded = [teacher[i] for i in (1, 4, 9)]
    assert all((bn.weight == 1).all() and (bn.bias == 0).all() and not bn.weight.requires_grad for bn in coded)
    assert teacher[14].weight.requires_grad  # read by an 8-bit layer, whose step is learned from data


def test_step_one_is_repeatable(trained):
    q, _, loader, _ = trained
    first, second = (learn_codes(q, loader[:3], epochs=1, seed=4, progress=None) for _ in range(2))
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_step_two_on_a_network(trained):
    q, teacher, loader, test = trained
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    reports, lines = [], []
    loader = loader[:20]
    student = learn_transforms(q, teacher, loader, samples=4000, progress=lines.append, on_layer=reports.append)
    start = learn_transforms(q, teacher, loader, method="start", reestimate=False, progress=None)
    linear = learn_transforms(q, teacher, loader, method="linear", samples=4000, progress=None)

    found = {
        k: accuracy(n, test) for k, n in [("float", teacher), ("start", start), ("linear", linear), ("tsq", student)]
    }
    print("\n" + "\n".join(lines), found)
    assert found["tsq"] > found["start"] and found["tsq"] > found["float"] - 0.1
    assert [r.name for r in reports] == ["3", "8", "13", "16"] and len(lines) == 4
    assert all(r.solved > r.start for r in reports[:2]) and all(math.isnan(r.solved) for r in reports[2:])
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert not student.training
    for layer in inner_layers(student):
        values, scale, _ = layer.integer_weight()
        assert set(values.unique().tolist()) <= {-1, 0, 1} and (scale > 0).all()
        real = values.flatten(1) * scale[:, None]
        assert torch.equal(real, layer.outputs_first(layer.quantized_weight()).detach().flatten(1))


def test_step_two_is_repeatable(trained):
    q, teacher, loader, _ = trained
    first, second = (learn_transforms(q, teacher, loader[:6], samples=300, seed=5, progress=None) for _ in range(2))
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "weight", [BinaryWeight, lambda: BipolarWeight(2), lambda: UniformWeight(3)], ids=["binary", "bipolar2", "uniform3"]
)
def test_step_two_with_other_weights(trained, weight):
    """The solver's integers are those that the layer evaluates with, whatever the quantizer."""
    _, teacher, loader, test = trained
    q = quantize(small_net(), Scheme("other", weight, lambda: SparseActivation(2)))
    student = learn_transforms(q, teacher, loader[:12], samples=1500, progress=None, z_update="staircase")
    assert accuracy(student, test) > 0.5
    for layer in inner_layers(student):
        levels = Levels.of(layer.integer_weight()[2])
        assert torch.equal(layer.integer_weight()[0], levels.nearest(layer.integer_weight()[0]))


@torch.no_grad()
def test_reestimated_statistics_are_those_of_the_data():
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3), nn.BatchNorm1d(3)).train()
    x = torch.randn(400, 5)
    reestimate_batchnorm(net, [(x, torch.zeros(400))])
    assert net.training and net[1].training and net[1].momentum == 0.1
    first = net[0](x)
    torch.testing.assert_close(net[1].running_mean, first.mean(0))
    torch.testing.assert_close(net[1].running_var, first.var(0))
    hidden = F.relu((first - first.mean(0)) / (first.var(0, unbiased=False) + net[1].eps).sqrt() * net[1].weight)
    torch.testing.assert_close(net[4].running_mean, net[3](hidden).mean(0))


@torch.no_grad()
def test_strip_affine_keeps_the_function_but_for_the_shift():
    net = small_net().eval()
    for module in net:
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
            module.weight.normal_()
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    x = torch.randn(4, 1, 12, 12)
    expected = net(x)
    q = quantize(net, "tsq:wt-a2").eval()
    assert strip_affine(q) == []
    for layer in q.modules():
        if isinstance(layer, QuantizedLayer):
            layer.input_quantizer = layer.weight_quantizer = None
    torch.testing.assert_close(q(x), expected, atol=1e-4, rtol=1e-4)


class Residual(nn.Module):
    """One layer is followed by an addition, the other by functional pooling and flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = quantized_layer(nn.Conv2d(1, 8, 3, padding=1), UniformActivation(8), UniformWeight(8))
        self.norm = nn.BatchNorm2d(8)
        self.inner = quantized_layer(nn.Conv2d(8, 8, 3, padding=1), SparseActivation(2), TernaryWeight())
        self.inner_norm = nn.BatchNorm2d(8)
        self.outer = quantized_layer(nn.Conv2d(8, 8, 3, padding=1, bias=False), SparseActivation(2), TernaryWeight())
        self.outer_norm = nn.BatchNorm2d(8)
        self.head = quantized_layer(nn.Linear(8 * 9, 10), SparseActivation(2), TernaryWeight())
        self.last = quantized_layer(nn.Linear(10, 4), UniformActivation(8), UniformWeight(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        x = x + self.inner_norm(self.inner(F.relu(x)))
        x = F.max_pool2d(F.relu(self.outer_norm(self.outer(x))), 4)
        return self.last(self.head(x.reshape(x.size(0), -1)))


def test_chains_and_layers_without_a_following_code():
    net = Residual()
    graph = Graph(net)
    chains = {c.source: c for c in map(graph.chain, graph.calls(QuantizedLayer))}
    assert chains["inner"].obstacle == "an addition reads it" and chains["inner"].batchnorm == "inner_norm"
    assert (chains["outer"].batchnorm, chains["outer"].readers, chains["outer"].lo) == (
        "outer_norm",
        (Reader("head", 0),),
        0,
    )
    assert (chains["head"].batchnorm, chains["head"].readers, chains["head"].lo) == (None, (Reader("last"),), -math.inf)
    assert chains["last"].obstacle == "the network's output reads it"

    loader, lines = batches(*stroke_images(300, 0)), []
    teacher = learn_codes(net, loader, epochs=1, progress=None)
    student = learn_transforms(net, teacher, loader, samples=1000, progress=lines.append)
    assert "linear (an addition reads it)" in lines[0] and "codes agree" in lines[1]
    gap = (student(stroke_images(50, 2)[0]) - teacher(stroke_images(50, 2)[0])).abs().mean()
    assert torch.isfinite(gap)


class Hourglass(nn.Module):
    """A transposed convolution and an upsampled one, joined with what was before them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.down, self.down_norm = nn.Conv2d(8, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12)
        self.up, self.up_norm = nn.ConvTranspose2d(12, 8, 2, 2, bias=False), nn.BatchNorm2d(8)
        self.side, self.side_norm = nn.Conv2d(12, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.joined, self.joined_norm = nn.Conv2d(20, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        y = F.relu(self.down_norm(self.down(x)))
        side = F.interpolate(F.relu(self.side_norm(self.side(y))), scale_factor=2)
        x = torch.cat([x, F.relu(self.up_norm(self.up(y))), side], 1)
        return self.last(F.relu(self.joined_norm(self.joined(x))).mean((2, 3)))


@pytest.mark.parametrize("seed", [0, 5])
def test_transposed_convolutions_and_joined_codes_are_solved(seed):
    torch.manual_seed(seed)
    net = quantize(Hourglass(), "tsq:wt-a2")
    loader, reports = batches(*stroke_images(300, 0)), []
    teacher = learn_codes(net, loader, epochs=2, progress=None)
    # The statistics of so short a training are not yet those of the data; renewed, they would change the codes.
    student = learn_transforms(
        net, teacher, loader, samples=1500, reestimate=False, progress=None, on_layer=reports.append
    )
    assert [r.name for r in reports] == ["down", "side", "up", "joined", "last"]
    assert [r.target for r in reports[:3]] == ["codes"] * 3
    assert all(r.solved >= r.start for r in reports[:3]), reports  # of every output the better weights are kept
    assert all(r.solved > r.start for r in reports[:2]), reports
    x = stroke_images(20, 1)[0]
    assert verify(student, compile(student, x), [x]).codes_differing < 30


@pytest.mark.parametrize("reestimate", [False, True])
def test_an_output_keeps_weights_that_agree_more(reestimate, monkeypatch):
    """No output gives fewer samples the right code than its first weights, BatchNorm's statistics treated alike."""
    torch.manual_seed(5)
    net, loader = quantize(Hourglass(), "tsq:wt-a2"), batches(*stroke_images(300, 0))
    teacher, keep, seen = learn_codes(net, loader, epochs=2, progress=None), LayerProblem.keep_better, []

    def keep_better(problem, code, *, renormalise):
        assert renormalise == reestimate
        if not isinstance(code, Staircase):
            return
        first = Solution(problem._start[0].double(), problem._start[1].clone())
        problem.solution.weight[:, :, ::2] *= -1  # some that are surely worse
        solved = Solution(problem.solution.weight.clone(), problem.solution.scale.clone())
        keep(problem, code, renormalise=renormalise)
        shares = []
        for s in (first, solved, problem.solution):
            s = problem._renormalised(s) if renormalise else s
            shares.append(agreement(problem.file, problem.moments, s, code, problem.shift))
        torch.testing.assert_close(shares[2], torch.maximum(shares[0], shares[1]))
        before = problem.agreement(code)
        problem.write(renormalise=renormalise)
        after = problem.agreement(code)
        torch.testing.assert_close(after, shares[2] if renormalise else before, rtol=0, atol=5e-3)  # as it was foreseen
        seen.append(int((shares[0] > shares[1]).sum()))

    monkeypatch.setattr(LayerProblem, "keep_better", keep_better)
    learn_transforms(net, teacher, loader, samples=1500, reestimate=reestimate, progress=None)
    assert len(seen) == 3 and sum(seen) > 0


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = quantized_layer(nn.Linear(4, 4), SparseActivation(2), TernaryWeight())

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else x


class Recurrent(DataDependent):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(F.relu(self.layer(x)))


# Step 1: sparsity, affine BatchNorm, uneven levels


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


# Step 2 without training, and interrupted


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.two, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.two(F.relu(self.norm1(self.one(x))))))


def residual_net() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), Block(), Block()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 4)),
    )


@pytest.fixture(scope="module", params=[small_net, residual_net], ids=["chain", "residual"])
def float_net(request):
    torch.manual_seed(0)
    net, loader = request.param(), batches(*stroke_images(1200, 0))
    fit(net, loader, epochs=4, lr=5e-3, seed=0, progress=None)
    return net, loader, stroke_images(600, 1)


@pytest.mark.parametrize(("scheme", "per_channel"), [("tsq:wt-a2", False), ("tsq:w1-a2", True), ("tsq:w3-a3", False)])
def test_a_float_network_is_converted_without_training(float_net, scheme, per_channel):
    net, loader, test = float_net
    before, reports = {k: v.clone() for k, v in net.state_dict().items()}, []
    recipe = Recipe(samples=3000)
    q = convert(
        net, loader[:10], scheme, per_channel=per_channel, recipe=recipe, progress=None, on_layer=reports.append
    )
    start = convert(net, loader[:10], scheme, recipe=Recipe(method="start", reestimate=False), progress=None)
    found = {"float": accuracy(net, test), "start": accuracy(start, test), "solved": accuracy(q, test)}
    print(found, *reports, sep="\n")
    assert found["solved"] > max(0.65, found["start"] - 0.03)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert verify(q, compile(q, test[0][:2]), [test[0][:50]]).mismatches == 0
    if isinstance(net[4], Block):
        assert [("an addition reads it" in r.target) for r in reports] == [*[False, True] * 2, False]


@pytest.mark.parametrize(
    "scheme",
    [
        *(f"tsq:w{b}-a2" for b in ("1", "t", "2", "3", "4", "7")),
        *("tsq(learned=true):wt-a2", "lsq(per_channel=true):w4-a4", "twn:wt-a2", "w4a4", "mbn:w2-a2", "mbn:w4-a4"),
    ],
)
def test_layers_hold_whatever_is_solved(scheme: str) -> None:
    """Any integers and scales, also where a channel's largest is not the largest there is; saved and loaded, too."""
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 1))
    q = quantize(network, scheme)
    assert holds_any_weights(q[2])
    kind = q[2].weight_quantizer.code_type
    step = kind.step
    for top in range(kind.hi, 0, -step):
        levels = torch.arange(-top, top + 1, step, dtype=torch.float64)
        values = levels[torch.randint(len(levels), q[2].weight.shape)]
        values[:, 0, 0, 0] = top  # no channel is empty
        scale = torch.rand(5, dtype=torch.float64) + 0.1
        with torch.no_grad():
            kept = write_weight(q[2], values, scale)
        torch.testing.assert_close(kept, scale, rtol=1e-6, atol=0)
        again = quantize(network, scheme)
        again.load_state_dict(q.state_dict())
        read, scales, _ = again[2].integer_weight()
        assert torch.equal(read.double(), values) and torch.equal(scales.double(), kept)

        tight = q[2].weight.detach().clone()
        real = tight + 0.3 * tight.abs().max() * torch.randn_like(tight)
        loose = loosen(q[2], 7 * real)  # whatever its scale
        read, scales, _ = q[2].integer_weight()
        assert torch.equal(read.double(), values) and torch.equal(scales.double(), loose)
        torch.testing.assert_close(loose, scale, rtol=1e-4, atol=0)
        before, after = ((w - real).flatten(1).norm(dim=1) for w in (tight, q[2].weight.detach()))
        assert (after <= before).float().mean() > 0.5 and after.sum() < before.sum()
    old = {name: value for name, value in quantize(network, scheme).state_dict().items() if "held" not in name}
    quantize(network, scheme).load_state_dict(old)


@pytest.mark.parametrize("scheme", ["dorefa:w2-a2", "mbn(fixed_range=true):w2-a2", "lsq:w4-a4"])
def test_quantizers_that_cannot_hold_what_is_solved_are_refused_at_once(float_net, scheme: str) -> None:
    net, loader, _ = float_net
    said = "cannot hold what step 2 finds; take tsq's weights"
    with pytest.raises(InputError, match=said):
        convert(net, loader, scheme, progress=lambda line: pytest.fail(f"began: {line}"))
    q = quantize(net, "tsq:wt-a2")
    for other, layer in zip(quantize(net, scheme).modules(), q.modules(), strict=True):
        if isinstance(layer, QuantizedLayer) and has_low_bit_weight(layer):
            layer.weight_quantizer = other.weight_quantizer
    with pytest.raises(InputError, match=said):
        learn_transforms(q, copy.deepcopy(q), loader, progress=lambda line: pytest.fail(f"began: {line}"))


@pytest.mark.parametrize("scheme", ["mbn:w4-a4", "mbn:w1-a1"])
def test_another_function_is_not_what_layers_are_fitted_to(float_net, scheme: str) -> None:
    """Codes that read signs put Hardtanh where ReLU was; a network that has learned with it is converted."""
    net, loader, _ = float_net
    with pytest.raises(InputError, match=r"step 2: .* becomes a Hardtanh: another function"):
        convert(net, loader, scheme, progress=lambda line: pytest.fail(f"began: {line}"))
    if scheme == "mbn:w4-a4":  # of one bit the codes cannot tell 0 from -1
        student = convert(float_twin(quantize(net, scheme)), loader, scheme, progress=None)
        assert any(layer.scheme == scheme for layer in coverage(student))


HELD = [("tsq:w1-a4", True), ("bwn:w1-a4", True), ("binaryconnect:w1-a4", False)]


def plain_net() -> nn.Sequential:
    """One without BatchNorm."""
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4))


@pytest.mark.parametrize(("scheme", "held"), HELD)
def test_solved_scales_need_a_place(scheme: str, held: bool) -> None:
    loader, said = batches(*stroke_images(40, 0)), "layer 2: .*Weight has no scale for what step 2 finds"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with nullcontext() if held else pytest.raises(InputError, match=said):
            convert(plain_net(), loader, scheme, progress=None)


def test_codes_for_normalised_inputs_are_warned_about() -> None:
    net = plain_net()
    for scheme in ("tsq:wt-a2", "hwgq:w1-a2", parse_scheme("tsq:wt-a2", tsq(lloyd=True))):
        with pytest.warns(UserWarning, match="quantize: 2: the codes are for inputs that a BatchNorm has normalised"):
            quantize(net, scheme)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize(net, "lsq:w2-a2")
        quantize(small_net(), "tsq:wt-a2")
        convert(net, batches(*stroke_images(40, 0)), "tsq:wt-a2", progress=None)  # finds its own steps


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


@pytest.mark.parametrize("native", [True, False])
def test_an_interrupted_run_goes_on_with_the_same_result(float_net, tmp_path, monkeypatch, native):
    net, loader, _ = float_net
    if not native:
        monkeypatch.setattr("bitbranch.twostep.descent._core", lambda: None)
    recipe = Recipe(samples=400)

    class Killed(BaseException):
        pass

    def kill(report):
        raise Killed

    def run(state, **options):
        return convert(net, loader[:4], recipe=recipe, state=state, progress=None, **options).state_dict()

    whole = run(None)
    for _ in range(2):  # the second time the first layer is there already
        with pytest.raises(Killed):
            run(tmp_path / "state", on_layer=kill)
    lines: list[str] = []
    resumed = convert(net, loader[:4], recipe=recipe, state=tmp_path / "state", progress=lines.append).state_dict()
    assert "(kept)" in lines[0] and "(kept)" not in lines[1]
    assert all(torch.equal(v, resumed[k]) for k, v in whole.items())
    with pytest.raises(InputError, match="holds a run with other images"):
        convert(net, loader[1:5], recipe=recipe, state=tmp_path / "state", progress=None)
    (tmp_path / "state" / "001.pt").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"001\.pt: damaged"):
        run(tmp_path / "state")


def test_a_network_depends_neither_on_threads_nor_on_the_core(float_net, threads, monkeypatch):
    net, loader, _ = float_net
    found = []
    for count, native in ((1, True), (2, True), (2, False)):
        threads(count)
        if not native:
            monkeypatch.setattr("bitbranch.twostep.descent._core", lambda: None)
        found.append(convert(net, loader[:4], recipe=Recipe(samples=400), progress=None).state_dict())
    for other in found[1:]:
        assert all(torch.equal(v, other[k]) for k, v in found[0].items())


def test_schedules_by_layer(trained):
    q, teacher, loader, _ = trained

    def solved(lambdas):
        net = learn_transforms(q, teacher, loader[:4], samples=300, lambdas=lambdas, progress=None)
        return [layer.weight.detach() for layer in inner_layers(net)]

    plain, other = solved((0.1, 1.0)), solved({"8": (1.0,), "1*": (0.1, 1.0), "*": (0.1, 1.0)})
    assert torch.equal(plain[0], other[0]) and not torch.equal(plain[1], other[1])
    with pytest.raises(InputError, match="lambdas: 'conv' matches no layer"):
        solved({"conv": (1.0,)})


@torch.no_grad()
def test_a_front_gives_what_the_network_gives(tmp_path):
    net, x = residual_net().eval(), torch.randn(6, 1, 12, 12)
    front = Front(net, tmp_path / "front")
    for part in x.split(2):
        front.enter(part)
    last = front.graph.call("8")
    for stop in (3, 3, 9, front.position[last]):
        for _ in front.advance(stop):
            pass
    found = torch.cat([value(last) for value in front.advance(len(front.nodes))])
    torch.testing.assert_close(found, net(x))


def test_steps_from_data_are_in_the_state(float_net, tmp_path):
    net, loader, _ = float_net
    q = convert(net, loader[:2], recipe=Recipe(method="start"), progress=None)
    again = quantize(net, "tsq:wt-a2")
    again.load_state_dict(q.state_dict())
    steps = [layer.input_quantizer.step for layer in inner_layers(q)]
    assert steps == [layer.input_quantizer.step for layer in inner_layers(again)]
    again.load_state_dict({k: v for k, v in q.state_dict().items() if not k.endswith("grid")})  # an older checkpoint


def test_bad_input_is_named(trained):
    q, teacher, loader, _ = trained
    with pytest.raises(InputError, match=r"method 'fast': expected"):
        learn_transforms(q, teacher, loader, method="fast")
    with pytest.raises(InputError, match=r"z_update 'x'"):
        learn_transforms(q, teacher, loader, z_update="x")
    with pytest.raises(InputError, match="lambdas must be positive"):
        learn_transforms(q, teacher, loader, lambdas=())
    with pytest.raises(InputError, match="must be positive"):
        learn_transforms(q, teacher, loader, samples=0)
    with pytest.raises(InputError, match=r"layer 3: the teacher has no such layer"):
        learn_transforms(q, small_net(), loader)
    with pytest.raises(InputError, match="no batches"):
        learn_transforms(q, teacher, [])
    with pytest.raises(InputError, match="no layer with low-bit weights"):
        learn_codes(small_net(), loader, epochs=1)
    with pytest.raises(InputError, match="DataDependent: forward cannot be traced"):
        learn_codes(DataDependent(), loader, epochs=1)
    with pytest.raises(InputError, match=r"layer layer: .* called 2 times"):
        learn_transforms(Recurrent(), Recurrent(), loader)
    with pytest.raises(InputError, match="NaN"):
        learn_transforms(q, teacher, [(torch.full((8, 1, 12, 12), torch.nan), torch.zeros(8))], progress=None)
    with pytest.raises(InputError, match="cannot be negative"):
        Levels.of(CodeType.parse("u2"))
    with pytest.raises(InputError, match="no samples"):
        SampleFile(1, 2, 3, np.dtype(np.uint8)).moments()
