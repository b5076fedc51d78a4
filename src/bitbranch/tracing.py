"""The graph of a network's operations, as ``torch.fx`` traces it."""

from __future__ import annotations

from torch import fx, nn

from .errors import InputError
from .layers import QuantizedLayer


class _Tracer(fx.Tracer):
    """Keeps quantized layers and every module without children whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            isinstance(m, QuantizedLayer)
            or next(m.children(), None) is None
            or super().is_leaf_module(m, module_qualified_name)
        )


def trace(model: nn.Module) -> fx.Graph:
    """The graph of a network's ``forward``; quantized layers and modules without children are one call each.

    Raises:
        InputError: it cannot be traced, as with control flow that depends on data.
    """
    try:
        return _Tracer().trace(model)
    except Exception as error:  # tracing runs the model's own code, which may raise anything
        raise InputError(f"{type(model).__name__}: forward cannot be traced by torch.fx ({error})") from None
