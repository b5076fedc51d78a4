"""U-Net with padded convolutions and BatchNorm, plain and over a trunk."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import InputError
from .blocks import Enlarge, conv_norm, initialize
from .trunks import Trunk, trunk_of


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(conv_norm(inputs, outputs, 3), conv_norm(outputs, outputs, 3))


def _up(inputs: int, outputs: int, mode: str) -> nn.Sequential:
    """Twice the height and width, BatchNorm and ReLU."""
    if mode == "transposed":
        conv = nn.ConvTranspose2d(inputs, outputs, 2, 2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())
    if mode == "nearest":
        return nn.Sequential(nn.Upsample(scale_factor=2), *conv_norm(inputs, outputs, 3))
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False), *conv_norm(inputs, outputs, 3)
    )


class _Halved(nn.Module):
    """Lets images through that can be halved so often; a module, for tracers cannot follow the question."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.multiple = 1 << times

    def forward(self, x: Tensor) -> Tensor:
        size = tuple(x.shape[2:])
        if any(n % self.multiple for n in size):
            raise InputError(f"unet: height and width must be multiples of {self.multiple}, got {size}")
        return x


class UNet(nn.Module):
    """See :func:`unet`."""

    def __init__(self, num_classes: int, in_channels: int, base: int, depth: int, up: str) -> None:
        super().__init__()
        self.halved = _Halved(depth)
        widths = [base << level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            _double(inputs, outputs) for inputs, outputs in zip([in_channels, *widths], widths, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        levels = list(zip(widths[1:], widths, strict=False))[::-1]
        self.up = nn.ModuleList(_up(inputs, outputs, up) for inputs, outputs in levels)
        self.merge = nn.ModuleList(_double(inputs, outputs) for inputs, outputs in levels)
        self.head = nn.Conv2d(base, num_classes, 1)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.halved(x)
        skips: list[Tensor] = []
        for level, double in enumerate(self.down):
            x = double(x if level == 0 else self.pool(x))
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], 1))
        return self.head(x)


def unet(*, num_classes: int = 2, in_channels: int = 3, base: int = 64, depth: int = 4, up: str = "transposed") -> UNet:
    """U-Net: ``depth`` times down by max-pooling, and up again, each time joined with the map of that size.

    Differs from the paper in that convolutions are padded, so that logits have the image's size, and that each but
    the last, the upward ones included, is followed by BatchNorm and ReLU.

    ``num_classes=2``: 31,038,658 parameters and 48,171,581,440 multiply-accumulates for images ``[N, 3, 256, 256]``;
    ``up="bilinear"``: 34,520,258 parameters and 65,351,450,624 multiply-accumulates for images ``[N, 3, 256, 256]``;
    ``base=16, depth=3``: 482,866 parameters and 580,124,672 multiply-accumulates for images ``[N, 3, 128, 128]``.

    Args:
        num_classes: logits of each pixel.
        in_channels: channels of the images; height and width must be multiples of ``2^depth``.
        base: channels at the full size, doubled with each level.
        depth: number of levels below.
        up: ``"transposed"``, a transposed 2x2 convolution of stride 2; ``"nearest"`` or ``"bilinear"``, upsampling and
            a 3x3 convolution.

    Returns:
        Images ``[N, in_channels, H, W]`` to logits ``[N, num_classes, H, W]``.

    Raises:
        InputError: another ``up``, or ``base`` or ``depth`` below 1.

    Source: Ronneberger et al., arXiv 1505.04597.
    """
    if up not in ("transposed", "nearest", "bilinear"):
        raise InputError(f'unet: up must be "transposed", "nearest" or "bilinear", got {up!r}')
    if base < 1 or depth < 1:
        raise InputError(f"unet: base and depth must be at least 1, got {base} and {depth}")
    return UNet(num_classes, in_channels, base, depth, up)


class TrunkUNet(nn.Module):
    """See :func:`trunk_unet`."""

    def __init__(self, trunk: Trunk, num_classes: int) -> None:
        super().__init__()
        self.trunk = trunk
        levels = list(zip(trunk.channels[1:], trunk.channels, strict=False))[::-1]
        self.merge = nn.ModuleList(_double(inputs + outputs, outputs) for inputs, outputs in levels)
        self.head = nn.Conv2d(trunk.channels[0], num_classes, 1)
        self.enlarge = Enlarge()
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        *skips, x = self.trunk.maps(x)
        for skip, merge in zip(reversed(skips), self.merge, strict=True):
            x = merge(torch.cat([skip, self.enlarge(x, skip.shape[2:])], 1))
        return self.enlarge(self.head(x), size)


def trunk_unet(*, trunk: str = "resnet18", num_classes: int = 2, in_channels: int = 3, width: float = 1.0) -> TrunkUNet:
    """A U-Net whose way down is a classification network: its maps, the coarsest first, joined with the next finer.

    Each time the map is enlarged bilinearly, joined, and goes through two 3x3 convolutions to the finer map's channels.
    The finest map is half of the image's size; its logits are enlarged. Images may have any size, odd ones too, and the
    logits have that size.

    ``num_classes=2``: 14,385,858 parameters and 5,994,708,992 multiply-accumulates for images ``[N, 3, 256, 256]``;
    ``trunk="mobilenet_v2"``: 3,567,810 parameters and 967,368,704 multiply-accumulates for images ``[N, 3, 256, 256]``;
    ``width=0.5, num_classes=11``: 3,602,059 parameters and 1,045,656,576 multiply-accumulates for images
    ``[N, 3, 180, 240]``.

    Args:
        trunk: ``"resnet18"`` or ``"mobilenet_v2"``, whose weights load into ``trunk`` but for the classifier.
        num_classes: logits of each pixel.
        in_channels: channels of the images.
        width: multiplies the trunk's channels, and with them all others.

    Returns:
        Images ``[N, in_channels, H, W]`` to logits ``[N, num_classes, H, W]``.

    Raises:
        InputError: another trunk.

    Source: after Ronneberger et al., arXiv 1505.04597, and Iglovikov, Shvets, arXiv 1801.05746.
    """
    return TrunkUNet(trunk_of(trunk, in_channels, width, reader="trunk_unet", small=False), num_classes)
