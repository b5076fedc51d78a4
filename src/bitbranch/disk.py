"""Files that are either the old ones or the new ones, whatever interrupts the writing."""

from __future__ import annotations

import os
from glob import escape
from hashlib import sha256
from pathlib import Path
from secrets import token_hex

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
