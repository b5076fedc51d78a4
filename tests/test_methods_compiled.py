"""Every method's network compiles to its own integers, or says why not and what does instead."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bitbranch as bb
from bitbranch.errors import CompileError, InputError
from bitbranch.layers import QuantizedLayer
from bitbranch.quantizers.base import WeightQuantizer
from bitbranch.quantizers.inq import PowerOfTwoWeight
from bitbranch.quantizers.registry import Method, Scheme, binaryconnect, parse_scheme, twn, xnor
from bitbranch.runtime import program as p
from bitbranch.training.stages import fix_weights

torch.set_num_threads(1)

COMPILED: list[tuple[str, Method | None]] = [
    *((scheme, None) for scheme in ("binaryconnect:w1-a2", "bwn:w1-a2", "twn:wt-a2", "bwnh:w1-a4")),
    *((f"binarynet:w{b}-a{b}", None) for b in (1, 2, 3, 5, 8)),
    *((f"dorefa:w{w}-a{a}", None) for w, a in ((1, 1), (1, 2), (2, 2), (3, 4), (8, 8))),
    *((f"inq:w{b}-a4", None) for b in (2, 3, 4, 5)),
    ("binaryconnect:w1-a4", binaryconnect(magnitude=0.1, stochastic=True)),
    ("twn:wt-a3", twn(per_layer=True)),
    ("xnor:w1-a1", xnor(input_scale=False)),
]


def images(count: int = 12, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, 2, 9, 8)).astype(np.float32))


Make = Callable[[], nn.Module]
NORM_RELU: tuple[Make, ...] = (lambda: nn.BatchNorm2d(8), nn.ReLU)


def float_network(*middle: Make) -> nn.Module:
    """Two layers to be quantized by a method between two of 8 bits, BatchNorms of both slopes between."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU()]
    layers += [
        make() for make in middle or (lambda: nn.Conv2d(6, 8, 3, padding=1), *NORM_RELU, lambda: nn.MaxPool2d(2))
    ]
    network = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(9), nn.ReLU(), nn.Linear(9, 4))
    network(images())
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(torch.randn(module.num_features) + 0.5)
                module.bias.copy_(torch.randn(module.num_features) * 0.2)
    return network


def weights_of(q: nn.Module) -> list[tuple[QuantizedLayer, WeightQuantizer]]:
    layers = [m for m in q.modules() if isinstance(m, QuantizedLayer)]
    return [(m, m.weight_quantizer) for m in layers if m.weight_quantizer is not None]


def trained(network: nn.Module, scheme: str | Scheme, method: Method | None = None) -> nn.Module:
    """Quantized, with the statistics of some batches and a few steps of training."""
    q = bb.quantize(network, parse_scheme(scheme, method))
    update = torch.optim.Adam(q.parameters(), 1e-3)
    for seed in range(4):
        x = images(seed=seed)
        update.zero_grad()
        q(x).square().sum().backward()
        update.step()
        for layer, weights in weights_of(q):
            with torch.no_grad():
                weights.project(layer.outputs_first(layer.weight))
    if any(isinstance(weights, PowerOfTwoWeight) for _, weights in weights_of(q)):
        fix_weights(q, 1.0)
    return q.eval()


def exactly(q: nn.Module) -> p.Program:
    program = bb.compile(q, images(1))
    result = bb.verify(q, program, [images(seed=7)], engines=[bb.Engine(program)])
    assert result.mismatches == 0, str(result)
    assert result.output_error_exact < 1e-4
    return program


@pytest.mark.parametrize(("scheme", "method"), COMPILED)
@pytest.mark.filterwarnings("ignore:quantize")
def test_compiled_methods_compute_their_own_integers(scheme: str, method: Method | None) -> None:
    q = trained(float_network(), scheme, method)
    exactly(q)
    torch.testing.assert_close(q(images()), q.train(False)(images()))


@pytest.mark.parametrize("scheme", ["binarynet:w1-a1", "dorefa:w2-a2", "twn:wt-a2", "inq:w4-a4"])
@pytest.mark.filterwarnings("ignore:quantize")
def test_they_decompose_into_branches(scheme: str) -> None:
    q = trained(float_network(), scheme)
    assert torch.equal(bb.decompose(q)(images()), q(images()))


# INQ


def large(network: nn.Module) -> nn.Module:
    """A network whose INQ layers of 5 bits have weights of +-128."""
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                layer.weight.view(-1)[:2] = torch.tensor([1.0, -1.0]) * layer.weight.abs().max() * 1.1
    return network


@pytest.mark.parametrize(
    "middle",
    [
        lambda: nn.Conv2d(6, 8, 3, padding=2, dilation=2, stride=2),
        lambda: nn.Conv2d(6, 8, 3, padding="same"),
        lambda: nn.ConvTranspose2d(6, 8, 3, stride=2, padding=1),
    ],
)
def test_levels_beyond_eight_bits_read_the_input_twice(middle: Make) -> None:
    q = trained(large(float_network(middle, *NORM_RELU)), "inq:w5-a4")
    values = q[3].integer_weight()[0]  # type: ignore[index, union-attr, operator]
    assert (float(values.max()), float(values.min())) == (128, -128)
    program = exactly(q)
    assert [op.name for op in program.operations if isinstance(op, p.Concat)].count("3") == 1
    with pytest.raises(InputError, match=r"-128\.\.128 are not all values of code type s8"):
        bb.decompose(q)


def test_grouped_levels_beyond_eight_bits_are_refused() -> None:
    def grouped() -> nn.Module:
        return nn.Conv2d(6, 8, 3, groups=2)

    q = trained(large(float_network(grouped)), "inq:w5-a4")
    with pytest.raises(CompileError, match=r"layer '3': weights of \+-128 do not fit s8 codes, and in a grouped layer"):
        bb.compile(q, images(1))
    exactly(trained(large(float_network(grouped)), "inq:w4-a4"))


def test_inq_half_way_is_refused() -> None:
    q = bb.quantize(float_network(), "inq:w5-a4")
    q(images())
    fix_weights(q, 0.75)
    q.eval()(images())  # in PyTorch it goes
    with pytest.raises(CompileError, match=r"layer '3': INQ has fixed 75 % of its weights, the others are float"):
        bb.compile(q, images(1))


# XNOR-Net


def test_the_scale_of_inputs_is_refused_with_a_way_out() -> None:
    q = trained(float_network(), "xnor:w1-a1")
    text = r"XNOR-Net multiplies every output position .* xnor\(input_scale=False\)"
    with pytest.raises(CompileError, match=f"layer '3': {text}"):
        bb.compile(q, images(1))
    with pytest.raises(InputError, match=text):
        bb.decompose(q)


# TTQ and FFN


@pytest.mark.parametrize("scheme", ["ttq:wt-a2", "ffn:wt-a2"])
def test_two_ternary_layers_are_offered(scheme: str) -> None:
    q = trained(float_network(), scheme)
    with pytest.raises(CompileError, match=r"layer '3': .* bitbranch\.split\(network\) makes two ternary layers"):
        bb.compile(q, images(1))
    with pytest.raises(InputError, match=r"bitbranch\.split"):
        bb.decompose(q)


@pytest.mark.parametrize(
    "middle", [(), (lambda: nn.Conv2d(6, 8, 3, groups=2),), (lambda: nn.ConvTranspose2d(6, 8, 3, stride=2),)]
)
def test_ttq_is_the_sum_of_two_ternary_layers(middle: tuple[Make, ...]) -> None:
    q = trained(float_network(*middle), "ttq:wt-a2")
    with torch.no_grad():
        for _, weights in weights_of(q)[1:-1]:
            weights.negative *= 0.4  # type: ignore[operator]
    two = bb.split(q)
    torch.testing.assert_close(two(images()), q(images()), rtol=1e-4, atol=1e-5)
    assert [str(c.scheme) for c in bb.coverage(two)].count("ttq:wt-a2") == 4
    program = bb.compile(two, images(1))
    assert sum(isinstance(op, p.Add) for op in program.operations) == 2
    result = bb.verify(two, program, [images(40, seed=s) for s in range(5)], engines=[bb.Engine(program)])
    assert all(layer.accumulators.differing == 0 for layer in result.layers[:3])  # the sum alone is rounded
    behind = result.layers[3].codes  # of the codes that read a sum some lie so near a threshold that rounding shows
    assert behind.differing <= 0.005 * behind.compared, str(result)
    assert all(engine.values.differing == 0 for engine in result.engines)
    for layer in two.modules():
        if isinstance(layer, QuantizedLayer):
            layer.integer_weight()
    torch.testing.assert_close(bb.decompose(two)(images()), two(images()))


@pytest.mark.parametrize(
    "middle",
    [
        (),
        (lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False), nn.ReLU),
        (lambda: nn.ConvTranspose2d(6, 8, 3, stride=2, output_padding=1), nn.ReLU),
    ],
)
def test_ffn_is_two_ternary_layers_one_behind_the_other(middle: tuple[Make, ...]) -> None:
    q = trained(float_network(*middle), "ffn:wt-a2")
    two = bb.split(q)
    for name, layer in two.named_modules():  # without the codes between them, they are the same function
        if name.endswith(".1") and isinstance(layer, QuantizedLayer):
            layer.input_quantizer = None
    torch.testing.assert_close(two(images()), q(images()), rtol=1e-4, atol=1e-5)
    two = bb.split(q)
    bb.calibrate(two, [images(seed=s) for s in range(3)])
    exactly(two.eval())


def test_split_networks_train_on() -> None:
    for scheme in ("ttq:wt-a2", "ffn:wt-a2"):
        two = bb.split(trained(float_network(), scheme)).train()
        two(images()).square().sum().backward()
        assert all(p.grad is not None for name, p in two.named_parameters() if name.endswith("weight"))


def test_float_inputs_stay_float_and_plain_networks_stay_as_they_are() -> None:
    x = torch.randn(3, 2, 6)
    network = nn.Sequential(nn.Conv1d(2, 4, 3, bias=False), nn.Flatten(), nn.Linear(16, 3))
    for scheme in ("ttq:wt", "ffn:wt"):
        q = bb.quantize(network, scheme, first=scheme, last=scheme).eval()
        torch.testing.assert_close(bb.split(q)(x), q(x))
    plain = bb.quantize(network, "twn:wt", first="twn:wt").eval()
    assert torch.equal(bb.split(plain)[0].weight, plain[0].weight)  # type: ignore[index, union-attr, arg-type]
    grouped = bb.quantize(
        nn.Sequential(nn.Conv1d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 3)), "ffn:wt", first="ffn:wt"
    )
    with pytest.raises(InputError, match="layer 0: FFN weights of a grouped layer"):
        bb.split(grouped)
