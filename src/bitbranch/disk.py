"""Files that are either the old ones or the new ones, whatever interrupts the writing."""

from __future__ import annotations

import os
from pathlib import Path
from secrets import token_hex

from .errors import BitbranchError


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file beside its place and move it there: an interrupted call leaves the old file, or none.

    Raises:
        BitbranchError: it cannot be written, as on a full disk; names the file, which is as it was.
    """
    beside = path.with_name(f".{path.name}.{token_hex(4)}")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        left = "; what was there before is intact" if path.exists() else ""
        raise BitbranchError(f"{path}: cannot be written: {error.strerror}{left}") from None
    finally:
        beside.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Delete what killed processes left of :func:`write_bytes` for this file."""
    for beside in path.parent.glob(f".{path.name}.????????"):
        beside.unlink(missing_ok=True)
