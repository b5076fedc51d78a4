"""How weights are updated: optimizers, and the course of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import InputError

OPTIMIZERS = ("adam", "sgd")
SCHEDULES = ("cosine", "step", "linear", "constant")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Settings:
    """The numbers of a training.

    Args:
        epochs: passes over the batches; 0 does nothing.
        lr: peak learning rate.
        optimizer: ``"adam"`` or ``"sgd"`` (with ``momentum``, Nesterov).
        weight_decay: decoupled for Adam; only weights (two or more dimensions) decay, no bias, BatchNorm or step.
        momentum: of ``"sgd"``.
        schedule: ``"cosine"`` or ``"linear"`` (to zero), ``"step"`` (times ``decay`` at each milestone) or
            ``"constant"``.
        milestones: of ``"step"``, in epochs, rising.
        decay: of ``"step"``.
        warmup: epochs, or a part of one, over which the rate first rises linearly; None is a tenth of the training and
            at most 100 steps for ``"cosine"``, and nothing for the others.
        precision: of the forward pass in training, ``"float32"`` or ``"bfloat16"`` (torch's automatic mixed precision:
            weights, sums, BatchNorm statistics and the loss stay float32). Evaluation is always float32.

    Raises:
        InputError: an unknown word, or a number out of range; names it.
    """

    epochs: int
    lr: float
    optimizer: str = "adam"
    weight_decay: float = 0.0
    momentum: float = 0.9
    schedule: str = "cosine"
    milestones: tuple[float, ...] = ()
    decay: float = 0.1
    warmup: float | None = None
    precision: str = "float32"

    def __post_init__(self) -> None:
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("precision", tuple(PRECISIONS))):
            if getattr(self, name) not in known:
                expected = " or ".join(filter(None, [", ".join(map(repr, known[:-1])), repr(known[-1])]))
                raise InputError(f"{name} {getattr(self, name)!r}: expected {expected}")
        for name in ("epochs", "lr", "weight_decay", "momentum", "decay", "warmup"):
            if not 0 <= (getattr(self, name) or 0) < math.inf:
                raise InputError(f"{name} must be at least 0, got {getattr(self, name)}")
        if list(self.milestones) != sorted(self.milestones) or (self.schedule == "step") != bool(self.milestones):
            raise InputError(
                f"milestones are rising epochs, and for schedule 'step' alone; got {list(self.milestones)} for "
                f"{self.schedule!r}"
            )

    def rate(self, steps_per_epoch: int) -> Callable[[int], float]:
        """The factor of the learning rate at a 0-based step."""
        steps = self.epochs * steps_per_epoch
        if self.warmup is not None:
            warm_up = round(self.warmup * steps_per_epoch)
        else:
            warm_up = max(1, min(steps // 10, 100)) if self.schedule == "cosine" else 0
        marks = [m * steps_per_epoch for m in self.milestones]

        def factor(step: int) -> float:
            if self.schedule == "cosine":
                course = 0.5 * (1 + math.cos(math.pi * step / max(1, steps)))
            elif self.schedule == "linear":
                course = 1 - step / max(1, steps)
            else:
                course = self.decay ** sum(step >= mark for mark in marks)
            return min(1.0, (step + 1) / warm_up) * course if warm_up else course

        return factor

    def update_rule(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer for a network's parameters that have a gradient."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        if self.optimizer == "adam":
            return torch.optim.AdamW(groups, lr=self.lr)
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.momentum > 0)
