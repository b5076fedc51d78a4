"""The operations of a program, one frozen dataclass each: what they hold, what they take and what they make."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from ..contract import ACCUMULATOR_MAX, REQUANTIZE_OFFSET_MAX, CodeType, Ints, bounds_of_sums
from ..errors import FormatError
from .checks import (
    ELEMENTS_MAX,
    SIZE_MAX,
    Array,
    Padding,
    Pair,
    require,
    require_array,
    require_code_type,
    require_ints,
    require_saturation,
    same,
    window_size,
)
from .codes import PackedCodes
from .values import Codes, Integers, Reals, Value


def _slide(what: str, x: Value, kernel: Pair, stride: Pair, padding: Padding, dilation: Pair = (1, 1)) -> Pair:
    """:func:`window_size` over a value, whose padded copy an executor may hold."""
    size = window_size(what, x.shape[1:], kernel, stride, padding, dilation)
    height, width = x.shape[1] + padding[0] + padding[1], x.shape[2] + padding[2] + padding[3]
    require(x.shape[0] * height * width <= ELEMENTS_MAX, f"{what}: padding {padding} is too much")
    return size


AnyOperation = TypeVar("AnyOperation", bound="Operation")


@dataclass(frozen=True)
class Operation:
    """Base of all operations. ``name`` is the layer's name in the user's network, ``inputs`` are value numbers."""

    name: str
    inputs: tuple[int, ...]
    arity: ClassVar[int | None] = 1
    """Number of inputs; ``None``: any, at least one."""

    def infer(self, *inputs: Value) -> Value:
        """Check the operation against its inputs' types and return its output's type.

        Raises:
            FormatError: anything that does not fit.
        """
        raise NotImplementedError

    def macs(self, *inputs: Value) -> int:
        """Multiply-accumulates for one image."""
        return 0

    def arrays(self) -> Iterator[Array]:
        """The parameter arrays; weights are decoded."""
        return (v for name in vars(self) if isinstance(v := getattr(self, name), np.ndarray))

    def reading(self: AnyOperation, inputs: tuple[int, ...]) -> AnyOperation:
        """The same operation on other values; it shares the parameters."""
        other = copy(self)
        object.__setattr__(other, "inputs", inputs)
        return other

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(same(a, b) for a, b in zip(vars(self).values(), vars(other).values(), strict=True))

    def __hash__(self) -> int:
        return hash((type(self), self.name, self.inputs))


def _codes(what: str, v: Value) -> Codes:
    require(isinstance(v, Codes), f"{what} takes codes, got {type(v).__name__.lower()}")
    assert isinstance(v, Codes)
    return v


def _not_reals(what: str, v: Value) -> Codes | Integers:
    require(not isinstance(v, Reals), f"{what} takes codes or integers, got reals")
    assert not isinstance(v, Reals)
    return v


def _integers(what: str, v: Value) -> Integers:
    require(isinstance(v, Integers), f"{what} takes integers, got {type(v).__name__.lower()}")
    assert isinstance(v, Integers)
    return v


@dataclass(frozen=True, eq=False)
class Encode(Operation):
    """An input of the network: float32 images to codes, ``rank = #{k : x >= t_k}``. Its name is the input's.

    Args:
        shape: (C, H, W).
        code_type: codes produced.
        thresholds: float32 ``[count - 1]``, ascending, closed
            (:meth:`~bitbranch.contract.Encoder.float32_thresholds`).
        table: uint8 ``[C, 256]``, the code of every uint8 pixel with the normalisation inside, or ``None``.
    """

    shape: tuple[int, int, int]
    code_type: CodeType
    thresholds: npt.NDArray[np.float32]
    table: npt.NDArray[np.uint8] | None = None
    arity: ClassVar[int | None] = 0

    def infer(self, *inputs: Value) -> Codes:
        require_ints("shape", self.shape, 3, 1, SIZE_MAX)
        require_code_type(self.code_type)
        require_array("thresholds", self.thresholds, np.float32, (self.code_type.count - 1,))
        require(bool(np.isfinite(self.thresholds).all()), "thresholds must be finite")
        require(bool((np.diff(self.thresholds) >= 0).all()), "thresholds must ascend")
        if self.table is not None:
            require_array("table", self.table, np.uint8, (self.shape[0], 256))
            require(int(self.table.max()) < self.code_type.count, "table holds codes beyond the type")
        return Codes(self.shape, self.code_type)


@dataclass(frozen=True, eq=False)
class Convolution(Operation):
    """What both kinds of convolution have in common: weights.

    Weights are held at their bits, as they lie in a file. Every read of ``weight`` decodes them anew, into an array
    that cannot be written; their shape, their sums and single rows are to be had from ``packed`` for less.
    """

    weight: npt.NDArray[np.uint8]
    weight_type: CodeType
    stride: Pair = (1, 1)
    padding: Padding = (0, 0, 0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        with suppress(FormatError):  # infer() says it, and whose weights they are
            self._check_weight()
            if not isinstance(self._held, PackedCodes):
                vars(self)["weight"] = PackedCodes.pack(self._held, self.weight_type)

    @property
    def _held(self) -> PackedCodes | npt.NDArray[np.uint8]:
        return vars(self)["weight"]

    @property
    def packed(self) -> PackedCodes:
        """The weights at their bits."""
        assert isinstance(self._held, PackedCodes), "not checked"
        return self._held

    @property
    def kernel(self) -> Pair:
        return self.packed.shape[2], self.packed.shape[3]

    def values(self) -> npt.NDArray[np.int32]:
        """The weights as integers, in the shape of ``weight``."""
        return self.weight_type.decode(self.weight)

    def _check_weight(self) -> None:
        require_code_type(self.weight_type)
        held = self._held
        if isinstance(held, PackedCodes):
            require(len(held.shape) == 4 and held.code_type == self.weight_type, f"{held} do not fit")
            return
        require_array("weight", held, np.uint8, (None, None, None, None))
        require(held.size > 0, "weight is empty")
        require(int(held.max()) < self.weight_type.count, "weight holds codes beyond its type")

    def _check(self, channels: int) -> None:
        """Check weights and groups against the channels of the input."""
        self._check_weight()
        require_ints("groups", (self.groups,), 1, 1, SIZE_MAX)
        require(
            self._fits(channels),
            f"weight {self.packed.shape} in {self.groups} groups does not fit {channels} input channels",
        )

    def _fits(self, channels: int) -> bool:
        raise NotImplementedError


def _weight(op: Convolution) -> npt.NDArray[np.uint8]:
    held = op._held
    if not isinstance(held, PackedCodes):
        return held
    codes = held.decode()
    codes.flags.writeable = False  # what is written here would be lost
    return codes


def _hold(op: Convolution, weight: npt.NDArray[np.uint8] | PackedCodes) -> None:
    vars(op)["weight"] = weight


# The dataclass's argument is an array of codes or PackedCodes; what is read is an array.
Convolution.weight = property(_weight, _hold)  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class Conv(Convolution):
    """Convolution (or linear layer): codes to accumulators, ``acc = sum w * x``; padding means the real 0.

    Args:
        weight: codes, uint8 ``[O, I / groups, kh, kw]``.
        weight_type: their type.
        stride, dilation: (vertical, horizontal).
        padding: (top, bottom, left, right).
        groups: divides I and O.
    """

    def sums(self) -> tuple[Ints, Ints]:
        """Sum of the weights, and of their magnitudes, per output ``[O]``."""
        return self.packed.sums

    def _fits(self, channels: int) -> bool:
        return self.packed.shape[0] % self.groups == 0 and self.packed.shape[1] * self.groups == channels

    def _size(self, x: Value) -> Pair:
        return _slide("convolution", x, self.kernel, self.stride, self.padding, self.dilation)

    def infer(self, *inputs: Value) -> Integers:
        x = _codes("convolution", inputs[0])
        self._check(x.shape[0])
        size = self._size(x)
        lo, hi = bounds_of_sums(*self.sums(), x.code_type)
        return Integers((self.packed.shape[0], *size), int(lo.min()), int(hi.max()))

    def macs(self, *inputs: Value) -> int:
        height, width = self._size(inputs[0])
        return self.packed.size * height * width


@dataclass(frozen=True, eq=False)
class ConvTranspose(Convolution):
    """Transposed convolution: codes to accumulators, the adjoint of :class:`Conv` in its input.

    Input pixel ``(y, x)`` adds ``w[:, :, i, j] * code`` to output pixel ``(sy * y + dy * i - top, sx * x + dx * j -
    left)``; what falls outside the output is dropped.

    Args:
        weight: codes, uint8 ``[I, O / groups, kh, kw]``, as in PyTorch.
        weight_type: their type.
        stride, dilation: (vertical, horizontal).
        padding: (top, bottom, left, right) rows and columns cut off the full output. A negative bottom or right
            extends it (PyTorch's ``output_padding``), by less than stride or dilation.
        groups: divides I and O.
    """

    def _fits(self, channels: int) -> bool:
        return self.packed.shape[0] == channels and channels % self.groups == 0

    def infer(self, *inputs: Value) -> Integers:
        x = _codes("transposed convolution", inputs[0])
        self._check(x.shape[0])
        for name, pair in (("kernel", self.kernel), ("stride", self.stride), ("dilation", self.dilation)):
            require_ints(f"transposed convolution: {name}", pair, 2, 1, SIZE_MAX)
        require_ints("transposed convolution: padding", self.padding, 4, -SIZE_MAX, SIZE_MAX)
        size = []
        for axis in (0, 1):
            before, after = self.padding[2 * axis], self.padding[2 * axis + 1]
            require(before >= 0, f"transposed convolution: padding {before} before the image is negative")
            extra = max(self.stride[axis], self.dilation[axis])
            require(after > -extra, f"transposed convolution: output padding {-after} must be below {extra}")
            full = (x.shape[1 + axis] - 1) * self.stride[axis] + self.dilation[axis] * (self.kernel[axis] - 1) + 1
            size.append(full - before - after)
        require(min(size) >= 1, f"transposed convolution: padding {self.padding} leaves no output")
        require(size[0] * size[1] <= ELEMENTS_MAX, "transposed convolution: the output is too large")
        lo, hi = self.bounds(x.code_type)
        return Integers((self.packed.shape[1] * self.groups, size[0], size[1]), lo, hi)

    def bounds(self, code_type: CodeType) -> Pair:
        """Proven bounds of the accumulators: an output pixel sums some of its channel's weights, each at most once."""
        inputs, per_group = self.packed.shape[:2]
        low, high = np.zeros((2, self.groups, per_group), np.int64)
        for rows, codes in self.packed.pieces():
            weight = self.weight_type.decode(codes).astype(np.int64)
            ends = weight * code_type.lo, weight * code_type.hi
            group = np.arange(rows.start, rows.stop) // (inputs // self.groups)
            np.add.at(low, group, np.minimum(np.minimum(*ends), 0).sum(axis=(2, 3)))
            np.add.at(high, group, np.maximum(np.maximum(*ends), 0).sum(axis=(2, 3)))
        return int(low.min()), int(high.max())

    def macs(self, *inputs: Value) -> int:
        return self.packed.size * inputs[0].shape[1] * inputs[0].shape[2]


@dataclass(frozen=True, eq=False)
class Threshold(Operation):
    """Integers to codes: ``rank = #{k : v >= T_k}`` per channel, or ``rank = table[#{k : v >= T_k}]``.

    Args:
        code_type: codes produced.
        thresholds: int32 ``[C, n]``, or ``[1, n]`` for all channels; ascending. ``n = count - 1`` without a table.
        table: uint8 ``[n + 1]``, the rank in each interval between thresholds, for an activation that is not monotone
            (h-swish); ``None``: the interval's number. ``n`` is at most 255.
    """

    code_type: CodeType
    thresholds: npt.NDArray[np.int32]
    table: npt.NDArray[np.uint8] | None = None

    def infer(self, *inputs: Value) -> Codes:
        x = _integers("threshold", inputs[0])
        require_code_type(self.code_type)
        if self.table is None:
            require_array("thresholds", self.thresholds, np.int32, (None, self.code_type.count - 1))
        else:
            require_array("thresholds", self.thresholds, np.int32, (None, None))
            require(1 <= self.thresholds.shape[1] <= 255, f"{self.thresholds.shape[1]} thresholds for a table")
            require_array("table", self.table, np.uint8, (self.thresholds.shape[1] + 1,))
            require(int(self.table.max()) < self.code_type.count, "table holds ranks beyond the code type")
        require(self.thresholds.shape[0] in (1, x.shape[0]), f"thresholds are not for {x.shape[0]} channels")
        require(bool((np.diff(self.thresholds.astype(np.int64), axis=1) >= 0).all()), "thresholds must ascend")
        return Codes(x.shape, self.code_type)


@dataclass(frozen=True, eq=False)
class Requantize(Operation):
    """Integers to a residual stream: ``clamp((v * m + offset + 2^(s-1)) >> s, lo, hi)`` per channel.

    Args:
        multiplier: int32 ``[C]``.
        shift: uint8 ``[C]``, at most 61.
        offset: int64 ``[C]``.
        lo, hi: saturation (``lo = 0`` is ReLU), within int32.
    """

    multiplier: npt.NDArray[np.int32]
    shift: npt.NDArray[np.uint8]
    offset: npt.NDArray[np.int64]
    lo: int
    hi: int

    def infer(self, *inputs: Value) -> Integers:
        x = _integers("requantize", inputs[0])
        require_array("multiplier", self.multiplier, np.int32, (x.shape[0],))
        require_array("shift", self.shift, np.uint8, (x.shape[0],))
        require_array("offset", self.offset, np.int64, (x.shape[0],))
        require(int(self.shift.max()) <= 61, "shift must be at most 61")
        # |v * m| < 2^62, since both are int32; with such offsets the sum stays within int64.
        require(max(abs(int(o)) for o in self.offset) <= REQUANTIZE_OFFSET_MAX, "offset may overflow")
        require_saturation(self.lo, self.hi)
        return Integers(x.shape, self.lo, self.hi)


@dataclass(frozen=True, eq=False)
class Add(Operation):
    """Sum of two residual streams on one scale: ``clamp(a + b, lo, hi)``."""

    lo: int
    hi: int
    arity: ClassVar[int | None] = 2

    def infer(self, *inputs: Value) -> Integers:
        a, b = _integers("addition", inputs[0]), _integers("addition", inputs[1])
        require(a.shape == b.shape, f"addition of shapes {a.shape} and {b.shape}")
        require_saturation(self.lo, self.hi)
        sum_lo, sum_hi = a.lo + b.lo, a.hi + b.hi
        require(-ACCUMULATOR_MAX <= sum_lo and sum_hi <= ACCUMULATOR_MAX, "the sum may overflow int32")
        return Integers(a.shape, max(self.lo, min(sum_lo, self.hi)), min(self.hi, max(sum_hi, self.lo)))


@dataclass(frozen=True, eq=False)
class MaxPool(Operation):
    """Largest value of each window, on codes (by value) or integers; padding never wins."""

    kernel: Pair
    stride: Pair
    padding: Padding = (0, 0, 0, 0)
    dilation: Pair = (1, 1)

    def infer(self, *inputs: Value) -> Codes | Integers:
        x = _not_reals("max-pool", inputs[0])
        size = _slide("max-pool", x, self.kernel, self.stride, self.padding, self.dilation)
        for axis in (0, 1):
            start = np.arange(size[axis]) * self.stride[axis] - self.padding[2 * axis]
            tap = np.maximum(-(start // self.dilation[axis]), 0)  # the first that lies in the image, if any does
            seen = (tap < self.kernel[axis]) & (start + tap * self.dilation[axis] < x.shape[1 + axis])
            require(bool(seen.all()), "max-pool: a window holds only padding")
        shape = (x.shape[0], *size)
        return Codes(shape, x.code_type) if isinstance(x, Codes) else Integers(shape, x.lo, x.hi)


@dataclass(frozen=True, eq=False)
class SumPool(Operation):
    """Sum over each window, of values or integers; padding counts as 0. An average's division is folded later."""

    kernel: Pair
    stride: Pair
    padding: Padding = (0, 0, 0, 0)

    def infer(self, *inputs: Value) -> Integers:
        x = _not_reals("average-pool", inputs[0])
        size = _slide("average-pool", x, self.kernel, self.stride, self.padding)
        lo, hi = (x.code_type.lo, x.code_type.hi) if isinstance(x, Codes) else (x.lo, x.hi)
        n = self.kernel[0] * self.kernel[1]
        return Integers((x.shape[0], *size), min(lo, 0) * n, max(hi, 0) * n)


@dataclass(frozen=True, eq=False)
class Concat(Operation):
    """Channels of several values one after the other: codes of one type, or integers on one scale."""

    arity: ClassVar[int | None] = None

    def infer(self, *inputs: Value) -> Codes | Integers:
        require(len(inputs) >= 1, "concatenation of nothing")
        first = _not_reals("concatenation", inputs[0])
        for v in inputs:
            require(type(v) is type(first), "concatenation of codes and integers")
            require(v.shape[1:] == first.shape[1:], f"concatenation of shapes {first.shape} and {v.shape}")
        shape = (sum(v.shape[0] for v in inputs), *first.shape[1:])
        if isinstance(first, Codes):
            types = {v.code_type for v in inputs if isinstance(v, Codes)}
            require(len(types) == 1, f"concatenation of code types {', '.join(sorted(map(str, types)))}")
            return Codes(shape, first.code_type)
        integers = [_integers("concatenation", v) for v in inputs]
        return Integers(shape, min(v.lo for v in integers), max(v.hi for v in integers))


FACTORS = {"nearest": 1024, "bilinear": 64}
"""Greatest factors of upsampling; of a bilinear one the sums grow by four times the product of both."""


@dataclass(frozen=True, eq=False)
class Upsample(Operation):
    """Enlarges by whole factors; pixel centres are aligned as in PyTorch with ``align_corners=False``.

    ``nearest`` repeats pixels and keeps the type. ``bilinear`` gives integers ``4 * fy * fx`` times the interpolated
    values, exactly: along an axis with factor ``f``, output ``f * i + r`` lies between inputs with the whole weights
    ``2 r + 1 - f`` and its complement to ``2 f``; neighbours beyond the edge repeat it. The division is folded later.

    Args:
        factor: (vertical, horizontal), up to :data:`FACTORS`.
        mode: ``"nearest"`` or ``"bilinear"``.
    """

    factor: Pair
    mode: str = "nearest"

    def infer(self, *inputs: Value) -> Codes | Integers:
        x = _not_reals("upsampling", inputs[0])
        require(self.mode in FACTORS, f"unknown upsampling {self.mode!r:.100}")
        require_ints(f"factor of {self.mode} upsampling", self.factor, 2, 1, FACTORS[self.mode])
        shape = (x.shape[0], x.shape[1] * self.factor[0], x.shape[2] * self.factor[1])
        if self.mode == "nearest":
            return Codes(shape, x.code_type) if isinstance(x, Codes) else Integers(shape, x.lo, x.hi)
        lo, hi = (x.code_type.lo, x.code_type.hi) if isinstance(x, Codes) else (x.lo, x.hi)
        n = 4 * self.factor[0] * self.factor[1]
        return Integers(shape, lo * n, hi * n)


@dataclass(frozen=True, eq=False)
class Scale(Operation):
    """An output: ``float32(v) * scale + bias`` per channel, multiplied and then added in float32, never fused.

    Its name is the output's.
    """

    scale: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]

    def infer(self, *inputs: Value) -> Reals:
        x = _integers("output scale", inputs[0])
        for what, a in (("scale", self.scale), ("bias", self.bias)):
            require_array(what, a, np.float32, (x.shape[0],))
            require(bool(np.isfinite(a).all()), f"{what} must be finite")
        return Reals(x.shape)
