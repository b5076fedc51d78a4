"""A VGG-style network: 3x3 convolutions, pooled stage by stage, then one hidden linear layer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from ..errors import InputError


def vgg(
    *,
    stages: Sequence[Sequence[int]],
    hidden: int,
    num_classes: int,
    in_channels: int = 3,
    image_size: int = 32,
) -> nn.Sequential:
    """Stages of (3x3 convolution -> BatchNorm -> ReLU), each ended by 2x2 max-pooling, then two linear layers.

    Convolutions and the hidden layer have no bias: BatchNorm has one. In the last convolution of a stage max-pooling
    comes between BatchNorm and ReLU, which gives the same numbers and four times fewer of them to activate.

    Args:
        stages: output channels of each convolution, stage by stage, as ``[[32], [64], [128, 128]]``.
        hidden: width of the hidden linear layer.
        num_classes: number of logits.
        in_channels: channels of the images.
        image_size: their height and width; each stage halves it, rounding down.

    Returns:
        Images ``[N, in_channels, image_size, image_size]`` float32 to logits ``[N, num_classes]``. Layers are named
        ``conv1 norm1 pool1 act1 .. flatten linear1 norm.. act.. linear2``.

    Raises:
        InputError: nothing is left of the image after the stages, or a stage is empty.

    Source: after Simonyan and Zisserman, arXiv 1409.1556, with BatchNorm.
    """
    size = image_size >> len(stages)
    if size < 1 or not all(stages) or not stages:
        raise InputError(f"vgg: {len(stages)} stages leave nothing of an image of {image_size} pixels")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels, n = in_channels, 0
    for stage, widths in enumerate(stages, start=1):
        for position, width in enumerate(widths, start=1):
            n += 1
            layers[f"conv{n}"] = nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)
            layers[f"norm{n}"] = nn.BatchNorm2d(width)
            if position == len(widths):
                layers[f"pool{stage}"] = nn.MaxPool2d(2)
            layers[f"act{n}"] = nn.ReLU()
            channels = width
    layers["flatten"] = nn.Flatten()
    layers["linear1"] = nn.Linear(channels * size * size, hidden, bias=False)
    layers[f"norm{n + 1}"] = nn.BatchNorm1d(hidden)
    layers[f"act{n + 1}"] = nn.ReLU()
    layers["linear2"] = nn.Linear(hidden, num_classes)
    return nn.Sequential(layers)
