"""How the native engine lays out codes and weights: forms, geometry, packing. NumPy only.

A value of codes is stored as planes of pixels. Image ``i``, row ``y``, column ``x`` is pixel
``(i * rows + y) * pitch + x`` of every plane: rows share one block of pad columns and images share pad rows, so that a
whole batch is one tall image and a convolution tap is a constant distance between an output pixel and what it reads.
For a stride the image is first split into phases: phase ``(py, px)`` holds the pixels ``(sy * y + py, sx * x + px)``,
and every tap is a constant distance again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ..contract import CodeType, Kind
from . import program as p

CHUNK = 8
"""Channels that the engine finishes at once."""
MAX_PIXELS = 128
"""Buffers may be read this many pixels past their end."""
LINE = 64
"""Bytes of a cache line."""

Ints = npt.NDArray[np.int64]


def round_up(n: int, multiple: int) -> int:
    """The least multiple that is not below ``n``."""
    return -(-n // multiple) * multiple


@dataclass(frozen=True)
class Form:
    """How stored numbers are read: ``value = multiplier * number + add``.

    ``bits`` 1..4: nibble bit-planes of ranks. A byte holds 8 channels of 1 bit (channels 0..3 in its low nibble), or
    4 channels of 2 bits (bit 0 in its low nibble); 3 and 4 bits take a second byte for bits 2 and 3. ``bits`` 0: one
    byte per code, channels in pairs.
    """

    bits: int
    is_signed: bool
    multiplier: int
    add: int

    @classmethod
    def planes(cls, code_type: CodeType) -> Form:
        """Bit-planes of ranks; the type has at most 4 bits."""
        return cls(code_type.bits, False, code_type.step, code_type.lo)

    @classmethod
    def bytes(cls, code_type: CodeType) -> Form:
        """Values as bytes, so that padding with 0 is exact; 8-bit bipolar values do not fit and are kept as ranks."""
        if code_type.kind is Kind.BIPOLAR and code_type.bits == 8:
            return cls(0, False, 2, code_type.lo)
        return cls(0, code_type.lo < 0, 1, 0)

    def stored(self, code_type: CodeType) -> tuple[int, int]:
        """Factor and summand of the stored number of a rank."""
        if self.bits or self.multiplier != 1:
            return 1, 0
        return code_type.step, code_type.lo

    @property
    def pixel_bytes(self) -> int:
        """Bytes of one pixel of a plane."""
        return 1 if self.bits else 2

    @property
    def channels_per_unit(self) -> int:
        """Channels that share a pixel of a plane (of two planes for 3 and 4 bits)."""
        return {0: 2, 1: 8}.get(self.bits, 4)

    @property
    def planes_per_unit(self) -> int:
        """Planes of such a group of channels."""
        return 2 if self.bits > 2 else 1

    def plane_count(self, channels: int) -> int:
        """Planes of so many channels, rounded up to whole chunks."""
        return round_up(channels, CHUNK) // self.channels_per_unit * self.planes_per_unit


@dataclass(frozen=True)
class Geometry:
    """Planes of one value: its phases, and the pads that its readers want."""

    height: int
    width: int
    stride: p.Pair = (1, 1)
    phases: tuple[p.Pair, ...] = ((0, 0),)
    pad_rows: int = 0
    pad_columns: int = 0

    @property
    def phase_height(self) -> int:
        """Rows of one phase."""
        return -(-self.height // self.stride[0])

    @property
    def phase_width(self) -> int:
        """Columns of one phase."""
        return -(-self.width // self.stride[1])

    @property
    def rows(self) -> int:
        """Rows from image to image."""
        return self.phase_height + self.pad_rows

    @property
    def pitch(self) -> int:
        """Pixels from row to row."""
        return self.phase_width + self.pad_columns

    def merge(self, other: Geometry) -> Geometry:
        """One geometry that serves both, for the same stride."""
        assert (self.height, self.width, self.stride) == (other.height, other.width, other.stride)
        phases = tuple(sorted({*self.phases, *other.phases}))
        rows, columns = max(self.pad_rows, other.pad_rows), max(self.pad_columns, other.pad_columns)
        return Geometry(self.height, self.width, self.stride, phases, rows, columns)

    def plane_stride(self, images: int, pixel_bytes: int) -> int:
        """Bytes from plane to plane: an odd number of cache lines, so that planes spread over the cache's sets."""
        lines = -(-images * self.rows * self.pitch * pixel_bytes // LINE)
        return (lines | 1) * LINE

    def head(self, pixel_bytes: int) -> int:
        """Bytes before the first pixel: the pad above and left of the first image."""
        return round_up((self.pad_rows * self.pitch + self.pad_columns) * pixel_bytes, LINE)


@dataclass(frozen=True, eq=False)
class Taps:
    """What a convolution reads: the geometry it wants, and for every kernel position a phase and a distance."""

    geometry: Geometry
    phase: Ints
    """``[kh * kw]`` index into ``geometry.phases``."""
    shift: Ints
    """``[kh * kw, 2]`` rows and columns from the output pixel."""

    def offsets(self, geometry: Geometry, form: Form, units: range, plane_stride: int) -> npt.NDArray[np.int32]:
        """Bytes from an output pixel to each tap, ``[units * kh * kw]``, for a geometry that this one merged into."""
        phase = np.asarray([geometry.phases.index(ph) for ph in self.geometry.phases])[self.phase]
        within = (self.shift[:, 0] * geometry.pitch + self.shift[:, 1]) * form.pixel_bytes
        planes = (np.asarray(units)[:, None] * form.planes_per_unit * len(geometry.phases)) + phase
        return (planes * plane_stride + within).ravel().astype(np.int32)


def convolution_taps(op: p.Conv, size: p.Pair, out: p.Pair, stride: p.Pair) -> Taps:
    """Phases, distances and pads of a convolution's reads.

    Args:
        op: the convolution.
        size: height and width of its input.
        out: of its output.
        stride: the operation's own; any other where the output is one pixel, since nothing moves then.
    """
    shifts, phases, pads = [], [], []
    for axis in (0, 1):
        position = np.arange(op.kernel[axis]) * op.dilation[axis] - op.padding[2 * axis]
        shift, phase = position // stride[axis], position % stride[axis]
        rows = -(-size[axis] // stride[axis])
        last = out[axis] - 1 + int(shift.max())
        pads.append(max(0, -int(shift.min()), last - (rows - 1), out[axis] - rows))
        shifts.append(shift)
        phases.append(phase)
    pairs = [(int(y), int(x)) for y in phases[0] for x in phases[1]]
    unique = tuple(sorted(set(pairs)))
    grid = np.stack(np.meshgrid(shifts[0], shifts[1], indexing="ij"), axis=-1).reshape(-1, 2)
    geometry = Geometry(*size, stride, unique, pads[0], pads[1])
    return Taps(geometry, np.asarray([unique.index(pair) for pair in pairs]), grid)


def border(op: p.Conv, size: p.Pair, out: p.Pair) -> tuple[npt.NDArray[np.int32], Ints] | None:
    """Which output pixels read padding, and the weights that do so.

    Returns:
        The class of every output pixel ``[H', W']`` (0: no padding is read) and the sum of the weights that lie on
        padding ``[O, classes]``; ``None`` if every class is 0.
    """
    inside = []
    for axis in (0, 1):
        start = np.arange(out[axis])[:, None] * op.stride[axis] - op.padding[2 * axis]
        position = start + np.arange(op.kernel[axis]) * op.dilation[axis]
        inside.append((position >= 0) & (position < size[axis]))
    if inside[0].all() and inside[1].all():
        return None
    rows, row_of = np.unique(inside[0], axis=0, return_inverse=True)
    columns, column_of = np.unique(inside[1], axis=0, return_inverse=True)
    weight = op.values().astype(np.int64).sum(axis=1)
    read = np.einsum("oij,ri,cj->orc", weight, rows.astype(np.int64), columns.astype(np.int64), optimize=True)
    missing = weight.sum(axis=(1, 2))[:, None] - read.reshape(len(weight), -1)
    classes = 1 + row_of.reshape(-1, 1) * len(columns) + column_of.reshape(1, -1)
    classes[np.ix_(inside[0].all(axis=1), inside[1].all(axis=1))] = 0
    return classes.astype(np.int32), np.concatenate([np.zeros((len(weight), 1), np.int64), missing], axis=1)


@dataclass(frozen=True, eq=False)
class PackedWeights:
    """A convolution's weights as a kernel reads them: per tile of outputs ``[unit, kernel position][..]``."""

    weights: npt.NDArray[np.uint8]
    weights_at: Ints
    """Start of each tile's weights, bytes."""
    units: tuple[range, ...]
    """Groups of input channels that each tile reads."""
    word_bytes: int
    """Bytes of ``weights`` per tap."""
    bias: Ints
    """Sum of the tables' biases per output, padded to whole chunks."""
    dictionary: npt.NDArray[np.uint8] | None = None
    flush: int = 0
    """Taps whose table entries sum to at most 255."""


def _tiles(op: p.Conv, outputs: int, per_unit: int, fill: int) -> Iterator[tuple[range, Ints]]:
    """For each tile of outputs: the units of input channels that it reads, and its weights on all their channels.

    Yields:
        ``units`` and values ``[outputs, len(units), per_unit, kh * kw]``, 0 where an output does not read a channel
        and ``fill`` where there is no channel.
    """
    values = op.values().astype(np.int64).reshape(op.weight.shape[0], op.weight.shape[1], -1)
    count, per_group, taps = values.shape
    channels = per_group * op.groups
    outputs_per_group = count // op.groups
    for first in range(0, round_up(count, CHUNK), outputs):
        here = range(first, min(first + outputs, count))
        groups = [o // outputs_per_group for o in here]
        units = range(0)
        if groups:
            units = range(groups[0] * per_group // per_unit, -(-(groups[-1] + 1) * per_group // per_unit))
        dense = np.zeros((outputs, len(units) * per_unit, taps), np.int64)
        for row, o in enumerate(here):
            start = groups[row] * per_group - units.start * per_unit
            dense[row, start : start + per_group] = values[o]
        dense[:, max(0, channels - units.start * per_unit) :] = fill
        yield units, dense.reshape(outputs, len(units), per_unit, taps)


def dictionary_digits(op: p.Conv, per_unit: int) -> tuple[int, ...] | None:
    """The weight values that a dictionary for this layer is made of, or ``None`` if there are more than four.

    Groups of channels that do not fill whole words need the value 0 for their neighbours' channels.
    """
    weight_type = op.weight_type
    if weight_type.count > 4:
        return None
    digits = tuple(range(weight_type.lo, weight_type.hi + 1, weight_type.step))
    aligned = op.groups == 1 or (op.weight.shape[1] % per_unit == 0 and op.weight.shape[0] // op.groups % CHUNK == 0)
    if aligned or 0 in digits:
        return digits
    return (-1, 0, 1) if digits == (-1, 1) else None


@lru_cache(maxsize=16)
def dictionary_tables(digits: tuple[int, ...]) -> tuple[npt.NDArray[np.uint8], Ints]:
    """All words of four weights: their 16-entry tables and biases.

    Entry ``s`` of a word's table is the sum of its weights over the channels in the set ``s``, plus the word's bias,
    the sum of its negative weights' magnitudes.

    Returns:
        ``[len(digits)**4, 16]`` and ``[len(digits)**4]``; weight ``j`` of a word is its ``j``-th digit.
    """
    base = len(digits)
    words = np.asarray(digits)[np.arange(base**4)[:, None] // base ** np.arange(4) % base]
    subsets = np.arange(16)[:, None] >> np.arange(4) & 1
    bias = np.maximum(-words, 0).sum(axis=1)
    return (words @ subsets.T + bias[:, None]).astype(np.uint8), bias.astype(np.int64)


def pack_dictionary(op: p.Conv, bits: int, outputs: int, digits: tuple[int, ...]) -> PackedWeights:
    """Weights as dictionary words, one byte each: ``[unit, kernel position][word][outputs]``.

    Args:
        op: the convolution.
        bits: of the activations; 1-bit activations have two words per unit, one for each nibble.
        outputs: of the kernel's tile.
        digits: see :func:`dictionary_digits`.
    """
    per_unit = Form(bits, False, 1, 0).channels_per_unit
    tables, bias = dictionary_tables(digits)
    base, words_per_unit = len(digits), per_unit // 4
    fill = 0 if 0 in digits else 1  # channels beyond the last are 0 themselves: a word's table adds nothing for +1
    digit_of = np.zeros(max(digits) - min(digits) + 1, np.int64)
    digit_of[np.asarray(digits) - min(digits)] = np.arange(base)
    packed, units, biases = [], [], []
    for tile_units, dense in _tiles(op, outputs, per_unit, fill):
        if 0 not in digits:
            dense = np.where(dense == 0, fill, dense)  # only outputs beyond the last have zeros here
        digit = digit_of[dense - min(digits)].reshape(outputs, len(tile_units), words_per_unit, 4, dense.shape[3])
        words = np.einsum("ruwjt,j->ruwt", digit, base ** np.arange(4))
        packed.append(words.transpose(1, 3, 2, 0).astype(np.uint8).ravel())
        units.append(tile_units)
        biases.append(bias[words].sum(axis=(1, 2, 3)))
    flush = 255 // (4 * max(abs(d) for d in digits)) // words_per_unit
    return _packed(packed, units, words_per_unit * outputs, np.concatenate(biases), tables, flush)


def pack_pairs(op: p.Conv, outputs: int) -> PackedWeights:
    """Weights as int16 pairs of channels: ``[unit, kernel position][outputs][2]``."""
    packed, units = [], []
    for tile_units, dense in _tiles(op, outputs, 2, 0):
        packed.append(dense.transpose(1, 3, 0, 2).astype(np.int16).ravel().view(np.uint8))
        units.append(tile_units)
    bias = np.zeros(round_up(op.weight.shape[0], CHUNK), np.int64)
    return _packed(packed, units, 4 * outputs, bias)


def _packed(
    packed: list[npt.NDArray[np.uint8]],
    units: list[range],
    word_bytes: int,
    bias: Ints,
    dictionary: npt.NDArray[np.uint8] | None = None,
    flush: int = 0,
) -> PackedWeights:
    at = np.cumsum([0] + [len(w) for w in packed[:-1]], dtype=np.int64)
    return PackedWeights(np.concatenate(packed), at, tuple(units), word_bytes, bias, dictionary, flush)


def pack_linear(op: p.Conv, size: p.Pair, lanes: int) -> tuple[npt.NDArray[np.uint8], int, int]:
    """Weights of a convolution with one output pixel: ``[O / lanes][depth / 2][lanes][2]``.

    Args:
        op: the convolution, one group.
        size: height and width of its input.
        lanes: outputs of the kernel's tile.

    Returns:
        The bytes; the depth ``C * H * W``, rounded up to even; and the bytes of a weight, 1 or 2.
    """
    values = op.values()
    outputs, channels = values.shape[:2]
    dense = np.zeros((outputs, channels, *size), np.int32)
    for i in range(op.kernel[0]):
        for j in range(op.kernel[1]):
            y, x = i * op.dilation[0] - op.padding[0], j * op.dilation[1] - op.padding[2]
            if 0 <= y < size[0] and 0 <= x < size[1]:
                dense[:, :, y, x] = values[:, :, i, j]
    depth = round_up(dense[0].size, 2)
    dtype = np.int8 if -128 <= values.min() and values.max() <= 127 else np.int16
    matrix = np.zeros((round_up(outputs, lanes), depth), dtype)
    matrix[:outputs, : dense[0].size] = dense.reshape(outputs, -1)
    tiles = matrix.reshape(-1, lanes, depth // 2, 2).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(tiles).reshape(-1).view(np.uint8), depth, matrix.itemsize


def plane_limits(thresholds: Ints, channels: int, wide: bool) -> npt.NDArray[np.int32]:
    """Thresholds as the limits that a sum must exceed, for codes stored as bit-planes.

    Args:
        thresholds: ``[C, n]``; a sum passes where ``sum >= threshold``.
        channels: C.
        wide: whether sums are int32; else int16, and so are limits, twice in 32 bits.

    Returns:
        ``[C rounded up to chunks, n]``; no sum exceeds the limits of the channels that are not there.
    """
    info = np.iinfo(np.int32 if wide else np.int16)
    out = np.full((round_up(channels, CHUNK), thresholds.shape[1]), info.max, np.int64)
    out[:channels] = np.clip(thresholds - 1, info.min, info.max)
    if not wide:
        out = (out & 0xFFFF) * 0x10001
    return out.astype(np.uint32).view(np.int32) if not wide else out.astype(np.int32)


def byte_limits(thresholds: Ints, channels: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """The same for codes stored as bytes, which are searched: padded to ``2^m - 1`` limits.

    Returns:
        The limits, and ``[C rounded up, 2]`` low and scale of a guess: if scale is positive, then
        ``int((limit - low) * scale + 0.5)`` in float32 is ``k`` for the ``k``-th of all limits.
    """
    info = np.iinfo(np.int32)
    count = thresholds.shape[1]
    out = np.full((round_up(channels, CHUNK), (1 << count.bit_length()) - 1), info.max, np.int32)
    out[:channels, :count] = np.clip(thresholds - 1, info.min, info.max)
    guess = np.zeros((len(out), 2), np.float32)
    with np.errstate(over="ignore"):
        reals = out.astype(np.float32)
        guess[:, 0] = reals[:, 0]
        span = reals[:, -1] - reals[:, 0]
        scale = (np.float32(out.shape[1] - 1) / np.where(span > 0, span, np.inf)).astype(np.float32)
        found = ((reals - guess[:, :1]) * scale[:, None] + np.float32(0.5)).astype(np.int64)
    guess[:, 1] = np.where((found == np.arange(out.shape[1])).all(axis=1), scale, 0)
    return out, guess


def unpack(
    memory: npt.NDArray[np.uint8], start: int, plane_stride: int, geometry: Geometry, form: Form, channels: int, n: int
) -> npt.NDArray[np.uint8]:
    """The numbers stored for the first phase of a value.

    Args:
        memory: the buffer.
        start: of the first pixel of plane 0.
        plane_stride: bytes from plane to plane.
        geometry: of the value, without a stride.
        form: of the value.
        channels: C.
        n: images wanted.

    Returns:
        ranks or bytes ``[n, C, H, W]``.
    """
    size = n * geometry.rows * geometry.pitch * form.pixel_bytes
    at = start + np.arange(form.plane_count(channels))[:, None] * plane_stride + np.arange(size)
    planes = memory[at].reshape(-1, n, geometry.rows, geometry.pitch, form.pixel_bytes)
    planes = planes[:, :, : geometry.height, : geometry.width]
    if form.bits == 0:
        numbers = planes.transpose(1, 0, 4, 2, 3)
    elif form.bits == 1:
        numbers = (planes.transpose(1, 0, 4, 2, 3) >> np.arange(8, dtype=np.uint8)[:, None, None]) & 1
    else:
        groups = planes.reshape(-1, form.planes_per_unit, *planes.shape[1:4])
        nibbles = np.stack([groups & 15, groups >> 4], axis=2).reshape(len(groups), -1, *planes.shape[1:4])
        bits = (nibbles[:, :, None] >> np.arange(4, dtype=np.uint8)[:, None, None, None]) & 1
        weight = (1 << np.arange(nibbles.shape[1], dtype=np.uint8))[:, None, None, None, None]
        numbers = (bits * weight).sum(axis=1, dtype=np.uint8).transpose(2, 0, 1, 3, 4)
    return np.ascontiguousarray(numbers.reshape(n, -1, geometry.height, geometry.width)[:, :channels])
