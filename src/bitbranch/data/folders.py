"""Large pictures in folders, one for each class, as ImageNet has them; decoded as they are needed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .batches import Arrays, BatchSource
from .dataset import evenly, named
from .pictures import MEAN, STD, SUFFIXES, open_rgb
from .prepared import NAMES

if TYPE_CHECKING:
    from PIL.Image import Image

AREA, RATIO, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10
"""Of the random crops: shares of the picture's area, width over height, and how often to try."""


@dataclass(frozen=True)
class PictureSet:
    """Labelled picture files.

    Attributes:
        paths: the files, class by class, in the order of their names.
        labels: int64 ``[N]``.
        classes: names of the folders, sorted; a picture's label is its folder's place.
        size: height and width that networks get.
        source: for reports.
        mean, std: per channel, of pixels scaled to 0..1.
    """

    paths: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    size: int
    source: str
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of what networks get."""
        return 3, self.size, self.size

    def numbered(self, classes: tuple[str, ...]) -> PictureSet:
        """The same pictures with labels that are places in another list of classes, which may hold more.

        Raises:
            InputError: it lacks one of these.
        """
        if lacking := [name for name in self.classes if name not in classes]:
            raise InputError(f"{self.source}: classes that are not learned: {', '.join(lacking)}")
        places = np.array([classes.index(name) for name in self.classes], np.int64)
        return replace(self, labels=places[self.labels], classes=classes)

    def spread(self, count: int) -> PictureSet:
        """At most ``count`` pictures at equal distances."""
        kept = evenly(len(self), count)
        source = named(self.source, len(self), count)
        return replace(self, paths=tuple(self.paths[i] for i in kept), labels=self.labels[kept], source=source)


def load(split: str, folder: Path, *, size: int = 224) -> PictureSet:
    """List the pictures of a split: ``train/CLASS/PICTURE``, and ``test`` or else ``val`` for the split ``"test"``.

    Hidden folders are no classes.

    Raises:
        InputError: no such folders or pictures.
    """
    root = next((folder / name for name in NAMES[split] if (folder / name).is_dir()), None)
    if root is None:
        raise InputError(f"{folder}: has no folder {' or '.join(NAMES[split])} with a folder for each class")
    classes = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    paths, labels = list[str](), list[int]()
    for label, name in enumerate(classes):
        files = sorted(str(p) for p in (root / name).iterdir() if p.suffix.lower() in SUFFIXES)
        paths += files
        labels += [label] * len(files)
    if not paths:
        raise InputError(f"{root}: no pictures CLASS/PICTURE ({', '.join(SUFFIXES)})")
    source = f"{folder.name} {root.name}, {len(paths):,} pictures"
    return PictureSet(tuple(paths), np.array(labels, np.int64), tuple(classes), size, source)


class PictureBatches(BatchSource):
    """Batches of pictures: for training a random crop, resized, and mirrored by chance; else the middle.

    Args:
        pictures: the files.
        size, seed, training, workers, part: see :class:`~bitbranch.data.batches.BatchSource`.
        flip: mirror half of the training pictures.
    """

    def __init__(
        self,
        pictures: PictureSet,
        *,
        size: int,
        flip: bool = True,
        seed: int = 0,
        training: bool = True,
        workers: int = 0,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        super().__init__(pictures, size=size, training=training, seed=seed, workers=workers, part=part)
        self.pictures, self.flip = pictures, flip

    def plan(self, epoch: int) -> Any:
        return self.order(epoch)[0], epoch

    def batch(self, plan: Any, number: int) -> Arrays:
        order, epoch = plan
        chosen = self.chosen(order, number)
        images = np.empty((len(chosen), 3, self.pictures.size, self.pictures.size), np.uint8)
        for image, index in zip(images, chosen.tolist(), strict=True):
            image[:] = np.asarray(self._view(index, epoch), np.uint8).transpose(2, 0, 1)
        return images, self.pictures.labels[chosen]

    def _view(self, index: int, epoch: int) -> Image:
        path, size = self.pictures.paths[index], self.pictures.size
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        if not self.training:
            return central(open_rgb(data, path), size)
        rng = np.random.default_rng([self.seed, epoch, index])
        return random_view(open_rgb(data, path, at_least=2 * size), size, rng, flip=self.flip)


def random_view(picture: Image, size: int, rng: np.random.Generator, *, flip: bool) -> Image:
    """A crop of 8 to 100 % of the area and of 3:4 to 4:3, resized to ``size`` times ``size``, mirrored by chance.

    Source: Szegedy et al., "Going Deeper with Convolutions", arXiv 1409.4842, section 6.
    """
    from PIL.Image import Resampling, Transpose

    width, height = picture.size
    box = None
    for _ in range(TRIES):
        area = width * height * rng.uniform(*AREA)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            box = (left, top, left + w, top + h)
            break
    if box is None:  # a picture so long that no crop fits: the largest one in its middle
        w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
        left, top = (width - w) // 2, (height - h) // 2
        box = (left, top, left + w, top + h)
    view = picture.resize((size, size), Resampling.BILINEAR, box=box)
    return view.transpose(Transpose.FLIP_LEFT_RIGHT) if flip and rng.random() < 0.5 else view


def central(picture: Image, size: int) -> Image:
    """The shorter side resized to 8/7 of ``size`` (256 for 224), and of that the middle ``size`` times ``size``."""
    from PIL.Image import Resampling

    width, height = picture.size
    scale = round(size * 8 / 7) / min(width, height)
    width, height = max(size, round(width * scale)), max(size, round(height * scale))
    left, top = (width - size) // 2, (height - size) // 2
    return picture.resize((width, height), Resampling.BILINEAR).crop((left, top, left + size, top + size))
