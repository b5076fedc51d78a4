"""Random quantized networks, with BatchNorms whose slopes are of both signs or zero."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitbranch import calibrate, quantize

SCHEMES = ("mbn:w1-a1", "mbn:w2-a2", "mbn:w3-a4", "tsq:wt-a2", "hwgq:w1-a3", "lsq:w3-a3", "uniform:w4-a4",
           "binarynet:w3-a2", "dorefa:w2-a2", "twn:wt-a3", "bwn:w1-a32")  # fmt: skip
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


ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.ELU, nn.Tanh, nn.Sigmoid,
    nn.SELU, lambda: nn.CELU(0.7), lambda: nn.LeakyReLU(-0.3), lambda: nn.PReLU(), lambda: nn.Hardtanh(0.0, 1.0),
    nn.Identity,
)  # fmt: skip
"""Everything that a quantizing layer may read exactly."""


class Branches(nn.Module):
    """Values of different scales side by side: convolutions, a pool, the input itself, as in an Inception block."""

    def __init__(self, channels: int, rng: np.random.Generator, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(channels, 4, 1), batch_norm(4, rng), activation())
        depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.two = nn.Sequential(depthwise, batch_norm(channels, rng), nn.ReLU6(), nn.Conv2d(channels, 6, 1))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(channels, 2, 1), activation())
        self.channels = 12 + channels

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), x, self.two(x), self.pool(x)], 1)


def enlarging(channels: int, rng: np.random.Generator, activation: Callable[[], nn.Module]) -> nn.Module:
    """A convolution that doubles the size: transposed, or followed by an upsampling of either kind."""
    kind = int(rng.integers(4))
    if kind == 0:
        up = [nn.ConvTranspose2d(channels, 6, 2, 2, bias=False)]
    elif kind == 1:
        groups = 2 if channels % 2 == 0 else 1
        up = [nn.ConvTranspose2d(channels, 6, 3, 2, 1, output_padding=1, groups=groups)]
    elif kind == 2:
        return nn.Sequential(nn.Conv2d(channels, 6, 1), batch_norm(6, rng), activation(), nn.Upsample(scale_factor=2))
    else:
        up = [nn.Conv2d(channels, 6, 1), nn.Upsample(scale_factor=2, mode="bilinear")]
    return nn.Sequential(*up, batch_norm(6, rng), activation())


class Heads(nn.Module):
    """Two inputs and several outputs around :class:`Branches` and a U of two levels; no sums, so that all is exact.

    For images [N, 2, 12, 8] and [N, 3, 6, 4].
    """

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        activations = [ACTIVATIONS[int(i)] for i in rng.integers(0, len(ACTIVATIONS), 5)]
        self.stem = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), batch_norm(6, rng), activations[0]())
        self.side = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), batch_norm(4, rng), activations[1]())
        self.branches = Branches(6, rng, activations[2])
        deep = self.branches.channels + 4
        self.up = enlarging(deep, rng, activations[3])
        self.norm = batch_norm(12, rng)
        self.joined = nn.Sequential(nn.Conv2d(12, 8, 3, padding=1), batch_norm(8, rng), activations[4]())
        self.mask = nn.Conv2d(8, 3, 1)
        self.boxes = nn.ModuleList([nn.Conv2d(deep, 5, 3, padding=1), nn.Conv2d(8, 5, 3, 2, 1)])
        self.label = nn.Linear(deep * 6 * 4, 7)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor | tuple[Tensor, ...]]:
        x = self.stem(x)
        deep = torch.cat((self.branches(F.max_pool2d(x, 2)), self.side(y)), dim=1)
        joined = self.joined(F.relu(self.norm(torch.cat([x, self.up(deep)], 1))))
        boxes = tuple(head(v) for head, v in zip(self.boxes, (deep, joined), strict=True))
        return {"mask": self.mask(joined), "boxes": boxes, "label": self.label(deep.flatten(1))}


class InvertedResidual(nn.Module):
    """MobileNetV2's block: widen, depthwise, narrow without an activation, and the sum with the input."""

    def __init__(self, channels: int, rng: np.random.Generator) -> None:
        super().__init__()
        wide = 3 * channels
        self.conv = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False), batch_norm(wide, rng), nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), batch_norm(wide, rng), nn.ReLU6(),
            nn.Conv2d(wide, channels, 1, bias=False), batch_norm(channels, rng),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.conv(x))


class Pyramid(nn.Module):
    """Sums of every kind: inverted residuals, a top-down path of upsampled sums, a concat within a sum, averages."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 6, 3, 1, 1, bias=False), batch_norm(6, rng), nn.ReLU6())
        self.low = nn.Sequential(InvertedResidual(6, rng), InvertedResidual(6, rng))
        self.down = nn.Sequential(nn.Conv2d(6, 6, 3, 2, 1, bias=False), batch_norm(6, rng))
        self.high = InvertedResidual(6, rng)
        self.left, self.right = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 2, 1)
        self.smooth = nn.Conv2d(6, 5, 3, padding=1)
        self.classes = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> list[Tensor]:
        low = self.low(self.stem(x))
        high = self.high(self.down(low))
        merged = low + F.interpolate(high, scale_factor=2)
        merged = merged + torch.cat([self.left(merged), F.relu(self.right(low))], 1)
        even = F.interpolate(F.relu(high), scale_factor=(2, 2), mode="bilinear")
        pooled = torch.cat([merged.mean((2, 3)), even.mean((2, 3))], 1)
        return [self.smooth(merged), self.smooth(even), self.classes(pooled)]


def quantized(
    network: nn.Module, scheme: str, x: Tensor | tuple[Tensor, ...], first: str | None = "w8a8", **layers: str
) -> nn.Module:
    """The network quantized, its steps chosen from ``x``, in evaluation; ``layers`` as ``quantize`` takes them."""
    q = quantize(network.eval(), scheme, first=first, layers=layers or None).eval()
    calibrate(q, [x])
    return q


NETWORKS: dict[str, tuple[Callable[[np.random.Generator], nn.Module], tuple[tuple[int, int, int], ...]]] = {
    "chain": (chain, ((2, 13, 11),)),
    "resnet": (resnet, ((2, 13, 11),)),
}
"""What makes a random network, and the shapes of its inputs; the fuzzer takes every row."""
ROUNDED = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, Residual)
"""Behind these a program that requantizes has codes that differ from the network's here and there."""
