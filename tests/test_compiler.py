"""Compiled programs compute what the quantized networks compute; what cannot be compiled says why, by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from random_networks import COMPILED_SCHEMES, Residual, batch_norm, chain, quantized, resnet
from torch import Tensor, nn
from torch.nn import functional as F

from bitbranch import CompileError, InputError, decompose, quantize
from bitbranch.compiler import compile
from bitbranch.compiler import graph as g
from bitbranch.compiler.aten import Value
from bitbranch.compiler.capture import capture, layer_node
from bitbranch.compiler.exact import Recorder
from bitbranch.compiler.passes import simplify
from bitbranch.compiler.verify import Verification, verify
from bitbranch.contract import CodeType, Encoder, Kind, uniform_encoder
from bitbranch.layers import quantized_layer
from bitbranch.quantizers.base import ActivationQuantizer, WeightQuantizer
from bitbranch.runtime import program as p


def images(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def checked(
    network: nn.Module, scheme: str = "tsq:wt-a2", *shape: int, seed: int = 0
) -> tuple[p.Program, Verification]:
    """Quantize, compile and verify on images of a shape."""
    x = images(seed, 6, *(shape or (2, 13, 11)))
    q = quantized(network, scheme, x)
    program = compile(q, x[:1])
    return program, verify(q, program, [x])


def exactly(network: nn.Module, scheme: str = "tsq:wt-a2", *shape: int) -> p.Program:
    """A program of which no code may differ from the network's in exact arithmetic."""
    program, result = checked(network, scheme, *shape)
    assert result.mismatches == 0, str(result)
    assert result.output_error_exact < 1e-5
    return program


def kinds(program: p.Program) -> list[str]:
    return [type(op).__name__ for op in program.operations]


# ---- equality


@pytest.mark.parametrize("seed", range(20))
def test_random_chains(seed: int) -> None:
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    network = chain(rng)
    program, result = checked(network, COMPILED_SCHEMES[seed % len(COMPILED_SCHEMES)], seed=seed)
    if "Requantize" not in kinds(program) or not any(isinstance(m, nn.AdaptiveAvgPool2d) for m in network):
        assert result.mismatches == 0, f"{network}\n{result}"
    assert result.codes_differing <= 0.01 * sum(layer.codes.compared for layer in result.layers)


@pytest.mark.parametrize("seed", range(7))
def test_residual_networks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    _, result = checked(resnet(rng), COMPILED_SCHEMES[seed], seed=seed)
    assert result.codes_differing <= 0.005 * sum(layer.codes.compared for layer in result.layers), str(result)


def conv_block(*after: nn.Module, inputs: int = 4, outputs: int = 6, **geometry: object) -> nn.Module:
    """Convolution, then modules, then two layers that read their result."""
    torch.manual_seed(1)
    conv = nn.Conv2d(inputs, outputs, 3, **geometry)  # type: ignore[arg-type]
    return nn.Sequential(conv, *after, nn.Conv2d(outputs, 5, 2), nn.ReLU(), nn.Conv2d(5, 3, 1))


RNG = np.random.default_rng(3)


@pytest.mark.parametrize(
    "network",
    [
        conv_block(batch_norm(6, RNG), nn.ReLU(), nn.MaxPool2d(2)),
        conv_block(nn.MaxPool2d(3, 2, ceil_mode=True), batch_norm(6, RNG), nn.Hardtanh()),
        conv_block(nn.ReLU(), batch_norm(6, RNG)),
        conv_block(nn.ReLU(), nn.MaxPool2d(2), batch_norm(6, RNG)),
        conv_block(batch_norm(6, RNG), nn.Hardtanh(-0.5, 2.0), batch_norm(6, RNG), nn.MaxPool2d(2), nn.ReLU6()),
        conv_block(nn.MaxPool2d(2), nn.MaxPool2d(2, 1), batch_norm(6, RNG)),
        conv_block(batch_norm(6, RNG), nn.AvgPool2d(2), nn.ReLU()),
        conv_block(nn.AvgPool2d(3, 2), batch_norm(6, RNG), nn.ReLU()),
        conv_block(nn.AvgPool2d(3, 1, 1), nn.ReLU(), bias=False),
        conv_block(nn.AvgPool2d((2, 3), divisor_override=5), nn.ReLU()),
        conv_block(nn.ReLU(inplace=True), nn.Identity(), nn.Dropout2d()),
        conv_block(nn.ReLU(), padding="same"),
        conv_block(nn.ReLU(), padding="same", dilation=2),
        conv_block(nn.ReLU(), padding=(2, 0), stride=(2, 1), dilation=(1, 3), groups=2),
        conv_block(),
    ],
    ids=lambda network: "-".join(type(m).__name__ for m in list(network)[1:-3]) or "none",
)
@pytest.mark.parametrize("scheme", ["tsq:wt-a2", "mbn:w2-a2"])
def test_orders_of_the_small_layers(network: nn.Module, scheme: str) -> None:
    program = exactly(network, scheme, 4, 13, 12)
    assert program.output_shape[0] == 3 and len(program.output_shape) == 3


def test_pool_before_a_rising_batch_norm_stays_on_codes() -> None:
    norm = nn.BatchNorm2d(6)
    program = exactly(conv_block(nn.MaxPool2d(2), norm, nn.ReLU()), "tsq:wt-a2", 4, 12, 12)
    assert kinds(program)[1:5] == ["Conv", "Threshold", "MaxPool", "Conv"]


def test_pool_before_a_falling_batch_norm_is_on_integers() -> None:
    norm = nn.BatchNorm2d(6)
    nn.init.constant_(norm.weight, -1.0)
    program = exactly(conv_block(nn.MaxPool2d(2), norm, nn.ReLU()), "tsq:wt-a2", 4, 12, 12)
    assert kinds(program)[1:6] == ["Conv", "MaxPool", "Requantize", "Threshold", "Conv"]


def test_names_are_the_users() -> None:
    program, _ = checked(resnet(np.random.default_rng(0)), "tsq:wt-a2")
    convs = [op.name for op in program.operations if isinstance(op, p.Conv)]
    assert convs[:3] == ["0", "4.conv1", "4.conv2"] and "6.shortcut.0" in convs
    assert {op.name for op in program.operations if isinstance(op, p.Threshold)} >= {"4.act"}


def test_multilayer_perceptron_and_images_flattened_at_once() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(12, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 4)]
    assert exactly(nn.Sequential(*layers), "lsq:w3-a3", 12).output_shape == (4,)
    program = exactly(nn.Sequential(nn.Flatten(), *layers), "lsq:w3-a3", 3, 2, 2)
    assert program.input.shape == (3, 2, 2)


def test_sequences() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    network = nn.Sequential(
        nn.Conv1d(3, 6, 5, stride=2, padding=2), batch_norm(6, rng, 1), nn.ReLU(), nn.MaxPool1d(3, 2, 1),
        nn.Conv1d(6, 8, 4, padding="same"), nn.Hardtanh(), nn.Conv1d(8, 4, 3, dilation=2),
    )  # fmt: skip
    program = exactly(network, "tsq:wt-a2", 3, 40)
    assert program.input.shape == (3, 1, 40) and program.output_shape == (4, 1, 6)
    pooled = nn.Sequential(*network, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 5))
    assert exactly(pooled, "mbn:w2-a2", 3, 40).output_shape == (5,)


class Shared(nn.Module):
    """One convolution called twice, and a value that two layers read under opposite signs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.left, self.right = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1)
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(F.relu(self.conv(F.relu(self.stem(x))))))
        y = self.stem.bias.mean() + x * 2 - 0.25
        return self.head(F.relu(self.left(y) - self.right(1 - y) / 3))


def test_shared_layers_and_values_read_under_opposite_signs() -> None:
    torch.manual_seed(0)
    _, result = checked(Shared(), "uniform:w4-a4", 2, 9, 9)
    assert [layer.name for layer in result.layers] == ["stem", "conv", "conv (call 2)", "left", "right", "head"]
    assert sum(layer.codes.differing for layer in result.layers[:-1]) == 0
    assert result.codes_differing < 10


def test_layers_with_equal_encoders_share_codes() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Conv2d(3, 3, 1) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.a(x))
            return self.d(F.relu(self.b(x) + self.c(x)))

    program, _ = checked(Twice(), "tsq:wt-a2", 3, 5, 5)
    assert kinds(program).count("Threshold") == 2


def test_residual_trunk_keeps_one_scale() -> None:
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    blocks = [Residual(6, 6, 1, rng, nn.ReLU()) for _ in range(3)]
    network = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), *blocks, nn.Conv2d(6, 3, 1))
    program, _ = checked(network, "tsq:wt-a2")
    adds = [op for op in program.operations if isinstance(op, p.Add)]
    assert len(adds) == 3 and all(op.lo == 0 for op in adds)
    # each block rescales its branch, and only the first one its shortcut
    assert kinds(program).count("Requantize") == 4


def test_activation_then_batch_norm_then_addition() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
            self.bn = batch_norm(4, np.random.default_rng(5))

        def forward(self, x: Tensor) -> Tensor:
            y = F.hardtanh(self.a(x))
            return self.c(self.bn(y) + self.b(y))

    torch.manual_seed(0)
    _, result = checked(Odd(), "mbn:w3-a3", 4, 9, 9)
    assert result.codes_differing <= 0.002 * sum(layer.codes.compared for layer in result.layers), str(result)


class NoNegative(WeightQuantizer):
    """8-bit weights that use -128, which has no negative."""

    code_type = CodeType(Kind.SIGNED, 8)  # type: ignore[assignment]

    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        values = (weight.detach() / weight.abs().max() * 128).round().clamp(-128, 127)
        values.view(-1)[0] = -128
        return values, torch.full((len(weight),), 0.01)


class Eighths(ActivationQuantizer):
    """Signed 4-bit multiples of 1/8: scales at which sums meet thresholds exactly."""

    code_type = CodeType(Kind.SIGNED, 4)  # type: ignore[assignment]

    def scale(self) -> float:
        return 0.125

    def encoder(self) -> Encoder:
        return uniform_encoder(self.code_type, 0.125)


def test_weights_without_a_negative_and_exact_ties() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6)
    nn.init.constant_(norm.weight, -0.5)
    norm.eps = 0.0
    layers = [quantized_layer(nn.Conv2d(c, o, 3, bias=False), Eighths(), NoNegative()) for c, o in ((2, 6), (6, 3))]
    q = nn.Sequential(layers[0], norm, layers[1]).eval()
    x = (images(0, 4, 2, 9, 9) * 16).round() / 16
    program = compile(q, x)
    assert kinds(program) == ["Encode", "Conv", "Requantize", "Threshold", "Conv", "Scale"]
    result = verify(q, program, [x])
    assert result.mismatches == 0, str(result)


# ---- the front end


class Arithmetic(nn.Module):
    """Every operation of the front end that images can go through."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn, self.bn1 = batch_norm(4, np.random.default_rng(0)), batch_norm(4, np.random.default_rng(1), 1)
        self.gain = nn.Parameter(torch.tensor([1.0, -2.0, 0.5, 3.0]).reshape(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        x = 1 - x * self.gain.abs() / 2 + torch.tensor(0.25)
        y = F.relu6(-x) - torch.add(x, x, alpha=0.5)
        y += F.hardtanh(x, -0.3, 0.7).clamp_max(0.5).clamp(min=-0.1)
        y = F.max_pool2d(y, 3, 2, 1, ceil_mode=True)
        y = F.avg_pool2d(y, (1, 2), 1, (0, 1))
        y = F.adaptive_max_pool2d(y, (1, y.shape[3]))
        y = y.squeeze(2)
        y = self.bn1(F.max_pool1d(F.avg_pool1d(y, 2, 1), 2, 1))
        return y.amax(2, keepdim=True).mean(-1)


@pytest.mark.filterwarnings("ignore:quantize")
def test_captured_graph_means_what_the_network_means() -> None:
    torch.manual_seed(0)
    x = images(0, 5, 3, 9, 8)
    q = quantized(Arithmetic(), "w8a8", x)
    graph = capture(q, x)
    with torch.no_grad():
        expected, _ = Recorder(q).run(x)
    np.testing.assert_allclose(g.evaluate(graph, x.numpy())[0], expected.numpy(), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(g.evaluate(simplify(graph), x.numpy())[0], expected.numpy(), rtol=1e-9, atol=1e-9)


def test_network_and_its_mode_are_left_alone() -> None:
    q = quantized(chain(np.random.default_rng(0)), "tsq:wt-a2", images(0, 2, 2, 13, 11)).train()
    before = {k: v.clone() for k, v in q.state_dict().items()}
    compile(q, images(1, 1, 2, 13, 11))
    assert q.training and all(torch.equal(v, before[k]) for k, v in q.state_dict().items())
    assert all("forward" not in vars(m) for m in q.modules())


def test_pixel_table_gives_the_codes_of_the_normalised_image() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4, 2, 13, 11), dtype=np.uint8)
    mean, std = (0.4914, 0.4822), (0.247, 0.2435)
    m, s = (np.float32(a)[:, None, None] for a in (mean, std))
    real = ((pixels.astype(np.float32) / np.float32(255) - m) / s).astype(np.float32)
    q = quantized(chain(rng), "tsq:wt-a2", torch.from_numpy(real))
    program = compile(q, torch.from_numpy(real), mean=mean, std=std, name="net", info={"scheme": "tsq"})
    assert np.array_equal(program.reference(pixels), program.reference(real))
    assert program.info == {"name": "net", "scheme": "tsq"}
    with pytest.raises(InputError, match="std must be positive"):
        compile(q, torch.from_numpy(real), mean=0.5, std=0.0)
    with pytest.raises(InputError, match="one for each of 2 channels"):
        compile(q, torch.from_numpy(real), mean=(0.1, 0.2, 0.3))
    with pytest.raises(InputError, match="example must be a tensor"):
        compile(q, torch.zeros(3))


# ---- refusals


class Net(nn.Module):
    """conv, something, head."""

    def __init__(self, between: Callable[[Tensor], Tensor] | nn.Module, head: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.between = between
        self.head = head or nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(F.relu(self.conv(x))))


@pytest.mark.filterwarnings("ignore:quantize")
@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Net(nn.GELU()), r"'between' \(aten.gelu\): has no integer form; use ReLU"),
        (Net(nn.Sequential(nn.LeakyReLU(), nn.SiLU())), r"'between.1': silu of leaky_relu of layer 'between.0'"),
        (Net(lambda x: F.silu(x) + x), r"'silu': silu has no integer form where 'silu' reads it"),
        (
            Net(lambda x: F.avg_pool2d(F.leaky_relu(x), 5)),
            r"leaky_relu has no integer form where 'avg_pool2d' reads it",
        ),
        (Net(lambda x: F.prelu(x, torch.arange(4.0))), r"'prelu' \(aten.prelu\): has another slope for each channel"),
        (Net(nn.ELU(-1.0)), r"'between' .*alpha and scales are positive"),
        (Net(nn.GroupNorm(2, 4)), r"'between' .*statistics of each image"),
        (Net(nn.InstanceNorm2d(4)), r"'between' .*(statistics|running)"),
        (Net(nn.BatchNorm2d(4, track_running_stats=False)), r"'between' .*running statistics"),
        (Net(nn.Upsample(scale_factor=1.5)), r"'between' .*factors are whole"),
        (Net(nn.Upsample(size=(5, 7))), r"'between' .*from \(5, 5\) to \(5, 7\).*factors are whole"),
        (Net(lambda x: F.interpolate(x, scale_factor=2.1)), r"by \[2.1, 2.1\] .*factors are whole"),
        (Net(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)), r"'between' .*align_corners=True"),
        (Net(nn.Upsample(scale_factor=2, mode="bicubic")), r"'between' .*nearest or bilinear only"),
        (Net(nn.Upsample(scale_factor=1025)), r"factor of nearest upsampling must be"),
        (Net(nn.Upsample(scale_factor=65, mode="bilinear")), r"factor of bilinear upsampling must be"),
        (Net(nn.ZeroPad2d(1)), r"'between' .*use the padding of the convolution"),
        (Net(nn.Softmax(1)), r"'between' .*softmax.*mixes the numbers"),
        (Net(nn.AdaptiveAvgPool2d(2)), r"'between' .*its windows are equal"),
        (Net(nn.AvgPool2d(2, 2, 1, count_include_pad=False)), r"'between' .*count_include_pad"),
        (Net(nn.AvgPool2d(2, 2, ceil_mode=True)), r"'between' .*ceil_mode"),
        (Net(lambda x: torch.cat([x, x], 1)[:, :4]), r"'slice_1' .*takes a part of the channels"),
        (Net(lambda x: sum(x.chunk(2, 1)), nn.Conv2d(2, 3, 1)), r"'(chunk|split)' .*takes a part of the channels"),
        (Net(lambda x: torch.cat([x, x], 2)), r"'cat' .*other than the channels"),
        (Net(lambda x: torch.cat([x, torch.ones(2, 1, 5, 5)], 1)[:, :4]), r"'cat' .*joins a constant"),
        (Net(lambda x: x.permute(0, 2, 3, 1).reshape(2, -1, 4), nn.Identity()), r"'permute' .*return the maps"),
        (Net(lambda x: x.view(2, 2, -1), nn.Identity()), r"'view' .*return the maps"),
        (Net(lambda x: x * x), r"takes two values of the network"),
        (Net(lambda x: x + x.mean((2, 3), keepdim=True)), r"adds shapes"),
        (Net(lambda x: x.transpose(2, 3)), r"transpose.*moves axes"),
        (Net(lambda x: x.reshape(1, -1, 5, 5)[:, :4]), r"makes a tensor \[1, 8, 5, 5\]"),
        (Net(lambda x: F.dropout(x, 0.5, training=True)), r"random|no integer form"),
        (Net(lambda x: x + torch.arange(5.0)), r"one number or one per channel"),
        (Net(lambda x: x, nn.Linear(5, 3)), r"'head': a linear layer takes \[N, C\]"),
        (
            Net(lambda x: x, nn.Sequential(nn.Conv2d(4, 3, 1), nn.ReLU())),
            r"'head.1': a clip .* at the network's output",
        ),
        (
            nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 1)),
            r"'0': Affine reads the network's input.*mean= and std=",
        ),
        (
            nn.Sequential(nn.Conv2d(2, 3, 1), nn.Flatten(), nn.BatchNorm1d(147), nn.Linear(147, 3)),
            r"'1': flatten is .* affine '2'",
        ),
        (Net(lambda x: (x, 3), nn.Identity()), r"output 1 is 3; outputs are tensors"),
        (Net(lambda x: torch.zeros(2, 3), nn.Identity()), r"does not depend on its input"),
        (Net(lambda x: x if x.sum() > 0 else -x), r"torch.export cannot capture"),
        (Net(lambda x: x.to(torch.float64).to(torch.float32)), r"has no integer form"),
    ],
    ids=lambda value: (
        "" if isinstance(value, str) else repr(getattr(value, "between", "sequential")).split("(")[0][:20]
    ),
)
def test_refusals_name_the_layer_and_the_reason(
    network: nn.Module, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    x = images(0, 2, 2, 7, 7)
    with torch.no_grad():
        batch_norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d)]
        for norm in batch_norms:
            norm.weight.copy_(torch.linspace(-1, 1, len(norm.weight)))
    q = quantized(network, "lsq:w3-a3", x)
    with pytest.raises(CompileError, match=message) as caught:
        compile(q, x)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""  # no dumps of torch's


def test_a_type_that_it_has_anyway_is_nothing() -> None:
    x = images(0, 2, 2, 7, 7)
    q = quantized(Net(lambda x: x.float().to(torch.float32)), "lsq:w3-a3", x)
    assert verify(q, compile(q, x), [x]).mismatches == 0


@pytest.mark.filterwarnings("ignore:quantize")
def test_float_layers_are_refused_with_an_offer() -> None:
    x = images(0, 2, 2, 7, 7)
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 1))
    for q, name in (
        (quantized(network, "tsq:wt-a2", x, first=None), "'0'"),
        (quantized(network, "tsq:wt-a32", x), "'2'"),
        (quantized(network, "tsq:w32-a2", x), "'2'"),
        (network, "'0'"),
    ):
        with pytest.raises(CompileError, match=f'layer {name}.*float.*first="w8a8"'):
            compile(q, x)


def test_a_decomposed_network_is_not_compiled() -> None:
    x = images(0, 2, 2, 5, 5)
    with pytest.raises(CompileError, match=r"^layer '0' is decomposed"):
        compile(decompose(quantized(nn.Sequential(nn.Conv2d(2, 3, 3)), "mbn:w2-a2", x)), x)


def test_two_encodings_of_the_input_are_refused() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x)

    x = images(0, 2, 2, 5, 5)
    q = quantized(Two(), "w8a8", x)
    assert verify(q, compile(q, x), [x]).codes_differing == 0
    q = quantize(Two(), "w8a8", first="uniform:w4-a4").eval()
    with torch.no_grad():
        q.train()(x)
    with pytest.raises(CompileError, match="'b': reads the network's input with other thresholds"):
        compile(q.eval(), x)


def test_quantizers_without_data_are_refused() -> None:
    q = quantize(nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 1)), "w8a8")
    with pytest.raises(CompileError, match=r"layer '0': .*has seen no data"):
        compile(q, images(0, 2, 2, 7, 7))


def test_accumulators_beyond_32_bits_are_refused() -> None:
    network = nn.Sequential(nn.Linear(140_000, 1), nn.ReLU(), nn.Linear(1, 1))
    nn.init.constant_(network[0].weight, 1.0)
    x = images(0, 1, 140_000).abs()
    q = quantized(network, "w8a8", x)
    with pytest.raises(CompileError, match=r"layer '0': accumulators of 0..4533900000 do not fit"):
        compile(q, x)


class Gain(nn.Module):
    """Division by a constant per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gain", torch.ones(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x / self.gain


@pytest.mark.parametrize("change", ["0.bias", "1.weight", "1.running_mean", "2.gain"])
def test_parameters_that_are_not_finite_are_refused(change: str) -> None:
    x = images(0, 2, 2, 7, 7)
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), Gain(), nn.ReLU(), nn.Conv2d(3, 2, 1))
    q = quantized(network, "tsq:wt-a2", x)
    for value in (float("nan"), 0.0 if change == "2.gain" else float("inf")):
        q.state_dict()[change][0] = value
        with pytest.raises(CompileError, match=f"layer '{change[0]}'.*NaN or an infinity"):
            compile(q, x)


def test_layer_node_reads_same_padding_as_torch_does() -> None:
    layer = quantized_layer(nn.Conv2d(1, 1, (4, 3), padding="same", dilation=(1, 2)), Eighths(), NoNegative())
    node = layer_node(layer, "conv", Value(0, (1, 8, 8), 4))
    assert node.padding == (1, 2, 2, 2)
