"""Reader and writer of idx files, the format of MNIST and its successors; plain, ``.gz`` or ``.xz``.

An idx file is two zero bytes, a type code (8: uint8), the number of dimensions, each dimension as a big-endian 32-bit
integer, then the elements in C order.
"""

from __future__ import annotations

import gzip
import lzma
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import InputError

UINT8 = 8
"""The type code of unsigned bytes, the only one read here."""


def read_idx(path: Path, *, dimensions: int) -> npt.NDArray[np.uint8]:
    """Read an idx file of unsigned bytes with the given number of dimensions.

    Raises:
        InputError: missing, damaged, of another type or with other dimensions; names the file.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        elif path.suffix == ".xz":
            data = lzma.decompress(data)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    header = 4 + 4 * dimensions
    if len(data) < header or data[:4] != bytes([0, 0, UINT8, dimensions]):
        raise InputError(f"{path}: not an idx file of unsigned bytes with {dimensions} dimension(s)")
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", count=dimensions, offset=4))
    size = 1
    for n in shape:
        size *= n
    if len(data) != header + size:
        raise InputError(f"{path}: {len(data) - header} bytes of data, but its shape {shape} needs {size}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def write_idx_xz(path: Path, array: npt.NDArray[np.uint8]) -> int:
    """Write an idx file compressed by xz; returns its size in bytes."""
    header = bytes([0, 0, UINT8, array.ndim]) + np.asarray(array.shape, ">u4").tobytes()
    data = lzma.compress(header + array.tobytes(), preset=9 | lzma.PRESET_EXTREME)
    path.write_bytes(data)
    return len(data)
