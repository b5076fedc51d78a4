"""Pictures with boxes of objects, whatever format describes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .dataset import evenly, named
from .pictures import MEAN, STD, SUFFIXES, size_of

OnError = Callable[[InputError], None] | None
"""Takes what is wrong with one picture or box, which is then left out; None raises it."""

SLACK = 1.0
"""Pixels by which a box may reach out of its picture: it was rounded, and is cut."""


@dataclass(frozen=True)
class BoxSet:
    """Picture files and the objects in them.

    Attributes:
        paths: the files.
        boxes: for each picture float32 ``[m, 5]``: ``x0, y0, x1, y1``, shares of its width and height, and the class,
            ``1 .. C``; a picture may have none.
        difficult: for each picture bool ``[m]``: objects that need not be found (VOC's difficult ones, COCO's crowds).
        sizes: the pictures' heights and widths in pixels, int64 ``[N, 2]``.
        classes: the names of classes ``1 .. C``.
        size: height and width that networks get.
        source: for reports.
        mean, std: per channel, of pixels scaled to 0..1.
        crowds: difficult objects are crowds, which are not learned, and figures are COCO's, too.
    """

    paths: tuple[str, ...]
    boxes: tuple[npt.NDArray[np.float32], ...]
    difficult: tuple[npt.NDArray[np.bool_], ...]
    sizes: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    size: tuple[int, int]
    source: str
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    crowds: bool = False

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of what networks get."""
        return 3, *self.size

    def spread(self, count: int) -> BoxSet:
        """At most ``count`` pictures at equal distances."""
        kept = evenly(len(self), count)
        return replace(
            self,
            paths=tuple(self.paths[i] for i in kept),
            boxes=tuple(self.boxes[i] for i in kept),
            difficult=tuple(self.difficult[i] for i in kept),
            sizes=self.sizes[kept],
            source=named(self.source, len(self), count),
        )


class Object(NamedTuple):
    """An object as an annotation describes it.

    Attributes:
        where: what errors call it: file, and which of its objects.
        name: of its class.
        corners: ``x0, y0, x1, y1`` in pixels; the picture's edges are 0 and its width or height.
        difficult: see :class:`BoxSet`.
    """

    where: str
    name: str
    corners: tuple[float, float, float, float]
    difficult: bool


class Collector:
    """Gathers pictures and their boxes for a :class:`BoxSet`, and says what is wrong with them.

    Args:
        classes: names of the classes that may be met.
        on_error: see :data:`OnError`.
    """

    def __init__(self, classes: tuple[str, ...], on_error: OnError) -> None:
        self.classes, self.on_error = classes, on_error
        self.numbers = {name: number for number, name in enumerate(classes, 1)}
        self.pictures: list[tuple[str, npt.NDArray[np.float32], npt.NDArray[np.bool_], tuple[int, int]]] = []

    def report(self, error: InputError) -> None:
        """Raise the error, or hand it to those who collect them."""
        if self.on_error is None:
            raise error
        self.on_error(error)

    def picture(self, path: Path, stated: tuple[int, int] | None) -> tuple[int, int] | None:
        """Height and width of a picture file; None, and reported, if it is not what was ``stated``.

        The file is opened but not decoded.
        """
        try:
            size = size_of(path)
            if stated not in (None, size):
                raise InputError(f"{path}: {size[1]}x{size[0]} pixels, but its annotation says {stated[1]}x{stated[0]}")
        except InputError as error:
            self.report(error)
            return None
        return size

    def add(self, path: Path, size: tuple[int, int], objects: Iterable[Object]) -> None:
        """Add a picture of this height and width, and those of its objects that nothing is wrong with."""
        rows, difficult = list[list[float]](), list[bool]()
        for thing in objects:
            try:
                rows.append([*_shares(thing, size), self._number(thing)])
                difficult.append(thing.difficult)
            except InputError as error:
                self.report(error)
        self.pictures.append((str(path), np.array(rows, np.float32).reshape(-1, 5), np.array(difficult, bool), size))

    def _number(self, thing: Object) -> int:
        if thing.name not in self.numbers:
            raise InputError(f"{thing.where}: unknown class {thing.name!r}; expected {', '.join(self.classes)}")
        return self.numbers[thing.name]

    def finish(self, source: str, size: tuple[int, int]) -> BoxSet:
        """The set of what was added.

        Raises:
            InputError: there are no pictures.
        """
        if not self.pictures:
            raise InputError(f"{source}: there are no pictures")
        paths, boxes, difficult, sizes = zip(*self.pictures, strict=True)
        source = f"{source}, {len(paths):,} pictures"
        return BoxSet(paths, boxes, difficult, np.array(sizes, np.int64), self.classes, size, source)


def _shares(thing: Object, size: tuple[int, int]) -> list[float]:
    """Corners as shares of the picture, cut at its edges.

    Raises:
        InputError: not a box, or not in the picture.
    """
    height, width = size
    x0, y0, x1, y1 = thing.corners
    text = f"{thing.where}: the box {x0:g}, {y0:g} .. {x1:g}, {y1:g}"
    if not np.isfinite(thing.corners).all():
        raise InputError(f"{text} is not finite")
    if x1 <= x0 or y1 <= y0:
        raise InputError(f"{text} is {'inverted' if x1 < x0 or y1 < y0 else 'empty'}")
    cut = [max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))]
    if np.abs(np.subtract(cut, thing.corners)).max() > SLACK or cut[0] >= cut[2] or cut[1] >= cut[3]:
        raise InputError(f"{text} reaches out of the picture of {width}x{height} pixels")
    return [cut[0] / width, cut[1] / height, cut[2] / width, cut[3] / height]


def picture_file(stem: Path) -> Path | None:
    """The picture with this path but for its ending, if there is one."""
    endings = [ending for suffix in SUFFIXES for ending in (suffix, suffix.upper())]
    return next((p for ending in endings for p in (stem.with_name(stem.name + ending),) if p.is_file()), None)
