"""The image sets by name: where each is looked for, how it gets there, and how it is usually augmented."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from . import cifar10, fashion_mnist, folders
from .batches import Batches, BatchSource
from .dataset import Dataset
from .folders import PictureBatches, PictureSet
from .places import root

Images = Dataset | PictureSet


@dataclass(frozen=True)
class ImageSet:
    """A set that configurations name.

    Attributes:
        name: there.
        title: for people.
        origin: where it comes from, and in what form it is read.
        load: reads a split, ``"train"`` or ``"test"``, from a folder.
        flip, shift: the usual augmentation, see :class:`~bitbranch.data.batches.Batches`.
        folder: where it is looked for if not told; None if it needs no folder.
        prepare: brings it there from an archive or folder, if it needs preparation.
    """

    name: str
    title: str
    origin: str
    load: Callable[[str, Path], Images]
    flip: bool
    shift: int
    folder: Callable[[], Path] | None
    prepare: Callable[[Path, Path, Callable[[str], None] | None], None] | None = None

    def place(self) -> Path:
        """The folder of the set, whether it is there or not; an empty path where it needs none."""
        try:
            return self.folder() if self.folder is not None else Path()
        except InputError:
            return root() / self.name


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
            folders.load, True, 0, lambda: root() / "imagenet",
        ),
        ImageSet(
            "folder", "any pictures in folders", "train|val/CLASS/PICTURE at the given path, read as for imagenet",
            folders.load, True, 0, lambda: root() / "folder",
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
    images: Images,
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
