"""Networks as plain float torch modules, each buildable by name, so that a checkpoint can say what it holds."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

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

Network = TypeVar("Network", bound=Callable[..., nn.Module])


def register(function: Network) -> Network:
    """Make a network of one's own known by its function's name, as a decorator.

    Args:
        function: plain keyword arguments to a float network. Those of the names ``num_classes``, ``in_channels`` and
            ``image_size`` are given from the data in training.

    Raises:
        InputError: another function has this name.
    """
    known = MODELS.setdefault(function.__name__, function)
    if known is not function and _source(known) != _source(function):
        raise InputError(f"model {function.__name__!r}: there is one of this name")
    return function


def _source(function: Callable[..., nn.Module]) -> str | Callable[..., nn.Module]:
    """What a function is told apart by: its text, or itself where that lies in no file."""
    try:
        return inspect.getsource(function)
    except OSError:
        return function


def register_file(path: Path | str) -> None:
    """Run a Python file whose functions are marked by :func:`register`; a file that has been run is not run again.

    Raises:
        InputError: there is no such file, or it fails.
    """
    path = Path(path).resolve()
    name = f"bitbranch models {path}"
    if name in sys.modules:
        return
    found = spec_from_file_location(name, path) if path.suffix == ".py" and path.is_file() else None
    if found is None or found.loader is None:
        raise InputError(f"{path}: no Python file")
    module = sys.modules[name] = module_from_spec(found)
    try:
        found.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise InputError(f"{path}: {type(error).__name__}: {' '.join(str(error).split())}") from error


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
    try:
        return MODELS[name](**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"model {name!r}: {' '.join(str(error).split())}") from None


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
    "register",
    "register_file",
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
