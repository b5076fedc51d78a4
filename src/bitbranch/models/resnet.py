"""Residual networks: for ImageNet by torchvision's names, and the small ones for CIFAR."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import InputError
from .blocks import GlobalAverage, initialize, scaled


def _projection(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """Option B: a 1x1 convolution and BatchNorm where the shape changes."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; the first has the stride.

    Args:
        inputs, width: channels before and in the block.
        stride: of the block.
        downsample: the shortcut where it is not the identity.
    """

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; the 3x3 one has the stride (ResNet v1.5, as torchvision).

    Args:
        inputs, width: channels before the block and of its 3x3 convolution.
        stride: of the block.
        downsample: the shortcut where it is not the identity.
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = downsample
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu3(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """A residual network for large images: a 7x7 stem, four stages ``layer1 .. layer4``, one linear layer ``fc``.

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        depths: number of blocks of each stage.
        num_classes: number of logits.
        in_channels: channels of the images.
        width: multiplies all channels.

    Attributes:
        channels: of what :meth:`maps` returns.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        num_classes: int,
        in_channels: int,
        width: float,
    ) -> None:
        super().__init__()
        channels = scaled(64, width)
        self.conv1 = nn.Conv2d(in_channels, channels, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.channels = [channels]
        for stage, depth in enumerate(depths):
            wide, blocks = scaled(64 << stage, width), []
            for i in range(depth):
                stride = 2 if stage and not i else 1
                blocks.append(block(channels, wide, stride, _projection(channels, wide * block.expansion, stride)))
                channels = wide * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            self.channels.append(channels)
        self.avgpool = GlobalAverage()
        self.fc = nn.Linear(channels, num_classes)
        initialize(self)

    def maps(self, x: Tensor) -> list[Tensor]:
        """What goes into the max-pool, and the outputs of the stages: a half to a 32nd of the image's size."""
        maps = [self.relu(self.bn1(self.conv1(x)))]
        x = self.maxpool(maps[0])
        for stage in range(1, len(self.channels)):
            x = self.get_submodule(f"layer{stage}")(x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.avgpool(self.maps(x)[-1]))


def resnet18(*, num_classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> ResNet:
    """ResNet-18 by torchvision's names, with projections where the shape changes (option B).

    ``num_classes=1000``: 11,689,512 parameters and 1,814,073,344 multiply-accumulates for images ``[N, 3, 224, 224]``.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images, whose size may be any from 32 on.
        width: multiplies all channels.

    Source: He et al., arXiv 1512.03385, table 1.
    """
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, in_channels, width)


def resnet34(*, num_classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> ResNet:
    """ResNet-34 by torchvision's names; otherwise as :func:`resnet18`.

    ``num_classes=1000``: 21,797,672 parameters and 3,663,761,408 multiply-accumulates for images ``[N, 3, 224, 224]``.

    Source: He et al., arXiv 1512.03385, table 1.
    """
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes, in_channels, width)


def resnet50(*, num_classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> ResNet:
    """ResNet-50 by torchvision's names, the stride in the 3x3 convolutions (v1.5); otherwise as :func:`resnet18`.

    ``num_classes=1000``: 25,557,032 parameters and 4,089,184,256 multiply-accumulates for images ``[N, 3, 224, 224]``.

    Source: He et al., arXiv 1512.03385, table 1.
    """
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, in_channels, width)


class PaddedIdentity(nn.Module):
    """Option A: every second pixel, and as many channels of zeros behind the channels that there are."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(1, 2)  # subsampling, in an operation that programs have

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(x)
        return torch.cat([x, x * 0], 1)


def resnet_cifar(
    *, depth: int = 20, num_classes: int = 10, in_channels: int = 3, width: float = 1.0, shortcut: str = "A"
) -> nn.Sequential:
    """ResNet-20, 32, 44, 56, .. for CIFAR: three stages of ``(depth - 2) / 6`` basic blocks of 16, 32, 64 channels.

    Where a stage begins the shortcut is, by ``shortcut``, the identity at every second pixel with channels of zeros
    (``"A"``, the paper's for CIFAR) or a projection (``"B"``).

    ``depth=20``: 269,722 parameters and 40,551,040 multiply-accumulates for images ``[N, 3, 32, 32]``;
    ``depth=20, shortcut="B"``: 272,474 parameters and 40,813,184 multiply-accumulates for images ``[N, 3, 32, 32]``;
    ``depth=56``: 853,018 parameters and 125,485,696 multiply-accumulates for images ``[N, 3, 32, 32]``.

    Args:
        depth: ``6 n + 2`` layers.
        num_classes: number of logits.
        in_channels: channels of the images, whose size may be any from 4 on.
        width: multiplies all channels.
        shortcut: ``"A"`` or ``"B"``.

    Raises:
        InputError: another depth or shortcut.

    Source: He et al., arXiv 1512.03385, section 4.2.
    """
    if depth < 8 or depth % 6 != 2:
        raise InputError(f"resnet_cifar: depth must be 6 n + 2, as 20 or 56, got {depth}")
    if shortcut not in ("A", "B"):
        raise InputError(f'resnet_cifar: shortcut must be "A" or "B", got {shortcut!r}')
    channels = scaled(16, width)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False), bn1=nn.BatchNorm2d(channels), relu=nn.ReLU()
    )
    for stage in range(3):
        wide = channels if stage == 0 else 2 * channels
        blocks = []
        for i in range((depth - 2) // 6):
            first = stage > 0 and i == 0
            projection = _projection(channels, wide, 2 if first else 1)
            blocks.append(
                BasicBlock(
                    channels, wide, 2 if first else 1, PaddedIdentity() if first and shortcut == "A" else projection
                )
            )
            channels = wide
        layers[f"layer{stage + 1}"] = nn.Sequential(*blocks)
    network = nn.Sequential(layers | {"avgpool": GlobalAverage(), "fc": nn.Linear(channels, num_classes)})
    initialize(network)
    return network
