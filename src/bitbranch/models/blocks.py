"""What the networks share: scaled widths, a convolution with BatchNorm and activation, He initialisation."""

from __future__ import annotations

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
    groups: int = 1,
    activation: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution without bias, BatchNorm and activation; padded by half the kernel."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
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
