"""The dot-product path's data: which codes and weights it takes, how weights are packed, thresholds as lines.

Codes lie as bytes with the channels of a pixel side by side, so a convolution is a product of bytes along channels
and taps. NumPy only. The layouts are those of ``native/dot/kernels.hpp``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..contract import CodeType
from . import program as p
from .codes import PIECE

OUTPUTS = 32
"""Channels of a tile."""
PIXELS = 32
"""Pixels of a tile."""
DEPTH = 64
"""Bytes of a chunk."""
PIECES = (64, 32, 16)
"""Bytes of the pieces of which chunks are put together."""
FEWEST_QUADS = 4
"""Groups of four bytes for which it pays to add their products in 16 bits before these are widened."""
FEW = 3
"""Up to so many thresholds are compared one by one; more are first tried as a line."""
CHANNELS = 64
"""Channels whose lines are fitted at once."""
SEARCHED = 1 << 16
"""Up to so many thresholds in all, the best line of every channel is searched for where a simple one is only near."""

Ints = npt.NDArray[np.int64]


def zero(code_type: CodeType) -> int:
    """What the stored byte of a value is above the value."""
    return 128 if code_type.lo < 0 else 0


def byte_of(code_type: CodeType) -> tuple[int, int]:
    """Shift and summand of the stored byte of a rank."""
    return code_type.step.bit_length() - 1, code_type.lo + zero(code_type)


def narrow_quads(codes: CodeType, weights: CodeType) -> int:
    """How many groups of four bytes, times weights, keep their sums of pairs in 16 bits; 0 where it is too few."""
    largest = min(128, max(-weights.lo, weights.hi))  # of a byte
    quads = (2**15 - 1) // (2 * (codes.hi + zero(codes)) * largest)
    return quads if quads >= FEWEST_QUADS else 0


def fits_byte(weights: CodeType) -> bool:
    """Whether weights are signed bytes; others are sums of such."""
    return weights.lo >= -128 and weights.hi <= 127


def refuses(program: p.Program) -> str:
    """Why the path cannot run a program; empty if it can."""
    for op, value in zip(program.operations, program.values, strict=True):
        if isinstance(value, p.Codes):
            t = value.code_type
            if t.lo + zero(t) < 0 or t.hi + zero(t) > 255 or t.step not in (1, 2):
                return f"{op.name}: codes {t} do not fit a byte"
    return ""


def summands(values: Ints) -> list[Ints]:
    """Bytes whose sums the weights are; products with weights that do not fit one byte are added up from several."""
    parts = [np.clip(values, -128, 127)]
    while (rest := values - sum(parts)).any():
        parts.append(np.clip(rest, -128, 127))
    return parts


def is_depthwise(op: p.Conv | p.ConvTranspose) -> bool:
    """Whether every output channel reads one input channel of its own."""
    return isinstance(op, p.Conv) and op.groups > 1 and op.groups == op.packed.shape[0] and op.packed.shape[1] == 1


@dataclass(frozen=True)
class Tap:
    """A kernel position: its row and column from the output pixel, and where it lies in the weights."""

    y: int
    x: int
    index: int


def taps(op: p.Conv) -> list[Tap]:
    """All kernel positions of a convolution, from the pixel ``(stride * y, stride * x)``."""
    kernel = op.kernel
    return [
        Tap(i * op.dilation[0] - op.padding[0], j * op.dilation[1] - op.padding[2], i * kernel[1] + j)
        for i in range(kernel[0])
        for j in range(kernel[1])
    ]


def phase_taps(op: p.ConvTranspose, phase: p.Pair) -> list[Tap]:
    """The kernel positions that reach the output pixels ``(sy * y + phase[0], sx * x + phase[1])``, from ``(y, x)``."""
    found = []
    for i in range(op.kernel[0]):
        y = phase[0] + op.padding[0] - op.dilation[0] * i
        for j in range(op.kernel[1]):
            x = phase[1] + op.padding[2] - op.dilation[1] * j
            if y % op.stride[0] == 0 and x % op.stride[1] == 0:
                found.append(Tap(y // op.stride[0], x // op.stride[1], i * op.kernel[1] + j))
    return found


@dataclass(frozen=True, eq=False)
class Chunks:
    """The depth of a convolution in pieces of 64 bytes that lie side by side."""

    offsets: npt.NDArray[np.int32]
    quads: npt.NDArray[np.uint8]
    columns: Ints
    """``[channels, taps]``: which byte of the depth each weight meets."""
    piece: int = 0
    """If not 0, the depth is put together from pieces of so many bytes, and ``offsets`` are theirs."""


def chunks(positions: list[Tap], channels: int, step: int, pitch: int, gathered: bool = False) -> Chunks:
    """Pieces that hold all taps; neighbours of a row are taken together where that needs fewer.

    Args:
        positions: the taps.
        channels: of the input that are read.
        step: bytes from pixel to pixel.
        pitch: pixels from row to row.
        gathered: whether pieces are put together before they are multiplied.
    """
    order = sorted(range(len(positions)), key=lambda k: (positions[k].y, positions[k].x))
    together: list[list[int]] = []
    for k in order:
        last = positions[together[-1][-1]] if together else None
        if last is not None and (last.y, last.x + 1) == (positions[k].y, positions[k].x):
            together[-1].append(k)
        else:
            together.append([k])
    alone = [[k] for k in order]
    sizes = PIECES if gathered else (DEPTH,)
    options = [_chunks(positions, g, channels, step, pitch, size) for size in sizes for g in (together, alone)]
    best = min(options, key=lambda c: (len(c.quads), len(c.offsets)))
    return best if gathered else replace(best, piece=0)


def _chunks(positions: list[Tap], groups: list[list[int]], channels: int, step: int, pitch: int, piece: int) -> Chunks:
    offsets: list[int] = []
    quads: list[int] = []
    columns = np.zeros((channels, len(positions)), np.int64)
    for group in groups:
        first = positions[group[0]]
        start, length = (first.y * pitch + first.x) * step, (len(group) - 1) * step + channels
        for k, tap in enumerate(group):
            columns[:, tap] = len(offsets) * piece + k * step + np.arange(channels)
        for done in range(0, length, piece):
            before = len(offsets) * piece % DEPTH
            if before == 0:
                quads.append(0)
            quads[-1] = -(-(before + min(piece, length - done)) // 4)
            offsets.append(start + done)
    return Chunks(np.asarray(offsets, np.int32), np.asarray(quads, np.uint8), columns, piece)


@dataclass(frozen=True, eq=False)
class PackedWeights:
    """The weights of a convolution for the kernels, in blocks of at most 32 outputs."""

    blocks: list[tuple[int, int]]
    """First output and number of outputs of each."""
    lists: list[npt.NDArray[np.int32]]
    """Offsets of the chunks, or pieces, for each group of outputs that read the same channels."""
    quads: npt.NDArray[np.uint8]
    reads: npt.NDArray[np.int32]
    """``[chunks]``: which chunk of the depth each meets. Weights of several bytes have several chunks for one."""
    outputs: Ints
    """``[blocks, 4]``: first output, number, which list, byte at which the weights begin."""
    data: npt.NDArray[np.uint8]
    bits: int
    tables: npt.NDArray[np.int8] | None
    """``[4 / bits, 16]``, see ``DotSet::expand``; weights of 8 bits are what they are."""
    sums: Ints
    """``[O]`` of the weights; ``[O, taps]`` where they are wanted so."""
    piece: int
    """See :class:`Chunks`."""


def pack(
    core: Any, op: p.Conv | p.ConvTranspose, positions: list[Tap], lay: Callable[[int], Chunks], by_tap: bool = False
) -> PackedWeights:
    """Pack the weights at some kernel positions, in as few bits as their values need, or in several bytes.

    Args:
        core: the compiled module.
        op: the convolution.
        positions: the taps.
        lay: the chunks that hold them, for a number of input channels.
        by_tap: whether the sums of the weights are wanted for each tap.
    """
    rows, count, depth = _rows(op)
    per_group = count // op.groups
    # Small groups are computed together, with zeros between them.
    most = min(op.groups, max(1, OUTPUTS // per_group))
    together = next(m for m in range(most, 0, -1) if op.groups % m == 0)
    pieces = lay(together * depth)
    size = len(pieces.quads) * DEPTH

    lists: list[npt.NDArray[np.int32]] = []
    blocks: list[tuple[int, int]] = []
    which: list[int] = []
    for group in range(0, op.groups, together):
        for first in range(0, together * per_group, OUTPUTS):
            blocks.append((group * per_group + first, min(OUTPUTS, together * per_group - first)))
            which.append(len(lists))
        lists.append(pieces.offsets + np.int32(group * depth))

    values = op.weight_type.decode(np.arange(op.weight_type.count, dtype=np.uint8)).astype(np.int64)
    padded = together > 1 or depth * len(positions) < size
    levels = sorted({0, *values.tolist()} if padded else set(values.tolist()), key=lambda v: (v != 0, v))
    bits = next((b for b in (1, 2, 4) if len(levels) <= 2**b), 8)
    parts = summands(values) if bits == 8 else [np.asarray([levels.index(v) for v in values.tolist()], np.int64)]
    ranks = np.zeros((len(parts), 256), np.uint8)
    ranks[:, : len(values)] = np.stack(parts) % 256
    block_bytes = len(parts) * size * OUTPUTS * bits // 8
    data = np.zeros(len(blocks) * block_bytes, np.uint8)
    index = np.asarray([t.index for t in positions], np.int64)
    sums = np.empty((count, len(positions)) if by_tap else count, np.int64)
    step = max(1, PIECE // (OUTPUTS * op.packed.size // count))
    for first in range(0, len(blocks), step):
        here = np.asarray(blocks[first : first + step], np.int64)
        part = slice(here[0, 0], here[-1].sum())
        here[:, 0] -= part.start
        codes = rows(part)
        for k, rank in enumerate(ranks):
            core.dot_pack(
                codes=codes, taps=index, columns=np.ascontiguousarray(pieces.columns + k * size), rank=rank,
                outputs=here, per_group=per_group, together=together, block_bytes=block_bytes, bits=bits,
                out=data[first * block_bytes : (first + step) * block_bytes],
            )  # fmt: skip
        if by_tap or isinstance(op, p.ConvTranspose):
            weights = op.weight_type.decode(codes[:, :, index])
            sums[part] = weights.sum(axis=1 if by_tap else (1, 2), dtype=np.int64)
    tables = None
    if bits < 8:
        value = np.zeros(2**bits, np.int8)
        value[: len(levels)] = levels
        nibble = np.arange(16)
        fields = [value[(nibble >> (bits * f)) & (2**bits - 1)] for f in range(4 // bits)]
        tables = np.ascontiguousarray(np.stack(fields))
    if isinstance(op, p.Conv) and not by_tap:
        sums = op.sums()[0]
    reads = np.tile(np.arange(len(pieces.quads), dtype=np.int32), len(parts))
    if len(parts) > 1 and size:
        by_chunk = data.reshape(len(blocks), len(reads), -1)
        wanted = by_chunk.any(axis=(0, 2))
        reads, data = reads[wanted], np.ascontiguousarray(by_chunk[:, wanted]).ravel()
        block_bytes = data.size // len(blocks)
    if not pieces.piece:
        lists = [offsets[reads] for offsets in lists]
    outputs = [(first, n, k, b * block_bytes) for b, ((first, n), k) in enumerate(zip(blocks, which, strict=True))]
    return PackedWeights(
        blocks, lists, pieces.quads[reads], reads, np.asarray(outputs, np.int64), data, bits, tables, sums, pieces.piece
    )


def _rows(op: p.Conv | p.ConvTranspose) -> tuple[Callable[[slice], npt.NDArray[np.uint8]], int, int]:
    """The weight codes of some outputs, ``[outputs, depth, taps]``; how many outputs there are, and the depth."""
    taps = op.kernel[0] * op.kernel[1]
    if isinstance(op, p.Conv):
        count, depth = op.packed.shape[:2]
        return lambda part: op.packed.rows(part.start, part.stop).reshape(-1, depth, taps), count, depth
    inputs, per_group = op.packed.shape[:2]
    by_group = op.weight.reshape(op.groups, inputs // op.groups, per_group, -1).transpose(0, 2, 1, 3)
    codes = np.ascontiguousarray(by_group).reshape(op.groups * per_group, inputs // op.groups, -1)
    return codes.__getitem__, *codes.shape[:2]


@dataclass(frozen=True, eq=False)
class Lines:
    """Per channel ``int(clamp(float32(v) * slope + intercept, 0, n))``, which counts ``n`` thresholds, or one fewer."""

    slope: npt.NDArray[np.float32]
    intercept: npt.NDArray[np.float32]
    off: Ints
    """0: the count is right; 1: right or one too few; 2: neither."""

    @property
    def exact(self) -> bool:
        return not self.off.any()

    @classmethod
    def join(cls, parts: list[Lines]) -> Lines:
        """The lines of all channels from those of some."""
        slopes, intercepts, off = zip(*((part.slope, part.intercept, part.off) for part in parts), strict=True)
        return cls(np.concatenate(slopes), np.concatenate(intercepts), np.concatenate(off))


def fit_lines(thresholds: Ints, lo: int | Ints, hi: int | Ints) -> Lines | None:
    """Lines that count the thresholds, or come near.

    The product and the sum are rounded to float32 as the kernels do it. The function is monotone in ``v``, so it is
    right (or near) for every integer if it is so at each threshold and at the integer before.

    Args:
        thresholds: ``[channels, n]``, ascending.
        lo, hi: bounds of ``v``, of all channels or ``[channels or 1, 1]``.

    Returns:
        ``None`` where in some channel no line comes near.
    """
    shape = len(thresholds), 1
    lows, highs = np.broadcast_to(lo, shape), np.broadcast_to(hi, shape)
    parts = [slice(first, first + CHANNELS) for first in range(0, len(thresholds), CHANNELS)]
    fits = [_Fit(thresholds[part], lows[part], highs[part]) for part in parts]
    lines = Lines.join([fit.through_ends() for fit in fits])
    off = int(lines.off.max())
    if off == 0 or (off == 1 and thresholds.size > SEARCHED):
        return lines
    lines = Lines.join([fit.searched() for fit in fits])
    return lines if int(lines.off.max()) <= 1 else None


@dataclass(frozen=True, eq=False)
class _Fit:
    """Lines for the thresholds of some channels; see :func:`fit_lines`."""

    thresholds: Ints
    lo: Ints
    hi: Ints

    def through_ends(self) -> Lines:
        """Lines through the first and the last threshold that matter: mostly that will do."""
        bars, passed, never = self._bars()
        inside = ~(passed | never)
        n, rows = bars.shape[1], np.arange(len(bars))
        first, last = inside.argmax(axis=1), n - 1 - inside[:, ::-1].argmax(axis=1)
        rise = np.maximum(bars[rows, last] - bars[rows, first], 1)
        return self._line(np.maximum(last - first, 1) / rise)

    def searched(self) -> Lines:
        """The lines whose intercept has the most room, which is concave in the slope: its top is searched in thirds."""
        channels, n = self.thresholds.shape
        bars = self._bars()
        low, high = np.zeros(channels), np.full(channels, float(n + 1))
        for _ in range(64):
            a, b = low + (high - low) / 3, high - (high - low) / 3
            (la, ma), (lb, mb) = _room(a, *bars), _room(b, *bars)
            with np.errstate(invalid="ignore"):
                better = np.nan_to_num(mb - lb, posinf=1e30, neginf=-1e30) > np.nan_to_num(
                    ma - la, posinf=1e30, neginf=-1e30
                )
            low, high = np.where(better, a, low), np.where(better, high, b)
        return self._line((low + high) / 2)

    def _bars(self) -> tuple[Ints, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """The thresholds within the bounds; those that are always passed, and those that never are.

        A threshold at or below the least value is always passed, one above the largest never: no constraint from below
        or from above.
        """
        bars = np.clip(self.thresholds, self.lo, self.hi + 1)
        return bars, bars <= self.lo, bars > self.hi

    def _line(self, slope: npt.NDArray[np.float64]) -> Lines:
        """The line of this slope with the most room, and how far it is off."""
        thresholds, (bars, passed, never) = self.thresholds, self._bars()
        channels, n = bars.shape
        a = slope.astype(np.float32)
        least, most = _room(a.astype(np.float64), bars, passed, never)
        # The integers where a wrong line shows, and what they count: all channels in one sorted list.
        shows = np.concatenate([np.clip(bars, self.lo, self.hi), np.clip(bars - 1, self.lo, self.hi)], axis=1)
        apart = np.arange(channels)[:, None] << 34
        counts = np.searchsorted((thresholds + apart).ravel(), (shows + apart).ravel(), side="right")
        counts = counts.reshape(shows.shape) - np.arange(channels)[:, None] * n
        shown = shows.astype(np.int32).astype(np.float32)

        def between(least: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float32], Ints]:
            """The middle of the intercepts, and how many thresholds are missed where a wrong line shows."""
            with np.errstate(invalid="ignore"):
                middle = np.where(
                    np.isinf(least), most - 0.5, np.where(np.isinf(most), least + 0.5, (least + most) / 2)
                )
            b = np.where(np.isinf(middle), 0.0, middle).astype(np.float32)  # 0: a channel whose code never changes
            got = np.clip(shown * a[:, None] + b[:, None], np.float32(0), np.float32(n)).astype(np.int64)
            return b, counts - got

        exact, missed = between(least)
        below, fewer = between(least - 1)
        right, near = ~missed.any(axis=1), (fewer.min(axis=1) >= 0) & (fewer.max(axis=1) <= 1)
        return Lines(a, np.where(right, exact, below), np.where(right, 0, np.where(near, 1, 2)))


def _room(
    slope: npt.NDArray[np.float64], bars: Ints, passed: npt.NDArray[np.bool_], never: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Least and greatest intercept with which a line of this slope counts right, per channel."""
    rank = np.arange(1, bars.shape[1] + 1, dtype=np.float64)
    at = slope[:, None] * bars.astype(np.float64)
    before = slope[:, None] * (bars.astype(np.float64) - 1)
    least = np.where(never, -np.inf, rank - at).max(axis=1)
    most = np.where(passed, np.inf, rank - before).min(axis=1)
    return least, most
