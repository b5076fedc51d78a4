"""Tensors of codes at their bits: what lies in a file, and in memory until a piece of it is needed decoded."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ..contract import CodeType, Ints, Kind, weight_sums
from ..errors import FormatError

PIECE = 1 << 18
"""Codes that are decoded at once where all of a tensor are wanted: few calls, and little memory."""

_THREES = 3 ** np.arange(5, dtype=np.uint8)  # five ternary digits to a byte: 3^5 = 243 <= 256


def packed_size(count: int, code_type: CodeType) -> int:
    """Bytes that ``count`` codes take."""
    return -(-count // 5) if code_type.kind is Kind.TERNARY else -(-count * code_type.bits // 8)


def nominal_size(count: int, code_type: CodeType) -> int:
    """Bytes of ``count`` codes at their nominal bits; a ternary code counts as 2."""
    return -(-count * code_type.bits // 8)


def _together(code_type: CodeType) -> tuple[int, int]:
    """Bytes and codes after which a code begins at a byte again."""
    if code_type.kind is Kind.TERNARY:
        return 1, 5
    return (code_type.bits, 8) if 8 % code_type.bits else (1, 8 // code_type.bits)


def pack_codes(codes: npt.NDArray[np.uint8], code_type: CodeType) -> bytes:
    """Codes of any shape, in C order, at their bits.

    K-bit codes follow each other without gaps, least significant bit first; ternary codes are base-3 digits, five to
    a byte, the first the least significant. What is left of the last byte is 0.
    """
    flat, packed = codes.reshape(-1), bytearray()
    for first in range(0, flat.size, 40 * (PIECE // 40)):  # whole bytes, whatever the type
        packed += _pack_piece(flat[first : first + 40 * (PIECE // 40)], code_type)
    return bytes(packed)


def _pack_piece(flat: npt.NDArray[np.uint8], code_type: CodeType) -> bytes:
    if code_type.kind is Kind.TERNARY:
        digits = np.pad(flat, (0, -flat.size % 5)).reshape(-1, 5)
        return (digits * _THREES).sum(axis=1, dtype=np.uint8).tobytes()
    bits = np.unpackbits(flat[:, None], axis=1, count=code_type.bits, bitorder="little")
    return np.packbits(bits, bitorder="little").tobytes()


@lru_cache(maxsize=16)
def _codes_of_bytes(code_type: CodeType) -> npt.NDArray[np.uint8] | None:
    """``[bytes, codes per byte]``: the codes that each byte holds; ``None`` where codes lie across bytes."""
    if code_type.kind is Kind.TERNARY:
        return (np.arange(243)[:, None] // _THREES % 3).astype(np.uint8)
    if 8 % code_type.bits:
        return None
    return (np.arange(256)[:, None] >> np.arange(0, 8, code_type.bits) & code_type.count - 1).astype(np.uint8)


def unpack_codes(
    data: bytes | memoryview | npt.NDArray[np.uint8], count: int, code_type: CodeType
) -> npt.NDArray[np.uint8]:
    """The inverse of :func:`pack_codes`: ``count`` codes, ``[count]``.

    Raises:
        FormatError: a byte that holds no five ternary digits, or something in the unused bits.
    """
    packed = np.frombuffer(data, np.uint8)
    table = _codes_of_bytes(code_type)
    if code_type.bits == 8:
        return packed[:count].copy()
    if table is not None:
        if packed.max(initial=0) >= len(table):
            raise FormatError(f"byte {packed.max()} holds no ternary codes")
        flat = table.take(packed, axis=0, mode="clip").reshape(-1)  # clip: nothing is checked a second time
        codes, rest = flat[:count], flat[count:]
    else:
        bits = np.unpackbits(packed, bitorder="little")
        used = bits[: count * code_type.bits].reshape(count, code_type.bits)
        codes, rest = np.packbits(used, axis=1, bitorder="little")[:, 0], bits[count * code_type.bits :]
    if rest.any():
        raise FormatError("unused bits after the last code are not 0")
    return codes


class PackedCodes:
    """A tensor of codes at their bits, decoded row by row when somebody asks.

    Making one decodes every code once, which checks them all and gives the sums of each row. Nobody may change it.

    Args:
        data: as :func:`pack_codes` makes it, ``[packed_size]``; kept, not copied.
        shape: of the tensor, no axis empty.
        code_type: of the codes.

    Attributes:
        sums: sum of the values, and of their magnitudes, of each row: int64 ``[shape[0]]`` each.

    Raises:
        FormatError: bytes that hold no codes.
    """

    def __init__(
        self, data: bytes | memoryview | npt.NDArray[np.uint8], shape: tuple[int, ...], code_type: CodeType
    ) -> None:
        self.data = np.frombuffer(data, np.uint8)
        self.shape = shape
        self.code_type = code_type
        pieces = [weight_sums(code_type.decode(codes, code_type.dtype)) for _, codes in self.pieces()]
        self.sums: tuple[Ints, Ints] = tuple(map(np.concatenate, zip(*pieces, strict=True)))  # type: ignore[assignment]

    @classmethod
    def pack(cls, codes: npt.NDArray[np.uint8], code_type: CodeType) -> PackedCodes:
        """From codes below the type's count."""
        return cls(pack_codes(codes, code_type), codes.shape, code_type)

    @property
    def size(self) -> int:
        """How many codes there are."""
        return self.shape[0] * self.row_size

    @property
    def row_size(self) -> int:
        """Codes of a row: of an index of the first axis."""
        return int(np.prod(self.shape[1:], dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes of all codes."""
        return self.data.nbytes

    def rows(self, first: int, last: int) -> npt.NDArray[np.uint8]:
        """The codes of rows ``first .. last - 1``, uint8 ``[last - first, *shape[1:]]``."""
        size, codes = _together(self.code_type)
        begin, end = first * self.row_size, last * self.row_size
        start, stop = begin // codes, -(-end // codes)
        count = min(stop * codes, self.size) - start * codes
        here = unpack_codes(self.data[start * size : stop * size], count, self.code_type)
        return here[begin - start * codes : end - start * codes].reshape(last - first, *self.shape[1:])

    def decode(self) -> npt.NDArray[np.uint8]:
        """All codes, uint8 ``shape``."""
        return self.rows(0, self.shape[0])

    def pieces(self) -> Iterator[tuple[slice, npt.NDArray[np.uint8]]]:
        """All rows, some at a time, and their codes."""
        step = max(1, PIECE // self.row_size)
        for first in range(0, self.shape[0], step):
            last = min(first + step, self.shape[0])
            yield slice(first, last), self.rows(first, last)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PackedCodes):
            return NotImplemented
        return self.shape == other.shape and self.code_type == other.code_type and np.array_equal(self.data, other.data)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"PackedCodes({'x'.join(map(str, self.shape))} {self.code_type})"
