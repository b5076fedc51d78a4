"""Neural networks of one to four bits that run on ordinary processors.

Names load on first use: loading and running a compiled network needs neither torch nor onnx.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .errors import BitbranchError, CompileError, FormatError, InputError

if TYPE_CHECKING:
    from . import models, training, twostep
    from .compiler import compile
    from .compiler.verify import verify
    from .decomposition import decompose
    from .overview import summary
    from .runtime.engine import Engine
    from .runtime.program import Program, load
    from .splitting import split
    from .swap import calibrate, coverage, quantize

__version__ = "0.1.0"

_MODULE_OF = {
    "Engine": "runtime.engine",
    "Program": "runtime.program",
    "calibrate": "swap",
    "compile": "compiler",
    "coverage": "swap",
    "decompose": "decomposition",
    "load": "runtime.program",
    "quantize": "swap",
    "split": "splitting",
    "summary": "overview",
    "verify": "compiler.verify",
}
_PACKAGES = ("models", "training", "twostep", "vision")

__all__ = [
    "BitbranchError",
    "CompileError",
    "Engine",
    "FormatError",
    "InputError",
    "Program",
    "calibrate",
    "compile",
    "coverage",
    "decompose",
    "load",
    "models",
    "quantize",
    "split",
    "summary",
    "training",
    "twostep",
    "verify",
    "vision",
]


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562)."""
    value: object
    if name in _PACKAGES:
        value = import_module(f".{name}", __name__)
    elif name in _MODULE_OF:
        value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
