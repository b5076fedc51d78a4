"""Training: one loop for all networks, trainings in stages, distillation, checkpoints, and whole runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .runner import run

__all__ = ["run"]


def __getattr__(name: str) -> object:
    """Import :func:`run` on first use: it needs all of two-step quantization, which itself needs the loop."""
    if name == "run":
        from .runner import run

        return run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
