"""`verify` counts differences where they are, and only there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from random_networks import chain, quantized, resnet
from torch import Tensor, nn

from bitbranch import InputError, decompose
from bitbranch.compiler import compile
from bitbranch.compiler.verify import verify
from bitbranch.runtime import program as p
from bitbranch.runtime import reference


def network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3)]
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(9, 1, 8, 8)).astype(np.float32))
    return quantized(nn.Sequential(*layers), "tsq:wt-a2", x), x


def altered(program: p.Program, number: int, **fields: object) -> p.Program:
    operations = list(program.operations)
    operations[number] = replace(operations[number], **fields)  # type: ignore[arg-type]
    return replace(program, operations=tuple(operations))


def test_equal_networks_have_no_mismatch() -> None:
    q, x = network()
    program = compile(q, x)
    result = verify(q, program, [x[:4], x[4:].numpy(), (x, torch.zeros(9))], engines=[program.reference])
    assert result.mismatches == 0 and result.first is None and result.images == 18
    assert result.output_error == 0 and result.output_error_exact < 1e-5 and result.decisions_differing == 0
    assert [layer.name for layer in result.layers] == ["0", "2", "5"]
    assert result.layers[1].codes.compared == 18 * 4 * 6 * 6
    assert result.layers[1].accumulators.compared == 18 * 5 * 4 * 4
    assert result.engines[0].values.compared == 18 * 3
    table = str(result).splitlines()
    assert len(table) == 1 + 3 + 1 + 1 and table[-1].startswith("18 images, 0 mismatches")


def test_a_changed_threshold_shows_in_the_layer_that_reads_the_codes() -> None:
    q, x = network()
    program = compile(q, x)
    (second,) = [i for i, op in enumerate(program.operations) if op.name == "3"]
    threshold = program.operations[second]
    assert isinstance(threshold, p.Threshold)
    thresholds = threshold.thresholds.copy()
    thresholds[2] += 1
    result = verify(q, altered(program, second, thresholds=thresholds), [x[:3], x[3:]])
    assert [layer.codes.differing > 0 for layer in result.layers] == [False, False, True]
    name, place = result.first or ("", None)
    assert name == "5" and place is not None and place.channel == 2 and place.expected > place.got
    assert f"batch {place.batch} image {place.image} channel 2" in str(result)
    assert result.mismatches == sum(layer.codes.differing + layer.accumulators.differing for layer in result.layers)


class Faulty:
    """An engine that computes one operation wrong, and shows its values."""

    isa = "faulty"

    def __init__(self, program: p.Program, wrong: int) -> None:
        self.program, self.wrong = program, wrong

    def trace(self, x: npt.NDArray[np.float32]) -> Iterator[tuple[int, npt.NDArray[np.generic]]]:
        for i, value in reference.trace(self.program, x):
            if i == self.wrong:
                value = value.copy()
                value.reshape(-1)[5] += 1
            yield i, value

    def __call__(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return self.program.reference(x)


def test_engines_are_compared_operation_by_operation() -> None:
    q, x = network()
    program = compile(q, x)
    result = verify(q, program, [x], engines=[Faulty(program, 3), Faulty(program, -1)])
    wrong, right = result.engines
    assert wrong.values.differing == 1 and right.values.differing == 0 and result.mismatches == 1
    assert "Conv '2'" in wrong.operation and wrong.name == "Faulty faulty"
    assert "operation 3 (Conv '2')" in str(result)


def test_a_sign_of_zero_is_a_difference() -> None:
    q, x = network()
    program = compile(q, x)
    ones = program.operations[-1]
    assert isinstance(ones, p.Scale)
    zero = altered(program, len(program.operations) - 1, scale=0 * ones.scale, bias=np.zeros(3, np.float32))

    def negative(*images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return -np.abs(zero.reference(*images))  # type: ignore[no-any-return, arg-type]

    (check,) = verify(q, zero, [x], engines=[negative]).engines
    assert check.values.differing == check.values.compared == 27


class Auxiliary(nn.Module):
    """With a layer that evaluation does not call, and a constant that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.aux, self.two = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 1)
        self.slope = torch.tensor([0.25])

    def forward(self, x: Tensor) -> Tensor:
        x = torch.nn.functional.prelu(self.one(x), self.slope.to(x.device))
        return self.two(self.aux(x) if self.training else x)


@pytest.mark.parametrize("half", [False, True])
def test_networks_with_layers_that_are_not_called(half: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 2, 6, 6)
    network = Auxiliary()
    if half:
        network.slope = network.slope.half()
        network, x = network.half(), x.half()
    q = quantized(network, "lsq:w4-a4", x)
    result = verify(q, compile(q, x), [x])
    assert result.mismatches == 0 and [layer.name for layer in result.layers] == ["one", "two"]
    if not half:
        torch.testing.assert_close(decompose(q)(x), q(x), rtol=0, atol=0)
    with pytest.raises(InputError, match=r"layer 'aux': .*has seen no data"):
        from bitbranch.compiler.exact import Recorder

        recorder = Recorder(q)
        recorder.network.training = True
        recorder.run(x)


def test_layers_behind_rounding_are_marked() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1)]
    x = torch.randn(4, 2, 8, 8)
    q = quantized(nn.Sequential(*layers), "lsq:w4-a4", x)
    assert [layer.rounded for layer in verify(q, compile(q, x), [x]).layers] == [False, True, True]
    plain = quantized(nn.Sequential(*layers[:2], *layers[3:]), "lsq:w4-a4", x)
    assert not any(layer.rounded for layer in verify(plain, compile(plain, x), [x]).layers)


def test_float32_rounding_is_not_counted() -> None:
    """Codes are those of exact arithmetic, whatever the network's own rounding in float32 makes of them."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        x = torch.from_numpy(rng.normal(size=(4, 2, 13, 11)).astype(np.float32))
        q = quantized(chain(rng), "uniform:w4-a4", x)
        assert verify(q, compile(q, x), [x]).mismatches == 0


def test_residual_differences_are_counted_and_located() -> None:
    rng = np.random.default_rng(8)
    torch.manual_seed(8)
    x = torch.from_numpy(rng.normal(size=(8, 2, 13, 11)).astype(np.float32))
    q = quantized(resnet(rng), "mbn:w2-a2", x)
    result = verify(q, compile(q, x), [x])
    assert result.layers[0].codes.differing == 0
    assert result.codes_differing <= 0.005 * sum(layer.codes.compared for layer in result.layers)
    assert (result.first is None) == (result.mismatches == 0)


def test_wrong_use() -> None:
    q, x = network()
    program = compile(q, x)
    with pytest.raises(InputError, match="no images"):
        verify(q, program, [])
    with pytest.raises(InputError, match="must be float32"):
        verify(q, program, [np.zeros((1, 1, 8, 8), np.uint8)])
    with pytest.raises(InputError, match=r"shape \(1, 8, 8\), got \(2, 1, 9, 9\)"):
        verify(q, program, [torch.zeros(2, 1, 9, 9)])
    with pytest.raises(InputError, match=r"got \(9, 8, 8, 1\)"):
        verify(q, program, [x.reshape(9, 8, 8, 1)])
    with pytest.raises(InputError, match=r"gives shape \(1,\), the reference \(9, 3, 1, 1\)"):
        verify(q, program, [x], engines=[lambda *_: np.zeros(1, np.float32)])
    other, _ = network()
    with torch.no_grad():
        other[2].weight.neg_()
        other[2].weight[0, 0] = 1.0
    with pytest.raises(InputError, match="weights of layer '2' are not those"):
        verify(other, program, [x])
    renamed = altered(program, 3, name="elsewhere")
    with pytest.raises(InputError, match="no quantized layer 'elsewhere'"):
        verify(q, renamed, [x])
