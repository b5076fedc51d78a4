"""How well boxes are found: average precision as Pascal VOC and as COCO define it.

Detections are what :func:`bitbranch.tasks.boxes.detections` gives, ``[k, 6]`` for each picture: corners, score, class;
truths are ``[m, 5]``: corners and class ``1 .. C``, all in shares of the picture's width and height.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .boxes import Floats, intersection_over_union

Flags = npt.NDArray[np.bool_]

COCO_FIGURES = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip
"""Names of what :func:`coco_average_precision` gives, in pycocotools' order."""


def average_precision(
    detections: Sequence[Floats],
    truths: Sequence[Floats],
    *,
    classes: int,
    difficult: Sequence[Flags] | None = None,
    thresholds: Sequence[float] = (0.5,),
    eleven_points: bool = False,
) -> npt.NDArray[np.float64]:
    """VOC's average precision of each class at each threshold, ``[thresholds, classes]``.

    A detection, in the order of the scores, is right if the truth of its class and picture that it overlaps most is
    overlapped by the threshold at least and not yet found; a second one of the same truth is wrong. Difficult truths
    need not be found, and detections of them count neither way. A class without truths (but for difficult ones) is
    ``nan``.

    Args:
        detections, truths: one array for each picture.
        classes: ``C``.
        difficult: ``[m]`` for each picture; none if not given.
        thresholds: intersection over union.
        eleven_points: the mean of the best precision at recalls of 0, 0.1 .. 1, as until 2009; else the area under the
            curve of that precision.

    Raises:
        InputError: lists of other lengths, or a class that is not ``1 .. C``.

    Source: Everingham et al., "The Pascal Visual Object Classes Challenge", IJCV 2010, section 4.2, and the
    development kits of VOC2007 and VOC2012.
    """
    if difficult is None:
        difficult = [np.zeros(len(t), bool) for t in truths]
    if not len(detections) == len(truths) == len(difficult):
        raise InputError(
            f"average precision: detections of {len(detections)} pictures, truths of {len(truths)}, and which are "
            f"difficult of {len(difficult)}"
        )
    for rows in (*(d[:, 5] for d in detections), *(t[:, 4] for t in truths)):
        if len(rows) and not (1 <= rows.min() and rows.max() <= classes):
            raise InputError(f"average precision: a class is 1..{classes}, got {rows.min():g}..{rows.max():g}")
    out = np.empty((len(thresholds), classes))
    for number in range(1, classes + 1):
        overlaps, owners, counted = _paired(detections, truths, difficult, number)
        for row, threshold in enumerate(thresholds):
            right = _right(overlaps >= threshold, owners, counted)
            out[row, number - 1] = _summary(right, int(counted.sum()), eleven_points)
    return out


def mean_average_precision(precisions: npt.NDArray[np.float64]) -> float:
    """Mean over the thresholds and the classes that have truths; ``nan`` where none has."""
    return float(np.nanmean(precisions)) if not np.isnan(precisions).all() else float("nan")


def _paired(
    detections: Sequence[Floats], truths: Sequence[Floats], difficult: Sequence[Flags], number: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], Flags]:
    """For one class: of each detection, best first, its largest overlap and the truth's number; which truths count."""
    scores, overlaps, owners, counted = [np.zeros(0)], [np.zeros(0)], [np.zeros(0, np.int64)], [np.zeros(0, bool)]
    seen = 0
    for found, real, hard in zip(detections, truths, difficult, strict=True):
        found, mine = found[found[:, 5] == number], real[:, 4] == number
        counted.append(~hard[mine])
        overlap: npt.NDArray[np.floating] = np.zeros((len(found), 1))
        if mine.any():
            overlap = intersection_over_union(found[:, :4].astype(np.float64), real[mine, :4].astype(np.float64))
        scores.append(found[:, 4])
        overlaps.append(overlap.max(1))
        owners.append(seen + overlap.argmax(1))
        seen += int(mine.sum())
    order = np.argsort(-np.concatenate(scores), kind="stable")
    return np.concatenate(overlaps)[order], np.concatenate(owners)[order], np.concatenate(counted)


def _right(enough: Flags, owners: npt.NDArray[np.int64], counted: Flags) -> Flags:
    """Whether each detection is right, those of difficult truths left out."""
    right = np.zeros(len(enough), bool)
    hits = np.flatnonzero(enough)
    right[hits[np.unique(owners[hits], return_index=True)[1]]] = True  # the first of each truth
    ignored = enough.copy()
    ignored[hits] = ~counted[owners[hits]]
    return right[~ignored]


def _summary(right: Flags, truths: int, eleven_points: bool) -> float:
    """Average precision of a list of right and wrong detections, best first."""
    if not truths:
        return float("nan")
    hits = np.cumsum(right)
    precision = hits / np.arange(1, len(right) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]  # at this recall or a larger one
    if not eleven_points:
        return float(best[right].sum() / truths)
    first = np.searchsorted(10 * hits, np.arange(11) * truths)  # in integers: a recall of 0.3 is 3 of 10
    return float(np.append(best, 0.0)[first].mean())


def coco_average_precision(
    detections: Sequence[Floats],
    truths: Sequence[Floats],
    *,
    classes: int,
    sizes: npt.NDArray[np.int64],
    crowd: Sequence[Flags] | None = None,
) -> dict[str, float]:
    """COCO's twelve figures, by pycocotools: :data:`COCO_FIGURES`.

    ``ap`` is the mean over overlaps of 0.5 to 0.95. A figure that nothing falls under is -1. Boxes are small, medium or
    large by their own area, which for COCO's masks is that of the mask.

    Args:
        detections, truths, classes: as for :func:`average_precision`.
        sizes: height and width of each picture, ``[N, 2]``.
        crowd: which truths stand for many objects, ``[m]`` for each picture; none if not given.

    Raises:
        InputError: pycocotools is not installed, or lists of other lengths.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise InputError("COCO's average precision needs pycocotools: pip install pycocotools") from None
    if crowd is None:
        crowd = [np.zeros(len(t), bool) for t in truths]
    if not len(detections) == len(truths) == len(crowd) == len(sizes):
        raise InputError(
            f"COCO's average precision: detections of {len(detections)} pictures, truths of {len(truths)}, crowds of "
            f"{len(crowd)}, sizes of {len(sizes)}"
        )
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it returns
        real, found = COCO(), COCO()
        for coco, rows in ((real, truths), (found, detections)):
            coco.dataset = {
                "images": [{"id": i} for i in range(len(sizes))],
                "categories": [{"id": c} for c in range(1, classes + 1)],
                "annotations": _annotations(rows, sizes, crowd if coco is real else None),
            }
            coco.createIndex()
        evaluation = COCOeval(real, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(COCO_FIGURES, map(float, evaluation.stats), strict=True))


def _annotations(
    pictures: Sequence[Floats], sizes: npt.NDArray[np.int64], crowd: Sequence[Flags] | None
) -> list[dict[str, object]]:
    """COCO's records of truths, or of detections where ``crowd`` is None."""
    out: list[dict[str, object]] = []
    for image, (rows, (height, width)) in enumerate(zip(pictures, sizes.tolist(), strict=True)):
        for i, row in enumerate(
            (rows.astype(np.float64) * [*(width, height) * 2, *[1] * (rows.shape[1] - 4)]).tolist()
        ):
            x, y, w, h = row[0], row[1], row[2] - row[0], row[3] - row[1]
            record = {"id": len(out) + 1, "image_id": image, "bbox": [x, y, w, h], "area": w * h}
            if crowd is None:
                record |= {"score": row[4], "category_id": int(row[5]), "iscrowd": 0}
            else:
                record |= {"category_id": int(row[4]), "iscrowd": int(crowd[image][i])}
            out.append(record)
    return out
