"""What a student learns from a teacher's outputs: soft targets, on top of any method."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError


def soft_target_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T^2 KL(softmax(teacher / T) || softmax(student / T))``, mean over the images.

    Its gradient is that of the cross-entropy with the teacher's softened probabilities, which the paper states; ``T^2``
    keeps its size as the temperature changes.

    Args:
        student, teacher: logits ``[N, classes]``; the teacher's get no gradient.
        temperature: ``T``, above 0.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2.
    """
    target = F.log_softmax(teacher.detach() / temperature, dim=1)
    return temperature**2 * F.kl_div(
        F.log_softmax(student / temperature, dim=1), target, log_target=True, reduction="batchmean"
    )


def hint_loss(guided: Tensor, hint: Tensor, regressor: nn.Module) -> Tensor:
    """``1/2 || hint - regressor(guided) ||^2``, mean over the images.

    Args:
        guided: an inner output of the student, ``[N, ...]``.
        hint: of the teacher, ``[N, ...]``; it gets no gradient.
        regressor: brings the first to the shape of the second.

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, equation (3).
    """
    return 0.5 * (hint.detach() - regressor(guided)).square().flatten(1).sum(1).mean()


def hint_regressor(guided: torch.Size | tuple[int, ...], hint: torch.Size | tuple[int, ...]) -> nn.Module:
    """A regressor from the student's shape ``[N, C, ...]`` to the teacher's: linear, or a convolution.

    The kernel of a convolution is as large as what the student's output has more in height and width than the
    teacher's, plus one, without padding; so it has few parameters.

    Raises:
        InputError: other numbers of dimensions, or a student's output that is smaller than the teacher's.

    Source: Romero et al., ICLR 2015, section 2.2: the convolutional regressor.
    """
    if len(guided) != len(hint) or not 2 <= len(hint) <= 4:
        raise InputError(
            f"hints: no regressor from {list(guided)} to {list(hint)}; both are [N, C], [N, C, L] or images"
        )
    if len(hint) == 2:
        return nn.Linear(guided[1], hint[1])
    kernel = tuple(g - h + 1 for g, h in zip(guided[2:], hint[2:], strict=True))
    if min(kernel) < 1:
        raise InputError(f"hints: the guided layer's output {list(guided)} is smaller than the hint {list(hint)}")
    if len(hint) == 3:
        return nn.Conv1d(guided[1], hint[1], kernel[0])
    return nn.Conv2d(guided[1], hint[1], (kernel[0], kernel[1]))
