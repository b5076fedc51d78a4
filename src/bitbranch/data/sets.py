"""The image sets by name: where each is looked for, how it gets there, and how it is usually augmented."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from shutil import rmtree
from typing import Any

from ..errors import InputError
from . import cifar10, coco_boxes, fashion_mnist, folders, masks, scenes, voc_boxes
from .batches import Batches, BatchSource
from .box_set import OnError
from .dataset import Dataset
from .folders import PictureBatches, PictureSet
from .places import root
from .unpacked import unpack

Images = Any
"""What :mod:`bitbranch.training.tasks` takes for the set's task, with a length, ``shape``, ``classes``, ``mean``,
``std``, ``source`` and ``spread(count)``."""


def warn(error: InputError) -> None:
    """What is done about a picture that is wrong, if nothing else is wanted."""
    warnings.warn(str(error), stacklevel=2)


@dataclass(frozen=True)
class ImageSet:
    """A set that configurations name.

    Attributes:
        name: there.
        title: for people.
        origin: where it comes from, and in what form it is read.
        load: reads one of the splits from a folder; sets of pictures take ``size``, too.
        flip, shift: the usual augmentation, see :class:`~bitbranch.data.batches.Batches`.
        folder: where it is looked for if not told; None if it needs no folder.
        prepare: brings it there from an archive or folder, if it needs preparation.
        task: what is learned from it: ``"classification"``, ``"detection"`` or ``"segmentation"``.
        sized: whether networks may get its pictures at any size.
        splits: those it has; the first is what is usually learned from, the last what is measured on. Where there are
            more than two, ``load`` takes several with ``+`` between them, too.
        reports: whether ``load`` takes ``on_error``, too: what is to be done about single pictures that are wrong.
    """

    name: str
    title: str
    origin: str
    load: Callable[..., Images]
    flip: bool
    shift: int
    folder: Callable[[], Path] | None
    prepare: Callable[[Path, Path, Callable[[str], None] | None], None] | None = None
    task: str = "classification"
    sized: bool = False
    splits: tuple[str, ...] = ("train", "test")
    reports: bool = False

    def read(self, split: str, folder: Path, size: Sequence[int] = (), on_error: OnError = warn) -> Images:
        """Read a split from a folder.

        Args:
            split: one of :attr:`splits`, or several of more than two: ``"train+val"``.
            folder: of the set.
            size: height and width that networks get; none is what is usual for the set.
            on_error: takes what is wrong with a picture or what is said of it, which is then left out.

        Raises:
            InputError: missing or damaged data, no such split, or a size for images that have one.
        """
        parts = split.split("+") if len(self.splits) > 2 else [split]
        if not set(parts) <= set(self.splits) or len(set(parts)) < len(parts):
            joined = ", or several, as in 'train+val'" if len(self.splits) > 2 else ""
            raise InputError(f"{self.name}: split {split!r}: expected one of {', '.join(self.splits)}{joined}")
        given: dict[str, Any] = {"on_error": on_error} if self.reports else {}
        if not size:
            return self.load(split, folder, **given)
        if not self.sized:
            raise InputError(f"data.size: {self.name} has images of one size")
        return self.load(split, folder, size=(size[0], size[1]), **given)

    def bring(self, source: Path, progress: Callable[[str], None] | None = None) -> None:
        """Prepare the set in its folder from an archive or a folder.

        Raises:
            InputError: it needs no preparation, or the source does not hold it; then its folder is as it was.
        """
        if self.prepare is None:
            raise InputError(f"{self.name}: needs no preparation: {self.origin}")
        place = self.place()
        there = place.exists()
        self.prepare(source, place, progress)
        try:
            for split in (self.splits[0], self.splits[-1]):
                self.read(split, place, on_error=lambda _: None)
        except InputError as error:
            if not there:
                rmtree(place, ignore_errors=True)
            said = str(error).replace(str(place), str(source))
            raise InputError(f"{self.name}: {source} does not hold it ({said})") from None

    def place(self) -> Path:
        """The folder of the set, whether it is there or not; an empty path where it needs none."""
        try:
            return self.folder() if self.folder is not None else Path()
        except InputError:
            return root() / self.name


def _detection(
    name: str, title: str, origin: str, load: Callable[..., Images], splits: tuple[str, ...],
    prepare: Callable[..., None] | None = None,
) -> ImageSet:  # fmt: skip
    return ImageSet(
        name, title, origin, load, True, 0, lambda: root() / name, prepare, "detection", True, splits, True
    )  # fmt: skip


def _segmentation(*given: Any) -> ImageSet:
    return replace(_detection(*given), task="segmentation")


def _square(load: Callable[..., Images], usual: int) -> Callable[..., Images]:
    """A reader whose size is one number."""

    def read(split: str, folder: Path, size: tuple[int, int] = (usual, usual)) -> Images:
        if size[0] != size[1]:
            raise InputError(f"data.size: images are square, got {list(size)}")
        return load(split, folder, size=size[0])

    return read


@lru_cache(maxsize=4)
def _scenes(split: str, _: Path, *, size: int) -> Images:
    return scenes.scenes(split, {"train": 4000, "test": 500}[split], size=size)


PARTS = ("train", "val", "test")
VOC_SPLITS = ("trainval", "train", "val", "test")
SETS = {
    s.name: s
    for s in (
        ImageSet(
            "fashion-mnist-sample", "Fashion-MNIST, 12,000 + 2,000 images", "comes with bitbranch",
            lambda split, _: fashion_mnist.load(split), True, 1, None,
        ),
        ImageSet(
            "fashion-mnist", "Fashion-MNIST, 60,000 + 10,000 images",
            "the four idx files, plain, .gz or .xz; Debian: apt install dataset-fashion-mnist",
            lambda split, folder: fashion_mnist.load(split, folder=folder), True, 2, fashion_mnist.full_folder,
        ),
        ImageSet(
            "cifar10", "CIFAR-10, 50,000 + 10,000 images",
            "cifar-10-binary.tar.gz, or train|test/CLASS/PICTURE: `bitbranch data cifar10 --prepare ARCHIVE|FOLDER`",
            cifar10.load, True, 4, lambda: root() / "cifar10", cifar10.prepare,
        ),
        ImageSet(
            "imagenet", "ImageNet, 1.28 million + 50,000 pictures", "train|val/CLASS/PICTURE, read as it lies",
            _square(folders.load, 224), True, 0, lambda: root() / "imagenet", sized=True,
        ),
        ImageSet(
            "folder", "any pictures in folders", "train|val/CLASS/PICTURE at the given path, read as for imagenet",
            _square(folders.load, 224), True, 0, lambda: root() / "folder", sized=True,
        ),
        ImageSet(
            "scene-boxes", "scenes of Fashion-MNIST's garments, 4,000 + 500, with boxes", "comes with bitbranch",
            _square(_scenes, 64), True, 0, None, task="detection", sized=True,
        ),
        _detection(
            "bccd", "BCCD, 292 + 72 pictures of blood cells",
            "a folder in Pascal VOC's form: `bitbranch data bccd --prepare ARCHIVE`",
            voc_boxes.load, VOC_SPLITS, unpack,
        ),
        _detection(
            "voc-boxes", "Pascal VOC, trainval of all years + test 2007", "VOC2007, VOC2012, as they are unpacked",
            voc_boxes.load, VOC_SPLITS,
        ),
        _detection(
            "coco-boxes", "COCO 2017, 118,287 + 5,000 pictures", "annotations, train2017 and val2017, as unpacked",
            coco_boxes.load, ("train2017", "val2017"),
        ),
        ImageSet(
            "scene-masks", "scenes of Fashion-MNIST's garments, 4,000 + 500, with masks", "comes with bitbranch",
            _square(_scenes, 64), True, 0, None, task="segmentation", sized=True,
        ),
        _segmentation(
            "camvid", "CamVid, 367 + 233 road scenes",
            "train, trainannot, test, testannot: `bitbranch data camvid --prepare ARCHIVE`",
            masks.camvid, PARTS, unpack,
        ),
        _segmentation(
            "voc-masks", "Pascal VOC 2012, 1,464 + 1,449 pictures", "what is in VOC2012, as it is unpacked",
            masks.voc, ("train", "val"),
        ),
        _segmentation(
            "cityscapes", "Cityscapes, 2,975 + 500 street scenes", "leftImg8bit and gtFine, as they are unpacked",
            masks.cityscapes, ("train", "val"),
        ),
        _segmentation(
            "mask-folder", "any pictures with masks in folders",
            "train/images, train/masks, test/images, test/masks and classes.txt at the given path",
            masks.pairs, PARTS,
        ),
    )
}  # fmt: skip


def find(name: str) -> ImageSet:
    """The set of this name.

    Raises:
        InputError: there is none.
    """
    if name not in SETS:
        raise InputError(f"data set {name!r}: expected one of {', '.join(SETS)}")
    return SETS[name]


def batches(
    images: Dataset | PictureSet,
    *,
    size: int,
    training: bool,
    flip: bool = False,
    shift: int = 0,
    seed: int = 0,
    workers: int = 0,
    part: tuple[int, int] = (0, 1),
) -> BatchSource:
    """Batches of either kind of set, augmented only for training; see :class:`Batches` and :class:`PictureBatches`."""
    if isinstance(images, PictureSet):
        return PictureBatches(images, size=size, flip=flip, seed=seed, training=training, workers=workers, part=part)
    flip, shift = flip and training, shift if training else 0
    return Batches(images, size=size, flip=flip, shift=shift, seed=seed, training=training, workers=workers, part=part)
