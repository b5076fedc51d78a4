"""DeepLab: a trunk that dilates in place of its last strides, read at several rates and joined with a fine map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from .blocks import Enlarge, conv_norm, initialize, scaled
from .resnet import ResNet, resnet18


def dilate(network: ResNet, output_stride: int) -> None:
    """Take away the strides of the stages beyond ``output_stride``, and dilate what follows them, in place.

    With the same weights the last map has more pixels, and those that it had keep their values.
    """
    stride, dilation = 4, 1
    for stage in range(2, len(network.channels)):
        stride *= 2
        if stride <= output_stride:
            continue
        for conv in network.get_submodule(f"layer{stage}").modules():
            if isinstance(conv, nn.Conv2d):
                conv.stride = (1, 1)
                if conv.kernel_size != (1, 1):
                    conv.dilation = conv.padding = (dilation, dilation)
                    dilation = stride // output_stride  # behind the convolution that had the stride


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: convolutions of several dilations and the image's mean, side by side.

    Args:
        inputs, outputs: channels before and behind, the latter in each branch too.
        rates: dilations of the 3x3 convolutions; a 1x1 one stands beside them.
    """

    def __init__(self, inputs: int, outputs: int, rates: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList([conv_norm(inputs, outputs, 1)])
        self.branches += [conv_norm(inputs, outputs, 3, dilation=rate) for rate in rates]
        self.image = conv_norm(inputs, outputs, 1)
        self.project = conv_norm(outputs * (len(rates) + 2), outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        image = self.image(F.adaptive_avg_pool2d(x, 1))
        maps = [branch(x) for branch in self.branches]
        return self.project(torch.cat([*maps, F.interpolate(image, size=x.shape[2:])], 1))


class DeepLab(nn.Module):
    """See :func:`deeplab`."""

    def __init__(self, trunk: ResNet, num_classes: int, width: float, rates: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.trunk = trunk
        channels, fine = scaled(256, width), scaled(48, width)
        self.aspp = ASPP(trunk.channels[-1], channels, rates)
        self.low_level = conv_norm(trunk.channels[1], fine, 1)
        self.merge = nn.Sequential(conv_norm(channels + fine, channels, 3), conv_norm(channels, channels, 3))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Conv2d(channels, num_classes, 1)
        self.enlarge = Enlarge()
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        _, low, *_, high = self.trunk.maps(x)
        joined = torch.cat([self.enlarge(self.aspp(high), low.shape[2:]), self.low_level(low)], 1)
        return self.enlarge(self.head(self.dropout(self.merge(joined))), x.shape[2:])


def deeplab(
    *,
    num_classes: int = 21,
    in_channels: int = 3,
    width: float = 1.0,
    output_stride: int = 16,
    rates: Sequence[int] | None = None,
    dropout: float = 0.1,
) -> DeepLab:
    """DeepLabv3+ over ResNet-18: atrous spatial pyramid pooling, joined with the map of a fourth of the image's size.

    Differs from the paper in the trunk, and in that convolutions are not depthwise separable. Images may have any size,
    odd ones too, and the logits have that size.

    ``num_classes=21``: 16,608,181 parameters and 41,288,859,648 multiply-accumulates for images ``[N, 3, 512, 512]``;
    ``output_stride=8``: 16,608,181 parameters and 85,782,036,480 multiply-accumulates for images ``[N, 3, 512, 512]``;
    ``width=0.5, num_classes=11, rates=(2, 4, 6)``: 4,157,915 parameters and 1,769,351,168 multiply-accumulates for
    images ``[N, 3, 180, 240]``.

    Args:
        num_classes: logits of each pixel.
        in_channels: channels of the images.
        width: multiplies all channels.
        output_stride: how many times smaller than the image the trunk's last map is: 8, 16 or, without dilation, 32.
        rates: dilations of the pyramid; None takes the paper's 6, 12 and 18 at an output stride of 16, twice as much at
            8, half at 32. Smaller ones suit small images.
        dropout: share of the last layer's inputs that is dropped in training.

    Returns:
        Images ``[N, in_channels, H, W]`` to logits ``[N, num_classes, H, W]``.

    Raises:
        InputError: another output stride, or rates below 1.

    Source: Chen et al., arXiv 1802.02611, section 3; the pyramid is that of arXiv 1706.05587, section 3.3.
    """
    if output_stride not in (8, 16, 32):
        raise InputError(f"deeplab: output_stride must be 8, 16 or 32, got {output_stride}")
    rates = [rate * 16 // output_stride for rate in (6, 12, 18)] if rates is None else list(rates)
    if min(rates, default=1) < 1:
        raise InputError(f"deeplab: rates must be at least 1, got {rates}")
    trunk = resnet18(in_channels=in_channels, width=width)
    del trunk.fc
    dilate(trunk, output_stride)
    return DeepLab(trunk, num_classes, width, rates, dropout)
