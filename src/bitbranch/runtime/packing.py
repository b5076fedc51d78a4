"""How parameters lie in a file: codes at their bits, integers at their narrowest width, regular tables by a rule.

:class:`Writer` appends parameters to one block of bytes and :class:`Reader` takes them back in the same order; each
``Writer`` method has the ``Reader`` method of the same name. Every number is little-endian.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ..contract import CodeType, Ints, Kind, uniform_encoder
from ..errors import FormatError
from .checks import ELEMENTS_MAX

Form = int | list[int]
"""How an array of integers is stored: its width in bytes, or the four widths of a :func:`draw_lines` rule."""

LINE_FRACTION = 24
"""Fractional bits of a line's slope and offset."""
LINE_LENGTH = 256
"""Longest row along a line."""
LINES_SIZE = 1 << 24
"""Most numbers in the rows of one array of lines: a few bytes of a file make no more."""
LINE_MAX = (1 << 55) - 1
"""Largest magnitude of a line's slope and offset: a line of the longest row stays within int64."""

_THREES = 3 ** np.arange(5)  # five ternary digits to a byte: 3^5 = 243 <= 256


def packed_size(count: int, code_type: CodeType) -> int:
    """Bytes that ``count`` codes take in a file."""
    return -(-count // 5) if code_type.kind is Kind.TERNARY else -(-count * code_type.bits // 8)


def nominal_size(count: int, code_type: CodeType) -> int:
    """Bytes of ``count`` codes at their nominal bits; a ternary code counts as 2."""
    return -(-count * code_type.bits // 8)


def pack_codes(codes: npt.NDArray[np.uint8], code_type: CodeType) -> bytes:
    """Codes of any shape, in C order, at their bits.

    K-bit codes follow each other without gaps, least significant bit first; ternary codes are base-3 digits, five to
    a byte, the first the least significant. What is left of the last byte is 0.
    """
    flat = codes.reshape(-1)
    if code_type.kind is Kind.TERNARY:
        digits = np.pad(flat, (0, -flat.size % 5)).reshape(-1, 5)
        return (digits @ _THREES).astype(np.uint8).tobytes()
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


def unpack_codes(data: bytes, count: int, code_type: CodeType) -> npt.NDArray[np.uint8]:
    """The inverse of :func:`pack_codes`: ``count`` codes, ``[count]``.

    Raises:
        FormatError: a byte that holds no five ternary digits, or something in the unused bits.
    """
    packed = np.frombuffer(data, np.uint8)
    table = _codes_of_bytes(code_type)
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


def draw_lines(slope: Ints, offset: Ints, lo: Ints, hi: Ints, length: int) -> Ints:
    """Rows of integers along straight lines: ``clip((offset + k * slope) >> 24, lo, hi)`` for ``k < length``.

    Args:
        slope, offset: ``[C]``, in units of ``2^-24``.
        lo, hi: ``[C]``.

    Returns:
        ``[C, length]``.
    """
    line = (offset[:, None] + slope[:, None] * np.arange(length)) >> LINE_FRACTION
    return np.clip(line, lo[:, None], hi[:, None])


def fit_lines(rows: Ints) -> tuple[Ints, Ints, Ints, Ints] | None:
    """Slopes, offsets and clips with ``draw_lines(..) == rows``, or ``None`` where no line was found.

    The thresholds of uniform 8-bit codes are such rows: rounded points of a line, cut at the accumulator's bounds. A
    line through row ``T`` satisfies ``T_k <= a k + b < T_k + 1`` between the cuts and one of the two sides on them;
    the least distance of the two sides is a convex function of ``a``.

    Args:
        rows: ``[C, n]``; only ascending ones are fitted.
    """
    if rows.shape[1] > LINE_LENGTH or rows.size > LINES_SIZE or (np.diff(rows) < 0).any():
        return None
    lo, hi = rows[:, :1], rows[:, -1:]
    floor, ceiling = np.where(rows > lo, rows, -np.inf), np.where(rows < hi, rows + 1.0, np.inf)
    k = np.arange(rows.shape[1])

    def sides(a: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        return (floor - a * k).max(1, keepdims=True), (ceiling - a * k).min(1, keepdims=True)

    left, right = np.zeros(lo.shape), hi - lo + 1.0
    for _ in range(100):  # ternary search, to a 10^17th of the range
        a, b = left + (right - left) / 3, right - (right - left) / 3
        (below_a, above_a), (below_b, above_b) = sides(a), sides(b)
        better = below_a - above_a < below_b - above_b
        left, right = np.where(better, left, a), np.where(better, b, right)
    below, above = sides(left)
    constant = lo == hi  # nothing between the cuts: both sides are infinitely far
    middle = np.where(constant, lo, (below + np.where(constant, 0, above)) / 2)
    slope, offset = (np.rint(v[:, 0] * 2.0**LINE_FRACTION) for v in (np.where(constant, 0, left), middle))
    if max(slope.max(), np.abs(offset).max()) > LINE_MAX:
        return None
    lines = slope.astype(np.int64), offset.astype(np.int64), lo[:, 0], hi[:, 0]
    return lines if np.array_equal(draw_lines(*lines, rows.shape[1]), rows) else None


def find_step(code_type: CodeType, thresholds: npt.NDArray[np.float32]) -> float | None:
    """A step whose uniform encoder has exactly these float32 thresholds, or ``None``.

    Each threshold is the smallest float32 number not below ``midpoint * step``, which bounds the step on both sides.
    """
    midpoints = np.asarray(uniform_encoder(code_type, 1.0).thresholds)
    upper = thresholds.astype(np.float64)
    lower = np.nextafter(thresholds, np.float32(-np.inf)).astype(np.float64)
    some = midpoints != 0
    bounds = np.sort(np.stack([lower[some] / midpoints[some], upper[some] / midpoints[some]]), axis=0)
    step = float(bounds[0].max(initial=1e-300) + bounds[1].min(initial=1e300)) / 2
    if not 0 < step < np.inf:
        return None
    uniform = uniform_encoder(code_type, step).float32_thresholds()
    return step if uniform.tobytes() == thresholds.tobytes() else None


def _narrowest(a: Ints) -> int:
    return next(w for w in (1, 2, 4, 8) if w == 8 or (-(1 << 8 * w - 1) <= a.min() and a.max() < 1 << 8 * w - 1))


class Writer:
    """Appends parameters to a block of bytes, and adds up their bit budget (see :func:`.container.bit_budget`)."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.budget = 0

    def _append(self, data: bytes) -> None:
        self.data += data
        self.budget += len(data)

    def codes(self, codes: npt.NDArray[np.uint8], code_type: CodeType) -> None:
        """Codes of any shape, at their bits."""
        self.data += pack_codes(codes, code_type)
        self.budget += nominal_size(codes.size, code_type)

    def integers(self, a: npt.NDArray[np.signedinteger]) -> Form:
        """Integers ``[C]`` or ``[C, n]``, along lines if that is shorter, else at the narrowest width.

        Returns:
            The form, which the reader needs.
        """
        a = a.astype(np.int64)
        width = _narrowest(a)
        if a.ndim == 2 and a.shape[1] * width > 24:  # a line takes at most 24 bytes, four integers
            lines = fit_lines(a)
            if lines is not None:
                return self.lines(*lines)
        self._append(a.astype(f"<i{width}").tobytes())
        return width

    def lines(self, slope: Ints, offset: Ints, lo: Ints, hi: Ints) -> list[int]:
        """The four integers of each line; returns their widths."""
        widths = [_narrowest(v) for v in (slope, offset, lo, hi)]
        for v, width in zip((slope, offset, lo, hi), widths, strict=True):
            self._append(v.astype(f"<i{width}").tobytes())
        return widths

    def floats(self, a: npt.NDArray[np.floating]) -> None:
        """Floats of any shape, at their own width."""
        self._append(a.astype(a.dtype.newbyteorder("<")).tobytes())


class Reader:
    """Takes parameters from a block of bytes; nothing is allocated before the bytes for it are known to be there."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def _take(self, size: int) -> bytes:
        rest = len(self.data) - self.position
        if size > rest:
            raise FormatError(f"needs {size} bytes of data where {rest} are left")
        self.position += size
        return self.data[self.position - size : self.position]

    def codes(self, shape: tuple[int, ...], code_type: CodeType) -> npt.NDArray[np.uint8]:
        """Codes of this shape."""
        count = _elements(shape)
        return unpack_codes(self._take(packed_size(count, code_type)), count, code_type).reshape(shape)

    def integers(self, shape: tuple[int, ...], form: Form) -> Ints:
        """Integers of this shape, stored in this form."""
        count = _elements(shape)
        if isinstance(form, list):
            return self.lines(shape, form)
        if form not in (1, 2, 4, 8):
            raise FormatError(f"integers of {form} bytes")
        return np.frombuffer(self._take(count * form), f"<i{form}").astype(np.int64).reshape(shape)

    def lines(self, shape: tuple[int, ...], widths: list[int]) -> Ints:
        """Rows ``[C, n]`` along lines whose four integers have these widths."""
        rows, length = shape
        slope, offset, lo, hi = (self.integers((rows,), width) for width in widths)
        ends = [int(end) for v in (slope, offset) for end in (v.min(), v.max())]
        if length > LINE_LENGTH or rows * length > LINES_SIZE or not all(-LINE_MAX <= end <= LINE_MAX for end in ends):
            raise FormatError("a line is out of range")
        return draw_lines(slope, offset, lo, hi, length)

    def floats(self, shape: tuple[int, ...], dtype: type[np.floating]) -> npt.NDArray[np.floating]:
        """Floats of this shape and type."""
        stored = np.dtype(dtype).newbyteorder("<")
        return np.frombuffer(self._take(_elements(shape) * stored.itemsize), stored).astype(dtype).reshape(shape)

    def end(self) -> None:
        """Check that everything was taken."""
        if self.position != len(self.data):
            raise FormatError(f"{len(self.data) - self.position} bytes of data belong to no operation")


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for n in shape:
        count *= n
    if not all(n >= 1 for n in shape) or count > ELEMENTS_MAX:
        raise FormatError(f"shape {list(shape)} out of range")
    return count
