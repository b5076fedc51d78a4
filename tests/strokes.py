"""Small networks, and noisy images of strokes that they learn in seconds."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitbranch.layers import QuantizedLayer
from bitbranch.quantizers.uniform import UniformWeight


def small_net() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 24, 3, padding=1, groups=2), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.0)),
        *(nn.Conv2d(24, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(24 * 9, 48), nn.BatchNorm1d(48), nn.ReLU()),
        nn.Linear(48, 4),
    )


def stroke_images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy 12x12 images of a stroke in one of four directions."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4, count)
    rows, columns = np.mgrid[:12, :12] - 5.5
    angle = (label * np.pi / 4 + rng.normal(0, 0.15, count))[:, None, None]
    offset = rng.normal(0, 1.5, (count, 1, 1))
    across = rows * np.cos(angle) + columns * np.sin(angle) - offset
    along = -rows * np.sin(angle) + columns * np.cos(angle)
    image = np.exp(-(across**2)) * (np.abs(along) < 4) + rng.normal(0, 0.45, (count, 12, 12))
    return torch.from_numpy(image[:, None].astype(np.float32)), torch.from_numpy(label)


def batches(x: Tensor, y: Tensor, size: int = 50) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))


class Block(nn.Module):
    """A residual one."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.two, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.two(F.relu(self.norm1(self.one(x))))))


def residual_net() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), Block(), Block()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 4)),
    )


def plain_net() -> nn.Sequential:
    """One without BatchNorm."""
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4))


def accuracy(net: nn.Module, test: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return float((net(test[0]).argmax(1) == test[1]).float().mean())


def inner_layers(net: nn.Module) -> list[QuantizedLayer]:
    return [
        m for m in net.modules() if isinstance(m, QuantizedLayer) and not isinstance(m.weight_quantizer, UniformWeight)
    ]
