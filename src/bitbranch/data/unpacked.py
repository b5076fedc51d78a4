"""Sets that are read as files lie in their archive."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from secrets import token_hex

from ..errors import BitbranchError, InputError
from .prepared import archived


def unpack(source: Path, folder: Path, progress: Callable[[str], None] | None = None) -> None:
    """Put the files of a tar archive into a folder.

    A single folder at the archive's top is left out: what lies in it comes to lie beside what lies beside it.

    An interrupted call leaves no folder.

    Args:
        source: the archive.
        folder: where they go; there must be none yet.
        progress: takes a line at the end.

    Raises:
        InputError: no readable archive, a file in it that would lie outside, or the folder is there already.
        BitbranchError: it cannot be written.
    """
    if folder.exists():
        raise InputError(f"{folder}: is there already; remove it to unpack {source} again")
    beside = folder.with_name(f".{folder.name}.{token_hex(4)}")
    count = 0
    try:
        for name, data in archived(source):
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise InputError(f"{source}: {name} would lie outside of {folder}")
            target = beside.joinpath(*path.parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            count += 1
        if not count:
            raise InputError(f"{source}: holds no files")
        folders = [path for path in beside.iterdir() if path.is_dir()]
        if len(folders) == 1:
            _lift(folders[0], beside)
        beside.rename(folder)
    except OSError as error:
        raise BitbranchError(f"{folder}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    if progress is not None:
        progress(f"{folder}: {count:,} files")


def _lift(inner: Path, outer: Path) -> None:
    """Move what lies in a folder into the one around it, unless a name is taken there."""
    if any((outer / path.name).exists() for path in inner.iterdir() if path.name != inner.name):
        return
    inner = inner.rename(outer / f".{inner.name}.{token_hex(4)}")
    for path in list(inner.iterdir()):
        path.rename(outer / path.name)
    inner.rmdir()
