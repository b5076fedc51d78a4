"""Training: one loop for all networks, trainings in stages, distillation, checkpoints, and whole runs."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .runner import run

__all__ = ["run"]


def __getattr__(name: str) -> object:
    """Import :func:`run` and the modules on first use: they need two-step quantization, which itself needs the loop."""
    if name == "run":
        from .runner import run

        return run
    if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
