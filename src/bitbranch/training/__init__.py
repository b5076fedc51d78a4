"""Training: one plain loop, and checkpoints."""

from .loop import Epoch, evaluate, fit, predict

__all__ = ["Epoch", "evaluate", "fit", "predict"]
