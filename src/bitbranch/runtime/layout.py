"""How the native engine lays out codes: forms, geometry, a convolution's reads. NumPy only.

A value of codes is stored as planes of pixels. Image ``i``, row ``y``, column ``x`` is pixel
``(i * rows + y) * pitch + x`` of every plane: rows share one block of pad columns and images share pad rows, so that a
whole batch is one tall image and a convolution tap is a constant distance between an output pixel and what it reads.
For a stride the image is first split into phases: phase ``(py, px)`` holds the pixels ``(sy * y + py, sx * x + px)``,
and every tap is a constant distance again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    byte per code, channels in pairs, or with ``single`` each in a plane of its own. ``sextets``: a byte holds 6
    channels of 1 bit or 3 of 2 bits, side by side from its lowest bit on.
    """

    bits: int
    is_signed: bool
    multiplier: int
    add: int
    sextets: bool = False
    single: bool = False

    @classmethod
    def planes(cls, code_type: CodeType) -> Form:
        """Bit-planes of ranks; the type has at most 4 bits."""
        return cls(code_type.bits, False, code_type.step, code_type.lo)

    @classmethod
    def bytes(cls, code_type: CodeType) -> Form:
        """Values as bytes, so that padding with 0 is exact; 8-bit bipolar values do not fit and are kept as ranks."""
        if code_type.kind is Kind.BIPOLAR and code_type.bits == 8:
            return cls.ranks(code_type)
        return cls(0, code_type.lo < 0, 1, 0)

    @classmethod
    def ranks(cls, code_type: CodeType) -> Form:
        """Ranks as unsigned bytes."""
        return cls(0, False, code_type.step, code_type.lo)

    def stored(self, code_type: CodeType) -> tuple[int, int]:
        """Factor and summand of the stored number of a rank."""
        return code_type.step // self.multiplier, (code_type.lo - self.add) // self.multiplier

    @property
    def pixel_bytes(self) -> int:
        """Bytes of one pixel of a plane."""
        return 1 if self.bits or self.single else 2

    @property
    def channels_per_unit(self) -> int:
        """Channels that share a pixel of a plane (of two planes for 3 and 4 bits)."""
        if self.single:
            return 1
        return 6 // self.bits if self.sextets else {0: 2, 1: 8}.get(self.bits, 4)

    @property
    def planes_per_unit(self) -> int:
        """Planes of such a group of channels."""
        return 2 if self.bits > 2 else 1

    def plane_count(self, channels: int) -> int:
        """Planes of so many channels, rounded up to whole chunks, and to whole planes of them."""
        if self.single:
            return channels
        return round_up(channels, 3 * CHUNK if self.sextets else CHUNK) // self.channels_per_unit * self.planes_per_unit


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


@dataclass(frozen=True, eq=False)
class TapPairs:
    """A first layer's taps two by two, so that no half of a pair is empty where channels are odd in number.

    A plane of pairs holds two planes of single bytes, ``[channel][phase]`` with all phases of the stride; the second is
    read at a distance. Two channels make a pair at each tap; the taps of the last channel of an odd number are paired
    along the kernel's rows, and those of its last column down it.
    """

    geometry: Geometry
    """Of the single bytes."""
    planes: tuple[tuple[int, int, p.Pair], ...]
    """First plane, second plane, and the second's distance in rows and columns."""
    plane: Ints
    """``[pairs]`` index into ``planes``."""
    shift: Ints
    """``[pairs, 2]`` rows and columns from the output pixel."""
    weights: Ints
    """``[pairs, 2]`` index into an output's weights ``[C * kh * kw]``; that number itself: no weight."""

    @property
    def reach(self) -> int:
        """The greatest distance in pixels."""
        return max(distance for _, _, distance in self.halves())

    def halves(self) -> list[tuple[int, int, int]]:
        """``planes`` with distances in pixels."""
        return [(a, b, rows * self.geometry.pitch + columns) for a, b, (rows, columns) in self.planes]

    def offsets(self, plane_stride: int) -> npt.NDArray[np.int32]:
        """Bytes from an output pixel to each pair."""
        within = (self.shift[:, 0] * self.geometry.pitch + self.shift[:, 1]) * 2
        return (self.plane * plane_stride + within).astype(np.int32)


def tap_pairs(taps: Taps, channels: int, kernel: p.Pair) -> TapPairs:
    """The pairs of a convolution without groups.

    Args:
        taps: its taps.
        channels: of its input.
        kernel: height and width of its kernel.
    """
    stride, (height, width) = taps.geometry.stride, kernel
    count = height * width
    couples: list[tuple[int, int | None]] = [
        (c * count + k, (c + 1) * count + k) for c in range(0, channels - 1, 2) for k in range(count)
    ]
    if channels % 2:
        grid = (channels - 1) * count + np.arange(count).reshape(height, width)
        last = [*grid[:, : width // 2 * 2].ravel(), *(grid[:, -1] if width % 2 else ())]
        couples += [(int(a), int(b)) for a, b in zip(last[::2], last[1::2], strict=False)]
        if count % 2:
            couples.append((int(last[-1]), None))

    def single(weight: int) -> int:
        y, x = taps.geometry.phases[taps.phase[weight % count]]
        return (weight // count * stride[0] + y) * stride[1] + x

    planes: list[tuple[int, int, p.Pair]] = []
    plane, shift = [], []
    for a, b in couples:
        here = taps.shift[a % count]
        if b is None:  # any plane with its first half serves
            kind = next((k for k in planes if k[0] == single(a)), (single(a), single(a), (0, 0)))
        else:
            rows, columns = taps.shift[b % count] - here
            kind = (single(a), single(b), (int(rows), int(columns)))
        if kind not in planes:
            planes.append(kind)
        plane.append(planes.index(kind))
        shift.append(here)
    phases = tuple((y, x) for y in range(stride[0]) for x in range(stride[1]))
    weights = [(a, channels * count if b is None else b) for a, b in couples]
    geometry = replace(taps.geometry, phases=phases)
    return TapPairs(geometry, tuple(planes), np.asarray(plane), np.asarray(shift), np.asarray(weights))


def _inside(op: p.Conv, size: p.Pair, out: p.Pair) -> list[npt.NDArray[np.bool_]]:
    """For each axis, whether output position ``i`` reads the image, not padding, at kernel position ``k``."""
    inside = []
    for axis in (0, 1):
        start = np.arange(out[axis])[:, None] * op.stride[axis] - op.padding[2 * axis]
        position = start + np.arange(op.kernel[axis]) * op.dilation[axis]
        inside.append((position >= 0) & (position < size[axis]))
    return inside


def reads_padding(op: p.Conv, size: p.Pair, out: p.Pair) -> bool:
    """Whether some output pixel reads padding."""
    return not all(inside.all() for inside in _inside(op, size, out))


def border(op: p.Conv, size: p.Pair, out: p.Pair) -> tuple[npt.NDArray[np.int32], Ints] | None:
    """Which output pixels read padding, and the weights that do so.

    Returns:
        The class of every output pixel ``[H', W']`` (0: no padding is read) and the sum of the weights that lie on
        padding ``[O, classes]``; ``None`` if every class is 0.
    """
    inside = _inside(op, size, out)
    if inside[0].all() and inside[1].all():
        return None
    rows, row_of = np.unique(inside[0], axis=0, return_inverse=True)
    columns, column_of = np.unique(inside[1], axis=0, return_inverse=True)
    weight = np.empty((op.packed.shape[0], *op.kernel), np.int64)
    for here, codes in op.packed.pieces():
        weight[here] = op.weight_type.decode(codes, op.weight_type.dtype).sum(axis=1, dtype=np.int32)
    read = np.einsum("oij,ri,cj->orc", weight, rows.astype(np.int64), columns.astype(np.int64), optimize=True)
    missing = weight.sum(axis=(1, 2))[:, None] - read.reshape(len(weight), -1)
    classes = 1 + row_of.reshape(-1, 1) * len(columns) + column_of.reshape(1, -1)
    classes[np.ix_(inside[0].all(axis=1), inside[1].all(axis=1))] = 0
    return classes.astype(np.int32), np.concatenate([np.zeros((len(weight), 1), np.int64), missing], axis=1)


def unpack(
    memory: npt.NDArray[np.uint8], start: int, plane_stride: int, geometry: Geometry, form: Form, channels: int, n: int
) -> npt.NDArray[np.uint8]:
    """The numbers stored for a value, or for its first phase; of single bytes for all phases.

    Args:
        memory: the buffer.
        start: of the first pixel of plane 0.
        plane_stride: bytes from plane to plane.
        geometry: of the value, without a stride but for single bytes.
        form: of the value.
        channels: C.
        n: images wanted.

    Returns:
        ranks or bytes ``[n, C, H, W]``.
    """
    size = n * geometry.rows * geometry.pitch * form.pixel_bytes
    count = form.plane_count(channels) * (len(geometry.phases) if form.single else 1)
    at = start + np.arange(count)[:, None] * plane_stride + np.arange(size)
    if form.single:
        phases = memory[at].reshape(channels, *geometry.stride, n, geometry.rows, geometry.pitch)
        phases = phases[..., : geometry.phase_height, : geometry.phase_width].transpose(3, 0, 4, 1, 5, 2)
        shape = geometry.phase_height * geometry.stride[0], geometry.phase_width * geometry.stride[1]
        whole = phases.reshape(n, channels, *shape)[:, :, : geometry.height, : geometry.width]
        return np.ascontiguousarray(whole)
    planes = memory[at].reshape(-1, n, geometry.rows, geometry.pitch, form.pixel_bytes)
    planes = planes[:, :, : geometry.height, : geometry.width]
    if form.sextets:
        place = np.arange(form.channels_per_unit, dtype=np.uint8)[:, None, None] * form.bits
        numbers = (planes.transpose(1, 0, 4, 2, 3) >> place) & (2**form.bits - 1)
    elif form.bits == 0:
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
