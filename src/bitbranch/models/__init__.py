"""Networks as plain float torch modules, each buildable by name, so that a checkpoint can say what it holds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

from torch import nn

from ..errors import InputError
from .vgg import vgg

MODELS: dict[str, Callable[..., nn.Module]] = {"vgg": vgg}
"""The networks' names in checkpoints."""


def build(name: str, arguments: Mapping[str, object]) -> nn.Module:
    """Build a network by its name and its function's keyword arguments.

    Raises:
        InputError: unknown name, or arguments that the network does not have or needs.
    """
    if name not in MODELS:
        raise InputError(f"model {name!r}: expected one of {', '.join(sorted(MODELS))}")
    try:
        inspect.signature(MODELS[name]).bind(**arguments)
    except TypeError as error:
        raise InputError(f"model {name!r}: {error}") from None
    return MODELS[name](**arguments)


__all__ = ["MODELS", "build", "vgg"]
