"""Classification networks without their classifiers, whose feature maps others read."""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import InputError
from .blocks import scaled
from .mobilenet import MobileNetV2, mobilenet_v2
from .resnet import ResNet, resnet18
from .vgg import stages_of


class VGGTrunk(nn.Module):
    """The stages of VGG-small, whose last map is an eighth of the image's size; see :func:`.vgg.vgg_small`."""

    def __init__(self, in_channels: int, width: float) -> None:
        super().__init__()
        self.channels = [scaled(channels, width) for channels in (128, 256, 512)]
        self.features = nn.Sequential(stages_of([[channels] * 2 for channels in self.channels], in_channels))

    def maps(self, x: Tensor) -> list[Tensor]:
        """The last stage's output."""
        return [self.features(x)]


Trunk = ResNet | MobileNetV2 | VGGTrunk
"""A network with ``maps`` and ``channels``."""


def trunk_of(name: str, in_channels: int, width: float, *, reader: str, small: bool = True) -> Trunk:
    """ResNet-18, MobileNetV2 or VGG-small without the classifier.

    Args:
        name: as of the network.
        in_channels, width: of the network.
        reader: what errors call the network that reads the maps.
        small: whether VGG-small will do.

    Raises:
        InputError: another name.
    """
    if name == "resnet18":
        resnet = resnet18(in_channels=in_channels, width=width)
        del resnet.fc
        return resnet
    if name == "mobilenet_v2":
        mobilenet = mobilenet_v2(in_channels=in_channels, width=width)
        del mobilenet.classifier
        return mobilenet
    if name == "vgg_small" and small:
        return VGGTrunk(in_channels, width)
    known = '"resnet18", "mobilenet_v2" or "vgg_small"' if small else '"resnet18" or "mobilenet_v2"'
    raise InputError(f"{reader}: trunk must be {known}, got {name!r}")
