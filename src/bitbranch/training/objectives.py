"""What a training minimises. An objective is a module, for one may have parameters of its own, as hints have."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from .distillation import soft_target_loss


class Objective(nn.Module):
    """``objective(model, images, labels, done)``: the mean loss of a batch, and the share of right answers, 0..1.

    ``done`` is the share of the training that is over, 0 at its first step and 1 at its last.

    Attributes:
        judges: whether there are right answers; without, the share is 0 and not reported.
    """

    judges: bool = True

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor, done: float) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class Classification(Objective):
    """Cross-entropy, with a teacher's soft targets if there is one.

    Args:
        teacher: a network whose soft targets are learned too: the loss becomes ``(1 - share) * cross-entropy +
            share * t^2 * KL(teacher / t || model / t)``, see
            :func:`~bitbranch.training.distillation.soft_target_loss`.
        share: weight of the teacher's term, 0..1; a pair goes from the first to the second, linearly over the steps.
        temperature: ``t``.
        smoothing: share of the target that is spread evenly over all classes.
        label: of the training, for errors.

    Raises:
        InputError: a share or temperature out of range.
    """

    def __init__(
        self,
        *,
        teacher: nn.Module | None = None,
        share: float | tuple[float, float] = 0.5,
        temperature: float = 2.0,
        smoothing: float = 0.0,
        label: str = "training",
    ) -> None:
        super().__init__()
        self.shares = share if isinstance(share, tuple) else (share, share)
        if not all(0 <= s <= 1 for s in self.shares) or temperature <= 0:
            raise InputError(f"{label}: a teacher's share is 0..1 and its temperature positive")
        if not 0 <= smoothing < 1:
            raise InputError(f"{label}: label smoothing is at least 0 and below 1, got {smoothing}")
        self.temperature, self.smoothing = temperature, smoothing
        self._teacher = None if teacher is None else (teacher.eval(),)  # in a tuple: not trained, not saved

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor, done: float) -> tuple[Tensor, Tensor]:
        logits = model(images)
        loss, right = self.hard(logits, labels)
        if self._teacher is not None:
            with torch.no_grad():
                target = self._teacher[0](images)
            share = self.shares[0] + (self.shares[1] - self.shares[0]) * done
            loss = (1 - share) * loss + share * self.soft(logits, target, labels)
        return loss, right

    def hard(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss against the labels, and the share of right answers."""
        loss = F.cross_entropy(logits, labels, label_smoothing=self.smoothing)
        return loss, (logits.detach().argmax(1) == labels).double().mean()

    def soft(self, logits: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        """The loss against a teacher's logits."""
        return soft_target_loss(logits, target, self.temperature)
