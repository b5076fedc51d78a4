"""The dot-product path's data: which codes and weights it takes, how weights are packed, thresholds as lines.

Codes lie as bytes with the channels of a pixel side by side, so a convolution is a product of bytes along channels
and taps. NumPy only. The layouts are those of ``native/dot/kernels.hpp``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..contract import CodeType
from . import program as p

OUTPUTS = 32
"""Channels of a tile."""
PIXELS = 32
"""Pixels of a tile."""
DEPTH = 64
"""Bytes of a chunk."""
FEW = 3
"""Up to so many thresholds are compared one by one; more are first tried as a line."""

Ints = npt.NDArray[np.int64]


def zero(code_type: CodeType) -> int:
    """What the stored byte of a value is above the value."""
    return 128 if code_type.lo < 0 else 0


def byte_of(code_type: CodeType) -> tuple[int, int]:
    """Shift and summand of the stored byte of a rank."""
    return code_type.step.bit_length() - 1, code_type.lo + zero(code_type)


def refuses(program: p.Program) -> str:
    """Why the path cannot run a program; empty if it can."""
    for op, value in zip(program.operations, program.values, strict=True):
        if isinstance(value, p.Codes):
            t = value.code_type
            if t.lo + zero(t) < 0 or t.hi + zero(t) > 255 or t.step not in (1, 2):
                return f"{op.name}: codes {t} do not fit a byte"
        if isinstance(op, (p.Conv, p.ConvTranspose)) and not is_depthwise(op):
            t = op.weight_type
            if t.lo < -128 or t.hi > 127:
                return f"{op.name}: weights {t} do not fit a byte"
    return ""


def is_depthwise(op: p.Conv | p.ConvTranspose) -> bool:
    """Whether every output channel reads one input channel of its own."""
    return isinstance(op, p.Conv) and op.groups > 1 and op.groups == op.weight.shape[0] and op.weight.shape[1] == 1


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


def chunks(positions: list[Tap], channels: int, step: int, pitch: int) -> Chunks:
    """Pieces that hold all taps; neighbours of a row are taken together where that needs fewer.

    Args:
        positions: the taps.
        channels: of the input that are read.
        step: bytes from pixel to pixel.
        pitch: pixels from row to row.
    """
    order = sorted(range(len(positions)), key=lambda k: (positions[k].y, positions[k].x))
    together: list[list[int]] = []
    for k in order:
        last = positions[together[-1][-1]] if together else None
        if last is not None and (last.y, last.x + 1) == (positions[k].y, positions[k].x):
            together[-1].append(k)
        else:
            together.append([k])
    options = [_chunks(positions, groups, channels, step, pitch) for groups in (together, [[k] for k in order])]
    return min(options, key=lambda c: len(c.offsets))


def _chunks(positions: list[Tap], groups: list[list[int]], channels: int, step: int, pitch: int) -> Chunks:
    offsets: list[int] = []
    quads: list[int] = []
    columns = np.zeros((channels, len(positions)), np.int64)
    for group in groups:
        first = positions[group[0]]
        start, length = (first.y * pitch + first.x) * step, (len(group) - 1) * step + channels
        for k, tap in enumerate(group):
            columns[:, tap] = len(offsets) * DEPTH + k * step + np.arange(channels)
        for done in range(0, length, DEPTH):
            offsets.append(start + done)
            quads.append(-(-min(DEPTH, length - done) // 4))
    return Chunks(np.asarray(offsets, np.int32), np.asarray(quads, np.uint8), columns)


@dataclass(frozen=True, eq=False)
class PackedWeights:
    """Weights of all blocks of outputs, one after the other."""

    data: npt.NDArray[np.uint8]
    bits: int
    tables: npt.NDArray[np.int8] | None
    """``[4 / bits, 16]``, see ``DotSet::expand``."""

    def block_bytes(self, chunk_count: int) -> int:
        """Bytes of one block of outputs."""
        return chunk_count * DEPTH * OUTPUTS * self.bits // 8


def pack(weights: Iterable[npt.NDArray[np.int8]], chunk_count: int) -> PackedWeights:
    """Blocks of weights ``[<= 32, depth]`` to the kernels' order, in as few bits as their values need."""
    blocks = []
    for w in weights:
        whole = np.zeros((OUTPUTS, chunk_count * DEPTH), np.int8)
        whole[: len(w)] = w
        quads = whole.view(np.int32).reshape(2, 16, chunk_count, 16)
        blocks.append(np.ascontiguousarray(quads.transpose(2, 0, 3, 1)).view(np.int8).reshape(-1, 64))
    rows = np.concatenate(blocks) if blocks else np.zeros((0, 64), np.int8)
    present = np.zeros(256, bool)
    present[rows.view(np.uint8).ravel()] = True
    levels = np.flatnonzero(present).astype(np.uint8)
    bits = next((b for b in (1, 2, 4) if len(levels) <= 2**b), 8)
    if bits == 8:
        return PackedWeights(rows.view(np.uint8).ravel(), 8, None)
    rank = np.zeros(256, np.uint8)
    rank[levels] = np.arange(len(levels))
    together = rank[rows.view(np.uint8)].reshape(-1, 8 // bits, 64)
    packed = np.zeros((len(together), 64), np.uint8)
    for k in range(8 // bits):
        packed |= together[:, k] << np.uint8(bits * k)
    value = np.zeros(2**bits, np.int8)
    value[: len(levels)] = levels.view(np.int8)
    nibble = np.arange(16)
    tables = np.stack([value[(nibble >> (bits * f)) & (2**bits - 1)] for f in range(4 // bits)])
    return PackedWeights(packed.ravel(), bits, np.ascontiguousarray(tables))


@dataclass(frozen=True, eq=False)
class Lines:
    """Per channel, ``int(clamp(float32(v) * slope + intercept, 0, n))``, which counts ``n`` thresholds, or nearly."""

    slope: npt.NDArray[np.float32]
    intercept: npt.NDArray[np.float32]
    exact: bool
    """Else it is at most one off."""


def fit_lines(thresholds: Ints, lo: int, hi: int) -> Lines | None:
    """Lines that count the thresholds, or come near.

    The product and the sum are rounded to float32 as the kernels do it. The function is monotone in ``v``, so it is
    right (or near) for every integer if it is so at each threshold and at the integer before.

    Args:
        thresholds: ``[channels, n]``, ascending.
        lo, hi: bounds of ``v``.

    Returns:
        ``None`` where in some channel no line comes near.
    """
    n = thresholds.shape[1]
    rank = np.arange(1, n + 1, dtype=np.float64)
    bars = np.clip(thresholds, lo, hi + 1)
    # A threshold at or below the least value is always passed, one above the largest never: no constraint from below
    # or from above.
    passed, never = bars <= lo, bars > hi
    at, before = bars.astype(np.float64), bars.astype(np.float64) - 1

    def room(slope: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        least = np.where(never, -np.inf, rank - slope[:, None] * at).max(axis=1)
        most = np.where(passed, np.inf, rank - slope[:, None] * before).min(axis=1)
        return least, most

    # The room that is left for the intercept is concave in the slope: search for its top in thirds.
    low, high = np.zeros(len(bars)), np.full(len(bars), float(n + 1))
    for _ in range(64):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        (la, ma), (lb, mb) = room(a), room(b)
        with np.errstate(invalid="ignore"):
            better = np.nan_to_num(mb - lb, nan=0, posinf=1e30, neginf=-1e30) > np.nan_to_num(
                ma - la, nan=0, posinf=1e30, neginf=-1e30
            )
        low, high = np.where(better, a, low), np.where(better, high, b)
    slope = ((low + high) / 2).astype(np.float32)
    least, most = room(slope.astype(np.float64))
    with np.errstate(invalid="ignore"):
        middle = np.where(np.isinf(least), most - 0.5, np.where(np.isinf(most), least + 0.5, (least + most) / 2))
    # Channels whose code never changes.
    middle = np.where(np.isinf(least) & np.isinf(most), 0.0, middle)
    intercept = middle.astype(np.float32)

    def counted(v: Ints) -> Ints:
        y = v.astype(np.int32).astype(np.float32) * slope[:, None] + intercept[:, None]
        return np.clip(y, np.float32(0), np.float32(n)).astype(np.int64)

    if not (np.isfinite(slope).all() and np.isfinite(intercept).all()):
        return None
    off = 0
    for v in (np.clip(bars, lo, hi), np.clip(bars - 1, lo, hi)):
        expected = sum((v >= thresholds[:, k : k + 1]).astype(np.int64) for k in range(n))
        off = max(off, int(np.abs(counted(v) - expected).max()))
    return Lines(slope, intercept, off == 0) if off <= 1 else None
