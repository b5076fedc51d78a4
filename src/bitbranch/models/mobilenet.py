"""MobileNetV2 by torchvision's names."""

from __future__ import annotations

from torch import Tensor, nn

from .blocks import GlobalAverage, conv_norm, initialize

_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks and stride of each stage: table 2 of the paper."""


def _width(channels: int, width: float) -> int:
    """The multiple of 8 next to ``width * channels``, but not below 90 % of it."""
    wanted = width * channels
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * wanted else rounded + 8


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise convolution, linear 1x1 projection; a shortcut where the shape stays.

    Args:
        inputs, outputs: channels.
        stride: of the depthwise convolution.
        expansion: channels within over ``inputs``; 1 leaves the first convolution away.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [conv_norm(inputs, hidden, 1, activation=nn.ReLU6)] if expansion > 1 else []
        depthwise = conv_norm(hidden, hidden, 3, stride=stride, groups=hidden, activation=nn.ReLU6)
        self.conv = nn.Sequential(*expand, depthwise, *conv_norm(hidden, outputs, 1, activation=None))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """``features``, a global average and ``classifier``; see :func:`mobilenet_v2`.

    Attributes:
        channels: of what :meth:`maps` returns.
    """

    def __init__(self, num_classes: int, in_channels: int, width: float, dropout: float) -> None:
        super().__init__()
        channels = _width(32, width)
        features: list[nn.Module] = [conv_norm(in_channels, channels, 3, stride=2, activation=nn.ReLU6)]
        self.ends: dict[int, int] = {}  # of each stride, the last feature that has it
        self.channels: list[int] = []
        for expansion, full, blocks, first in _STAGES:
            for i in range(blocks):
                if i == 0 and first > 1:
                    self.ends[len(features) - 1] = channels
                outputs = _width(full, width)
                features.append(InvertedResidual(channels, outputs, first if i == 0 else 1, expansion))
                channels = outputs
        last = _width(1280, max(1.0, width))
        features.append(conv_norm(channels, last, 1, activation=nn.ReLU6))
        self.ends[len(features) - 1] = last
        self.channels = list(self.ends.values())
        self.features = nn.Sequential(*features)
        self.avgpool = GlobalAverage()
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))
        initialize(self)

    def maps(self, x: Tensor) -> list[Tensor]:
        """The last feature map of each stride, a half to a 32nd of the image's size."""
        maps = []
        for number, feature in enumerate(self.features):
            x = feature(x)
            if number in self.ends:
                maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)))


def mobilenet_v2(
    *, num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, dropout: float = 0.2
) -> MobileNetV2:
    """MobileNetV2 by torchvision's names, with ReLU6.

    ``num_classes=1000``: 3,504,872 parameters and 300,774,272 multiply-accumulates for images ``[N, 3, 224, 224]``;
    ``width=0.5``: 1,968,680 parameters and 97,131,840 multiply-accumulates for images ``[N, 3, 224, 224]``.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images, whose size may be any from 32 on.
        width: multiplies all channels, rounded to multiples of 8; the last convolution's stay 1280 below 1.
        dropout: share of the linear layer's inputs that is dropped in training.

    Source: Sandler et al., arXiv 1801.04381, table 2.
    """
    return MobileNetV2(num_classes, in_channels, width, dropout)
