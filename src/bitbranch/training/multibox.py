"""SSD's loss over default boxes, and how well a detector finds things."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import processes
from ..data.box_batches import BoxBatches
from ..data.box_set import BoxSet
from ..data.scenes import SceneBatches
from ..errors import InputError
from ..tasks.average_precision import average_precision, coco_average_precision, mean_average_precision
from ..tasks.boxes import DefaultBoxes, detections
from .loop import Answers, evaluating
from .objectives import Objective

Heads = tuple[Sequence[Tensor], Sequence[Tensor]]
"""Class maps ``[N, boxes * (1 + C), H, W]`` and box maps ``[N, boxes * 4, H, W]``."""


class Multibox(Objective):
    """Cross-entropy of the default boxes' classes and smooth L1 of the matched ones' offsets, over their number.

    Of the boxes that no object has, only those count that look least like background: ``negatives`` times as many as
    an image has matched ones (as if it had one, where it has none). The share of right answers is that of the boxes
    that count whose class is right.

    Args:
        boxes: the default ones.
        least: overlap by which a box takes an object; see :func:`bitbranch.tasks.boxes.match`.
        negatives: that count, for each matched box.
        weight: of the offsets' loss.
        teacher: a detector whose answers are learned too, on the boxes that count: the loss becomes ``(1 - share) *
            loss + share * (t^2 KL(teacher / t || model / t) + weight * smooth L1 to its offsets)``.
        share: weight of the teacher's term, 0..1; a pair goes from the first to the second, linearly over the steps.
        temperature: ``t``.
        label: of the training, for errors.

    Raises:
        InputError: a number out of range.

    Source: Liu et al., arXiv 1512.02325, equations (1) to (3) and hard negative mining in section 2.2.
    """

    def __init__(
        self,
        boxes: DefaultBoxes,
        *,
        least: float = 0.5,
        negatives: float = 3.0,
        weight: float = 1.0,
        teacher: nn.Module | None = None,
        share: float | tuple[float, float] = 0.5,
        temperature: float = 2.0,
        label: str = "training",
    ) -> None:
        super().__init__()
        self.centres: Tensor
        self.shares = share if isinstance(share, tuple) else (share, share)
        if not all(0 <= s <= 1 for s in self.shares) or temperature <= 0:
            raise InputError(f"{label}: a teacher's share is 0..1 and its temperature positive")
        if not 0 < least < 1 or negatives < 0 or weight < 0:
            raise InputError(
                f"{label}: an overlap is between 0 and 1, the share of negatives and the weight at least 0"
            )
        self.boxes, self.least, self.negatives, self.weight = boxes, least, negatives, weight
        self.temperature = temperature
        self.register_buffer("centres", torch.from_numpy(boxes.centres), persistent=False)
        self._teacher = None if teacher is None else (teacher.eval(),)  # in a tuple: not trained, not saved

    def forward(self, model: nn.Module, images: Tensor, targets: Tensor, done: float) -> tuple[Tensor, Tensor]:
        heads = model(images)
        if self._teacher is None:
            return self.loss(heads, targets)
        with torch.no_grad():
            soft = self._teacher[0](images)
        return self.loss(heads, targets, soft, self.shares[0] + (self.shares[1] - self.shares[0]) * done)

    def loss(
        self, heads: Heads, targets: Tensor, teacher: Heads | None = None, share: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """The loss of a batch and the share of right answers, from the heads and a teacher's."""
        logits, offsets = self.flattened(heads)
        with torch.no_grad():
            classes, wanted = self.wanted(targets)
            counted = self.counted(logits, classes)
        matched = classes > 0
        loss = F.cross_entropy(logits[counted], classes[counted], reduction="sum")
        loss = loss + self.weight * F.smooth_l1_loss(offsets[matched], wanted, reduction="sum")
        if teacher is not None:
            soft, places = self.flattened(teacher)
            learned = soft_targets(logits[counted], soft[counted], self.temperature)
            learned = learned + self.weight * F.smooth_l1_loss(offsets[matched], places[matched], reduction="sum")
            loss = (1 - share) * loss + share * learned
        right = (logits.detach().argmax(2) == classes)[counted]
        return loss / processes.mean(matched.sum().float()).clamp_min(1), right.double().mean()

    def flattened(self, heads: Heads) -> tuple[Tensor, Tensor]:
        """Logits ``[N, A, 1 + C]`` and offsets ``[N, A, 4]``, float32, in the order of the default boxes."""
        maps, places = heads
        classes = maps[0].shape[1] // self.boxes.per_pixel[0]
        both = [
            torch.cat([m.permute(0, 2, 3, 1).reshape(len(m), -1, numbers) for m in part], 1).float()
            for part, numbers in ((maps, classes), (places, 4))
        ]
        if both[0].shape[:2] != both[1].shape[:2] or both[0].shape[1] != len(self.boxes):
            raise InputError(f"multibox: {len(self.boxes)} default boxes, but the heads are for {both[0].shape[1]}")
        return both[0], both[1]

    def wanted(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Classes ``[N, A]``, 0 for the background, and the offsets of the matched boxes, ``[P, 4]``."""
        centres = self.centres.to(targets.device)
        owner = matched_truths(targets[..., :4], targets[..., 4] > 0, centres, self.least)
        image, box = (owner >= 0).nonzero(as_tuple=True)
        mine, classes = targets[image, owner[image, box]], torch.zeros_like(owner)
        classes[image, box] = mine[:, 4].long()
        return classes, encoded(mine[:, :4], centres[box], self.boxes.variances)

    def counted(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Which boxes count, bool ``[N, A]``: those of objects, and the hardest of the others."""
        matched = classes > 0
        doubt = (logits.logsumexp(2) - logits[..., 0]).masked_fill(matched, -1)  # of a background
        wanted = (self.negatives * matched.sum(1).clamp_min(1)).long().minimum((~matched).sum(1))
        places = torch.arange(classes.shape[1], device=classes.device)
        hardest = doubt.argsort(stable=True, dim=1, descending=True)
        return matched.scatter(1, hardest, matched.gather(1, hardest) | (places < wanted[:, None]))


def soft_targets(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``t^2 KL(softmax(teacher / t) || softmax(student / t))``, summed over the rows of ``[n, classes]``."""
    goal = F.log_softmax(teacher / temperature, 1)
    return temperature**2 * F.kl_div(F.log_softmax(student / temperature, 1), goal, log_target=True, reduction="sum")


def encoded(truths: Tensor, centres: Tensor, variances: tuple[float, float]) -> Tensor:
    """:func:`bitbranch.tasks.boxes.encode`; boxes without area, as a crop may leave them, are taken as very small."""
    centre, size = (truths[:, :2] + truths[:, 2:]) / 2, (truths[:, 2:] - truths[:, :2]).clamp_min(1e-6)
    places = (centre - centres[:, :2]) / centres[:, 2:] / variances[0]
    return torch.cat([places, (size / centres[:, 2:]).log() / variances[1]], 1)


def matched_truths(truths: Tensor, real: Tensor, centres: Tensor, least: float) -> Tensor:
    """The truth of each default box, ``[N, A]``, or -1: :func:`bitbranch.tasks.boxes.match` for a batch.

    Truths ask for their best box, all at once; a box keeps the one that overlaps it most, and the others ask for their
    next best until none is refused. As both sides rank by the same overlap, this gives the pairs that are found one by
    one, the largest overlap first.

    Args:
        truths: corners ``[N, M, 4]``.
        real: ``[N, M]``, false where a row only fills up.
        centres: default boxes, centre and size, ``[A, 4]``.
        least: overlap by which a box that no truth got takes one.
    """
    overlap = overlaps(truths, torch.cat([centres[:, :2] - centres[:, 2:] / 2, centres[:, :2] + centres[:, 2:] / 2], 1))
    overlap = overlap.masked_fill(~real[..., None], 0)
    most, owner = overlap.max(1)
    owner = torch.where(most >= least, owner, -1)
    count, boxes = overlap.shape[1:]
    asking = torch.arange(count, device=truths.device).expand(len(truths), count)
    while True:
        value, box = overlap.max(2)
        best = value.new_zeros(len(truths), boxes).scatter_reduce(1, box, value, "amax")
        equal = torch.where((value == best.gather(1, box)) & (value > 0), asking, count)
        winner = torch.full_like(owner, count).scatter_reduce(1, box, equal, "amin")
        refused = (winner.gather(1, box) != asking) & (value > 0)
        if not refused.any():
            return torch.where(winner < count, winner, owner)
        image, truth = refused.nonzero(as_tuple=True)
        overlap[image, truth, box[refused]] = 0


def overlaps(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes ``[N, M, 4]`` and ``[A, 4]``, ``[N, M, A]``."""
    a, areas = a[:, :, None], (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    width = a[..., 2].minimum(b[:, 2]).sub_(a[..., 0].maximum(b[:, 0])).clamp_min_(0)
    height = a[..., 3].minimum(b[:, 3]).sub_(a[..., 1].maximum(b[:, 1])).clamp_min_(0)
    shared = width.mul_(height)
    return shared / ((a[..., 2] - a[..., 0]) * (a[..., 3] - a[..., 1]) + areas - shared)


def evaluate(
    network: nn.Module | Callable[[Any], Any],
    batches: BoxBatches | SceneBatches,
    boxes: DefaultBoxes,
    *,
    objective: Multibox | None = None,
    coco: bool = False,
    threshold: float = 0.01,
    most: float = 0.45,
    top: int = 200,
    keep: int = 200,
    progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """How well a detector finds the objects of a set.

    Args:
        network: from images to class maps and box maps, nested or one behind the other, as the engine gives them. A
            module gets tensors and is evaluated in evaluation mode; any other function gets NumPy arrays.
        batches: the whole set in its order; whose ``pixels`` is set for a network that takes uint8 images.
        boxes: the default ones.
        objective: adds ``"loss"``, the mean over the images.
        coco: adds COCO's figures, with difficult objects as crowds; see
            :func:`~bitbranch.tasks.average_precision.coco_average_precision`.
        threshold, most, top, keep: see :func:`~bitbranch.tasks.boxes.detections`.
        progress: called with the number of images done.

    Returns:
        ``"map"``, VOC's mean average precision at an overlap of 0.5, the area under the curve; ``"map_2007"``, that of
        11 points; ``"ap_CLASS"`` for each class that has objects; what else was asked for.

    Raises:
        InputError: batches of a part, or in another order; no objects to find; maps of other default boxes.
    """
    if batches.training or batches.part != (0, 1):
        raise InputError("evaluation: batches must be of the whole set, in its order")
    module = network if isinstance(network, nn.Module) else Answers(network)
    found, losses = list[npt.NDArray[np.float32]](), 0.0
    with evaluating(module) as device:
        for images, targets in batches:
            maps = [m.float().cpu() for m in _flat(module(images.to(device)))]
            heads = maps[: len(maps) // 2], maps[len(maps) // 2 :]
            classes, places = ([m.numpy() for m in part] for part in heads)
            found += detections(classes, places, boxes, threshold=threshold, most=most, top=top, keep=keep)
            if objective is not None:
                losses += float(objective.loss(heads, targets)[0]) * len(images)
            if progress is not None:
                progress(len(found))
    return _scores(found, batches.pictures, coco) | ({} if objective is None else {"loss": losses / len(found)})


def _scores(found: list[npt.NDArray[np.float32]], pictures: BoxSet, coco: bool) -> dict[str, float]:
    count = len(pictures.classes)
    area, eleven = (
        average_precision(
            found, pictures.boxes, classes=count, difficult=pictures.difficult, eleven_points=eleven_points
        )
        for eleven_points in (False, True)
    )
    if np.isnan(area).all():
        raise InputError(f"{pictures.source}: there are no objects to find")
    scores = {"map": mean_average_precision(area), "map_2007": mean_average_precision(eleven)}
    scores |= {f"ap_{n}": ap for n, ap in zip(pictures.classes, area[0].tolist(), strict=True) if not np.isnan(ap)}
    if coco:
        scores |= coco_average_precision(
            found, pictures.boxes, classes=count, sizes=pictures.sizes, crowd=pictures.difficult
        )
    return scores


def _flat(heads: Any) -> list[Any]:
    return [m for part in heads for m in _flat(part)] if isinstance(heads, (tuple, list)) else [heads]
