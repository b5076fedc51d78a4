"""SSD: class and box maps over the feature maps of a trunk."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from ..errors import InputError
from ..tasks.boxes import DefaultBoxes, linear_scales, usual_ratios
from .blocks import conv_norm, initialize, scaled
from .trunks import Trunk, VGGTrunk, trunk_of

PRIOR = 1 / 4
"""Share of objects among the boxes that a new network's classes expect: as many as hard negative mining leaves."""


class SSD(nn.Module):
    """See :func:`ssd`.

    Attributes:
        sizes: height of each feature map.
        boxes: default boxes at each pixel of each feature map.
        default_boxes: all of them, as the heads' numbers lie; what decodes the maps.
    """

    def __init__(
        self,
        trunk: Trunk,
        num_classes: int,
        image_size: tuple[int, int],
        width: float,
        *,
        extras: int | None,
        boxes: Sequence[int] | None,
        ratios: Sequence[Sequence[float]] | None,
        scales: Sequence[float] | None,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        channels = trunk.channels[-3:]
        sizes = [tuple(-(-side // stride) for side in image_size) for stride in (8, 16, 32)[: len(channels)]]
        if isinstance(trunk, VGGTrunk):
            channels, sizes = channels[-1:], [tuple(side // 8 for side in image_size)]
        behind: list[nn.Module] = []
        while max(sizes[-1]) > 1 and len(behind) != extras:
            reduced, outputs = (scaled(c, width) for c in ((128, 256) if behind else (256, 512)))
            padding = int(sizes[-1] != (3, 3))  # from 3 pixels to 1, else to half
            conv = nn.Conv2d(reduced, outputs, 3, 1 + padding, padding, bias=False)
            behind.append(nn.Sequential(*conv_norm(channels[-1], reduced, 1), conv, nn.BatchNorm2d(outputs), nn.ReLU()))
            sizes.append(tuple((side + 1) // 2 if padding else 1 for side in sizes[-1]))
            channels.append(outputs)
        self.extras = nn.ModuleList(behind)
        self.default_boxes = _default_boxes(image_size, sizes, boxes, ratios, scales)
        self.sizes, self.boxes = [height for height, _ in sizes], list(self.default_boxes.per_pixel)
        heads = list(zip(channels, self.boxes, strict=True))
        box_heads = [nn.Conv2d(c, a * 4, 3, padding=1) for c, a in heads]
        class_heads = [nn.Conv2d(c, a * num_classes, 3, padding=1) for c, a in heads]
        self.box_heads, self.class_heads = nn.ModuleList(box_heads), nn.ModuleList(class_heads)
        initialize(self)
        _initialize_heads(box_heads, class_heads, num_classes)

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        maps = self.trunk.maps(x)[-3:]
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        classes = [head(x) for head, x in zip(self.class_heads, maps, strict=True)]
        return classes, [head(x) for head, x in zip(self.box_heads, maps, strict=True)]


def _default_boxes(
    image_size: tuple[int, int],
    sizes: Sequence[tuple[int, ...]],
    boxes: Sequence[int] | None,
    ratios: Sequence[Sequence[float]] | None,
    scales: Sequence[float] | None,
) -> DefaultBoxes:
    """The default boxes of maps of these sizes; the rest as for :func:`ssd`."""
    count = len(sizes)
    if ratios is None:
        if boxes is None:
            boxes = [4 if i in (0, count - 2, count - 1) else 6 for i in range(count)]
        if len(boxes) != count or min(boxes) < 1:
            raise InputError(f"ssd: boxes must be one positive number for each of {count} feature maps, got {boxes}")
        ratios = [usual_ratios(n) for n in boxes]
    elif boxes is not None and list(boxes) != [len(r) + 1 for r in ratios]:
        raise InputError(f"ssd: boxes {list(boxes)} are not one more than the ratios of each map")
    return DefaultBoxes(
        image_size=image_size,
        sizes=tuple((height, width) for height, width in sizes),
        scales=tuple(scales) if scales is not None else linear_scales(count),
        ratios=tuple(map(tuple, ratios)),
    )


def _initialize_heads(box_heads: list[nn.Conv2d], class_heads: list[nn.Conv2d], num_classes: int) -> None:
    """Small weights, and classes that say background but for :data:`PRIOR`.

    Source: Lin et al., "Focal Loss for Dense Object Detection", arXiv 1708.02002, section 4.1.
    """
    for head in box_heads + class_heads:
        nn.init.normal_(head.weight, std=0.01)
    for head in class_heads:
        assert head.bias is not None
        nn.init.constant_(head.bias[::num_classes], math.log((num_classes - 1) * (1 - PRIOR) / PRIOR))


def ssd(
    *,
    trunk: str = "resnet18",
    num_classes: int = 21,
    in_channels: int = 3,
    image_size: int | Sequence[int] = 300,
    width: float = 1.0,
    extras: int | None = None,
    boxes: Sequence[int] | None = None,
    ratios: Sequence[Sequence[float]] | None = None,
    scales: Sequence[float] | None = None,
) -> SSD:
    """SSD's class and box maps over a trunk and, behind it, extra maps of half the size down to one pixel.

    The trunk gives its last three maps (``vgg_small``: its last), whose sizes are an 8th, a 16th and a 32nd of the
    image's; each extra map is made by a 1x1 and a 3x3 convolution. At 300 pixels this gives the paper's six maps of
    38, 19, 10, 5, 3 and 1 pixels. Every layer has BatchNorm, so no map is normalised otherwise. The heads' maps correct
    the network's ``default_boxes``: :class:`bitbranch.training.multibox.Multibox` is their loss, and
    :func:`bitbranch.tasks.boxes.detections` makes boxes of them.

    ``num_classes=21``: 15,483,182 parameters and 3,821,419,776 multiply-accumulates for images ``[N, 3, 300, 300]``;
    ``trunk="mobilenet_v2"``: 7,461,550 parameters and 911,024,176 multiply-accumulates for images ``[N, 3, 300, 300]``;
    ``trunk="vgg_small", image_size=96``: 8,193,346 parameters and 5,628,155,904 multiply-accumulates for images
    ``[N, 3, 96, 96]``.

    Args:
        trunk: ``"resnet18"`` or ``"mobilenet_v2"``, whose weights load into ``trunk`` but for the classifier, or
            ``"vgg_small"`` for small images.
        num_classes: classes, the background included.
        in_channels: channels of the images.
        image_size: their height and width, one number if they are equal.
        width: multiplies all channels.
        extras: how many extra maps; None makes them down to one pixel.
        boxes: default boxes at each pixel, map by map; ``None``: 4 in the first and the last two maps, else 6.
        ratios: width over height of the default boxes, map by map, in place of the usual ones; each map has a square
            box more, see :class:`bitbranch.tasks.boxes.DefaultBoxes`.
        scales: of the default boxes, map by map and one more, as shares of the shorter side; None is the paper's 0.1
            and 0.2 .. 0.9.

    Returns:
        Images ``[N, in_channels, *image_size]`` to two lists with one tensor for each map: classes
        ``[N, boxes * num_classes, H, W]`` and boxes ``[N, boxes * 4, H, W]``, the numbers of one default box together.

    Raises:
        InputError: another trunk; boxes, ratios or scales of another length, or that are not positive.

    Source: Liu et al., arXiv 1512.02325, section 2 and figure 2.
    """
    height, across = (image_size, image_size) if isinstance(image_size, int) else image_size
    return SSD(
        trunk_of(trunk, in_channels, width, reader="ssd"),
        num_classes,
        (height, across),
        width,
        extras=extras,
        boxes=boxes,
        ratios=ratios,
        scales=scales,
    )
