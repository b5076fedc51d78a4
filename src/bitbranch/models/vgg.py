"""VGG networks: stages of 3x3 convolutions, each ended by max-pooling; for small images, and torchvision's."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from ..errors import InputError
from .blocks import initialize, scaled


def stages_of(
    stages: Sequence[Sequence[int]], in_channels: int, *, pool_first: bool = False
) -> OrderedDict[str, nn.Module]:
    """Layers ``conv1 norm1 [pool1] act1 ..`` of stages, as :func:`vgg` describes them."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels, n = in_channels, 0
    for stage, widths in enumerate(stages, start=1):
        for position, width in enumerate(widths, start=1):
            n += 1
            layers[f"conv{n}"] = nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)
            norm = (f"norm{n}", nn.BatchNorm2d(width))
            pool = [(f"pool{stage}", nn.MaxPool2d(2))] if position == len(widths) else []
            layers.update([*pool, norm] if pool_first else [norm, *pool])
            layers[f"act{n}"] = nn.ReLU()
            channels = width
    return layers


def vgg(
    *,
    stages: Sequence[Sequence[int]],
    hidden: int | None = None,
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    pool_first: bool = False,
) -> nn.Sequential:
    """Stages of (3x3 convolution -> BatchNorm -> ReLU), each ended by 2x2 max-pooling, then one linear layer or two.

    Convolutions and the hidden layer have no bias: BatchNorm has one. In the last convolution of a stage max-pooling
    comes between BatchNorm and ReLU, which gives the same numbers and four times fewer of them to activate. With
    ``pool_first`` it comes before BatchNorm: the greatest of four normalised numbers is mostly positive, and its sign,
    all that 1-bit activations keep, says little; the greatest of four sums, normalised, is positive half of the time.

    ``stages=[[32], [64], [96]], hidden=512, num_classes=10, in_channels=1, image_size=28``: 522,922 parameters and
    6,995,456 multiply-accumulates for images ``[N, 1, 28, 28]``.

    Args:
        stages: output channels of each convolution, stage by stage, as ``[[32], [64], [128, 128]]``.
        hidden: width of the hidden linear layer; ``None`` for no such layer.
        num_classes: number of logits.
        in_channels: channels of the images.
        image_size: their height and width; each stage halves it, rounding down.
        pool_first: max-pooling before BatchNorm; for 1-bit activations.

    Returns:
        Images ``[N, in_channels, image_size, image_size]`` float32 to logits ``[N, num_classes]``. Layers are named
        ``conv1 norm1 pool1 act1 .. flatten linear1 norm.. act.. linear2``; without the hidden layer, ``linear1`` is
        the last.

    Raises:
        InputError: nothing is left of the image after the stages, or a stage is empty.

    Source: after Simonyan and Zisserman, arXiv 1409.1556, with BatchNorm; ``pool_first`` as in Courbariaux et al.,
    arXiv 1602.02830.
    """
    size = image_size >> len(stages)
    if size < 1 or not all(stages) or not stages:
        raise InputError(f"vgg: {len(stages)} stages leave nothing of an image of {image_size} pixels")
    layers = stages_of(stages, in_channels, pool_first=pool_first)
    n = sum(map(len, stages)) + 1
    layers["flatten"] = nn.Flatten()
    inputs = stages[-1][-1] * size * size
    if hidden is None:
        layers["linear1"] = nn.Linear(inputs, num_classes)
    else:
        layers["linear1"] = nn.Linear(inputs, hidden, bias=False)
        layers[f"norm{n}"] = nn.BatchNorm1d(hidden)
        layers[f"act{n}"] = nn.ReLU()
        layers["linear2"] = nn.Linear(hidden, num_classes)
    return nn.Sequential(layers)


def vgg_small(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    width: float = 1.0,
    pool_first: bool = False,
) -> nn.Sequential:
    """VGG-small for CIFAR: two convolutions each of 128, 256 and 512 channels and one linear layer.

    ``num_classes=10``: 4,660,106 parameters and 607,600,640 multiply-accumulates for images ``[N, 3, 32, 32]``.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images.
        image_size: their height and width, 8 or more.
        width: multiplies all channels.
        pool_first: max-pooling before BatchNorm; for 1-bit activations, see :func:`vgg`.

    Source: Zhang et al. (LQ-Nets), arXiv 1807.10029, section 4; after Courbariaux et al., arXiv 1511.00363, without
    its hidden linear layers.
    """
    stages = [[scaled(channels, width)] * 2 for channels in (128, 256, 512)]
    return vgg(
        stages=stages, num_classes=num_classes, in_channels=in_channels, image_size=image_size, pool_first=pool_first
    )


DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convolutions of each stage, by the number of layers: table 1 of the paper."""


class VGG(nn.Module):
    """``features``, a pool to 7x7, ``classifier``; see :func:`vgg_imagenet`."""

    def __init__(self, features: nn.Sequential, classifier: nn.Sequential) -> None:
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = classifier
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def vgg_imagenet(
    *,
    depth: int = 16,
    num_classes: int = 1000,
    in_channels: int = 3,
    width: float = 1.0,
    batch_norm: bool = True,
    dropout: float = 0.5,
) -> VGG:
    """VGG-11, 13, 16 and 19 by torchvision's names, with BatchNorm behind each convolution or without.

    ``depth=16``: 138,365,992 parameters and 15,470,264,320 multiply-accumulates for images ``[N, 3, 224, 224]``;
    ``depth=11, batch_norm=False``: 132,863,336 parameters and 7,609,090,048 multiply-accumulates for images
    ``[N, 3, 224, 224]``; ``depth=19``: 143,678,248 parameters and 19,632,062,464 multiply-accumulates for images
    ``[N, 3, 224, 224]``. Other image sizes are averaged to 7x7 before the first linear layer; those that make 7x7, or
    a multiple, compile.

    Args:
        depth: number of layers, one of :data:`DEPTHS`.
        num_classes: number of logits.
        in_channels: channels of the images.
        width: multiplies all channels.
        batch_norm: whether convolutions have BatchNorm; they have a bias in any case.
        dropout: share of the hidden layers' outputs that is dropped in training.

    Raises:
        InputError: another depth.

    Source: Simonyan and Zisserman, arXiv 1409.1556, table 1.
    """
    if depth not in DEPTHS:
        raise InputError(f"vgg_imagenet: depth must be one of {', '.join(map(str, DEPTHS))}, got {depth}")
    channels, features = in_channels, list[nn.Module]()
    for stage, convolutions in enumerate(DEPTHS[depth]):
        outputs = scaled(min(64 << stage, 512), width)
        for _ in range(convolutions):
            features.append(nn.Conv2d(channels, outputs, 3, padding=1))
            features += [nn.BatchNorm2d(outputs), nn.ReLU()] if batch_norm else [nn.ReLU()]
            channels = outputs
        features.append(nn.MaxPool2d(2, 2))
    inputs, hidden, classifier = channels * 49, scaled(4096, width), list[nn.Module]()
    for _ in range(2):
        classifier += [nn.Linear(inputs, hidden), nn.ReLU(), nn.Dropout(dropout)]
        inputs = hidden
    return VGG(nn.Sequential(*features), nn.Sequential(*classifier, nn.Linear(hidden, num_classes)))


def vgg16_bn(*, num_classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> VGG:
    """VGG-16 with BatchNorm by torchvision's names; see :func:`vgg_imagenet`.

    ``num_classes=1000``: 138,365,992 parameters and 15,470,264,320 multiply-accumulates for images
    ``[N, 3, 224, 224]``.
    """
    return vgg_imagenet(depth=16, num_classes=num_classes, in_channels=in_channels, width=width)
