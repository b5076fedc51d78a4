"""Random quantized networks, with BatchNorms whose slopes are of both signs or zero."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from bitbranch import calibrate, quantize

SCHEMES = ("mbn:w1-a1", "mbn:w2-a2", "mbn:w3-a4", "tsq:wt-a2", "hwgq:w1-a3", "lsq:w3-a3", "uniform:w4-a4", "bwn:w1-a32")
"""The last has float activations: it is an error, and is left out of :data:`COMPILED_SCHEMES`."""
COMPILED_SCHEMES = SCHEMES[:-1]


def batch_norm(channels: int, rng: np.random.Generator, dimensions: int = 2) -> nn.Module:
    """BatchNorm as after training: slopes of both signs, about one in eight 0, statistics of accumulators' size."""
    norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[dimensions](channels)

    def tensor(a: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(a, np.float32))

    with torch.no_grad():
        norm.weight.copy_(tensor(rng.normal(size=channels) * (rng.random(channels) > 0.125)))
        norm.bias.copy_(tensor(rng.normal(size=channels) * 0.3))
        norm.running_mean.copy_(tensor(rng.normal(size=channels) * 0.3))
        norm.running_var.copy_(tensor(rng.uniform(0.2, 2.0, channels)))
    return norm


def chain(rng: np.random.Generator) -> nn.Module:
    """A random feed-forward network for images [N, 2, 13, 11]: convolutions of any geometry, pools, a linear layer."""
    channels, size = 2, (13, 11)
    modules: list[nn.Module] = []
    for _ in range(int(rng.integers(2, 5))):
        wide = 2 * int(rng.integers(2, 6))
        kernel = tuple(int(k) for k in rng.integers(1, 4, 2))
        groups = 2 if rng.random() < 0.3 else 1
        if rng.random() < 0.25:
            geometry = {"padding": "same"}
        else:
            geometry = {"padding": tuple(int(p) for p in rng.integers(0, 3, 2)), "stride": int(rng.integers(1, 3))}
        dilation = int(rng.integers(1, 3))
        modules.append(
            nn.Conv2d(channels, wide, kernel, groups=groups, bias=rng.random() < 0.5, dilation=dilation, **geometry)
        )
        channels = wide
        parts = [batch_norm(channels, rng)] if rng.random() < 0.8 else []
        parts += [[nn.ReLU()], [nn.ReLU6()], [nn.Hardtanh()], []][int(rng.integers(0, 4))]
        if rng.random() < 0.5:
            ceil = bool(rng.random() < 0.5)
            parts.append(nn.MaxPool2d(int(rng.integers(2, 4)), 2, padding=1, ceil_mode=ceil))
        rng.shuffle(parts)  # type: ignore[arg-type]
        modules += [*parts, nn.Dropout(0.3)]
        with torch.no_grad():
            size = nn.Sequential(*modules).eval()(torch.zeros(1, 2, 13, 11)).shape[2:]
        if min(size) < 5:
            break
    if rng.random() < 0.3:
        modules += [nn.AdaptiveAvgPool2d(1)]
        size = (1, 1)
    modules += [nn.Flatten(), nn.Dropout(), nn.Linear(channels * size[0] * size[1], 7)]
    return nn.Sequential(*modules)


class Residual(nn.Module):
    """A residual block: two convolutions and a shortcut, with a projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, rng: np.random.Generator, activation: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = batch_norm(outputs, rng)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = batch_norm(outputs, rng)
        self.act = activation
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), batch_norm(outputs, rng))

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return self.act(out)


def resnet(rng: np.random.Generator, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    """A small ResNet for images [N, 2, 13, 11]: blocks with and without projection, a global average at the end."""
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, 1, 1, bias=False),
        batch_norm(8, rng),
        activation(),
        nn.MaxPool2d(3, 2, 1),
        Residual(8, 8, 1, rng, activation()),
        Residual(8, 8, 1, rng, activation()),
        Residual(8, 12, 2, rng, activation()),
        Residual(12, 12, 1, rng, activation()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 7),
    )


def quantized(network: nn.Module, scheme: str, x: Tensor, first: str | None = "w8a8") -> nn.Module:
    """The network quantized, its steps chosen from ``x``, in evaluation."""
    q = quantize(network.eval(), scheme, first=first).eval()
    calibrate(q, [x])
    return q


NETWORKS: dict[str, tuple[Callable[[np.random.Generator], nn.Module], tuple[tuple[int, int, int], ...]]] = {
    "chain": (chain, ((2, 13, 11),)),
    "resnet": (resnet, ((2, 13, 11),)),
}
"""What makes a random network, and the shapes of its inputs; the fuzzer takes every row."""
ROUNDED = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, Residual)
"""Behind these a program that requantizes has codes that differ from the network's here and there."""
