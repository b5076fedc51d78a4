"""GoogLeNet with BatchNorm, by torchvision's names."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from .blocks import GlobalAverage, initialize, scaled


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    layers = OrderedDict[str, nn.Module](
        conv=nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        bn=nn.BatchNorm2d(outputs, eps=1e-3),
        relu=nn.ReLU(),
    )
    return nn.Sequential(layers)


class Inception(nn.Module):
    """Four branches over one input, their channels joined: 1x1; 1x1 and 3x3; 1x1 and 3x3; max-pool and 1x1.

    Args:
        inputs: channels.
        width: multiplies ``widths``.
        widths: channels of (1x1; 1x1, 3x3 of the second; 1x1, 3x3 of the third; 1x1 behind the pool).

    Attributes:
        channels: of the output.
    """

    def __init__(self, inputs: int, width: float, *widths: int) -> None:
        super().__init__()
        one, reduce2, two, reduce3, three, four = (scaled(w, width) for w in widths)
        self.branch1 = _conv(inputs, one, 1)
        self.branch2 = nn.Sequential(_conv(inputs, reduce2, 1), _conv(reduce2, two, 3))
        self.branch3 = nn.Sequential(_conv(inputs, reduce3, 1), _conv(reduce3, three, 3))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), _conv(inputs, four, 1))
        self.channels = one + two + three + four

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class Auxiliary(nn.Module):
    """A classifier in the middle of the network, for training only."""

    def __init__(self, inputs: int, num_classes: int, width: float) -> None:
        super().__init__()
        channels, hidden = scaled(128, width), scaled(1024, width)
        self.pool = nn.AdaptiveAvgPool2d((4, 4))
        self.conv = _conv(inputs, channels, 1)
        self.fc1 = nn.Linear(channels * 16, hidden)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(0.7)
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.pool(x)).flatten(1)
        return self.fc2(self.dropout(self.relu(self.fc1(x))))


class GoogLeNet(nn.Module):
    """See :func:`googlenet`."""

    def __init__(self, num_classes: int, in_channels: int, width: float, aux_logits: bool, dropout: float) -> None:
        super().__init__()
        first, second = scaled(64, width), scaled(192, width)
        self.conv1 = _conv(in_channels, first, 7, 2)
        self.maxpool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2 = _conv(first, first, 1)
        self.conv3 = _conv(first, second, 3)
        self.maxpool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.inception3a = Inception(second, width, 64, 96, 128, 16, 32, 32)
        self.inception3b = Inception(self.inception3a.channels, width, 128, 128, 192, 32, 96, 64)
        self.maxpool3 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.inception4a = Inception(self.inception3b.channels, width, 192, 96, 208, 16, 48, 64)
        self.inception4b = Inception(self.inception4a.channels, width, 160, 112, 224, 24, 64, 64)
        self.inception4c = Inception(self.inception4b.channels, width, 128, 128, 256, 24, 64, 64)
        self.inception4d = Inception(self.inception4c.channels, width, 112, 144, 288, 32, 64, 64)
        self.inception4e = Inception(self.inception4d.channels, width, 256, 160, 320, 32, 128, 128)
        self.maxpool4 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.inception5a = Inception(self.inception4e.channels, width, 256, 160, 320, 32, 128, 128)
        self.inception5b = Inception(self.inception5a.channels, width, 384, 192, 384, 48, 128, 128)
        self.aux1 = Auxiliary(self.inception4a.channels, num_classes, width) if aux_logits else None
        self.aux2 = Auxiliary(self.inception4d.channels, num_classes, width) if aux_logits else None
        self.avgpool = GlobalAverage()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(self.inception5b.channels, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        x = self.maxpool1(self.conv1(x))
        x = self.maxpool2(self.conv3(self.conv2(x)))
        x = self.maxpool3(self.inception3b(self.inception3a(x)))
        x4a = self.inception4a(x)
        x4d = self.inception4d(self.inception4c(self.inception4b(x4a)))
        x = self.maxpool4(self.inception4e(x4d))
        logits = self.fc(self.dropout(self.avgpool(self.inception5b(self.inception5a(x)))))
        if self.training and self.aux1 is not None and self.aux2 is not None:
            return logits, self.aux2(x4d), self.aux1(x4a)
        return logits


def googlenet(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    width: float = 1.0,
    aux_logits: bool = False,
    dropout: float = 0.2,
) -> GoogLeNet:
    """GoogLeNet (Inception v1) with BatchNorm, by torchvision's names, its 3x3 in place of the paper's 5x5 included.

    ``num_classes=1000``: 6,624,904 parameters and 1,498,376,192 multiply-accumulates for images ``[N, 3, 224, 224]``.
    torchvision's published weights hold the auxiliary classifiers, so they load with ``aux_logits=True``, and expect
    images normalised to mean 0.5 and standard deviation 0.5.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images, whose size may be any from 32 on.
        width: multiplies all channels.
        aux_logits: with the two auxiliary classifiers (13,004,888 parameters). In training the network then returns
            (logits, logits of ``aux2``, of ``aux1``); in evaluation always the logits only.
        dropout: share of the last linear layer's inputs that is dropped in training.

    Source: Szegedy et al., arXiv 1409.4842, table 1; with BatchNorm, arXiv 1502.03167.
    """
    return GoogLeNet(num_classes, in_channels, width, aux_logits, dropout)
