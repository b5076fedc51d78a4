"""SSD: class and box maps over the feature maps of a trunk."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..errors import InputError
from .blocks import conv_norm, initialize, scaled
from .trunks import Trunk, VGGTrunk, trunk_of


class SSD(nn.Module):
    """See :func:`ssd`.

    Attributes:
        sizes: height and width of each feature map.
        boxes: default boxes at each pixel of each feature map.
    """

    def __init__(
        self,
        trunk: Trunk,
        num_classes: int,
        image_size: int,
        width: float,
        boxes: Sequence[int] | None,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        channels = trunk.channels[-3:]
        self.sizes = [-(-image_size // (32 >> i)) for i in range(len(channels))][::-1]
        if isinstance(trunk, VGGTrunk):
            channels, self.sizes = channels[-1:], [image_size // 8]
        extras: list[nn.Module] = []
        while self.sizes[-1] > 1:
            reduced, outputs = (scaled(c, width) for c in ((128, 256) if extras else (256, 512)))
            padding = int(self.sizes[-1] != 3)  # from 3 pixels to 1, else to half
            conv = nn.Conv2d(reduced, outputs, 3, 1 + padding, padding, bias=False)
            extras.append(nn.Sequential(*conv_norm(channels[-1], reduced, 1), conv, nn.BatchNorm2d(outputs), nn.ReLU()))
            self.sizes.append((self.sizes[-1] + 1) // 2 if padding else 1)
            channels.append(outputs)
        self.extras = nn.ModuleList(extras)
        count = len(channels)
        self.boxes = (
            list(boxes) if boxes is not None else [4 if i in (0, count - 2, count - 1) else 6 for i in range(count)]
        )
        if len(self.boxes) != count or min(self.boxes) < 1:
            raise InputError(f"ssd: boxes must be one positive number for each of {count} feature maps, got {boxes}")
        heads = list(zip(channels, self.boxes, strict=True))
        self.box_heads = nn.ModuleList(nn.Conv2d(c, a * 4, 3, padding=1) for c, a in heads)
        self.class_heads = nn.ModuleList(nn.Conv2d(c, a * num_classes, 3, padding=1) for c, a in heads)
        initialize(self)

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        maps = self.trunk.maps(x)[-3:]
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        classes = [head(x) for head, x in zip(self.class_heads, maps, strict=True)]
        return classes, [head(x) for head, x in zip(self.box_heads, maps, strict=True)]


def ssd(
    *,
    trunk: str = "resnet18",
    num_classes: int = 21,
    in_channels: int = 3,
    image_size: int = 300,
    width: float = 1.0,
    boxes: Sequence[int] | None = None,
) -> SSD:
    """SSD's class and box maps over a trunk and, behind it, extra maps of half the size down to one pixel.

    The trunk gives its last three maps (``vgg_small``: its last), whose sizes are an 8th, a 16th and a 32nd of the
    image's; each extra map is made by a 1x1 and a 3x3 convolution. At 300 pixels this gives the paper's six maps of
    38, 19, 10, 5, 3 and 1 pixels. Every layer has BatchNorm, so no map is normalised otherwise. Default boxes, losses
    and suppression are the caller's.

    ``num_classes=21``: 15,483,182 parameters and 3,821,419,776 multiply-accumulates for images ``[N, 3, 300, 300]``;
    ``trunk="mobilenet_v2"``: 7,461,550 parameters and 911,024,176 multiply-accumulates for images ``[N, 3, 300, 300]``;
    ``trunk="vgg_small", image_size=96``: 8,193,346 parameters and 5,628,155,904 multiply-accumulates for images
    ``[N, 3, 96, 96]``.

    Args:
        trunk: ``"resnet18"`` or ``"mobilenet_v2"``, whose weights load into ``trunk`` but for the classifier, or
            ``"vgg_small"`` for small images.
        num_classes: classes, the background included.
        in_channels: channels of the images.
        image_size: their height and width.
        width: multiplies all channels.
        boxes: default boxes at each pixel, map by map; ``None``: 4 in the first and the last two maps, else 6.

    Returns:
        Images ``[N, in_channels, image_size, image_size]`` to two lists with one tensor for each map: classes
        ``[N, boxes * num_classes, H, W]`` and boxes ``[N, boxes * 4, H, W]``, the numbers of one default box together.

    Raises:
        InputError: another trunk, or ``boxes`` of another length.

    Source: Liu et al., arXiv 1512.02325, section 2 and figure 2.
    """
    return SSD(trunk_of(trunk, in_channels, width, reader="ssd"), num_classes, image_size, width, boxes)
