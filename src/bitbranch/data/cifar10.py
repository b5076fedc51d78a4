"""CIFAR-10: 60,000 colour images of 32x32 pixels in ten classes.

Read from the original binary files (``data_batch_1.bin`` to ``5``, ``test_batch.bin``: records of one byte of label and
3072 bytes of pixels, channel by channel), from folders of pictures ``train|test/CLASS/PICTURE``, or from what
``bitbranch data`` has made of either.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np

from ..errors import BitbranchError, InputError
from . import prepared
from .dataset import Dataset
from .prepared import Split

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Of all training pixels, scaled to 0..1."""

RECORD = 1 + 3 * 32 * 32
FILES = {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)}
INNER = "cifar-10-batches-bin"
"""The folder in the original archive."""


def load(split: str, folder: Path) -> Dataset:
    """Read a split.

    Pictures are decoded once and kept beside, if the folder can be written.

    Args:
        split: ``"train"`` or ``"test"``.
        folder: see above.

    Raises:
        InputError: unknown split, no CIFAR-10 in the folder, or a missing or damaged file; names it.
    """
    if split not in FILES:
        raise InputError(f"split {split!r}: expected 'train' or 'test'")
    if prepared.is_prepared(folder):
        (images, labels), classes = prepared.read(folder, split)
        if classes != CLASSES or images.shape[1:] != (3, 32, 32):
            raise InputError(f"{folder}: the prepared images are not CIFAR-10")
        return Dataset(images, labels, CLASSES, MEAN, STD, f"CIFAR-10 {split}, {len(labels):,} images")
    for place in (folder, folder / INNER):
        if (place / FILES[split][0]).is_file():
            return _dataset(parse([_bytes(place / name) for name in FILES[split]], str(place)), split)
    if (folder / "train").is_dir():
        splits = pictures(folder)
        try:
            prepared.write(folder, splits, CLASSES)
        except BitbranchError:  # read only: the decoded images stay in memory
            return _dataset(splits[split], split)
        return load(split, folder)
    raise InputError(f"{folder}: has no CIFAR-10; see `bitbranch data cifar10`")


def prepare(source: Path, folder: Path, progress: Callable[[str], None] | None = None) -> None:
    """Put CIFAR-10 into a folder, ready to be read, from an archive or another folder.

    Args:
        source: the original ``cifar-10-binary.tar.gz``, or an archive or a folder of pictures.
        folder: where it goes.
        progress: takes a line now and then.

    Raises:
        InputError: the source holds no CIFAR-10, or is damaged.
    """
    if not source.exists():
        raise InputError(f"{source}: no such file or folder")
    wanted = {name for names in FILES.values() for name in names}
    if source.is_dir():
        binary = {path.name: _bytes(path) for name in wanted for path in source.rglob(name)}
    else:
        binary = {
            PurePosixPath(n).name: data for n, data in prepared.archived(source) if PurePosixPath(n).name in wanted
        }
    if binary and not wanted <= set(binary):
        raise InputError(f"{source}: lacks {', '.join(sorted(wanted - set(binary)))}")
    if wanted <= set(binary):
        splits = {s: parse([binary[name] for name in names], str(source)) for s, names in FILES.items()}
    else:
        splits = pictures(source, progress)
    prepared.write(folder, splits, CLASSES)


def pictures(source: Path, progress: Callable[[str], None] | None = None) -> dict[str, Split]:
    """The splits of a folder or archive of pictures; raises InputError where they are not CIFAR-10's."""
    splits, classes = prepared.from_pictures(source, progress)
    if classes != CLASSES or any(images.shape[1:] != (3, 32, 32) for images, _ in splits.values()):
        raise InputError(f"{source}: not CIFAR-10: classes {', '.join(classes[:12])}")
    return splits


def parse(files: list[bytes], name: str) -> Split:
    """Images and labels of the original records.

    Raises:
        InputError: not whole records, or labels beyond 9.
    """
    if any(len(data) % RECORD or not data for data in files):
        raise InputError(f"{name}: a file is not made of records of {RECORD} bytes")
    records = np.frombuffer(b"".join(files), np.uint8).reshape(-1, RECORD)
    if records[:, 0].max() > 9:
        raise InputError(f"{name}: a label is {records[:, 0].max()}, beyond the 10 classes")
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)


def _dataset(arrays: Split, split: str) -> Dataset:
    return Dataset(*arrays, CLASSES, MEAN, STD, f"CIFAR-10 {split}, {len(arrays[1]):,} images")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
