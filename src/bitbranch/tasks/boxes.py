"""Boxes of SSD: the default ones, matching and encoding, and from a network's maps back to boxes of the picture.

A box is four numbers, shares of the picture's width and height: its corners ``x0, y0, x1, y1``, or where it is said so
its centre and size ``cx, cy, w, h``. A class is ``1 .. C``; 0 is the background.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..errors import InputError

Floats = npt.NDArray[np.float32]

RATIOS = (1.0, 2.0, 1 / 2, 3.0, 1 / 3)
"""Width over height of the default boxes of a map's own scale, as far as a map has so many; section 2.2."""


@dataclass(frozen=True)
class DefaultBoxes:
    """The boxes that a detector corrects, in the order of its heads' numbers: map, row, column, box.

    A map of scale ``s`` has at each pixel one box of ``s sqrt(a)`` by ``s / sqrt(a)`` for each of its ratios ``a`` and,
    behind them, a square one of ``sqrt(s s')``, where ``s'`` is the next scale; their centre is the pixel's. Scales are
    shares of the shorter side, so that boxes of ratio 1 are squares of pixels.

    Args:
        image_size: height and width of the network's images.
        sizes: height and width of each feature map.
        scales: of each feature map, and one more.
        ratios: width over height, map by map; may be empty where the square box alone is wanted.
        variances: by which encoded centres and sizes are divided.

    Raises:
        InputError: lengths that do not fit together, or numbers that are not positive.

    Source: Liu et al., arXiv 1512.02325, section 2.2.
    """

    image_size: tuple[int, int]
    sizes: tuple[tuple[int, int], ...]
    scales: tuple[float, ...]
    ratios: tuple[tuple[float, ...], ...]
    variances: tuple[float, float] = (0.1, 0.2)

    def __post_init__(self) -> None:
        if not len(self.sizes) == len(self.ratios) == len(self.scales) - 1:
            raise InputError(
                f"default boxes: {len(self.sizes)} maps need as many lists of ratios and one scale more, got "
                f"{len(self.ratios)} and {len(self.scales)}"
            )
        pairs = (self.image_size, self.variances, *self.sizes)
        numbers = [*self.scales, *(a for ratios in self.ratios for a in ratios), *(n for pair in pairs for n in pair)]
        if any(len(pair) != 2 for pair in pairs) or not all(0 < n < math.inf for n in numbers):
            raise InputError("default boxes: sizes and variances are pairs, and all numbers are positive")

    @property
    def per_pixel(self) -> tuple[int, ...]:
        """Boxes at each pixel, map by map."""
        return tuple(len(ratios) + 1 for ratios in self.ratios)

    def __len__(self) -> int:
        return sum(h * w * count for (h, w), count in zip(self.sizes, self.per_pixel, strict=True))

    @cached_property
    def centres(self) -> Floats:
        """All boxes, float32 ``[A, 4]``: centre and size."""
        height, width = self.image_size
        maps = []
        for (rows, columns), scale, after, ratios in zip(
            self.sizes, self.scales[:-1], self.scales[1:], self.ratios, strict=True
        ):
            shapes = [(scale * math.sqrt(a), scale / math.sqrt(a)) for a in ratios] + [(math.sqrt(scale * after),) * 2]
            y, x = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
            boxes = np.empty((rows, columns, len(shapes), 4))
            boxes[..., 0], boxes[..., 1] = x[..., None], y[..., None]
            boxes[..., 2:] = np.array(shapes) * min(height, width) / (width, height)
            maps.append(boxes.reshape(-1, 4))
        return np.concatenate(maps).astype(np.float32)

    def to_json(self) -> str:
        """One line, for :meth:`from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> DefaultBoxes:
        """The boxes that :meth:`to_json` wrote.

        Raises:
            InputError: the text is something else.
        """
        try:
            stored = json.loads(text)
            return cls(
                image_size=_pair(stored["image_size"]),
                sizes=tuple(_pair(size) for size in stored["sizes"]),
                scales=tuple(map(float, stored["scales"])),
                ratios=tuple(tuple(map(float, ratios)) for ratios in stored["ratios"]),
                variances=(float(stored["variances"][0]), float(stored["variances"][1])),
            )
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise InputError(f"default boxes: not what was stored ({type(error).__name__}: {error})") from None


def _pair(numbers: Sequence[int]) -> tuple[int, int]:
    height, width = map(int, numbers)
    return height, width


def linear_scales(
    maps: int, *, smallest: float = 0.2, largest: float = 0.9, first: float | None = 0.1
) -> tuple[float, ...]:
    """Scales at equal distances for the maps, and the one that would come next.

    Args:
        maps: how many.
        smallest, largest: of the maps that have them.
        first: of the first map alone, in front of the others; None leaves it to the equal distances.

    Source: Liu et al., arXiv 1512.02325, equation (4); ``first`` is 0.1 in section 3.1.
    """
    rest = maps - (first is not None)
    step = (largest - smallest) / max(1, rest - 1)
    scales = tuple(smallest + step * k for k in range(rest + 1))
    return scales if first is None else (first, *scales)


def usual_ratios(count: int) -> tuple[float, ...]:
    """The ratios of a map with so many boxes at each pixel, 1 .. 6: the paper's for 4 and for 6.

    Raises:
        InputError: more boxes than there are usual ratios.
    """
    if not 1 <= count <= len(RATIOS) + 1:
        raise InputError(
            f"default boxes: 1 to {len(RATIOS) + 1} at a pixel have usual ratios, got {count}; give ratios"
        )
    return RATIOS[: count - 1]


def corners(boxes: Floats) -> Floats:
    """Centre and size to corners, ``[..., 4]``."""
    half = boxes[..., 2:] / 2
    return np.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], -1)


def intersection_over_union(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Of each pair of boxes, ``[..., M, 4]`` and ``[..., N, 4]`` to ``[..., M, N]``; 0 where a pair has no area."""
    a0, a1, a2, a3 = (a[..., :, None, i] for i in range(4))
    b0, b1, b2, b3 = (b[..., None, :, i] for i in range(4))
    width, height = np.minimum(a2, b2) - np.maximum(a0, b0), np.minimum(a3, b3) - np.maximum(a1, b1)
    shared = np.maximum(width, 0) * np.maximum(height, 0)
    whole = (a2 - a0) * (a3 - a1) + (b2 - b0) * (b3 - b1) - shared
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)


def match(truths: Floats, boxes: DefaultBoxes, *, least: float = 0.5) -> npt.NDArray[np.int64]:
    """The truth of each default box, ``[A]``: its number, or -1.

    First each truth gets the box of largest overlap, pairs of larger overlap before others, so that no two share one;
    then each box that is left takes the truth that it overlaps most, if by ``least`` at least.

    Args:
        truths: ``[M, 4]``.
        boxes: the default ones.
        least: intersection over union.

    Source: Liu et al., arXiv 1512.02325, section 2.2, matching strategy.
    """
    matched = np.full(len(boxes), -1)
    if not len(truths):
        return matched
    overlap = intersection_over_union(truths, corners(boxes.centres))
    enough = overlap.max(0) >= least
    matched[enough] = overlap.argmax(0)[enough]
    for _ in truths:
        truth, box = np.unravel_index(overlap.argmax(), overlap.shape)
        if overlap[truth, box] <= 0:
            break
        matched[box] = truth
        overlap[truth], overlap[:, box] = -1, -1
    return matched


def encode(truths: Floats, centres: Floats, variances: tuple[float, float] = (0.1, 0.2)) -> Floats:
    """What a network should say of truths: their distance from default boxes, ``[..., 4]``.

    Args:
        truths: corners, ``[..., 4]``.
        centres: default boxes, centre and size, of the same shape.
        variances: of centre and size.

    Source: Liu et al., arXiv 1512.02325, equation (2); the variances are those of its published code.
    """
    centre, size = (truths[..., :2] + truths[..., 2:]) / 2, truths[..., 2:] - truths[..., :2]
    places = (centre - centres[..., :2]) / centres[..., 2:] / variances[0]
    return np.concatenate([places, np.log(size / centres[..., 2:]) / variances[1]], -1, dtype=np.float32)


def decode(offsets: Floats, centres: Floats, variances: tuple[float, float] = (0.1, 0.2)) -> Floats:
    """Inverse of :func:`encode`: corners ``[..., 4]``; sizes above e^10 default boxes are cut."""
    centre = centres[..., :2] + offsets[..., :2] * variances[0] * centres[..., 2:]
    size = centres[..., 2:] * np.exp(np.minimum(offsets[..., 2:] * variances[1], 10))
    return corners(np.concatenate([centre, size], -1, dtype=np.float32))


def suppress(boxes: Floats, scores: Floats, *, most: float = 0.45, top: int = 200) -> npt.NDArray[np.int64]:
    """Numbers of the boxes that stay, best first: none overlaps a better one by more than ``most``.

    Args:
        boxes: ``[N, 4]``.
        scores: ``[N]``.
        most: intersection over union.
        top: only so many of the best boxes take part.
    """
    order = np.argsort(-scores, kind="stable")[:top]
    clash = intersection_over_union(boxes[order], boxes[order]) > most
    stays = np.ones(len(order), bool)
    for i in range(len(order)):
        if stays[i]:
            stays[i + 1 :] &= ~clash[i, i + 1 :]
    return order[stays]


def flattened(maps: Sequence[Floats], numbers: int) -> Floats:
    """Maps ``[N, boxes * numbers, H, W]`` as the default boxes lie, ``[N, A, numbers]``."""
    return np.concatenate([m.transpose(0, 2, 3, 1).reshape(len(m), -1, numbers) for m in maps], 1, dtype=np.float32)


def detections(
    class_maps: Sequence[Floats],
    box_maps: Sequence[Floats],
    boxes: DefaultBoxes,
    *,
    threshold: float = 0.01,
    most: float = 0.45,
    top: int = 200,
    keep: int = 200,
) -> list[Floats]:
    """What a detector found, picture by picture: float32 ``[k, 6]``, corners, score and class, best first.

    Args:
        class_maps: logits ``[N, boxes * (1 + C), H, W]`` of each map, the background first.
        box_maps: offsets ``[N, boxes * 4, H, W]`` of each map.
        boxes: the default ones.
        threshold: scores, softmax over the classes, below it are left out.
        most, top: of the suppression, class by class; see :func:`suppress`.
        keep: at most so many boxes of a picture.

    Raises:
        InputError: maps that are not of these default boxes.

    Source: Liu et al., arXiv 1512.02325, section 2.2 (training objective) and 3.7 (inference).
    """
    _check_maps(class_maps, box_maps, boxes)
    logits = flattened(class_maps, class_maps[0].shape[1] // boxes.per_pixel[0])
    offsets = flattened(box_maps, 4)
    return [
        _best(*picture, boxes, threshold=threshold, most=most, top=top, keep=keep)
        for picture in zip(logits, offsets, strict=True)
    ]


def _check_maps(class_maps: Sequence[Floats], box_maps: Sequence[Floats], boxes: DefaultBoxes) -> None:
    if not len(class_maps) == len(box_maps) == len(boxes.sizes):
        raise InputError(
            f"detections: default boxes for {len(boxes.sizes)} maps, got {len(class_maps)} of classes and "
            f"{len(box_maps)} of boxes"
        )
    classes = class_maps[0].shape[1] // boxes.per_pixel[0]
    for number, (c, b, size, count) in enumerate(zip(class_maps, box_maps, boxes.sizes, boxes.per_pixel, strict=True)):
        if c.shape != (len(b), count * classes, *size) or b.shape != (len(b), count * 4, *size) or classes < 2:
            raise InputError(
                f"detections: map {number} has {count} default boxes at {size[0]}x{size[1]} pixels, got classes "
                f"{list(c.shape)} and boxes {list(b.shape)}"
            )


def _best(
    logits: Floats, offsets: Floats, boxes: DefaultBoxes, *, threshold: float, most: float, top: int, keep: int
) -> Floats:
    """The detections of one picture, from ``[A, 1 + C]`` and ``[A, 4]``."""
    scores = np.exp(logits - logits.max(1, keepdims=True))
    scores /= scores.sum(1, keepdims=True)
    likely = np.flatnonzero(scores[:, 1:].max(1) >= threshold)
    scores = np.ascontiguousarray(scores[likely, 1:].T)
    places = decode(offsets[likely], boxes.centres[likely], boxes.variances).clip(0, 1)
    found = [np.zeros((0, 6), np.float32)]
    for number, of_class in enumerate(scores, 1):
        chosen = np.flatnonzero(of_class >= threshold)
        chosen = chosen[suppress(places[chosen], of_class[chosen], most=most, top=top)]
        rows = np.empty((len(chosen), 6), np.float32)
        rows[:, :4], rows[:, 4], rows[:, 5] = places[chosen], of_class[chosen], number
        found.append(rows)
    rows = np.concatenate(found)
    return rows[np.argsort(-rows[:, 4], kind="stable")[:keep]]
