"""What quantizers compute on activations: the compiled core beside torch, and both beside the formulas."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bitbranch as bb
from bitbranch.errors import InputError
from bitbranch.quantizers import passes
from bitbranch.quantizers.base import straight_through_within
from bitbranch.quantizers.lsq import learned_step
from bitbranch.quantizers.passes import Kind, dense, extremes, levels, step_gradient, window

SHAPES = ((1,), (0, 4), (3, 5, 7, 9), (2, 16, 33, 17), (70001,))
GRIDS: tuple[tuple[Kind, float, float, float], ...] = (
    ("uniform", 0, 3, 0.37), ("uniform", -8, 7, 0.1), ("uniform", 0, 255, 0.013), ("sparse", 0.3186, 3, 0.65),
    ("sparse", 0, 7, 0.5), ("bipolar", -1, 3, 1 / 3), ("bipolar", 0, 255, 1 / 255), ("affine", 0, 15, 1 / 15),
)  # fmt: skip


@contextmanager
def no_core() -> Iterator[None]:
    """As where the compiled core is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "_vectors", lambda: None)
        yield


def reals(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0, spread: float = 1.0) -> Tensor:
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(0, spread, shape).astype(np.float32)).to(dtype)
    if len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)
    if x.numel() > 20:
        special = [np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 0.5, 0.25]
        x.as_strided((x.numel(),), (1,))[: len(special)] = torch.tensor(special, dtype=dtype)
    return x


def bits(x: Tensor) -> Tensor:
    return x.view(torch.int16 if x.dtype == torch.bfloat16 else torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_core_computes_what_torch_does(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if passes._vectors() is None:
        pytest.skip("there is no compiled core, or it has no vectors for this processor")
    for spread in (0.01, 1.0, 100.0):
        x, grad = reals(shape, dtype, 1, spread), reals(shape, dtype, 2)
        for kind, lo, hi, step in GRIDS:
            lo, step = float(np.float32(lo)), float(np.float32(step))
            found = levels(kind, x, lo, hi, step)
            with no_core():
                wanted = levels(kind, x, lo, hi, step)
            assert torch.equal(bits(found), bits(wanted)) and found.stride() == x.stride()
        inside, (to_x, to_step) = window(grad, x, -0.5, 0.75), step_gradient(grad, x, -4.0, 3.0, 0.37 * spread)
        with no_core():
            assert torch.equal(inside, window(grad, x, -0.5, 0.75))
            to_x_there, to_step_there = step_gradient(grad, x, -4.0, 3.0, 0.37 * spread)
            assert torch.equal(to_x, to_x_there)
            assert torch.isclose(to_step, to_step_there, rtol=1e-4, atol=1e-3, equal_nan=True)
        ends = extremes(x)
        with no_core():
            assert torch.equal(ends, extremes(x))


def test_half_and_double_precision_and_any_layout() -> None:
    x = torch.linspace(-2, 2, 60).reshape(3, 4, 5)
    wanted = torch.floor(x.double() / 0.5 + 0.5).clamp(-1, 2) * 0.5
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for given in (x.to(dtype), x.to(dtype).transpose(0, 2).contiguous().transpose(0, 2)):
            found = levels("uniform", given, -1, 2, 0.5)
            assert found.dtype == dtype and found.stride() == given.stride()
            on_edge = (given.double() / 0.5 + 0.5).frac() == 0  # where half precision may have moved a real onto it
            assert torch.equal(found.double()[~on_edge], wanted[~on_edge]) or dtype in passes.HALVES
    strided = torch.randn(4, 12)[:, ::3]
    assert dense(strided).is_contiguous() and torch.equal(levels("affine", strided, 0, 3, 1 / 3), dense(
        (strided.clamp(0, 1) * 3 + 0.5).floor() * torch.tensor(1 / 3)
    ))  # fmt: skip
    expanded = torch.ones(1).expand(3, 4)  # a gradient of a sum
    assert torch.equal(window(expanded, strided[:3], -0.5, 0.5), (strided[:3].abs() < 0.5).float())


def test_a_window_can_be_differentiated_once_more() -> None:
    x = torch.linspace(-2, 2, 9, requires_grad=True)
    (first,) = torch.autograd.grad(
        (straight_through_within(x, x.detach().round(), -1, 1) ** 3).sum(), x, create_graph=True
    )
    (second,) = torch.autograd.grad(first.sum(), x)
    inside = ((x > -1) & (x < 1)).float()
    assert torch.equal(second, inside * 6 * x.detach().round())
    y = learned_step(x, torch.tensor(0.5, requires_grad=True), -2, 1, 9)
    (first,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_the_gradient_of_a_step_is_that_of_its_formula() -> None:
    rng = np.random.default_rng(0)
    x, grad = rng.normal(0, 2, (40, 9)), rng.normal(0, 1, (40, 9))
    step, lo, hi = 0.3, -4, 3
    at = x / step
    inside = (at > lo) & (at < hi)
    slope = np.where(inside, np.floor(at + 0.5) - at, np.clip(np.floor(at + 0.5), lo, hi))
    found, to_step = step_gradient(torch.tensor(grad), torch.tensor(x), lo, hi, step)
    assert np.array_equal(found.numpy(), np.where(inside, grad, 0)) and np.isclose(float(to_step), (grad * slope).sum())
    single, to_step = step_gradient(torch.tensor(grad).float(), torch.tensor(x).float(), lo, hi, step)
    assert np.isclose(float(to_step), (grad * slope).sum(), rtol=1e-4) and single.dtype == torch.float32


@pytest.mark.parametrize("scheme", ["tsq:wt-a2", "lsq:w2-a2", "mbn(clip=learned):w4-a4", "hwgq:w1-a2"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_training_step_is_the_same_with_and_without_the_core(scheme: str, precision: torch.dtype) -> None:
    def learn() -> list[Tensor]:
        torch.manual_seed(0)
        net = bb.quantize(
            nn.Sequential(
                nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
                nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4),
            ),
            scheme,
        )  # fmt: skip
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        for _ in range(2):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
                loss = net(torch.randn(4, 3, 12, 12).to(memory_format=torch.channels_last)).float().square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return [p.detach().clone() for p in net.parameters()]

    with no_core():
        wanted = learn()
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(learn(), wanted, strict=True))


def test_the_environment_chooses_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitbranch.runtime._core")
    x = reals((5, 7), torch.float32)
    wanted = levels("affine", x, 0, 3, 0.25)
    for isa in ("scalar", "none such"):
        passes._vectors.cache_clear()
        monkeypatch.setenv("BITBRANCH_ISA", isa)
        if isa == "scalar":
            assert passes._vectors() is None and torch.equal(levels("affine", x, 0, 3, 0.25), wanted)
        else:
            with pytest.raises(InputError, match="instruction set 'none such' is not available here; there are "):
                levels("affine", x, 0, 3, 0.25)
    passes._vectors.cache_clear()
