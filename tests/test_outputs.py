"""Outputs of many bits, fitted to the codes that step 2 leaves: against the equations in NumPy, and on networks."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitbranch import quantize
from bitbranch.chains import Graph
from bitbranch.compiler import compile
from bitbranch.compiler.verify import verify
from bitbranch.layers import QuantizedLayer, quantized_layer
from bitbranch.quantizers.uniform import UniformActivation, UniformWeight
from bitbranch.twostep import Recipe, convert
from bitbranch.twostep.outputs import RIDGE, fit_outputs, output_calls
from bitbranch.twostep.statistics import SampleFile

torch.set_num_threads(1)  # small problems; the machine may be shared


def samples(seed: int, count: int, groups: int, taps: int, outputs: int) -> tuple[Tensor, Tensor]:
    """Integer inputs ``[p, G, n]``, some of them alike, and targets ``[p, G, O]`` that follow from them and noise."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (count, groups, taps), generator=g)
    x[..., -1] = x[..., 0]
    w = torch.randn(groups, taps, outputs, generator=g) / 256
    t = torch.einsum("pgn,gno->pgo", x.float(), w) + 3 + 0.1 * torch.randn(count, groups, outputs, generator=g)
    return x, t


def made_layer(plain: nn.Module, weight_quantizer: nn.Module | None = None) -> QuantizedLayer:
    """A layer whose input is 8-bit codes of reals up to 5."""
    inputs = UniformActivation(8, signed=False)
    inputs.train()(torch.linspace(0, 5, 1000))
    return quantized_layer(plain, inputs, weight_quantizer).eval()


def file_of(x: Tensor, t: Tensor) -> SampleFile:
    file = SampleFile(x.shape[1], x.shape[2], t.shape[2], np.dtype(np.uint8), chunk=7)
    file.append(x, t)
    return file


@pytest.mark.parametrize("count", [400, 12])
@pytest.mark.parametrize("groups", [1, 3])
def test_outputs_are_the_ridge_regression(count: int, groups: int) -> None:
    torch.manual_seed(groups)
    layer = made_layer(nn.Conv2d(6 * groups, 2 * groups, 1, groups=groups))
    x, t = samples(count, count, groups, 6, 2)
    old = layer.weight.detach().double().numpy().reshape(groups, 2, 6)
    with file_of(x, t) as file:
        before, after = fit_outputs(layer, file)
    scale = layer.input_quantizer.scale()
    for g in range(groups):
        a = scale * x[:, g].double().numpy()
        a, y = a - a.mean(0), t[:, g].double().numpy()
        held = RIDGE * 6 / count * np.square(a).sum() / 6
        rows = np.vstack([a, np.sqrt(held) * np.eye(6)])  # least squares, with the change's own equations below
        wanted = np.vstack([y - y.mean(0), np.sqrt(held) * old[g].T])
        w = np.linalg.lstsq(rows, wanted, rcond=None)[0]
        np.testing.assert_allclose(layer.weight.detach().numpy().reshape(groups, 2, 6)[g], w.T, rtol=1e-4, atol=1e-6)
        bias = y.mean(0) - (scale * x[:, g].double().numpy().mean(0)) @ w
        np.testing.assert_allclose(layer.bias.detach().numpy().reshape(groups, 2)[g], bias, rtol=1e-4, atol=1e-5)
    assert after < before
    got = torch.einsum("pgn,gon->pgo", scale * x.double(), layer.weight.detach().double().view(groups, 2, 6))
    left = (t - got - layer.bias.detach().view(groups, 2)).square().sum() / (t - t.mean(0)).square().sum()
    assert after == pytest.approx(float(left), rel=1e-3)


def test_rounded_weights_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared, and reported, is what the quantizer makes of the weights; worse ones are not taken."""
    torch.manual_seed(0)
    layer = made_layer(nn.Linear(6, 2), UniformWeight(8))
    x, t = samples(1, 300, 1, 6, 2)
    with file_of(x, t) as file:
        before, after = fit_outputs(layer, file)
        assert after < before
        kept = copy.deepcopy(layer.state_dict())
        again, same = fit_outputs(layer, file)
        assert again == pytest.approx(after)
        assert same <= again
        layer.load_state_dict(kept)
        monkeypatch.setattr(UniformWeight, "integers", lambda self, w: (w.new_zeros(w.shape), w.new_ones(len(w))))
        before, after = fit_outputs(layer, file)  # only the bias helps
        assert after <= before
        first = copy.deepcopy(layer.state_dict())
        assert fit_outputs(layer, file) == (pytest.approx(after), pytest.approx(after))
    assert all(torch.equal(v, first[k]) for k, v in layer.state_dict().items())


def test_outputs_do_not_depend_on_threads() -> None:
    x, t = samples(5, 500, 1, 96, 7)
    found = []
    for threads in (1, 2, 3):
        torch.manual_seed(0)
        layer = made_layer(nn.Linear(96, 7), UniformWeight(8))
        torch.set_num_threads(threads)
        try:
            with file_of(x, t) as file:
                fit_outputs(layer, file)
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(1)
        found.append(layer.state_dict())
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0].values(), other.values(), strict=True))


class TwoHeads(nn.Module):
    """A trunk, a head with a bias, one without, and a layer in front of all that is solved."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner, self.inner_norm = nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.boxes, self.classes = nn.Conv2d(16, 4, 3, padding=1), nn.Conv2d(16, 3, 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.inner_norm(self.inner(F.relu(self.norm(self.stem(x))))))
        return self.boxes(x), self.classes(x)


def test_heads_are_fitted_where_they_can_be() -> None:
    network, x = TwoHeads().eval(), torch.randn(40, 3, 10, 10)
    batches = [(x[:20], None), (x[20:], None)]
    schemes = {"boxes": "w8a8", "classes": "w8a8"}
    targets = network(x)[0]
    error = {}
    for outputs in (False, True):
        reports: list = []
        q = convert(
            network, batches, "tsq:wt-a2", layers=schemes, recipe=Recipe(samples=3000, outputs=outputs),
            progress=None, on_layer=reports.append,
        )  # fmt: skip
        assert [r.name for r in reports] == ["inner", "boxes"][: 1 + outputs]
        assert "outputs, error" in str(reports[-1]) or not outputs
        error[outputs] = float((q(x)[0] - targets).square().mean())
        assert torch.equal(q.classes.weight, network.classes.weight)
        assert verify(q, compile(q, x[:2]), [x[:8]]).mismatches == 0
    assert error[True] < 0.8 * error[False], error


def test_a_start_keeps_its_outputs() -> None:
    network, x = TwoHeads().eval(), torch.randn(20, 3, 10, 10)
    schemes = {"boxes": "w8a8", "classes": "w8a8"}
    kept = convert(network, [(x, None)], "tsq:wt-a2", layers=schemes, recipe=Recipe(method="start"), progress=None)
    assert torch.equal(kept.boxes.weight, network.boxes.weight)


class Interleaved(nn.Module):
    """Pre-activations that are used up while an earlier layer's BatchNorm has not been called yet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.left, self.left_norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.right, self.right_norm = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.gate, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        left, right = self.left(x), self.right(x)
        right = F.relu(self.right_norm(right))
        gate = torch.sigmoid(self.gate(right))
        left = F.relu(self.left_norm(left))
        return self.last(F.relu(left + right * gate))


def test_layers_may_be_called_in_any_order() -> None:
    network, x, reports = Interleaved().eval(), torch.randn(12, 3, 8, 8), []
    convert(
        network, [(x, None)], "tsq:wt-a2", layers={"gate": "w8a8"}, recipe=Recipe(samples=500), progress=None,
        on_layer=reports.append,
    )  # fmt: skip
    assert [r.name for r in reports] == ["left", "right", "gate", "last"]


def test_targets_that_are_all_alike() -> None:
    layer, (x, t) = made_layer(nn.Linear(6, 2)), samples(3, 50, 1, 6, 2)
    with file_of(x, torch.full_like(t, 3.7)) as file:
        assert fit_outputs(layer, file) == (0.0, 0.0)
    values = layer.input_quantizer.scale() * x[:, 0].float()
    torch.testing.assert_close(values @ layer.weight.T + layer.bias, torch.full((50, 2), 3.7), rtol=0.05, atol=0.05)


def test_weights_of_others_stay() -> None:
    """Of several layers, or with inputs that are multiplied by more than codes."""
    network = TwoHeads().eval()
    network.classes = nn.Conv2d(16, 4, 3, padding=1)
    q = quantize(network, "tsq:wt-a2", layers={"boxes": "w8a8", "classes": "w8a8"}).eval()
    graph = Graph(q)
    inner = [graph.call("inner")]
    assert [str(n.target) for n in output_calls(graph, inner)] == ["boxes", "classes"]
    q.classes.weight = q.boxes.weight
    assert output_calls(graph, inner) == []
    q = quantize(network, "tsq:wt-a2", layers={"boxes": "xnor:w32-a1", "classes": "w8a8"}).eval()
    graph = Graph(q)
    assert [str(n.target) for n in output_calls(graph, [graph.call("inner")])] == ["classes"]
