"""AlexNet, as torchvision has it and as Krizhevsky trained it, in two groups."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from ..errors import InputError
from .blocks import initialize, scaled


class AlexNet(nn.Module):
    """``features``, a pool to 6x6, ``classifier``; see :func:`alexnet`."""

    def __init__(self, features: nn.Sequential, classifier: nn.Sequential) -> None:
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = classifier
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def alexnet(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    width: float = 1.0,
    batch_norm: bool = False,
    dropout: float = 0.5,
) -> AlexNet:
    """The one-tower AlexNet, by torchvision's names: no groups, no response normalisation.

    With ``batch_norm``, as the low-bit papers have it: BatchNorm between each convolution or hidden linear layer and
    its ReLU, those layers without bias, and each dropout behind its hidden layer instead of before it. The layers'
    numbers differ then, so that published weights load only without.

    ``num_classes=1000``: 61,100,840 parameters and 714,188,480 multiply-accumulates for images ``[N, 3, 224, 224]``;
    ``batch_norm=True``: 61,110,184 parameters and 714,188,480 multiply-accumulates for images ``[N, 3, 224, 224]``.
    Other image sizes are averaged to 6x6 before the first linear layer; sizes that make 6x6 compile.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images.
        width: multiplies all channels.
        batch_norm: see above.
        dropout: share of the hidden layers' inputs (``batch_norm``: outputs) that is dropped in training; HWGQ takes
            0.1.

    Source: Krizhevsky, arXiv 1404.5997; with BatchNorm, Wang et al. (TSQ), CVPR 2018, and Cai et al. (HWGQ), arXiv
    1702.00953.
    """
    channels, features = in_channels, list[nn.Module]()
    stem = [(64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1)]
    for number, (full, kernel, stride, padding) in enumerate(stem):
        outputs = scaled(full, width)
        features.append(nn.Conv2d(channels, outputs, kernel, stride, padding, bias=not batch_norm))
        features += [nn.BatchNorm2d(outputs)] if batch_norm else []
        features.append(nn.ReLU())
        features += [nn.MaxPool2d(3, 2)] if number in (0, 1, 4) else []
        channels = outputs
    inputs, hidden, classifier = channels * 36, scaled(4096, width), list[nn.Module]()
    for _ in range(2):
        linear = nn.Linear(inputs, hidden, bias=not batch_norm)
        if batch_norm:
            classifier += [linear, nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(dropout)]
        else:
            classifier += [nn.Dropout(dropout), linear, nn.ReLU()]
        inputs = hidden
    return AlexNet(nn.Sequential(*features), nn.Sequential(*classifier, nn.Linear(hidden, num_classes)))


def alexnet_groups(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    image_size: int = 227,
    width: float = 1.0,
    norm: str = "batch",
    dropout: float = 0.5,
) -> nn.Sequential:
    """The original AlexNet: the second, fourth and fifth convolution in two groups, layers by Caffe's names.

    ``norm`` says what normalises: ``"response"`` is the original, local response normalisation behind the first two
    ReLUs, which trains but has no integer form; ``"batch"``, as the low-bit papers have it, BatchNorm ``bn1 .. bn7``
    before every ReLU, and no biases before BatchNorm; ``"none"`` leaves it away.

    ``norm="response"``: 60,965,224 parameters and 724,406,816 multiply-accumulates for images ``[N, 3, 227, 227]``;
    ``norm="batch"``: 60,974,792 parameters and 724,406,816 multiply-accumulates for images ``[N, 3, 227, 227]``.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images.
        image_size: their height and width, 67 or more.
        width: multiplies all channels.
        norm: ``"batch"``, ``"response"`` or ``"none"``.
        dropout: share of the hidden layers' outputs that is dropped in training.

    Raises:
        InputError: another ``norm``, or an image too small.

    Source: Krizhevsky et al., NIPS 2012, with the padding and names of Caffe's ``bvlc_alexnet``.
    """
    if norm not in ("batch", "response", "none"):
        raise InputError(f'alexnet_groups: norm must be "batch", "response" or "none", got {norm!r}')
    size = (image_size - 11) // 4 + 1
    for _ in range(3):
        size = (size - 3) // 2 + 1  # behind each pool
    if size < 1:
        raise InputError(f"alexnet_groups: images of {image_size} pixels leave nothing; at least 67")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = in_channels
    stem = [(96, 11, 4, 0, 1), (256, 5, 1, 2, 2), (384, 3, 1, 1, 1), (384, 3, 1, 1, 2), (256, 3, 1, 1, 2)]
    for n, (full, kernel, stride, padding, groups) in enumerate(stem, start=1):
        outputs = scaled(full, width, multiple=2)
        layers[f"conv{n}"] = nn.Conv2d(channels, outputs, kernel, stride, padding, groups=groups, bias=norm != "batch")
        if norm == "batch":
            layers[f"bn{n}"] = nn.BatchNorm2d(outputs)
        layers[f"relu{n}"] = nn.ReLU()
        if norm == "response" and n <= 2:
            layers[f"norm{n}"] = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)
        if n in (1, 2, 5):
            layers[f"pool{n}"] = nn.MaxPool2d(3, 2)
        channels = outputs
    layers["flatten"] = nn.Flatten()
    inputs, hidden = channels * size * size, scaled(4096, width)
    for n in (6, 7):
        layers[f"fc{n}"] = nn.Linear(inputs, hidden, bias=norm != "batch")
        if norm == "batch":
            layers[f"bn{n}"] = nn.BatchNorm1d(hidden)
        layers[f"relu{n}"] = nn.ReLU()
        layers[f"drop{n}"] = nn.Dropout(dropout)
        inputs = hidden
    layers["fc8"] = nn.Linear(hidden, num_classes)
    network = nn.Sequential(layers)
    initialize(network)
    return network
