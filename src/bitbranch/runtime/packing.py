"""How parameters lie in a file: codes at their bits, integers at their narrowest width, regular tables by a rule.

:class:`Writer` appends parameters to one block of bytes and :class:`Reader` takes them back in the same order; each
``Writer`` method has the ``Reader`` method of the same name. Every number is little-endian.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..contract import CodeType, Ints, uniform_encoder
from ..errors import FormatError
from .checks import ELEMENTS_MAX
from .codes import PackedCodes, nominal_size, pack_codes, packed_size, unpack_codes

Form = int | list[int]
"""How an array of integers is stored: its width in bytes, or the four widths of a :func:`draw_lines` rule."""

LINE_FRACTION = 24
"""Fractional bits of a line's slope and offset."""
LINE_LENGTH = 256
"""Longest row along a line."""
LINES_SIZE = 1 << 24
"""Most numbers in the rows of one array of lines: a few bytes of a file make no more."""
LINES_TOGETHER = 64
"""Rows that are drawn at once."""
LINE_MAX = (1 << 55) - 1
"""Largest magnitude of a line's slope and offset: a line of the longest row stays within int64."""


def draw_lines(slope: Ints, offset: Ints, lo: Ints, hi: Ints, length: int) -> Ints:
    """Rows of integers along straight lines: ``clip((offset + k * slope) >> 24, lo, hi)`` for ``k < length``.

    Args:
        slope, offset: ``[C]``, in units of ``2^-24``.
        lo, hi: ``[C]``.

    Returns:
        ``[C, length]``.
    """
    rows = np.empty((len(slope), length), np.int64)
    for first in range(0, len(slope), LINES_TOGETHER):
        here = slice(first, first + LINES_TOGETHER)
        line = (offset[here, None] + slope[here, None] * np.arange(length)) >> LINE_FRACTION
        np.clip(line, lo[here, None], hi[here, None], out=rows[here])
    return rows


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

    def packed_codes(self, codes: PackedCodes) -> None:
        """Codes that are at their bits already."""
        self.data += codes.data.data
        self.budget += nominal_size(codes.size, codes.code_type)

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

    def __init__(self, data: bytes | memoryview) -> None:
        self.data = memoryview(data)
        self.position = 0

    def _take(self, size: int) -> memoryview:
        rest = len(self.data) - self.position
        if size > rest:
            raise FormatError(f"needs {size} bytes of data where {rest} are left")
        self.position += size
        return self.data[self.position - size : self.position]

    def codes(self, shape: tuple[int, ...], code_type: CodeType) -> npt.NDArray[np.uint8]:
        """Codes of this shape."""
        count = _elements(shape)
        return unpack_codes(self._take(packed_size(count, code_type)), count, code_type).reshape(shape)

    def packed_codes(self, shape: tuple[int, ...], code_type: CodeType) -> PackedCodes:
        """Codes of this shape, left where they are: a view of the block."""
        return PackedCodes(self._take(packed_size(_elements(shape), code_type)), shape, code_type)

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
