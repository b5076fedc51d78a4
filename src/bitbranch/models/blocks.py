"""What the networks share: scaled widths, a convolution with BatchNorm and activation, He initialisation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError


def scaled(channels: int, width: float, multiple: int = 1) -> int:
    """``width * channels``, rounded to a positive multiple.

    Raises:
        InputError: a width that is not positive.
    """
    if not width > 0:
        raise InputError(f"width must be positive, got {width}")
    return max(1, round(width * channels / multiple)) * multiple


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution without bias, BatchNorm and activation; padded by half the kernel, as far as it reaches."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, dilation * (kernel // 2), dilation, groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([] if activation is None else [activation()]))


def initialize(network: nn.Module) -> None:
    """Normal weights of variance ``2 / fan_out`` for convolutions and ``2 / fan_in`` for linear layers, biases 0.

    Source: He et al., arXiv 1502.01852.
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)


class GlobalAverage(nn.Module):
    """Mean over the image: ``[N, C, H, W]`` to ``[N, C]``."""

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, 1).flatten(1)


def enlarged(x: Tensor, size: Sequence[int]) -> Tensor:
    """A map ``[N, C, h, w]`` that strides of 2 have made of ``size``, rounding up, brought back to it bilinearly.

    By whole factors pixels are taken for areas (``align_corners=False``). Where a size on the way up is odd, twice the
    map would be a pixel too large: there pixels are taken for points, every second one new and the mean of its
    neighbours (``align_corners=True``), just as strided convolutions and pools of odd kernels took them away.

    Raises:
        InputError: a map that halving ``size`` does not give.
    """
    given, way = list(x.shape[2:]), [list(size)]
    while way[-1] != given:
        way.append([(n + 1) // 2 for n in way[-1]])
        if way[-1] == way[-2]:
            raise InputError(f"a map of {given} does not come from {list(size)} by strides of 2")
    while len(way) > 1:
        # as many steps at once as are whole
        steps = next((s for s in range(len(way) - 1, 0, -1) if way[-1 - s] == [n << s for n in way[-1]]), 0)
        if steps:
            x = F.interpolate(x, scale_factor=1 << steps, mode="bilinear")
        else:
            x = _between_points(x, [n % 2 for n in way[-2]])
        del way[-max(1, steps) :]
    return x


def _between_points(x: Tensor, odd: Sequence[int]) -> Tensor:
    """Twice the map along an even axis, and one pixel less along an odd one."""
    if not all(odd):
        x = F.interpolate(x, scale_factor=[2.0 - n for n in odd], mode="bilinear")
    x = F.interpolate(x, scale_factor=[1.0 + n for n in odd])
    return F.avg_pool2d(x, [1 + n for n in odd], 1)


class Enlarge(nn.Module):
    """:func:`enlarged` as a module, which tracers take for one operation: its steps depend on the sizes."""

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        return enlarged(x, size)
