"""Decomposition: M x K binary branches give the quantized layer's integers, for every kind, layer and geometry."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import examples
from torch import Tensor, nn

import bitbranch as bb
from bitbranch.contract import CodeType, Encoder, Kind, branch_weights, uniform_encoder
from bitbranch.decomposition import MultiBranch, value_branches
from bitbranch.errors import InputError
from bitbranch.layers import QuantizedLayer, quantized_layer
from bitbranch.quantizers.base import ActivationQuantizer, WeightQuantizer
from bitbranch.quantizers.registry import parse_scheme
from bitbranch.training.stages import fix_weights

CODE_TYPES = [CodeType(kind, bits) for kind in Kind for bits in ([2] if kind is Kind.TERNARY else range(1, 9))]


class AnyActivation(ActivationQuantizer):
    """Encodes reals to the values of any code type."""

    def __init__(self, code_type: CodeType) -> None:
        super().__init__()
        self._code_type = code_type

    @property
    def code_type(self) -> CodeType:
        return self._code_type

    def scale(self) -> float:
        return 0.25

    def encoder(self) -> Encoder:
        t = self._code_type
        if t.kind is Kind.BIPOLAR:
            return Encoder(t, tuple(0.25 * v for v in range(t.lo + 1, t.hi, 2)))
        return uniform_encoder(t, 0.25)


class AnyWeight(WeightQuantizer):
    """Takes weights that already are values of a code type."""

    def __init__(self, code_type: CodeType) -> None:
        super().__init__()
        self._code_type = code_type

    @property
    def code_type(self) -> CodeType:
        return self._code_type

    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return weight.detach(), torch.arange(1, len(weight) + 1).to(weight) / 8


def quantized(layer: nn.Module, weights: CodeType, inputs: CodeType) -> QuantizedLayer:
    codes = torch.randint(0, weights.count, layer.weight.shape)  # type: ignore[arg-type]
    layer.weight.data = torch.from_numpy(weights.decode(codes.numpy())).float()  # type: ignore[union-attr]
    return quantized_layer(layer, AnyActivation(inputs), AnyWeight(weights)).eval()


def check(layer: QuantizedLayer, x: Tensor) -> None:
    assert layer.input_quantizer is not None
    multi = MultiBranch(layer)
    expected = layer.accumulator(x)
    assert torch.equal(multi.accumulator(x), expected)
    assert torch.equal(multi(x), layer(x))
    # And the same in float64, whatever dtype the layer chose.
    values, _, _ = layer.integer_weight()
    exact = layer.accumulate(layer.input_quantizer.values(x).double(), layer.native_order(values).double(), None)
    assert torch.equal(expected.double(), exact)
    assert all(set(p.unique().tolist()) <= {-1.0, 1.0} for p in multi.binary.parameters())


kinds = st.sampled_from(CODE_TYPES)
sizes = st.integers(1, 3)


@examples(60)
@given(st.data(), kinds, kinds)
def test_conv2d(data: st.DataObject, weights: CodeType, inputs: CodeType) -> None:
    groups, kernel, dilation = data.draw(sizes), (data.draw(sizes), data.draw(sizes)), data.draw(sizes)
    padding = (data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3)))
    stride = (data.draw(sizes), data.draw(sizes))
    size = data.draw(st.integers(1, 9))
    assume(all(size + 2 * p > dilation * (k - 1) for p, k in zip(padding, kernel, strict=True)))
    layer = nn.Conv2d(
        groups * data.draw(sizes), groups * data.draw(sizes), kernel, stride, padding, dilation, groups,
        bias=data.draw(st.booleans()),
    )  # fmt: skip
    x = torch.randn(2, layer.in_channels, size, size) * inputs.count / 4
    check(quantized(layer, weights, inputs), x)


@examples(30)
@given(st.data(), kinds, kinds)
def test_conv1d(data: st.DataObject, weights: CodeType, inputs: CodeType) -> None:
    groups, kernel, dilation = data.draw(sizes), data.draw(sizes), data.draw(sizes)
    size, padding = data.draw(st.integers(1, 12)), data.draw(st.integers(0, 3))
    assume(size + 2 * padding > dilation * (kernel - 1))
    layer = nn.Conv1d(
        groups * data.draw(sizes), groups * data.draw(sizes), kernel, data.draw(sizes), padding, dilation, groups
    )
    check(quantized(layer, weights, inputs), torch.randn(2, layer.in_channels, size) * inputs.count / 4)


@examples(60)
@given(st.data(), kinds, kinds)
def test_conv_transpose2d(data: st.DataObject, weights: CodeType, inputs: CodeType) -> None:
    groups, kernel, dilation, stride = data.draw(sizes), data.draw(sizes), data.draw(sizes), data.draw(sizes)
    extra = data.draw(st.integers(0, max(stride, dilation) - 1))
    reach = dilation * (kernel - 1)
    padding = data.draw(st.integers(0, reach))
    size = data.draw(st.integers(1, 5))
    assume((size - 1) * stride - 2 * padding + reach + extra + 1 > 0)
    layer = nn.ConvTranspose2d(
        groups * data.draw(sizes), groups * data.draw(sizes), kernel, stride, padding, extra, groups,
        bias=data.draw(st.booleans()), dilation=dilation,
    )  # fmt: skip
    check(quantized(layer, weights, inputs), torch.randn(2, layer.in_channels, size, size) * inputs.count / 4)


@examples(30)
@given(st.integers(1, 70), st.integers(1, 5), kinds, kinds)
def test_linear(inputs: int, outputs: int, weights: CodeType, codes: CodeType) -> None:
    layer = nn.Linear(inputs, outputs)
    check(quantized(layer, weights, codes), torch.randn(3, inputs) * codes.count / 4)


def test_same_padding_and_wide_accumulators() -> None:
    eight = CodeType(Kind.SIGNED, 8)
    check(quantized(nn.Conv2d(2, 3, 3, padding="same", dilation=2), eight, eight), torch.randn(1, 2, 6, 6) * 20)
    wide = quantized(nn.Linear(3000, 2), eight, CodeType(Kind.UNSIGNED, 8))
    assert wide.accumulator(torch.randn(1, 3000)).dtype == torch.float64
    check(wide, torch.rand(2, 3000) * 64)


@pytest.mark.parametrize("code_type", CODE_TYPES, ids=str)
def test_branches_are_the_values(code_type: CodeType) -> None:
    values = torch.from_numpy(code_type.decode(range(code_type.count))).float()
    weights, constant = branch_weights(code_type)
    total = sum(float(w) * b for w, b in zip(weights, value_branches(values, code_type), strict=True)) + float(constant)
    assert torch.equal(total, values)  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", ["mbn:w2-a2", "mbn:w1-a1", "mbn:w3-a4", "tsq:wt-a2", "lsq:w2-a3", "hwgq:w1-a2"])
def test_networks(scheme: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8),
        nn.ReLU(), nn.MaxPool2d(2), nn.ConvTranspose2d(8, 4, 2, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3),
    )  # fmt: skip
    q = bb.quantize(network, scheme)
    x = torch.randn(5, 1, 6, 6)
    q(x)  # one batch in training mode: BatchNorm statistics, steps
    m = bb.decompose(q)
    q.eval()
    assert torch.equal(m(x), q(x))
    body = [module for module in m.modules() if isinstance(module, MultiBranch)]
    assert len(body) == 4 and not any(isinstance(module, QuantizedLayer) for module in m.modules())
    chosen = parse_scheme(scheme)
    weight, activation = chosen.weight(), chosen.activation()
    assert weight is not None and activation is not None
    columns = getattr(activation, "bits", None)
    assert [(len(b.binary), len(b.binary[0])) for b in body[1:3]] == [(weight.code_type.bits, columns)] * 2  # type: ignore[arg-type]
    assert torch.equal(bb.decompose(q).double()(x.double()), q.double()(x.double()))


def test_what_cannot_be_decomposed() -> None:
    with pytest.raises(InputError, match="no layer"):
        bb.decompose(nn.Linear(2, 2))
    with pytest.raises(InputError, match="no data"):
        bb.decompose(bb.quantize(nn.Linear(2, 2), "w8a8"))
    network = bb.quantize(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), "ttq:wt-a2", last="ttq:wt-a2")
    bb.calibrate(network, [torch.rand(4, 2)])
    with pytest.raises(InputError, match=r"^layer '2': TTQ's levels"):
        bb.decompose(network)
    inq = bb.quantize(nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 2)), "inq:w5-a4", first="inq:w5-a4")
    bb.calibrate(inq, [torch.rand(4, 20)])
    fix_weights(inq, 1.0)
    with pytest.raises(InputError, match=r"^layer '0': values .*128 are not all values of code type s8"):
        bb.decompose(inq)


def test_the_function_is_not_hidden_by_a_module() -> None:
    import bitbranch.decomposition  # noqa: F401

    assert callable(bb.decompose) and callable(bb.summary)
