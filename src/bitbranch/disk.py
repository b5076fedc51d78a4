"""Files that are either the old ones or the new ones, whatever interrupts the writing; and temporary ones."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from typing import IO

from .errors import BitbranchError


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file beside its place and move it there: an interrupted call leaves the old file, or none.

    Raises:
        BitbranchError: it cannot be written, as on a full disk; names the file, which is as it was.
    """
    beside = path.with_name(f"{_beside(path)}{token_hex(4)}")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        left = "; what was there before is intact" if os.path.exists(path) else ""
        raise BitbranchError(f"{path}: cannot be written: {error.strerror}{left}") from None
    finally:
        beside.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Delete what killed processes left of :func:`write_bytes` for this file."""
    for beside in path.parent.glob(f"{escape(_beside(path))}????????"):
        beside.unlink(missing_ok=True)


def _beside(path: Path) -> str:
    """How names of files on the way to this one begin, short enough where its own is as long as may be."""
    name = path.name if len(os.fsencode(path.name)) < 200 else sha256(os.fsencode(path.name)).hexdigest()[:32]
    return f".{name}."


@contextmanager
def scratch(purpose: str) -> Iterator[Path]:
    """A folder for temporary files, which is gone afterwards; what killed processes have left of such goes first.

    Each folder has a file that its process holds a lock on, which ends with the process.

    Args:
        purpose: a part of its name.

    Raises:
        BitbranchError: it cannot be made.
    """
    begin = f"bitbranch-{purpose}-"
    for left in Path(tempfile.gettempdir()).glob(f"{begin}*"):
        if not _locked(left / LOCK):
            shutil.rmtree(left, ignore_errors=True)
    with temporary_writes():
        folder = Path(tempfile.mkdtemp(prefix=begin))
        lock = (folder / LOCK).open("wb")
    try:
        _lock(lock)
        yield folder
    finally:
        lock.close()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def temporary_writes() -> Iterator[None]:
    """Turn a failure to write a temporary file into one line that says where they lie.

    Raises:
        BitbranchError: a file could not be written, as on a full disk.
    """
    try:
        yield
    except OSError as error:
        said = error.strerror or " ".join(str(error).split())
        raise BitbranchError(
            f"{tempfile.gettempdir()}: temporary files cannot be written: {said}; TMPDIR may name a roomier folder"
        ) from None


LOCK, YOUNG = "lock", 10.0
"""The file in a temporary folder, and seconds in which its process takes its lock."""


def _lock(file: IO[bytes]) -> bool:
    """Take the lock of a file, if nobody has it; where there are no locks, somebody might."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _locked(path: Path) -> bool:
    """Whether a process holds the lock of a file, or may be about to: it is new, or cannot be read."""
    with suppress(OSError), path.open("rb") as file:
        return time.time() - os.fstat(file.fileno()).st_mtime < YOUNG or not _lock(file)
    return True
