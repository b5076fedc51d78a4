"""Images decoded once and kept as plain arrays in files, which are mapped into memory as they are needed.

A folder holds, for each split, ``SPLIT-images.npy`` (uint8 ``[N, C, H, W]``) and ``SPLIT-labels.npy`` (int64 ``[N]``),
and ``classes.json``, written last.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from ..disk import write_bytes
from ..errors import BitbranchError, InputError
from .pictures import SUFFIXES, decode

Split = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]
NAMES = {"train": ("train",), "test": ("test", "val")}
"""The splits, and what their folders may be called."""


def is_prepared(folder: Path) -> bool:
    """Whether :func:`write` was here."""
    return (folder / "classes.json").is_file()


def read(folder: Path, split: str) -> tuple[Split, tuple[str, ...]]:
    """Images (mapped), labels and classes of a split.

    Raises:
        InputError: missing or damaged files.
    """
    try:
        images = np.load(folder / f"{split}-images.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(folder / f"{split}-labels.npy", allow_pickle=False)
        classes = tuple(str(name) for name in json.loads((folder / "classes.json").read_text()))
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise InputError(f"{folder}: no readable prepared images ({' '.join(str(error).split())})") from None
    return (images, labels), classes


def write(folder: Path, splits: dict[str, Split], classes: Iterable[str]) -> None:
    """Write all splits; an interrupted call leaves a folder that is not taken for prepared."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "classes.json").unlink(missing_ok=True)
    except OSError as error:
        raise BitbranchError(f"{folder}: cannot be written ({error.strerror})") from None
    for split, arrays in splits.items():
        for what, array in (("images", arrays[0]), ("labels", arrays[1])):
            buffer = io.BytesIO()
            np.save(buffer, np.asarray(array))
            write_bytes(folder / f"{split}-{what}.npy", buffer.getvalue())
    write_bytes(folder / "classes.json", json.dumps(list(classes)).encode())


def from_pictures(
    source: Path, progress: Callable[[str], None] | None = None
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Decode a folder, or a tar archive of one, with ``train`` and ``test`` (or else ``val``), each ``/CLASS/PICTURE``.

    All pictures are RGB of one size; they come in the order of their names.

    Raises:
        InputError: no such pictures, two of one name, splits with different classes, or pictures of several sizes;
            names the file.
    """
    of_folder: dict[str, dict[str, dict[str, npt.NDArray[np.uint8]]]] = {}
    known = {name for names in NAMES.values() for name in names}
    count = 0
    for path, data in _files(source):
        if len(path.parts) < 3 or path.parts[-3] not in known:
            continue
        pictures = of_folder.setdefault(path.parts[-3], {}).setdefault(path.parts[-2], {})
        if path.name in pictures:
            raise InputError(f"{source}: {path}: another {'/'.join(path.parts[-3:])} is there, too")
        pictures[path.name] = decode(data, f"{source}: {path}")
        count += 1
        if progress is not None and count % 10_000 == 0:
            progress(f"{source}: {count:,} pictures decoded")
    found = {split: next((of_folder[n] for n in names if n in of_folder), {}) for split, names in NAMES.items()}
    if not all(found.values()):
        raise InputError(f"{source}: holds no pictures train/CLASS/PICTURE and test/CLASS/PICTURE")
    classes = sorted(found["train"])
    if sorted(found["test"]) != classes:
        raise InputError(f"{source}: train and test have different classes")
    splits = {}
    for split, of_class in found.items():
        ordered = [of_class[c][name] for c in classes for name in sorted(of_class[c])]
        if len({p.shape for p in ordered}) > 1:
            raise InputError(f"{source}: pictures of several sizes, {len({p.shape for p in ordered})} in {split}")
        labels = np.repeat(np.arange(len(classes)), [len(of_class[c]) for c in classes])
        splits[split] = (np.stack(ordered).transpose(0, 3, 1, 2).copy(), labels)
    return splits, tuple(classes)


def _files(source: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """The pictures in a folder or in an archive, which is read and never unpacked."""
    if source.is_dir():
        for path in sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES):
            yield PurePosixPath(path.relative_to(source).as_posix()), path.read_bytes()
        return
    for name, data in archived(source):
        if PurePosixPath(name).suffix.lower() in SUFFIXES:
            yield PurePosixPath(name), data


def archived(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the plain files in a tar archive, compressed or not.

    Raises:
        InputError: missing, damaged, or no tar archive.
    """
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None:
                    yield member.name, file.read()
    except (OSError, EOFError, tarfile.TarError, ValueError) as error:
        raise InputError(f"{path}: not a readable tar archive ({' '.join(str(error).split())})") from None
    except Exception as error:  # the decompressors have errors of their own
        if isinstance(error, BitbranchError):
            raise
        raise InputError(f"{path}: damaged ({' '.join(str(error).split())})") from None
