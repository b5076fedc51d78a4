"""Pictures with a mask of each pixel's class: folders of pairs as CamVid has them, Pascal VOC, Cityscapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..tasks.segmentation import IGNORED, Palette, palette, resized
from .dataset import evenly, named
from .pictures import MEAN, STD, SUFFIXES, decode, decode_labels, read_bytes, read_text

Pixels: TypeAlias = npt.NDArray[np.uint8]
Pair: TypeAlias = tuple[Path, Path]
OnError: TypeAlias = Callable[[InputError], None] | None
UNKNOWN = 254
"""In :attr:`MaskSet.meanings`: no mask may have this label."""


@dataclass(frozen=True)
class MaskSet:
    """Picture files, and for each the file of its mask.

    Attributes:
        paths, masks: the files, in the order of the pictures' names.
        classes: their names; a pixel's class is the place here.
        palette: red, green and blue of each class, 0..255.
        meanings: 256 bytes, what each value in a mask file means: a class, :data:`IGNORED` or :data:`UNKNOWN`.
        size: height and width that networks get.
        source: for reports.
        mean, std: per channel, of pixels scaled to 0..1.
    """

    paths: tuple[Path, ...]
    masks: tuple[Path, ...]
    classes: tuple[str, ...]
    palette: Palette
    meanings: bytes
    size: tuple[int, int]
    source: str
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of what networks get."""
        return 3, *self.size

    def take(self, indices: Iterable[int]) -> MaskSet:
        """The pairs with these indices."""
        indices = list(indices)
        paths, masks = (tuple(files[i] for i in indices) for files in (self.paths, self.masks))
        return replace(self, paths=paths, masks=masks)

    def spread(self, count: int) -> MaskSet:
        """At most ``count`` pairs at equal distances."""
        taken = self.take(evenly(len(self), count))
        return replace(taken, source=named(self.source, len(self), count))

    def pair(self, index: int) -> tuple[Pixels, Pixels]:
        """A picture, uint8 ``[H, W, 3]``, and the class of each of its pixels or :data:`IGNORED`, uint8 ``[H, W]``.

        Raises:
            InputError: an unreadable file, a mask of another size or with a label that is none; names it.
        """
        path = self.masks[index]
        picture = decode(read_bytes(self.paths[index]), str(self.paths[index]), upright=True)
        stored = decode_labels(read_bytes(path), str(path))
        if stored.shape != picture.shape[:2]:
            (h, w), (height, width) = stored.shape, picture.shape[:2]
            raise InputError(f"{path}: a mask of {w}x{h} pixels for a picture of {width}x{height}")
        labels = np.frombuffer(self.meanings, np.uint8)[stored]
        if (labels == UNKNOWN).any():
            found = ", ".join(map(str, np.unique(stored[labels == UNKNOWN])[:5]))
            raise InputError(f"{path}: unknown label {found}; there are {len(self.classes)} classes")
        return picture, labels

    def labels(self) -> Iterator[Pixels]:
        """The masks alone, as :meth:`pair` gives them."""
        return (self.pair(index)[1] for index in range(len(self)))


def fitted(
    picture: Pixels, size: tuple[int, int], labels: Pixels | None = None
) -> tuple[Pixels, Pixels, tuple[int, int]]:
    """A picture as networks get it: shrunk, if it is larger, until it fits, then filled up at the bottom and right.

    Args:
        picture: uint8 ``[H, W, 3]``, whose proportions stay.
        size: height and width of the network's images.
        labels: its mask, uint8 ``[H, W]``, shrunk by the nearest pixel.

    Returns:
        The image ``[*size, 3]``, filled up with its mean colour; the mask ``[*size]``, filled up with (without
        ``labels``: full of) :data:`IGNORED`; height and width of the picture in them, for
        :func:`~bitbranch.tasks.segmentation.restored`.
    """
    from PIL import Image

    height, width = picture.shape[:2]
    scale = min(1.0, size[0] / height, size[1] / width)
    inner = max(1, round(height * scale)), max(1, round(width * scale))
    if inner != (height, width):
        picture = np.asarray(Image.fromarray(picture).resize(inner[::-1], Image.Resampling.BILINEAR))
    image, mask = canvas(picture, size)
    image[: inner[0], : inner[1]] = picture
    if labels is not None:
        mask[: inner[0], : inner[1]] = resized(labels, inner)
    return image, mask, inner


def canvas(picture: Pixels, size: tuple[int, int]) -> tuple[Pixels, Pixels]:
    """An image of a picture's mean colour, ``[*size, 3]``, and a mask of nothing but ignored pixels."""
    image = np.empty((*size, 3), np.uint8)
    image[:] = picture.mean((0, 1)).round()
    return image, np.full(size, IGNORED, np.uint8)


CAMVID = (
    ("sky", (128, 128, 128)), ("building", (128, 0, 0)), ("pole", (192, 192, 128)), ("road", (128, 64, 128)),
    ("pavement", (60, 40, 222)), ("tree", (128, 128, 0)), ("sign", (192, 128, 128)), ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)), ("pedestrian", (64, 64, 0)), ("bicyclist", (0, 128, 192)),
)  # fmt: skip
"""The eleven classes on which CamVid is usually measured, and their colours; 11 in the masks is void."""

VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor",
)  # fmt: skip

CITYSCAPES = (
    (7, "road", (128, 64, 128)), (8, "sidewalk", (244, 35, 232)), (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)), (13, "fence", (190, 153, 153)), (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)), (20, "traffic sign", (220, 220, 0)), (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)), (23, "sky", (70, 130, 180)), (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)), (26, "car", (0, 0, 142)), (27, "truck", (0, 0, 70)), (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)), (32, "motorcycle", (0, 0, 230)), (33, "bicycle", (119, 11, 32)),
)  # fmt: skip
"""The classes that Cityscapes is measured on: the label in the files, name and colour."""

SPLITS = {"train": ("train",), "val": ("val",), "test": ("test", "val")}
"""The splits, and the names under which folders may have them."""


def camvid(split: str, folder: Path, *, size: tuple[int, int] = (180, 240), on_error: OnError = None) -> MaskSet:
    """CamVid, or another set of its eleven classes and layout: :func:`pairs`, with 11 for void."""
    names, colours = zip(*CAMVID, strict=True)
    return pairs(split, folder, classes=names, colours=colours, ignored=(11, IGNORED), size=size, on_error=on_error)


def pairs(
    split: str,
    folder: Path,
    *,
    classes: Sequence[str] | None = None,
    colours: Palette | None = None,
    ignored: Sequence[int] = (IGNORED,),
    size: tuple[int, int] = (256, 256),
    on_error: OnError = None,
) -> MaskSet:
    """List the pairs of pictures and masks of equal names, whatever their suffixes, in two folders.

    These are the first that are there of ``SPLIT`` and ``SPLITannot``, ``SPLIT/images`` and ``SPLIT/masks``,
    ``images/SPLIT`` and ``masks/SPLIT``; or ``images`` and ``masks``, of which the file ``SPLIT.txt`` lists the split's
    names, one in each line.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``, or several: ``"train+val"``; ``val`` serves as ``"test"`` where
            there is none.
        folder: that holds them.
        classes: their names in the order of the labels; None reads them from the file ``classes.txt``, one a line.
        colours: of the classes; None takes Pascal VOC's.
        ignored: labels of pixels that do not count.
        size: height and width that networks get.
        on_error: None raises the first error, and pairs are decoded when they are needed. A function is told every
            error; all pairs are decoded here for that, and those that are not sound left out.

    Raises:
        InputError: no such split, folders, pairs or classes, a picture without a mask; and, with ``on_error``, nothing
            that is sound.
    """
    if classes is None:
        classes = _lines(folder / "classes.txt")
        if twice := [name for name, times in Counter(classes).items() if times > 1]:
            raise InputError(f"{folder / 'classes.txt'}: {twice[0]!r} is there more than once")
    found = [pair for names in _splits(split) for pair in _listed_pairs(names, folder)]
    meanings = _meanings({i: i for i in range(len(classes))}, ignored)
    return _set(found, classes, colours, meanings, size, f"{folder.name} {split}", on_error)


def _listed_pairs(splits: tuple[str, ...], folder: Path) -> list[Pair]:
    """The pairs of the first of these splits that is there, in the layouts of :func:`pairs`."""
    layouts = [
        layout
        for name in splits
        for layout in (
            (folder / name, folder / f"{name}annot", None),
            (folder / name / "images", folder / name / "masks", None),
            (folder / "images" / name, folder / "masks" / name, None),
            (folder / "images", folder / "masks", folder / f"{name}.txt"),
        )
    ]
    for images, masks, listed in layouts:
        if images.is_dir() and masks.is_dir() and (listed is None or listed.is_file()):
            break
    else:
        raise InputError(
            f"{folder}: no split {splits[0]!r}: expected SPLIT and SPLITannot, SPLIT/images and SPLIT/masks, "
            "images/SPLIT and masks/SPLIT, or images, masks and SPLIT.txt"
        )
    pictures, labels = _by_stem(images), _by_stem(masks)
    names = sorted({**pictures, **labels}) if listed is None else _lines(listed)
    return [(pictures.get(n, images / f"{n}.png"), labels.get(n, masks / f"{n}.png")) for n in names]


def voc(split: str, folder: Path, *, size: tuple[int, int] = (512, 512), on_error: OnError = None) -> MaskSet:
    """Pascal VOC's: ``JPEGImages``, ``SegmentationClass`` and ``ImageSets/Segmentation/SPLIT.txt``.

    The test set has no masks, so ``"test"`` is ``val``; arguments and errors as for :func:`pairs`.
    """
    lists = [folder / "ImageSets" / "Segmentation" / f"{names[-1]}.txt" for names in _splits(split)]
    names = [name for listed in lists for name in _lines(listed)]
    found = [(folder / "JPEGImages" / f"{n}.jpg", folder / "SegmentationClass" / f"{n}.png") for n in names]
    meanings = _meanings({i: i for i in range(len(VOC))}, (IGNORED,))
    return _set(found, VOC, None, meanings, size, f"{folder.name} {split}", on_error)


def cityscapes(split: str, folder: Path, *, size: tuple[int, int] = (512, 1024), on_error: OnError = None) -> MaskSet:
    """Cityscapes: ``leftImg8bit/SPLIT/CITY`` and ``gtFine/SPLIT/CITY/*_gtFine_labelIds.png``, on 19 classes.

    The test set's masks are not public, so ``"test"`` is ``val``; arguments and errors as for :func:`pairs`.
    """
    end = "_leftImg8bit.png"
    found = list[Pair]()
    for *_, name in _splits(split):
        truth = folder / "gtFine" / name
        files = sorted((folder / "leftImg8bit" / name).glob(f"*/*{end}"))
        if not files:
            raise InputError(f"{folder}: no pictures leftImg8bit/{name}/CITY/*{end}")
        for file in files:
            found.append((file, truth / file.parent.name / file.name.replace(end, "_gtFine_labelIds.png")))
    classes = {label: i for i, (label, _, _) in enumerate(CITYSCAPES)}
    meanings = _meanings(classes, [i for i in (*range(34), IGNORED) if i not in classes])
    _, names, colours = zip(*CITYSCAPES, strict=True)
    return _set(found, names, colours, meanings, size, f"{folder.name} {split}", on_error)


def _splits(given: str) -> list[tuple[str, ...]]:
    """For each of the splits with ``+`` between them: the names that folders may have for it."""
    for split in given.split("+"):
        if split not in SPLITS:
            raise InputError(f"split {split!r}: expected {', '.join(map(repr, SPLITS))}")
    return [SPLITS[split] for split in given.split("+")]


def _meanings(classes: dict[int, int], ignored: Iterable[int]) -> bytes:
    table = dict.fromkeys(range(256), UNKNOWN) | dict.fromkeys(ignored, IGNORED) | classes
    return bytes(table[label] for label in range(256))


def _set(
    found: Sequence[Pair],
    classes: Sequence[str],
    colours: Palette | None,
    meanings: bytes,
    size: tuple[int, int],
    source: str,
    on_error: OnError,
) -> MaskSet:
    """The set of these pairs of picture and mask, without what is not sound where ``on_error`` is told of it."""
    if not found:
        raise InputError(f"{source}: no pictures")
    if not 0 < len(classes) <= UNKNOWN:
        raise InputError(f"{source}: {len(classes)} classes; expected 1 to {UNKNOWN}")
    pictures, masks = zip(*found, strict=True)
    made = MaskSet(
        pictures, masks, tuple(classes), tuple(colours or palette(len(classes))), meanings, size,
        f"{source}, {len(found):,} pictures",
    )  # fmt: skip
    if on_error is None:
        for path in (path for pair in found for path in pair if not path.is_file()):
            raise InputError(f"{path}: no such file, though its counterpart is there or listed")
        return made
    sound = []
    for index in range(len(made)):
        try:
            made.pair(index)
            sound.append(index)
        except InputError as error:
            on_error(error)
    if not sound:
        raise InputError(f"{source}: none of {len(found):,} pictures has a sound mask")
    return replace(made.take(sound), source=f"{source}, {len(sound):,} pictures")


def _by_stem(folder: Path) -> dict[str, Path]:
    """Pictures by their names without endings.

    Raises:
        InputError: two of one name: which of them a mask belongs to is not known.
    """
    found = dict[str, Path]()
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES):
        if path.stem in found:
            raise InputError(f"{folder}: {found[path.stem].name} and {path.name} have one name")
        found[path.stem] = path
    return found


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]
