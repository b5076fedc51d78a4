"""Fashion-MNIST: 28x28 grey images of clothes in ten classes, by Zalando SE (MIT licence, beside the sample).

A sample of 12,000 training and 2,000 test images comes with the package. The full set, 60,000 and 10,000, is read
from the four idx files (plain, ``.gz`` or ``.xz``) where a folder has them.

Source: Xiao, Rasul, Vollgraf, arXiv 1708.07747.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..errors import InputError
from .dataset import Dataset
from .idx import read_idx
from .places import VARIABLE, root

CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
MEAN, STD = (0.2860,), (0.3530,)
"""Of all training pixels, scaled to 0..1."""

SAMPLE = Path(__file__).parent / "fashion_mnist_sample"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where the package dataset-fashion-mnist of Debian and Ubuntu puts the full set."""

FILES = {"train": "train", "test": "t10k"}
"""The splits, and what their files' names begin with."""


def load(split: str, *, full: bool = False, folder: Path | None = None) -> Dataset:
    """Read a split.

    Args:
        split: ``"train"`` or ``"test"``.
        full: the full set (see :func:`full_folder`) instead of the sample inside the package.
        folder: of the full set, instead of that.

    Raises:
        InputError: unknown split, no full set found, or a missing or damaged file; names it.
    """
    if split not in FILES:
        raise InputError(f"split {split!r}: expected 'train' or 'test'")
    full = full or folder is not None
    folder = folder or (full_folder() if full else SAMPLE)
    images = read_idx(_file(folder, f"{FILES[split]}-images-idx3-ubyte"), dimensions=3)
    labels = read_idx(_file(folder, f"{FILES[split]}-labels-idx1-ubyte"), dimensions=1)
    source = f"Fashion-MNIST {split}, {len(images):,} images" + ("" if full else " (sample)")
    return Dataset(images[:, None], labels.astype(np.int64), CLASSES, MEAN, STD, source)


def full_folder() -> Path:
    """The folder of the full set: ``fashion-mnist`` in the folder of all sets, that folder itself, or Debian's.

    Raises:
        InputError: ``BITBRANCH_DATA`` is set but no such folder, or nowhere is a full set.
    """
    given = VARIABLE in os.environ
    if given and not root().is_dir():
        raise InputError(f"{VARIABLE}: no folder {root()}")
    for folder in (root() / "fashion-mnist", root(), DEBIAN):
        if next(folder.glob("*-images-idx3-ubyte*"), None):
            return folder
    if given:
        return root()  # whoever reads there says what is missing
    raise InputError(f"full Fashion-MNIST: set {VARIABLE} to its folder, or install it in {DEBIAN}")


def _file(folder: Path, name: str) -> Path:
    for suffix in ("", ".gz", ".xz"):
        path = folder / (name + suffix)
        if path.is_file():
            return path
    raise InputError(f"{folder}: has no file {name}, {name}.gz or {name}.xz")
