"""Checks of a program's parts: each raises :class:`FormatError` with a line that says what is wrong."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..contract import ACCUMULATOR_MAX, CodeType
from ..errors import FormatError

Array = npt.NDArray[np.generic]
Pair = tuple[int, int]
Padding = tuple[int, int, int, int]
"""Rows or columns added at the (top, bottom, left, right)."""

SIZE_MAX = 1 << 20
"""Largest channel count, height or width of a value."""
ELEMENTS_MAX = 1 << 28
"""Largest number of elements of one image's value (with its padding), and of one weight tensor."""
NAME_MAX = 1 << 10
"""Longest name of an operation."""


def require(condition: object, message: str) -> None:
    """Raise :class:`FormatError` with this message unless the condition holds."""
    if not condition:
        raise FormatError(message)


def is_text(v: object) -> bool:
    """Whether it is a string that a file can hold, which a lone surrogate is not."""
    return isinstance(v, str) and not any("\ud800" <= c <= "\udfff" for c in v)


def require_ints(what: str, v: object, length: int, lo: int, hi: int) -> None:
    """Raise unless it is a tuple of so many plain integers within ``lo .. hi``."""
    good = isinstance(v, tuple) and len(v) == length and all(type(i) is int and lo <= i <= hi for i in v)
    require(good, f"{what} must be {length} integers from {lo} to {hi}, got {v!r:.100}")


def require_code_type(v: object) -> None:
    """Raise unless it is a code type."""
    require(isinstance(v, CodeType), f"{v!r:.100} is no code type")


def require_saturation(lo: object, hi: object) -> None:
    """Raise unless ``lo .. hi`` is an interval of int32."""
    require_ints("saturation lo, hi", (lo, hi), 2, -ACCUMULATOR_MAX, ACCUMULATOR_MAX)
    require(lo <= hi, f"saturation {lo}..{hi} is empty")  # type: ignore[operator]


def require_array(what: str, a: object, dtype: type, shape: tuple[int | None, ...]) -> None:
    """Raise unless it is an array of this type and shape (``None``: any size) that is not too large."""
    require(isinstance(a, np.ndarray), f"{what} must be an array")
    assert isinstance(a, np.ndarray)
    require(a.dtype == dtype, f"{what} must be {np.dtype(dtype)}, got {a.dtype}")
    good = a.ndim == len(shape) and all(s is None or s == n for s, n in zip(shape, a.shape, strict=True))
    require(good and a.size <= ELEMENTS_MAX, f"{what} must have shape {shape}, got {a.shape}")


def window_size(what: str, size: Pair, kernel: Pair, stride: Pair, padding: Padding, dilation: Pair) -> Pair:
    """Output height and width of a sliding window.

    Raises:
        FormatError: numbers out of range, or a window larger than the padded image.
    """
    for name, pair in (("kernel", kernel), ("stride", stride), ("dilation", dilation)):
        require_ints(f"{what}: {name}", pair, 2, 1, SIZE_MAX)
    require_ints(f"{what}: padding", padding, 4, 0, SIZE_MAX)
    out = []
    for axis in (0, 1):
        reach = dilation[axis] * (kernel[axis] - 1) + 1
        room = size[axis] + padding[2 * axis] + padding[2 * axis + 1] - reach
        require(room >= 0, f"{what}: a window of {reach} does not fit an image of {size[axis]} with its padding")
        out.append(room // stride[axis] + 1)
    return out[0], out[1]


def same(a: object, b: object) -> bool:
    """Whether two arguments of operations are equal, type and array elements included."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return type(a) is type(b) and a == b
