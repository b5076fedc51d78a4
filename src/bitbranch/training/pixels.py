"""Semantic segmentation: what is minimised, and how a network is scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import processes
from ..errors import InputError
from ..tasks.segmentation import IGNORED, Confusion, masks
from .distillation import soft_target_loss
from .loop import Answers, evaluating
from .objectives import Classification


class Pixels(Classification):
    """Cross-entropy of every labelled pixel, with a teacher's soft targets for each if there is one.

    The model makes logits ``[N, C, H, W]`` of images, the labels are ``[N, H, W]``. With several processes each divides
    by what all count on average, so that the mean of their losses is the loss of the whole batch.

    Args:
        weights: of the classes, ``[C]``, as :func:`~bitbranch.tasks.segmentation.median_frequency` gives them; the mean
            over the pixels is weighted by them. None: all the same.
        ignored: label of the pixels that do not count.
        teacher, share, temperature, smoothing, label: see :class:`~bitbranch.training.objectives.Classification`.

    Raises:
        InputError: as there; weights that are negative or not finite.
    """

    weights: Tensor | None

    def __init__(
        self,
        *,
        weights: npt.ArrayLike | None = None,
        ignored: int = IGNORED,
        teacher: nn.Module | None = None,
        share: float | tuple[float, float] = 0.5,
        temperature: float = 2.0,
        smoothing: float = 0.0,
        label: str = "training",
    ) -> None:
        super().__init__(teacher=teacher, share=share, temperature=temperature, smoothing=smoothing, label=label)
        given = None if weights is None else torch.as_tensor(np.asarray(weights, np.float32))
        if given is not None and not bool((torch.isfinite(given) & (given >= 0)).all()):
            raise InputError(f"{label}: the classes' weights must be finite and at least 0")
        self.register_buffer("weights", given, persistent=False)
        self.ignored = ignored

    def hard(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        counted = labels != self.ignored
        loss = F.cross_entropy(
            logits.float(),
            labels,
            self.weights,
            ignore_index=self.ignored,
            reduction="sum",
            label_smoothing=self.smoothing,
        )
        of_pixels = counted if self.weights is None else self.weights[labels.where(counted, 0)] * counted
        right = (logits.detach().argmax(1) == labels).sum().double()
        of_all, count = processes.mean(torch.stack([of_pixels.sum().double(), counted.sum().double()]))
        return loss / of_all.clamp(min=1e-6).to(loss.dtype), right / count.clamp(min=1)

    def soft(self, logits: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        counted = labels != self.ignored
        count = counted.sum().float()
        share = count / processes.mean(count).clamp(min=1)
        if not counted.any():  # the mean over no pixels
            return 0 * logits.sum()
        student, teacher = (x.movedim(1, -1)[counted].float() for x in (logits, target))
        return share * soft_target_loss(student, teacher, self.temperature)


def evaluate(
    network: Callable[[Any], Any],
    batches: Iterable[tuple[Tensor, Tensor]],
    classes: Sequence[str],
    *,
    ignored: int = IGNORED,
) -> dict[str, float]:
    """Score whatever makes logits of images, batch by batch, at the masks' size.

    Args:
        network: a torch module, evaluated where its parameters are and left in its mode; or a function of float32
            arrays ``[n, C, H, W]`` that returns arrays, such as an engine. Logits of another size than the masks' give
            masks that are resized by the nearest pixel.
        batches: normalised images and masks ``[n, H, W]``; with several processes each has its part, and the result is
            that of all.
        classes: their names.
        ignored: label of the pixels that do not count.

    Returns:
        ``miou``, ``pixel_accuracy``, ``class_accuracy`` and ``iou NAME`` of each class, see
        :class:`~bitbranch.tasks.segmentation.Confusion`.

    Raises:
        InputError: no labelled pixels, or logits or labels that do not fit the classes.
    """
    module = network if isinstance(network, nn.Module) else Answers(network)
    confusion = Confusion(len(classes), ignored)
    with evaluating(module) as device:
        for images, labels in batches:
            logits = module(images.to(device)).float().cpu().numpy()
            confusion.add(labels.numpy(), masks(logits, (labels.shape[-2], labels.shape[-1])))
    confusion.matrix = processes.total(torch.from_numpy(confusion.matrix).to(device)).cpu().numpy()
    if not confusion.matrix.any():
        raise InputError("there are no labelled pixels to evaluate on")
    return confusion.figures(classes)
