"""Networks of branches, joins, enlargements, activation curves, several inputs and outputs: exact where they can be."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from random_networks import ACTIVATIONS, Heads, InvertedResidual, Pyramid, batch_norm, quantized
from torch import Tensor, nn
from torch.nn import functional as F

import bitbranch as bb
from bitbranch import CompileError, InputError
from bitbranch.compiler import compile
from bitbranch.compiler.verify import Verification, verify
from bitbranch.runtime import program as p

SCHEMES = ("tsq:wt-a2", "mbn:w1-a1", "mbn:w2-a2", "lsq:w4-a4", "lsq:w8-a8")
MIXED = {"branches.*": "mbn:w2-a2", "up.*": "lsq:w4-a4", "joined.0": "mbn:w1-a1", "boxes.*": "lsq:w8-a8"}


def images(seed: int, *shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    rng = np.random.default_rng(seed)
    return tuple(torch.from_numpy(rng.normal(size=shape).astype(np.float32)) for shape in shapes)


def checked(network: nn.Module, scheme: str, *x: Tensor, **layers: str) -> tuple[p.Program, Verification]:
    """Quantize, compile and verify, the reference standing in for an engine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PReLU's parameter stays float
        q = quantized(network, scheme, x, **layers)
    program = compile(q, x)
    return program, verify(q, program, [x], engines=[program.reference])


def kinds(program: p.Program) -> list[str]:
    return [type(op).__name__ for op in program.operations]


def without_valleys(network: nn.Module) -> None:
    """Curves that fall and rise would take more than 256 intervals in signed codes of 8 bits: ELU in their place."""
    for parent in network.modules():
        for name, child in parent.named_children():
            if falls(child):
                setattr(parent, name, nn.ELU())


def falls(activation: nn.Module) -> bool:
    """Whether it is not monotone."""
    return isinstance(activation, (nn.Hardswish, nn.SiLU)) or getattr(activation, "negative_slope", 0) < 0


@pytest.mark.parametrize("scheme", [*SCHEMES, "mixed"])
@pytest.mark.parametrize("seed", range(6))
def test_networks_without_sums_are_exact(seed: int, scheme: str) -> None:
    """No code and no accumulator differs from torch in float64, with every head, and files come back."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    network = Heads(rng)
    without_valleys(network)  # the heads have 8 bits
    x = images(seed, (4, 2, 12, 8), (4, 3, 6, 4))
    layers = {"side.0": "w8a8"}  # reads an input, which has signs
    if scheme == "mixed":
        scheme, layers = "tsq:wt-a2", {**layers, **MIXED}
    program, result = checked(network, scheme, *x, **layers)
    assert result.mismatches == 0, f"{network}\n{result}"
    assert result.output_error_exact < 1e-5
    assert program.input_names == ("x", "y") and [op.shape for op in program.inputs] == [(2, 12, 8), (3, 6, 4)]
    assert program.output_names == ("mask", "boxes.0", "boxes.1", "label")
    assert program.output_shapes == ((3, 12, 8), (5, 6, 4), (5, 6, 4), (7,))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("number", range(len(ACTIVATIONS)))
def test_every_activation_is_exact(number: int, scheme: str) -> None:
    """Behind a BatchNorm of slopes of both signs, before a max-pool and a gain, read by codes of few bits."""

    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.linspace(0.5, 2.0, 8).reshape(8, 1, 1) - 0.125

    rng = np.random.default_rng(number)
    torch.manual_seed(number)
    norm = batch_norm(8, rng)
    norm.weight.data *= 4
    activation = ACTIVATIONS[number]()
    network = nn.Sequential(
        nn.Conv2d(2, 8, 3),
        norm,
        activation,
        Scaled(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 4, 1),
        nn.ReLU(),
        nn.Conv2d(4, 2, 1),
    )
    program, result = checked(network, scheme, *images(number, (6, 2, 14, 13)))
    assert result.mismatches == 0, str(result)
    assert kinds(program)[1:5] == ["Conv", "Threshold", "MaxPool", "Conv"]
    threshold = program.operations[2]
    assert isinstance(threshold, p.Threshold)
    if not falls(activation):
        assert threshold.table is None
    elif threshold.code_type.lo < 0 and threshold.code_type.bits > 1:
        assert threshold.table is not None and (np.diff(threshold.table.astype(int)) < 0).any()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("seed", range(3))
def test_sums_round_little(seed: int, scheme: str) -> None:
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    program, result = checked(Pyramid(rng), scheme, *images(seed, (6, 2, 12, 8)))
    compared = sum(layer.codes.compared for layer in result.layers)
    assert result.codes_differing <= 0.002 * compared, str(result)
    assert program.output_names == ("output0", "output1", "output2")
    assert {"Upsample", "Concat", "SumPool", "Add", "Requantize"} <= set(kinds(program))


def test_a_linear_bottleneck_is_added_without_a_clip() -> None:
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    blocks = nn.Sequential(
        nn.Conv2d(2, 6, 3), batch_norm(6, rng), *(InvertedResidual(6, rng) for _ in range(3)), nn.Conv2d(6, 2, 1)
    )
    program, _ = checked(blocks, "lsq:w4-a4", *images(0, (4, 2, 9, 9)))
    adds = [op for op in program.operations if isinstance(op, p.Add)]
    assert len(adds) == 3 and all(op.lo == -op.hi for op in adds)
    # each block rescales its branch, and only the first one its shortcut
    assert kinds(program).count("Requantize") == 4


class Inception(nn.Module):
    """A concat of two branches, read by three convolutions and, through a max-pool, by a fourth."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 1)
        self.a, self.b = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 5, 3, padding=1)
        self.readers = nn.ModuleList([nn.Conv2d(8, 2, 1) for _ in range(4)])
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = torch.cat([F.relu(self.a(x)), F.relu(self.b(x))], 1)
        pooled = F.max_pool2d(x, 3, 1, 1)
        branches = [F.relu(reader(v)) for reader, v in zip(self.readers, (x, x, x, pooled), strict=True)]
        return self.head(torch.cat(branches, 1))


def test_a_concat_is_made_of_codes_once_for_each_quantizer() -> None:
    """One with the codes of all readers, or one for each, and never integers."""
    x = images(0, (4, 2, 7, 6))
    readers = {f"readers.{i}": scheme for i, scheme in enumerate(("lsq:w4-a4", "lsq:w4-a3", "tsq:wt-a2", "mbn:w2-a2"))}
    for layers, concats, thresholds in (({}, 1, 3), (readers, 4, 9)):
        torch.manual_seed(0)
        program, result = checked(Inception(), "tsq:wt-a2", *x, **layers)
        assert result.mismatches == 0, str(result)
        made = [i for i, op in enumerate(program.operations) if isinstance(op, p.Concat)]
        assert len(made) == concats + 1 and all(isinstance(program.values[i], p.Codes) for i in made)
        assert kinds(program).count("Threshold") == thresholds + 4
        assert kinds(program).count("MaxPool") == 1 and "Requantize" not in kinds(program)


def test_thresholds_follow_the_integers_that_they_read() -> None:
    torch.manual_seed(0)
    program, _ = checked(Inception(), "lsq:w4-a4", *images(0, (4, 2, 7, 6)))
    first = {}
    for i, op in enumerate(program.operations):
        if isinstance(op, p.Threshold):
            first.setdefault(op.inputs[0], i)
    assert all(i == source + 1 for source, i in first.items())


class Two(nn.Module):
    """The second argument is read first."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(2, 3, 1), nn.Conv2d(1, 3, 1), nn.Conv2d(6, 2, 1)

    def forward(self, image: Tensor, depth: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        d = F.relu(self.b(depth))
        return self.head(torch.cat([F.relu(self.a(image)), d], 1)), {"depth": self.b(depth)}


def test_inputs_keep_the_order_of_the_arguments() -> None:
    torch.manual_seed(0)
    x = images(0, (3, 2, 4, 5), (3, 1, 4, 5))
    q = quantized(Two(), "tsq:wt-a2", x, b="w8a8")
    program = compile(q, x)
    assert program.input_names == ("image", "depth") and program.output_names == ("output0", "output1.depth")
    result = verify(q, program, [(*x, torch.zeros(3))])
    assert result.mismatches == 0 and result.output_error_exact < 1e-6
    with pytest.raises(InputError, match="takes 2 inputs, the batch has 1"):
        verify(q, program, [x[:1]])
    pixels = tuple(np.random.default_rng(0).integers(0, 256, (2, *op.shape), np.uint8) for op in program.inputs)
    normalized = compile(q, x, mean=0.5, std=0.25)
    reals = [((a.astype(np.float32) / np.float32(255)) - np.float32(0.5)) / np.float32(0.25) for a in pixels]
    for a, b in zip(normalized.reference(*pixels), normalized.reference(*reals), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_input_that_is_not_read_is_refused() -> None:
    class Ignores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 1)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.conv(x)

    x = images(0, (2, 2, 3, 3), (2, 2, 3, 3))
    with pytest.raises(CompileError, match="does not depend on its input 'y'"):
        compile(quantized(Ignores(), "w8a8", x), x)


def test_sequences_are_enlarged() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    network = nn.Sequential(
        nn.Conv1d(2, 6, 3), batch_norm(6, rng, 1), nn.ReLU(),
        nn.ConvTranspose1d(6, 6, 4, 3, 1, output_padding=2, groups=3, dilation=2), batch_norm(6, rng, 1), nn.SiLU(),
        nn.Conv1d(6, 4, 1), nn.Upsample(scale_factor=2, mode="linear"), nn.LeakyReLU(),
        nn.Conv1d(4, 3, 2), nn.Hardtanh(), nn.Upsample(scale_factor=3), nn.ConvTranspose1d(3, 2, 3, padding=1),
    )  # fmt: skip
    x = images(0, (4, 2, 12))
    for scheme in ("tsq:wt-a2", "mbn:w2-a2", "lsq:w3-a3"):
        program, result = checked(network, scheme, *x)
        assert result.mismatches == 0, str(result)
        assert kinds(program).count("ConvTranspose") == 2 and kinds(program).count("Upsample") == 2


def test_adaptive_pools_enlarge_and_networks_may_pool_first() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.MaxPool2d(2), nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d((4, 6)), nn.Flatten(), nn.Linear(96, 3)
    )
    program, result = checked(network, "tsq:wt-a2", *images(0, (5, 2, 8, 10)))
    assert result.mismatches == 0, str(result)
    assert kinds(program) == ["Encode", "MaxPool", "Conv", "Threshold", "Upsample", "Conv", "Scale"]


def test_transposed_convolutions_decompose_and_are_summed_up() -> None:
    torch.manual_seed(0)
    x = images(0, (4, 2, 12, 8), (4, 3, 6, 4))
    q = quantized(Heads(np.random.default_rng(4)), "lsq:w3-a3", x, **{"side.0": "w8a8"})
    with torch.no_grad():
        expected, got = q(*x), bb.decompose(q)(*x)
    assert torch.equal(expected["mask"], got["mask"]) and torch.equal(expected["label"], got["label"])
    program, table = compile(q, x), bb.summary(q, x)
    assert table.macs == program.macs
    one = nn.Sequential(nn.ConvTranspose1d(2, 3, 3, 2), nn.Hardtanh(), nn.ConvTranspose1d(3, 2, 2))
    seq = images(1, (2, 2, 5))
    q = quantized(one, "w8a8", seq[0])
    assert [c.type for c in bb.coverage(q)] == ["QuantizedConvTranspose1d"] * 2
    assert torch.equal(q(*seq), bb.decompose(q)(*seq))
    assert bb.summary(q, *seq).macs == compile(q, seq).macs == 2 * 3 * 3 * 5 + 3 * 2 * 2 * 11
