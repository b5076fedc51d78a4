"""VGG with Brevitas' layers, for tables beside our own quantizers; needs ``pip install brevitas``.

Names and shapes of parameters are those of :func:`bitbranch.models.vgg`, so that it starts from the same float network.
As there, the first and the last layer have 8 bits.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Sequence

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import brevitas.nn as qnn
    from brevitas import config
    from brevitas.quant import (
        Int8ActPerTensorFloat,
        Int8WeightPerChannelFloat,
        Int8WeightPerChannelFloatMSE,
        Uint8ActPerTensorFloat,
    )
from torch import nn

from bitbranch import models

config.IGNORE_MISSING_KEYS = True  # the quantizers' own, when a float network's parameters are loaded


@models.register
def brevitas_vgg(
    *,
    stages: Sequence[Sequence[int]],
    weight_bits: int = 2,
    activation_bits: int = 2,
    learned: bool = True,
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
) -> nn.Sequential:
    """Quantized VGG with one linear layer.

    Args:
        weight_bits: of all but the first and the last layer; their integers are symmetric, 2 bits are ternary.
        activation_bits: likewise; unsigned, with a learned scale that starts from percentiles.
        learned: whether a channel's weight scale is learned, from the one of least squared error on; else it follows
            the largest magnitude, which is what Brevitas does if not told.
        stages, num_classes, in_channels, image_size: see :func:`bitbranch.models.vgg`.
    """
    network = models.vgg(stages=stages, num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    return _quantized(network, weight_bits, activation_bits, learned)


@models.register
def brevitas_vgg_small(
    *,
    weight_bits: int = 2,
    activation_bits: int = 2,
    learned: bool = True,
    width: float = 1.0,
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
) -> nn.Sequential:
    """Quantized VGG-small: see :func:`brevitas_vgg`, and :func:`bitbranch.models.vgg_small` for the rest."""
    network = models.vgg_small(num_classes=num_classes, in_channels=in_channels, image_size=image_size, width=width)
    return _quantized(network, weight_bits, activation_bits, learned)


def _quantized(network: nn.Sequential, weight_bits: int, activation_bits: int, learned: bool) -> nn.Sequential:
    weights = Int8WeightPerChannelFloatMSE if learned else Int8WeightPerChannelFloat
    computing = [name for name, layer in network.named_children() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name, layer in network.named_children():
        outer = name in (computing[0], computing[-1])
        given = {"weight_quant": weights, "weight_bit_width": 8 if outer else weight_bits}
        if name == computing[0]:
            given |= {"input_quant": Int8ActPerTensorFloat}
        if isinstance(layer, nn.Conv2d):
            layers[name] = qnn.QuantConv2d(layer.in_channels, layer.out_channels, 3, padding=1, bias=False, **given)
        elif isinstance(layer, nn.Linear):
            layers[name] = qnn.QuantLinear(layer.in_features, layer.out_features, bias=True, **given)
        elif isinstance(layer, nn.ReLU):
            last = name == [n for n, each in network.named_children() if isinstance(each, nn.ReLU)][-1]
            bits = 8 if last else activation_bits
            layers[name] = qnn.QuantReLU(act_quant=Uint8ActPerTensorFloat, bit_width=bits)
        else:
            layers[name] = layer
    return nn.Sequential(layers)
