"""Fully convolutional networks: scores over the feature maps of a trunk, summed from the coarsest to the finest."""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import InputError
from .blocks import Enlarge, initialize
from .trunks import Trunk, trunk_of


class FCN(nn.Module):
    """See :func:`fcn`."""

    def __init__(self, trunk: Trunk, num_classes: int, stride: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.count = 7 - stride.bit_length()  # maps of strides ``stride`` to 32
        self.scores = nn.ModuleList(nn.Conv2d(channels, num_classes, 1) for channels in trunk.channels[-self.count :])
        self.enlarge = Enlarge()
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.trunk.maps(x)[-self.count :]
        *finer, total = [score(m) for score, m in zip(self.scores, maps, strict=True)]
        for score in reversed(finer):
            total = score + self.enlarge(total, score.shape[2:])
        return self.enlarge(total, x.shape[2:])


def fcn(
    *, trunk: str = "resnet18", num_classes: int = 21, in_channels: int = 3, width: float = 1.0, stride: int = 8
) -> FCN:
    """FCN-8s over a trunk: 1x1 convolutions make class scores of its maps, which are enlarged and summed up.

    ``stride=8`` reads the maps of a 32nd, 16th and 8th of the image's size, as the paper's FCN-8s; 32 and 16 are its
    FCN-32s and FCN-16s, 4 and 2 add finer maps. Differs from the paper in that scores are enlarged bilinearly, not by
    learned kernels that start so, and that images are not padded: they may have any size, odd ones too, and the logits
    have that size.

    ``num_classes=21``: 11,195,391 parameters and 9,494,200,320 multiply-accumulates for images ``[N, 3, 512, 512]``;
    ``trunk="mobilenet_v2"``: 2,253,503 parameters and 1,576,402,944 multiply-accumulates for images
    ``[N, 3, 512, 512]``; ``width=0.5, stride=4, num_classes=11``: 2,804,204 parameters and 437,635,584
    multiply-accumulates for images ``[N, 3, 180, 240]``.

    Args:
        trunk: ``"resnet18"`` or ``"mobilenet_v2"``, whose weights load into ``trunk`` but for the classifier.
        num_classes: logits of each pixel.
        in_channels: channels of the images.
        width: multiplies the trunk's channels.
        stride: of the finest map that is read: 2, 4, 8, 16 or 32.

    Returns:
        Images ``[N, in_channels, H, W]`` to logits ``[N, num_classes, H, W]``.

    Raises:
        InputError: another trunk or stride.

    Source: Long et al., arXiv 1411.4038, section 4.
    """
    if stride not in (2, 4, 8, 16, 32):
        raise InputError(f"fcn: stride must be 2, 4, 8, 16 or 32, got {stride}")
    return FCN(trunk_of(trunk, in_channels, width, reader="fcn", small=False), num_classes, stride)
