"""Quantized layers, the swap in a network, what it reports, and the package's lazy names."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

import bitbranch as bb
from bitbranch.contract import Kind
from bitbranch.errors import InputError
from bitbranch.layers import QuantizedConv2d, QuantizedConvTranspose2d, QuantizedLayer, QuantizedLinear, quantized_layer
from bitbranch.quantizers.registry import parse_scheme
from bitbranch.quantizers.tsq import SparseActivation, TernaryWeight, optimal_ternary
from bitbranch.quantizers.uniform import UniformActivation

SCHEMES = ["mbn:w1-a1", "mbn:w2-a2", "mbn:w4-a4", "tsq:wt-a2", "hwgq:w1-a2", "lsq:w3-a4", "w8a8", "uniform:wt-a3"]


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=2),
        nn.BatchNorm2d(12),
        nn.ReLU6(),
        nn.ConvTranspose2d(12, 6, 3, stride=2, groups=3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 9 * 9, 5),
    )


def images(n: int = 4) -> torch.Tensor:
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# Layers


@pytest.mark.parametrize("scheme", SCHEMES)
def test_evaluation_is_training_up_to_float_rounding(scheme: str) -> None:
    network = bb.quantize(small_network(), scheme)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    trained = network(images())
    network.eval()
    torch.testing.assert_close(trained, network(images()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_accumulators_are_exact_integers(scheme: str) -> None:
    network = bb.quantize(small_network(), scheme)
    bb.calibrate(network, [images()])
    network.eval()

    def check(layer: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(layer, QuantizedLayer) and layer.input_quantizer is not None
        values, _, _ = layer.integer_weight()
        inputs = layer.input_quantizer.values(args[0]).double()
        expected = layer.accumulate(inputs, layer.native_order(values).double(), None)
        assert torch.equal(layer.accumulator(args[0]).double(), expected)
        assert torch.equal(expected, expected.round())

    for layer in network.modules():
        if isinstance(layer, QuantizedLayer):
            layer.register_forward_pre_hook(check)
    network(images())


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_sums_are_exact_in_half_precision_and_under_autocast(half: torch.dtype) -> None:
    torch.manual_seed(0)
    q = bb.quantize(nn.Sequential(nn.Conv2d(64, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)), "w8a8")
    x = torch.randn(2, 64, 9, 9).to(half).float()
    bb.calibrate(q, [x])
    layer = q.eval()[0]  # type: ignore[index]
    assert isinstance(layer, QuantizedLayer)
    exact = layer.accumulator(x)
    assert exact.dtype == torch.float32 and torch.equal(layer.accumulator(x.to(half)), exact)
    out = q(x)
    with torch.autocast("cpu", half):
        assert torch.equal(layer.accumulator(x), exact)
        torch.testing.assert_close(q(x), out, rtol=0, atol=0)
        torch.testing.assert_close(bb.decompose(q)(x), out, rtol=0, atol=0)


@pytest.mark.parametrize("scheme", ["lsq:w2-a2", "tsq:wt-a2", "mbn:w2-a2", "ttq:wt-a2", "ffn(rank=2):wt-a8", "w8a8"])
def test_networks_in_half_precision_train_and_evaluate(scheme: str) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        q = bb.quantize(nn.Sequential(*layers, nn.Conv2d(4, 3, 1)), scheme)
    x = torch.randn(4, 2, 8, 8)
    q.train()(x)
    q, x = q.bfloat16(), x.bfloat16()
    q(x).float().square().sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in q.parameters())
    assert q.eval()(x).dtype == torch.bfloat16


def test_wide_layers_accumulate_in_float64() -> None:
    layer = nn.Linear(3000, 2)
    nn.init.constant_(layer.weight, 1.0)
    quantized = quantized_layer(layer, UniformActivation(8, signed=False), parse_scheme("w8a8").weight()).eval()
    assert quantized.input_quantizer is not None
    quantized.input_quantizer.start(torch.tensor([255.0]))
    x = torch.full((1, 3000), 255.0)
    x[0, 0] = 254  # 127 * (3000 * 255 - 1) is odd and above 2^24
    assert quantized.accumulator(x)[0].tolist() == [127 * (3000 * 255 - 1)] * 2


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_outputs_first_of_a_transposed_convolution(groups: int, inputs: int, outputs: int, kernel: int) -> None:
    layer = nn.ConvTranspose2d(groups * inputs, groups * outputs, kernel, groups=groups, bias=False)
    quantized = quantized_layer(layer, None, None)
    weight = quantized.outputs_first(layer.weight)
    assert weight.shape == (groups * outputs, inputs, kernel, kernel)
    assert torch.equal(quantized.native_order(weight), layer.weight)
    # Silencing output o silences that channel and no other.
    o = groups * outputs - 1
    silent = weight.detach().clone()
    silent[o] = 0
    x = torch.randn(1, groups * inputs, 3, 3)
    before, after = (quantized.accumulate(x, quantized.native_order(w), None) for w in (weight, silent))
    assert after[:, o].abs().max() == 0
    assert torch.equal(before[:, :o], after[:, :o])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_training_step_moves_every_latent_weight_tensor(scheme: str) -> None:
    network = bb.quantize(small_network(), scheme, first=scheme, last=scheme)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    network(images(8))  # starts the steps
    F.cross_entropy(network(images(8)), torch.arange(8) % 5).backward()
    optimizer.step()
    still = [name for name, p in network.named_parameters() if torch.equal(p, before[name])]
    assert not [name for name in still if name.endswith("weight")]
    if scheme.startswith("lsq"):
        steps = [name for name in before if name.endswith(".step")]
        assert len(steps) == 8 and not set(steps) & set(still)


def test_solved_integers_written_into_latent_weights_are_what_is_computed() -> None:
    layer = nn.Conv2d(4, 6, 3, bias=False)
    t = torch.randint(-1, 2, layer.weight.shape).float()
    t[2] = 0
    alpha = torch.rand(6) + 0.1
    with torch.no_grad():
        layer.weight.copy_(alpha[:, None, None, None] * t)
    quantized = quantized_layer(layer, SparseActivation(2), TernaryWeight())
    values, scale, _ = quantized.integer_weight()
    assert torch.equal(values, t)
    assert torch.equal(scale, torch.where(t.flatten(1).any(1), alpha, 0.0))
    quantized(torch.rand(2, 4, 8, 8)).sum().backward()
    assert quantized.weight.grad is not None and bool(quantized.weight.grad.abs().sum() > 0)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_state_dict_and_double(scheme: str) -> None:
    network = bb.quantize(small_network(), scheme)
    bb.calibrate(network, [images()])
    network.eval()
    other = bb.quantize(small_network(), scheme).eval()
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(images()), network(images()))
    wide = copy.deepcopy(network).double()
    for a, b in zip(network.modules(), wide.modules(), strict=True):
        if isinstance(a, QuantizedLayer) and isinstance(b, QuantizedLayer):
            assert torch.equal(a.integer_weight()[0].double(), b.integer_weight()[0])
            assert torch.equal(a.integer_weight()[1].double(), b.integer_weight()[1])


# quantize()


def test_quantize_copies_and_keeps_weights() -> None:
    network = small_network()
    state = copy.deepcopy(network.state_dict())
    quantized = bb.quantize(network, "tsq:wt-a2")
    assert not any(isinstance(m, QuantizedLayer) for m in network.modules())
    for name, value in state.items():
        assert torch.equal(quantized.state_dict()[name], value)
        assert torch.equal(network.state_dict()[name], value)
    with torch.no_grad():
        quantized.get_parameter("3.weight").zero_()
    assert torch.equal(network.state_dict()["3.weight"], state["3.weight"])


def test_first_last_and_exceptions() -> None:
    def schemes(**arguments: object) -> list[str | None]:
        quantized = bb.quantize(small_network(), "tsq:wt-a2", **arguments)  # type: ignore[arg-type]
        return [c.scheme for c in bb.coverage(quantized)]

    assert schemes() == ["uniform:w8-a8", "tsq:wt-a2", "tsq:wt-a2", "uniform:w8-a8"]
    assert schemes(first=None, last="w4a4") == [None, "tsq:wt-a2", "tsq:wt-a2", "uniform:w4-a4"]
    assert schemes(layers={"6": "mbn:w2-a2", "0": "w2a2"})[:3:2] == ["uniform:w2-a2", "mbn:w2-a2"]
    assert schemes(layers={"*": None, "3": "w4a4", "6": "w3a3"}) == [None, "uniform:w4-a4", "uniform:w3-a3", None]
    with pytest.raises(InputError, match="'head' matches no layer"):
        schemes(layers={"head": "w8a8"})
    with pytest.raises(InputError, match="unknown scheme"):
        schemes(last="w9a9")


def test_a_single_layer_is_the_first_one() -> None:
    quantized = bb.quantize(nn.Linear(3, 2), "tsq:wt-a2", last="w2a2")
    assert isinstance(quantized, QuantizedLinear)
    assert quantized.scheme == "uniform:w8-a8"


def test_what_stays_float_is_said() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), nn.Conv2d(2, 2, 3), nn.PReLU(), nn.Conv3d(1, 1, 3)
    )
    with pytest.warns(
        UserWarning, match=r"stay float: 0 \(Conv2d\): padding_mode 'reflect'.*2 \(PReLU\).*3 \(Conv3d\)"
    ):
        quantized = bb.quantize(network, "w4a4")
    assert [(c.name, c.scheme) for c in bb.coverage(quantized)] == [
        ("0", None), ("1", "uniform:w8-a8"), ("2", None), ("3", None)
    ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bb.quantize(network, "w4a4", layers={"0": None, "[23]": None})
    with pytest.raises(InputError, match="layer 2: PReLU has no quantized form"):
        bb.quantize(network, "w4a4", layers={"2": "w8a8"})
    with pytest.raises(InputError, match="no layer to quantize"):
        bb.quantize(nn.ReLU(), "w4a4")


def test_computed_weights_stay_float() -> None:
    """As pruning leaves them: there is no parameter to learn."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), prune.l1_unstructured(nn.Conv2d(2, 3, 3), "weight", 0.5))
    network.append(nn.Conv2d(3, 2, 1))
    pruned = network[2]
    pruned.weight = pruned.weight.detach()
    with pytest.warns(UserWarning, match=r"stay float: 2 \(Conv2d\): its weight is computed"):
        q = bb.quantize(network, "lsq:w4-a4")
    bb.calibrate(q, [torch.rand(2, 1, 8, 8)])
    prune.remove(pruned, "weight")
    assert bb.coverage(bb.quantize(network, "lsq:w4-a4"))[1].scheme == "lsq:w4-a4"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_calibration_cannot_use_is_named(bad: float) -> None:
    def network() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1))

    x = torch.rand(2, 1, 8, 8)
    with pytest.raises(InputError, match=r"^layer '0': its inputs hold NaN or infinity"):
        bb.calibrate(bb.quantize(network(), "lsq:w4-a4"), [x * bad])
    broken = bb.quantize(network(), "lsq:w4-a4")
    broken[2].weight.data[1] = bad  # type: ignore[index, union-attr, operator]
    with pytest.raises(InputError, match=r"^layer '2': its weights hold NaN or infinity"):
        bb.calibrate(broken, [x])
    dead = network()
    dead[2].bias.data.fill_(-100)  # type: ignore[union-attr, operator]
    with pytest.raises(InputError, match=r"^layer '4': .*zeros only"):
        bb.calibrate(bb.quantize(dead, "lsq:w4-a4"), [x])


def hardtanhs(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if type(module) is nn.Hardtanh]


def test_bipolar_codes_get_hardtanh_in_place_of_relu() -> None:
    quantized = bb.quantize(small_network(), "mbn:w2-a2")
    replaced = [c for c in bb.coverage(quantized) if c.type == "Hardtanh"]
    assert [c.name for c in replaced] == hardtanhs(quantized) == ["2", "5"]
    assert "replaces ReLU6" in str(replaced[1])
    assert isinstance(quantized[7], nn.ReLU)  # type: ignore[index]  # the last layer's codes have no signs
    signs_last = bb.quantize(quantized, "mbn:w2-a2", last="mbn:w8-a8")
    assert hardtanhs(signs_last) == ["2", "5", "7"]
    assert hardtanhs(bb.quantize(signs_last, "mbn:w2-a2", layers={"6": "w4a4"})) == ["2"]
    assert hardtanhs(bb.quantize(signs_last, "tsq:wt-a2")) == []
    kept = bb.quantize(small_network(), "tsq:wt-a2")
    assert isinstance(kept[2], nn.ReLU)  # type: ignore[index]
    exception = bb.quantize(small_network(), "tsq:wt-a2", layers={"3": "mbn:w2-a2"})
    assert isinstance(exception[2], nn.ReLU)  # type: ignore[index]
    with pytest.warns(UserWarning, match="ReLU in front"):
        exception(images())


def test_hardtanh_is_where_signs_are_read_however_the_values_get_there() -> None:
    class Block(nn.Module):
        def __init__(self, untraceable: bool = False) -> None:
            super().__init__()
            self.untraceable = untraceable
            self.stem, self.body, self.skip, self.side, self.head = (nn.Linear(4, 4) for _ in range(5))
            self.shared, self.inner, self.outer, self.end = nn.ReLU(), nn.ReLU(), nn.ReLU(), nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.shared(self.stem(x))  # read by a sum alone, but called again below
            if self.untraceable and x.sum() < 0:
                x = -x
            y = self.shared(self.body(self.inner(x + 1)).view(-1, 2, 2).mean(1, keepdim=True).flatten(1).repeat(1, 2))
            y = self.outer(self.skip(y) + x.roll(1))
            return self.head(self.end(y + self.side(y.detach())))

    assert hardtanhs(bb.quantize(Block(), "mbn:w2-a2")) == ["shared", "inner", "outer"]
    assert hardtanhs(bb.quantize(Block(), "mbn:w2-a2", layers={"side": "w4a4"})) == ["shared", "inner"]
    assert hardtanhs(bb.quantize(Block(), "mbn:w2-a2", layers={"body": None, "side": None})) == ["shared"]
    all_of_them = bb.quantize(Block(untraceable=True), "mbn:w2-a2")
    assert hardtanhs(all_of_them) == ["shared", "inner", "outer", "end"]
    assert hardtanhs(bb.quantize(all_of_them, "w4a4")) == []


def test_shared_layers_stay_shared() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = self.a
            self.head = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.b(self.a(x).relu()))

    quantized = bb.quantize(Twice(), "w4a4")
    assert isinstance(quantized.a, QuantizedLinear) and quantized.b is quantized.a
    quantized(torch.randn(3, 4))


def test_a_quantized_network_can_be_quantized_again() -> None:
    eight = bb.quantize(small_network(), "mbn:w8-a8")
    bb.calibrate(eight, [images()])
    seven = bb.quantize(eight, "mbn:w7-a7")
    assert [c.scheme for c in bb.coverage(seven) if c.scheme] == [
        "uniform:w8-a8",
        "mbn:w7-a7",
        "mbn:w7-a7",
        "uniform:w8-a8",
    ]
    assert torch.equal(seven.state_dict()["3.weight"], eight.state_dict()["3.weight"])


def test_evaluation_changes_nothing() -> None:
    network = bb.quantize(small_network().eval(), "tsq:w32-a2")
    bb.calibrate(network, [images()])
    before = copy.deepcopy(network.state_dict())
    network(images() * 100)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_calibrate_leaves_batch_statistics_and_modes() -> None:
    network = bb.quantize(small_network(), "w4a4")
    network[1].eval()  # type: ignore[index]
    modes, mean = [m.training for m in network.modules()], network[4].running_mean.clone()  # type: ignore[index, union-attr, operator]
    bb.calibrate(network, [images(), images()])
    assert [m.training for m in network.modules()] == modes
    assert torch.equal(network[4].running_mean, mean)  # type: ignore[index, union-attr, arg-type]
    with pytest.raises(InputError, match="at least one batch"):
        bb.calibrate(network, [])


def test_uncalibrated_evaluation_is_an_error() -> None:
    with pytest.raises(InputError, match="calibrate"):
        bb.quantize(small_network(), "tsq:wt-a2").eval()(images())


# summary()


def test_summary_counts_by_hand() -> None:
    network = bb.quantize(small_network(), "tsq:wt-a2")
    table = bb.summary(network, images())
    first, strided, transposed, last = table.layers
    assert (first.macs, strided.macs) == (8 * 8 * 8 * 9, 12 * 4 * 4 * 4 * 9)
    assert (transposed.macs, last.macs) == (4 * 4 * 12 * 2 * 9, 486 * 5)
    assert (str(strided.weight), str(strided.input), strided.branches) == ("t", "u2", (2, 2))
    assert (first.branches, first.weight_bytes) == ((8, 8), 72)
    assert strided.weight_bytes == -(-12 * 4 * 9 // 5)
    values, _ = optimal_ternary(network[3].weight.flatten(1))  # type: ignore[index, union-attr, operator]
    assert strided.accumulator == 3 * int(torch.stack([values.clamp_min(0).sum(1), -values.clamp_max(0).sum(1)]).max())
    assert table.macs == sum(layer.macs for layer in table.layers)
    text = str(table).splitlines()
    assert len(text) == 1 + 1 + 4 + 1 + 1 and text[0].startswith("layer") and text[-1].startswith("total")
    assert not isinstance(network[0].input_quantizer, UniformActivation) or not network[0].input_quantizer.ready  # type: ignore[index, union-attr]


def test_summary_counts_every_call_of_a_shared_layer() -> None:
    shared = nn.Conv2d(4, 4, 3, padding=1)
    network = nn.Sequential(nn.Conv2d(1, 4, 1), *(m for _ in range(3) for m in (nn.ReLU(), shared)), nn.Conv2d(4, 2, 1))
    q, x = bb.quantize(network, "lsq:w4-a4"), torch.rand(2, 1, 8, 8)
    bb.calibrate(q, [x])
    table = bb.summary(q, x)
    assert [layer.macs for layer in table.layers] == [4 * 64, 3 * 64 * 4 * 36, 8 * 64]
    assert table.macs == bb.compile(q, x).macs


def test_summary_of_float_and_mixed_networks() -> None:
    assert bb.summary(small_network(), images()).layers[0].weight_bytes == 4 * 72
    row = bb.summary(bb.quantize(small_network(), "tsq:w32-a2"), images()).layers[1]
    assert row.weight is None and row.branches is None and row.accumulator is None and row.input is not None


# Names


@pytest.mark.parametrize("statement", ["import bitbranch", "import bitbranch.runtime", "import bitbranch as b; b.load"])
def test_the_runtime_imports_neither_torch_nor_onnx(statement: str) -> None:
    check = "import sys; bad = {'torch', 'onnx', 'onnxruntime'} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    subprocess.run([sys.executable, "-c", f"{statement}; {check}"], check=True)


def test_public_names() -> None:
    assert set(bb.__all__) <= set(dir(bb))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        bb.nonsense  # type: ignore[attr-defined]  # noqa: B018
    assert all(callable(getattr(bb, name)) for name in ("quantize", "summary", "decompose", "coverage", "calibrate"))


def test_types_of_the_layers() -> None:
    quantized = bb.quantize(small_network(), "tsq:wt-a2")
    found = [type(m) for m in quantized.modules() if isinstance(m, QuantizedLayer)]
    assert found == [QuantizedConv2d, QuantizedConv2d, QuantizedConvTranspose2d, QuantizedLinear]
    assert quantized[0].input_quantizer is not quantized[9].input_quantizer  # type: ignore[index, union-attr]
    assert quantized[3].weight_quantizer.code_type.kind is Kind.TERNARY  # type: ignore[index, union-attr]


def test_batches_for_calibration_may_be_arrays_and_have_labels() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    x, labels = torch.rand(8, 1, 6, 6), torch.zeros(8, dtype=torch.int64)
    steps = []
    for batches in ([x], [(x, labels)], [[x, labels]], [x.numpy()], iter([(x.numpy(), labels.numpy())])):
        q = bb.quantize(net, "lsq:w4-a4")
        bb.calibrate(q, batches)
        steps.append([m.input_quantizer.scale() for m in q.modules() if isinstance(m, QuantizedLayer)])
    assert all(one == steps[0] for one in steps)
    for batch in (x, x.numpy()):
        with pytest.raises(InputError, match=r"give it a list of them, \[x\]"):
            bb.calibrate(q, batch)
    assert str(bb.summary(q, x.numpy())) == str(bb.summary(q, x))
