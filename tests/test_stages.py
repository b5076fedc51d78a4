"""Trainings in stages (INQ, progressive bits, direct branches), distillation, and hashing, on tiny problems."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from test_training import BATCHES, IMAGES, LABELS, tiny
from torch import nn

import bitbranch as bb
from bitbranch import twostep
from bitbranch.contract import branch_weights
from bitbranch.errors import BitbranchError, InputError
from bitbranch.layers import QuantizedLayer
from bitbranch.quantizers.inq import PowerOfTwoWeight
from bitbranch.quantizers.mbn import bipolar
from bitbranch.quantizers.registry import binaryconnect, mbn, parse_scheme
from bitbranch.quantizers.uniform import UniformActivation
from bitbranch.training.distillation import hint_loss, hint_regressor, soft_target_loss
from bitbranch.training.hints import fit_hints, output_of
from bitbranch.training.loop import evaluate, fit
from bitbranch.training.stages import PORTIONS, fix_weights, incremental, progressive

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    network = tiny(1)
    fit(network, BATCHES, epochs=6, lr=1e-2, progress=None, seed=0)
    return network


def inq_weights(q: nn.Module) -> list[tuple[QuantizedLayer, PowerOfTwoWeight]]:
    layers = [m for m in q.modules() if isinstance(m, QuantizedLayer)]
    return [(m, m.weight_quantizer) for m in layers if isinstance(m.weight_quantizer, PowerOfTwoWeight)]


# INQ


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_incremental_fixes_trains_and_ends_in_powers_of_two(teacher: nn.Module, optimizer: str) -> None:
    q = bb.quantize(teacher, "inq:w5-a4")
    seen: list[float] = []
    fixed: list[torch.Tensor] = []

    def train(network: nn.Module, portion: float) -> None:
        seen.append(portion)
        for layer, weights in inq_weights(network):
            assert weights.portion == pytest.approx(portion, abs=0.01)
            fixed.append(layer.weight.detach()[weights.fixed].clone())
        before = [layer.weight.detach().clone() for layer, _ in inq_weights(network)]
        fit(network, BATCHES, epochs=1, lr=1e-2, optimizer=optimizer, weight_decay=0.1, progress=None)
        for (layer, weights), old, kept in zip(inq_weights(network), before, fixed[-len(before) :], strict=True):
            assert torch.equal(layer.weight.detach()[weights.fixed], kept)  # whatever momentum and decay want
            assert not torch.equal(layer.weight.detach()[~weights.fixed], old[~weights.fixed])

    incremental(q, train)
    assert tuple(seen) == PORTIONS[:-1]
    for layer, weights in inq_weights(q):
        values, scale, _ = layer.integer_weight()
        assert set(values.abs().unique().tolist()) <= {0.0, *(2.0**k for k in range(8))}
        assert scale.unique().tolist() == [2.0 ** weights.exponents()[1]]
    assert evaluate(q, IMAGES, LABELS) > 0.8
    program = bb.compile(q, IMAGES[:1])
    assert bb.verify(q, program, [IMAGES[:30]], engines=[bb.Engine(program)]).mismatches == 0


def test_incremental_refuses_what_it_cannot_do(teacher: nn.Module) -> None:
    with pytest.raises(InputError, match="no layer with INQ weights"):
        fix_weights(teacher, 0.5)
    q = bb.quantize(teacher, "inq:w3")
    for portions in ([], [0.5], [0.5, 0.4, 1.0], [0.0, 1.0], [0.5, 1.5]):
        with pytest.raises(InputError, match="must rise above 0 and end with 1"):
            incremental(q, lambda *_: None, portions=portions)


# MBN's two routes


def test_progressive_bits_start_from_the_stage_before(teacher: nn.Module) -> None:
    stages: list[tuple[int, str | None]] = []

    def train(network: nn.Module, bits: int) -> None:
        schemes = [c.scheme for c in bb.coverage(network) if c.scheme]
        stages.append((bits, schemes[1]))
        assert schemes[0] == schemes[-1] == "uniform:w8-a8"
        first = next(m for m in network.modules() if isinstance(m, QuantizedLayer))
        assert isinstance(first.input_quantizer, UniformActivation)
        assert first.input_quantizer.ready == (bits != 4)  # later stages keep the range
        fit(network, BATCHES, epochs=3, lr=1e-2, progress=None)

    before = copy.deepcopy(teacher.state_dict())
    q = progressive(teacher, train, bits=range(4, 0, -1))
    assert stages == [(b, f"mbn:w{b}-a{b}") for b in (4, 3, 2, 1)]
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
    assert [name for name, m in q.named_modules() if isinstance(m, nn.ReLU)] == ["act3"]  # before the last layer
    assert evaluate(q, IMAGES, LABELS) > 0.7
    lsq = progressive(teacher, lambda *_: None, bits=[3, 2], scheme="lsq:w{bits}-a4", first="w4a4", last=None)
    assert [c.scheme for c in bb.coverage(lsq)][:2] == ["uniform:w4-a4", "lsq:w2-a4"]
    with pytest.raises(InputError, match="must fall"):
        progressive(teacher, train, bits=[2, 3])
    with pytest.raises(InputError, match="must fall"):
        progressive(teacher, train, bits=[])
    with pytest.raises(InputError, match=r"has no \{bits\}"):
        progressive(teacher, train, bits=[3], scheme="mbn:w2-a2")
    with pytest.raises(InputError, match="unknown scheme"):
        progressive(teacher, train, bits=[9, 2])


class SineBranch(torch.autograd.Function):
    """The sign of a sine, whose gradient is the sine's own: one branch of a network trained directly."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, factor: float) -> torch.Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        ctx.factor = factor
        return torch.where(torch.sin(factor * x.clamp(-1, 1)) >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return grad * ctx.factor * torch.cos(ctx.factor * x) * (x.abs() <= 1), None


def sine_branches(x: torch.Tensor, bits: int) -> list[torch.Tensor]:
    n = 2**bits - 1
    factors = [-n / 2**m * math.pi for m in range(1, bits)] + [n / 2**bits * math.pi]
    return [SineBranch.apply(x, factor) for factor in factors]


@pytest.mark.parametrize(("weight_bits", "input_bits"), [(1, 1), (2, 2), (3, 1), (2, 4)])
def test_direct_training_is_that_of_the_branches(weight_bits: int, input_bits: int) -> None:
    """M x K binary layers with the published cosine gradients train as one layer with ``gradient="cosine"`` does."""
    torch.manual_seed(0)
    x, w, g = torch.randn(5, 8).double() * 0.6, torch.randn(3, 8).double() * 0.6, torch.randn(5, 3).double()
    grads = []
    for direct in (True, False):
        a, b = x.clone().requires_grad_(), w.clone().requires_grad_()
        if direct:
            out = torch.zeros(5, 3).double()
            for m, c in enumerate(sine_branches(b, weight_bits)):
                for k, d in enumerate(sine_branches(a, input_bits)):
                    out = out + 2 ** (m + k) * d @ c.T
            out = out / ((2**weight_bits - 1) * (2**input_bits - 1))
        else:
            out = bipolar(a, input_bits, gradient="cosine") @ bipolar(b, weight_bits, gradient="cosine").T
        out.backward(g)
        grads.append((out.detach(), a.grad, b.grad))
    for direct_value, own in zip(*grads, strict=True):
        torch.testing.assert_close(direct_value, own, rtol=1e-6, atol=1e-6)


def test_direct_route_learns(teacher: nn.Module) -> None:
    q = bb.quantize(tiny(), parse_scheme("mbn:w2-a2", mbn(gradient="cosine", fixed_range=True)))
    fit(q, BATCHES, epochs=12, lr=1e-2, progress=None, seed=0)
    assert evaluate(q, IMAGES, LABELS) > 0.7
    layer = [m for m in q.modules() if isinstance(m, QuantizedLayer)][1]
    assert layer.weight_quantizer is not None
    assert len(branch_weights(layer.weight_quantizer.code_type)[0]) == 2


# Every method learns


@pytest.mark.parametrize(
    "scheme",
    ["binaryconnect:w1-a4", "binarynet:w1-a1", "xnor:w1-a1", "twn:wt-a2", "ttq:wt-a2", "dorefa:w2-a2", "ffn:wt-a2"],
)
@pytest.mark.filterwarnings("ignore:.*most positive inputs lie above 1")
def test_methods_learn(scheme: str, teacher: nn.Module) -> None:
    q = bb.quantize(teacher, scheme)
    fit(q, BATCHES, epochs=12, lr=1e-2, teacher=teacher, progress=None, seed=0)
    assert evaluate(q, IMAGES, LABELS) > 0.8


def test_stochastic_training_repeats_with_its_seed(teacher: nn.Module) -> None:
    states = []
    for seed in (1, 1, 2):
        q = bb.quantize(teacher, parse_scheme("binaryconnect:w1-a4", binaryconnect(magnitude=0.3, stochastic=True)))
        fit(q, BATCHES, epochs=1, lr=1e-2, progress=None, seed=seed)
        states.append(torch.cat([p.detach().flatten() for p in q.parameters()]))
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


# Distillation


def test_soft_targets_by_loops() -> None:
    torch.manual_seed(0)
    student, other, t = torch.randn(4, 3).double().requires_grad_(), torch.randn(4, 3).double(), 3.0
    loss = soft_target_loss(student, other, t)
    total = 0.0
    for a, b in zip(student.tolist(), other.tolist(), strict=True):
        p = np.exp(np.array(a) / t) / np.exp(np.array(a) / t).sum()
        q = np.exp(np.array(b) / t) / np.exp(np.array(b) / t).sum()
        total += t**2 * float((q * np.log(q / p)).sum()) / 4
    assert loss.item() == pytest.approx(total)
    loss.backward()
    # Hinton et al., equation (2): dC/dz = (p - q) / T, times T^2, over N
    expected = t * (torch.softmax(student.detach() / t, 1) - torch.softmax(other / t, 1)) / 4
    torch.testing.assert_close(student.grad, expected)


def test_high_temperatures_match_logits() -> None:
    """Hinton et al., equation (4): for large T the gradient is ``(z - v) / (N T^2)`` of zero-mean logits, times T^2."""
    z, v = torch.tensor([[1.0, -2.0, 1.0]]).double().requires_grad_(), torch.tensor([[0.5, 0.5, -1.0]]).double()
    soft_target_loss(z, v, 1e4).backward()
    torch.testing.assert_close(z.grad, (z.detach() - v) / 3, rtol=1e-3, atol=1e-4)


def test_hint_loss_and_regressor_by_loops() -> None:
    torch.manual_seed(0)
    guided, hint = torch.randn(2, 3, 7, 6), torch.randn(2, 5, 5, 6)
    regressor = hint_regressor(guided.shape, hint.shape)
    assert isinstance(regressor, nn.Conv2d) and regressor.kernel_size == (3, 1)
    out = regressor(guided).detach().numpy()
    total = sum(0.5 * float(((hint[n].numpy() - out[n]) ** 2).sum()) for n in range(2)) / 2
    assert hint_loss(guided, hint, regressor).item() == pytest.approx(total, rel=1e-5)
    assert isinstance(hint_regressor((2, 3), (2, 9)), nn.Linear)
    assert hint_regressor((2, 3, 8), (2, 4, 8))(torch.randn(2, 3, 8)).shape == (2, 4, 8)
    for shapes in (((2, 3, 4, 4), (2, 3, 5, 4)), ((2, 3), (2, 3, 4)), ((2,), (2,))):
        with pytest.raises(InputError, match="hints"):
            hint_regressor(*shapes)


@pytest.mark.parametrize("scheme", [None, "mbn:w2-a2", "ttq:wt-a2", "binaryconnect(magnitude=0.05):w1-a4"])
def test_hints_train_the_front_of_a_student_only(teacher: nn.Module, scheme: str | None) -> None:
    names = [name for name, m in teacher.named_modules() if isinstance(m, nn.Conv2d)]
    student = tiny(5) if scheme is None else bb.quantize(tiny(5), scheme)
    before, kept = copy.deepcopy(student.state_dict()), copy.deepcopy(teacher.state_dict())
    arguments = {"guided": names[1], "hint": names[1], "progress": None}
    losses = fit_hints(student, teacher, BATCHES, epochs=5, lr=1e-2, seed=0, **arguments)  # type: ignore[arg-type]
    assert losses[-1] < 0.7 * losses[0] and not student.training
    changed = {k for k, v in student.state_dict().items() if not torch.equal(v, before[k])}
    assert any(k.startswith(f"{names[0]}.") for k in changed) and any(k.startswith(f"{names[1]}.") for k in changed)
    behind = [name for name, m in student.named_modules() if isinstance(m, nn.Linear)]
    assert behind and not any(k.startswith(f"{name}.") for k in changed for name in behind)
    assert all(torch.equal(kept[k], v) for k, v in teacher.state_dict().items())
    fit(student, BATCHES, epochs=8, lr=1e-2, teacher=teacher, teacher_share=(0.8, 0.5), progress=None)
    assert evaluate(student, IMAGES, LABELS) > 0.8


def test_hints_say_what_is_wrong(teacher: nn.Module) -> None:
    first = next(name for name, m in teacher.named_modules() if isinstance(m, nn.Conv2d))

    def hints(batches: object = BATCHES, **names: str) -> None:
        layers = {"guided": first, "hint": first, **names}
        fit_hints(tiny(), teacher, batches, epochs=1, lr=1e-2, progress=None, **layers)  # type: ignore[arg-type]

    with pytest.raises(InputError, match="has no layer 'head'"):
        hints(hint="head")
    with pytest.raises(InputError, match="no batches"):
        hints(batches=[])
    with pytest.raises(BitbranchError, match="the loss is nan at epoch 1"):
        hints(batches=[(IMAGES[:4] * math.nan, LABELS[:4])])
    unused = nn.Sequential(nn.Conv2d(1, 2, 3))
    unused.forward = lambda x: x  # type: ignore[method-assign]
    with pytest.raises(InputError, match="gets no tensor"):
        output_of(unused, unused[0], IMAGES[:2])


@pytest.mark.parametrize("bad", [{"teacher_share": 1.5}, {"teacher_share": (0.5, -0.1)}, {"temperature": 0.0}])
def test_shares_out_of_range(teacher: nn.Module, bad: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"share is 0\.\.1"):
        fit(tiny(), BATCHES, epochs=1, lr=1e-2, teacher=teacher, progress=None, **bad)  # type: ignore[arg-type]


def test_a_falling_share_ends_at_its_second_number(teacher: nn.Module) -> None:
    """The loss of one step at each end, taken apart."""
    batch = [(IMAGES[:20], LABELS[:20])]

    def loss(share: float | tuple[float, float], epochs: int = 1) -> list[float]:
        network = tiny(3)
        return [e.loss for e in fit(network, batch, epochs=epochs, lr=1e-12, teacher=teacher, teacher_share=share,
                                    schedule="constant", progress=None)]  # fmt: skip

    hard, soft = loss(0.0)[0], loss(1.0)[0]
    falling = loss((1.0, 0.0), epochs=3)
    assert falling == pytest.approx([soft, (soft + hard) / 2, hard], rel=1e-3)


# BWNH


def test_hashing_keeps_the_inner_products_better(teacher: nn.Module) -> None:
    q = bb.quantize(teacher, "bwnh:w1-a4")
    bb.calibrate(q, [IMAGES])
    lines: list[str] = []
    solved = twostep.hash_weights(q, teacher, BATCHES, samples=600, progress=lines.append)
    errors = [[float(n) for n in line.split("error ")[1].split(" -> ")] for line in lines]
    assert errors and all(after < before for before, after in errors)
    assert evaluate(solved, IMAGES, LABELS) >= evaluate(q, IMAGES, LABELS) - 0.05
    for layer in solved.modules():
        if isinstance(layer, QuantizedLayer) and layer.scheme.startswith("bwnh"):
            values, scale, _ = layer.integer_weight()
            flat = layer.weight.detach().flatten(1)
            assert torch.equal(values.flatten(1) * scale[:, None], flat)
    program = bb.compile(solved, IMAGES[:1])
    assert bb.verify(solved, program, [IMAGES[:30]]).mismatches == 0
    fit(solved, BATCHES, epochs=4, lr=1e-3, progress=None)
    assert evaluate(solved, IMAGES, LABELS) > 0.8


def test_hashing_of_all_positions_is_that_of_the_whole_data() -> None:
    """One linear layer on float inputs: the solution of the pure function."""
    from bitbranch.quantizers.bwnh import hashed

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 4))
    x = torch.randn(50, 6)
    q = bb.quantize(network, "bwnh:w1", first="bwnh:w1")
    batches = [(part, torch.zeros(len(part))) for part in x.split(10)]
    solved = twostep.hash_weights(q, network, batches, progress=None)
    w = network[0].weight.detach()
    gram = x.double().T @ x.double()
    b, alpha = hashed(w, gram, w.double() @ gram)
    values, scale, _ = solved[0].integer_weight()  # type: ignore[index, union-attr, operator]
    assert torch.equal(values, b)
    torch.testing.assert_close(scale, alpha)


def test_hashing_says_what_is_wrong(teacher: nn.Module) -> None:
    q = bb.quantize(teacher, "bwnh:w1-a4")
    bb.calibrate(q, [IMAGES])
    with pytest.raises(InputError, match="no layer of bwnh:w1"):
        twostep.hash_weights(teacher, teacher, BATCHES)
    with pytest.raises(InputError, match="the reference has no such layer"):
        twostep.hash_weights(q, nn.Sequential(nn.Linear(2, 2)), BATCHES, progress=None)
    with pytest.raises(InputError, match="no batches"):
        twostep.hash_weights(q, teacher, [], progress=None)
    with pytest.raises(InputError, match="samples must be positive"):
        twostep.hash_weights(q, teacher, BATCHES, samples=0, progress=None)
    with pytest.raises(InputError, match="NaN or infinity"):
        twostep.hash_weights(q, teacher, [(IMAGES * math.nan, LABELS)], progress=None)


def test_two_step_quantization_refuses_weights_without_integers(teacher: nn.Module) -> None:
    q = bb.quantize(teacher, "ttq:wt-a2")
    codes = twostep.learn_codes(q, BATCHES, epochs=1, progress=None)
    with pytest.raises(InputError, match=r"TTQ's levels"):
        twostep.learn_transforms(q, codes, BATCHES, progress=None)
