"""Networks as plain float torch modules, each buildable by name, so that a checkpoint can say what it holds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from ..errors import InputError
from .alexnet import alexnet, alexnet_groups
from .deeplab import deeplab
from .fcn import fcn
from .googlenet import googlenet
from .mobilenet import mobilenet_v2
from .resnet import resnet18, resnet34, resnet50, resnet_cifar
from .ssd import ssd
from .unet import trunk_unet, unet
from .vgg import vgg, vgg16_bn, vgg_imagenet, vgg_small

MODELS: dict[str, Callable[..., nn.Module]] = {
    function.__name__: function
    for function in (
        alexnet,
        alexnet_groups,
        deeplab,
        fcn,
        googlenet,
        mobilenet_v2,
        resnet18,
        resnet34,
        resnet50,
        resnet_cifar,
        ssd,
        trunk_unet,
        unet,
        vgg,
        vgg16_bn,
        vgg_imagenet,
        vgg_small,
    )
}
"""The networks' names in checkpoints."""


def names() -> list[str]:
    """The names that :func:`build` knows, sorted."""
    return sorted(MODELS)


def build(name: str, arguments: Mapping[str, object] = MappingProxyType({})) -> nn.Module:
    """Build a network by its name and its function's keyword arguments.

    Raises:
        InputError: unknown name, or arguments that the network does not have or needs.
    """
    if name not in MODELS:
        raise InputError(f"model {name!r}: expected one of {', '.join(names())}")
    try:
        inspect.signature(MODELS[name]).bind(**arguments)
    except TypeError as error:
        raise InputError(f"model {name!r}: {error}") from None
    return MODELS[name](**arguments)


__all__ = [
    "MODELS",
    "alexnet",
    "alexnet_groups",
    "build",
    "deeplab",
    "fcn",
    "googlenet",
    "mobilenet_v2",
    "names",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet_cifar",
    "ssd",
    "trunk_unet",
    "unet",
    "vgg",
    "vgg16_bn",
    "vgg_imagenet",
    "vgg_small",
]
