"""Weights and thresholds as the native engine's kernels read them. NumPy only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ..contract import CodeType
from . import program as p
from .dot import fit_lines, same_ends
from .layout import CHUNK, LINE, Form, Ints, round_up

PACKED_TOGETHER, PACKED_WEIGHTS = 64, 1 << 17
"""Outputs, and about how many weights, that are packed at once: many are quick, few need little memory."""
LIMITS_TOGETHER = 64
"""Channels whose limits are looked at at once."""
XNOR_GROUP = 16
"""Taps that the XNOR kernels add up at once."""
INT16_MAX = 2**15 - 1
MOST_OFF = 3
"""A guess of a rank is searched in so many limits on either side."""
SEXTET_WORDS = 32
"""Largest dictionary of sextets whose words are stored times 8."""


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


def _tiles(op: p.Conv, outputs: int, per_unit: int, fill: int) -> Iterator[tuple[list[range], npt.NDArray[np.int16]]]:
    """For tiles of outputs: the units of input channels that each reads, and its weights on all their channels.

    Yields:
        ``units`` of tiles that read the same ones, and values ``[tiles, outputs, len(units), per_unit, kh * kw]``, 0
        where an output does not read a channel and ``fill`` where there is no channel.
    """
    value_of = op.weight_type.decode(np.arange(op.weight_type.count)).astype(np.int16)
    count, per_group = op.packed.shape[:2]
    channels, kernel = per_group * op.groups, op.kernel[0] * op.kernel[1]
    outputs_per_group = count // op.groups
    together = min(PACKED_TOGETHER, PACKED_WEIGHTS // (per_group * kernel) // CHUNK * CHUNK, round_up(count, CHUNK))
    step = max(CHUNK, together) if op.groups == 1 else outputs
    for first in range(0, round_up(count, CHUNK), step):
        here = range(min(first, count), min(first + step, count))
        groups = [o // outputs_per_group for o in here]
        units = range(0)
        if groups:
            units = range(groups[0] * per_group // per_unit, -(-(groups[-1] + 1) * per_group // per_unit))
        rows = min(step, round_up(count, CHUNK) - first)
        dense = np.zeros((rows, len(units) * per_unit, kernel), np.int16)
        values = value_of[op.packed.rows(here.start, here.stop)].reshape(len(here), per_group, kernel)
        if op.groups == 1:
            dense[: len(here), :channels] = values
        else:
            for row, group in enumerate(groups):
                start = group * per_group - units.start * per_unit
                dense[row, start : start + per_group] = values[row]
        dense[:, max(0, channels - units.start * per_unit) :] = fill
        tiles = rows // outputs
        yield [units] * tiles, dense.reshape(tiles, outputs, len(units), per_unit, kernel)


def takes_sextets(op: p.Conv, bits: int) -> bool:
    """Whether the words of a dictionary for sextets fit a byte."""
    if bits > 2:
        return False
    digits = dictionary_digits(op, 6 // bits)
    return digits is not None and len(digits) ** (6 // bits) <= 256


def dictionary_digits(op: p.Conv, per_unit: int) -> tuple[int, ...] | None:
    """The weight values that a dictionary for this layer is made of, or ``None`` if there are more than four.

    Groups of channels that do not fill whole words need the value 0 for their neighbours' channels.
    """
    weight_type = op.weight_type
    if weight_type.count > 4:
        return None
    digits = tuple(range(weight_type.lo, weight_type.hi + 1, weight_type.step))
    aligned = op.groups == 1 or (op.packed.shape[1] % per_unit == 0 and op.packed.shape[0] // op.groups % CHUNK == 0)
    if aligned or 0 in digits:
        return digits
    return (-1, 0, 1) if digits == (-1, 1) else None


@lru_cache(maxsize=16)
def dictionary_tables(digits: tuple[int, ...], bits: int, sextets: bool) -> tuple[npt.NDArray[np.uint8], Ints]:
    """All words of so many weights as an index has room for: their tables and biases.

    An index is a nibble, one bit of four channels, or a sextet, all bits of six or three channels. Entry ``s`` of a
    word's table is the sum of its weights times what ``s`` holds for their channels, plus the word's bias times
    the greatest rank: the bias is the sum of its negative weights' magnitudes.

    Returns:
        ``[words, 16 or 64]`` and ``[words]``; weight ``j`` of a word is its ``j``-th digit.
    """
    width = bits if sextets else 1
    base, count = len(digits), 6 // bits if sextets else 4
    words = np.asarray(digits)[np.arange(base**count)[:, None] // base ** np.arange(count) % base]
    ranks = np.arange(1 << count * width)[:, None] >> np.arange(count) * width & ((1 << width) - 1)
    bias = np.maximum(-words, 0).sum(axis=1)
    tables = (words @ ranks.T + bias[:, None] * ((1 << width) - 1)).astype(np.uint8)
    return _on_cache_lines(tables), bias.astype(np.int64)


def _on_cache_lines(a: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A copy that starts on a cache line: a table of 64 bytes must not lie in two."""
    memory = np.empty(a.size + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    out = memory[start : start + a.size].reshape(a.shape)
    out[:] = a
    return out


def dictionary_flush(digits: tuple[int, ...], bits: int, sextets: bool = False) -> int:
    """Taps whose table entries sum to at most 255; nibbles of 1-bit activations look two words up per tap."""
    if sextets:
        return 255 // (6 // bits * (2**bits - 1) * max(abs(d) for d in digits))
    return 255 // (4 * max(abs(d) for d in digits)) // (2 if bits == 1 else 1)


def pack_dictionary(op: p.Conv, form: Form, outputs: int, digits: tuple[int, ...]) -> PackedWeights:
    """Weights as dictionary words, one byte each: ``[unit, kernel position][word][outputs]``.

    Args:
        op: the convolution.
        form: of the activations; nibbles of 1 bit have two words per unit.
        outputs: of the kernel's tile.
        digits: see :func:`dictionary_digits`.
    """
    per_unit = form.channels_per_unit
    tables, bias = dictionary_tables(digits, form.bits, form.sextets)
    base, per_word = len(digits), per_unit if form.sextets else 4
    words_per_unit, step = per_unit // per_word, 8 if form.sextets and len(tables) <= SEXTET_WORDS else 1
    fill = 0 if 0 in digits else 1  # channels beyond the last are 0 themselves: a word's table adds nothing for +1
    digit_of = np.zeros(max(digits) - min(digits) + 1, np.uint8)
    digit_of[np.asarray(digits) - min(digits)] = np.arange(base)
    digit_of[-min(digits)] = digits.index(0 if 0 in digits else fill)  # outputs beyond the last have zeros
    narrow_bias = bias.astype(np.int16)
    packed, units, biases = [], [], []
    for tile_units, dense in _tiles(op, outputs, per_unit, fill):
        digit = digit_of[dense - np.int16(min(digits))]
        digit = digit.reshape(*digit.shape[:3], words_per_unit, per_word, digit.shape[4])
        words = np.zeros((*digit.shape[:4], digit.shape[5]), np.uint8)
        for j in range(per_word):
            words += digit[:, :, :, :, j] * np.uint8(base**j)
        packed += list((words * np.uint8(step)).transpose(0, 2, 4, 3, 1).reshape(len(words), -1))
        units += tile_units
        biases.append(narrow_bias[words].sum(axis=(2, 3, 4), dtype=np.int64).ravel())
    flush = dictionary_flush(digits, form.bits, form.sextets)
    return _packed(packed, units, words_per_unit * outputs, np.concatenate(biases), tables, flush)


def is_sparse(op: p.Conv) -> bool:
    """Whether an output reads few of the channels that its chunk of outputs reads: depthwise and similar."""
    return op.groups > 1 and op.packed.shape[1] < CHUNK and op.packed.shape[0] // op.groups < CHUNK


@lru_cache(maxsize=4)
def xnor_table(ternary: bool, bits: int) -> npt.NDArray[np.uint8]:
    """What each word of weights does to a byte of activations; word 0 changes nothing that is not there.

    Returns:
        ``[words, 4]``: bits to flip, four times; ternary, ``[words, 8]``: before that the bits to keep. Weight ``j`` of
        a word is digit ``j`` of its number: 1 where it is -1; ternary, 1 or 2 where it is 1 or -1.
    """
    base, count = (3, 4) if ternary else (2, 8 if bits == 1 else 4)
    digit = np.arange(base**count)[:, None] // base ** np.arange(count) % base
    flip, keep = (((digit == wanted) << np.arange(count)).sum(axis=1) for wanted in (base - 1, 1))
    columns = np.stack([keep | flip, flip] if ternary else [flip], axis=1)
    if count == 4:
        columns |= columns << 4
    return _on_cache_lines(columns.astype(np.uint8).repeat(4, axis=1))


def pack_xnor(op: p.Conv, form: Form, outputs: int, digits: tuple[int, ...]) -> PackedWeights:
    """Weights as words of :func:`xnor_table`: ``[group of 16 taps][outputs][16]``, word 0 beyond the last tap.

    Args:
        op: the convolution.
        form: of the activations.
        outputs: of the kernel's tile.
        digits: the weights' values, see :func:`dictionary_digits`.
    """
    ternary, per_unit = len(digits) == 3, form.channels_per_unit
    powers = ((3 if ternary else 2) ** np.arange(per_unit)).astype(np.uint8)
    digit_of = np.asarray([2, 0, 1] if ternary else [1, 0, 0], np.uint8)  # of -1, 0 and 1
    packed, units, negative = [], [], []
    for tile_units, dense in _tiles(op, outputs, per_unit, 0):
        words = (digit_of[dense + np.int16(1)] * powers[:, None]).sum(axis=3, dtype=np.uint8)
        words = words.transpose(0, 2, 3, 1).reshape(len(words), -1, outputs)  # [tiles, taps, outputs]
        words = np.pad(words, ((0, 0), (0, -words.shape[1] % XNOR_GROUP), (0, 0)))
        words = words.reshape(len(words), -1, XNOR_GROUP, outputs).transpose(0, 1, 3, 2)
        packed += list(np.ascontiguousarray(words).reshape(len(words), -1))
        units += tile_units
        negative.append((dense < 0).sum(axis=(2, 3, 4)).ravel())
    table = xnor_table(ternary, form.bits)
    return _packed(packed, units, outputs, np.concatenate(negative).astype(np.int64), table)


def pack_pairs(op: p.Conv, outputs: int, bits: int) -> PackedWeights:
    """Weights as pairs of channels in 4 bytes: ``[unit, kernel position][outputs][2]``.

    Args:
        op: the convolution.
        outputs: of the kernel's tile.
        bits: 16, or 8: then each pair is there twice.
    """
    packed, units = [], []
    for tile_units, dense in _tiles(op, outputs, 2, 0):
        pairs = dense.transpose(0, 2, 4, 1, 3)
        if bits == 8:
            pairs = np.concatenate([pairs, pairs], axis=-1)
        packed += list(pairs.astype(f"i{bits // 8}", order="C").reshape(len(pairs), -1).view(np.uint8))
        units += tile_units
    bias = np.zeros(round_up(op.packed.shape[0], CHUNK), np.int64)
    return _packed(packed, units, 4 * outputs, bias)


def pack_tap_pairs(op: p.Conv, outputs: int, bits: int, weights: Ints) -> PackedWeights:
    """The same for other pairs than those of channels: ``[pair][outputs][2]``.

    Args:
        op: the convolution, one group.
        outputs: of the kernel's tile.
        bits: see :func:`pack_pairs`.
        weights: ``[pairs, 2]`` index into an output's weights, or beyond them for 0.
    """
    values = op.values().reshape(op.packed.shape[0], -1)
    rows = round_up(len(values), CHUNK)
    padded = np.pad(values, ((0, rows - len(values)), (0, 1)))[:, weights].astype(f"i{bits // 8}")
    pairs = padded.reshape(-1, outputs, len(weights), 2).transpose(0, 2, 1, 3)
    if bits == 8:
        pairs = np.concatenate([pairs, pairs], axis=-1)
    tiles = np.ascontiguousarray(pairs).reshape(len(pairs), -1).view(np.uint8)
    return _packed(list(tiles), [range(0)] * len(tiles), 4 * outputs, np.zeros(rows, np.int64))


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


@dataclass(frozen=True, eq=False)
class LinearWeights:
    """Weights of a convolution with one output pixel."""

    weights: npt.NDArray[np.uint8]
    depth: int
    """``C * H * W``, rounded up."""
    bits: int
    """Of a stored weight: 16, 8, or packed ranks of 4, 2 or 1."""
    step: int = 1
    low: int = 0
    """``weight = step * rank + low``."""
    flush: int = 0
    """Fours of the depth whose sums fit int16, if packed."""


def linear_bits(op: p.Conv, source: p.Codes) -> int:
    """Bits of a stored weight: packed if weights have at most 4 and activations are int8."""
    count, values = op.weight_type.count, source.code_type
    whole = op.kernel == source.shape[1:] and not any(op.padding)
    if whole and count <= 16 and values.lo >= -128 and values.hi <= 127:
        return 1 if count == 2 else 2 if count <= 4 else 4
    return 8 if -128 <= op.weight_type.lo and op.weight_type.hi <= 127 else 16


def pack_ranks(op: p.Conv, code_type: CodeType, lanes: int, bits: int) -> LinearWeights:
    """Weights of a convolution that covers its input, as ranks: ``[O / lanes][depth / n][lanes][n]``, n in 4 bytes.

    Args:
        op: the convolution, one group.
        code_type: of its input.
        lanes: outputs of the kernel's tile.
        bits: of a rank; byte ``b`` of an output holds those of depths ``b``, ``4 + b`` and so on, from its lowest bits.
    """
    low, step, steps = op.weight_type.lo, op.weight_type.step, 8 // bits
    rank = ((op.weight_type.decode(np.arange(op.weight_type.count)) - low) // step).astype(np.uint8)
    outputs, deep = op.packed.shape[0], op.packed.row_size
    depth = round_up(deep, 4 * steps)
    packed = np.zeros((round_up(outputs, lanes) // lanes, depth // (4 * steps), lanes, 4), np.uint8)
    for tile in range(len(packed)):
        codes = op.packed.rows(tile * lanes, min((tile + 1) * lanes, outputs)).reshape(-1, deep)
        ranks = np.zeros((lanes, depth), np.uint8)
        ranks[: len(codes), :deep] = rank[codes]
        places = ranks.reshape(lanes, -1, steps, 4)
        for s in range(steps):
            packed[tile] |= (places[:, :, s] << np.uint8(s * bits)).transpose(1, 0, 2)
    largest = 2 * (op.weight_type.count - 1) * max(-code_type.lo, code_type.hi)
    flush = min(INT16_MAX // largest, depth) // steps * steps
    return LinearWeights(packed.reshape(-1), depth, bits, step, low, max(flush, steps))


def pack_linear(op: p.Conv, size: p.Pair, lanes: int) -> LinearWeights:
    """Weights of a convolution with one output pixel: ``[O / lanes][depth / 2][lanes][2]``.

    Args:
        op: the convolution, one group.
        size: height and width of its input.
        lanes: outputs of the kernel's tile.
    """
    outputs, channels = op.packed.shape[:2]
    dtype = op.weight_type.dtype
    deep = channels * size[0] * size[1]
    depth = round_up(deep, 2)
    packed = np.zeros((round_up(outputs, lanes) // lanes, depth // 2, lanes, 2), dtype)
    for tile in range(len(packed)):
        rows = tile * lanes, min((tile + 1) * lanes, outputs)
        values = op.weight_type.decode(op.packed.rows(*rows), dtype)
        dense = np.zeros((lanes, channels, *size), dtype)
        for i, j in np.ndindex(*op.kernel):
            y, x = i * op.dilation[0] - op.padding[0], j * op.dilation[1] - op.padding[2]
            if 0 <= y < size[0] and 0 <= x < size[1]:
                dense[: len(values), :, y, x] = values[:, :, i, j]
        pairs = np.pad(dense.reshape(lanes, -1), ((0, 0), (0, depth - deep)))
        packed[tile] = pairs.reshape(lanes, -1, 2).transpose(1, 0, 2)
    return LinearWeights(packed.reshape(-1).view(np.uint8), depth, 8 * packed.itemsize)


def plane_limits(thresholds: Ints, channels: int, wide: bool) -> npt.NDArray[np.int32]:
    """Thresholds as the limits that a sum must exceed, for codes stored as bit-planes.

    Args:
        thresholds: ``[C, n]``; a sum passes where ``sum >= threshold``.
        channels: C.
        wide: whether sums are int32; else int16, and so are limits, twice in 32 bits.

    Returns:
        ``[C rounded up to chunks, 2^m - 1]``; no sum exceeds the limits of the channels and levels that are not there.
    """
    info = np.iinfo(np.int32 if wide else np.int16)
    count = thresholds.shape[1]
    out = np.full((round_up(channels, CHUNK), (1 << count.bit_length()) - 1), info.max, np.int64)
    out[:channels, :count] = np.clip(thresholds - 1, info.min, info.max)
    if not wide:
        out = (out & 0xFFFF) * 0x10001
    return out.astype(np.uint32).view(np.int32) if not wide else out.astype(np.int32)


def byte_limits(
    thresholds: Ints, channels: int, bounds: tuple[Ints, Ints]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """The same for many thresholds of codes stored as bytes, which are searched: padded to ``2^m - 1`` limits.

    Args:
        thresholds: ``[C, n]``; a sum passes where ``sum >= threshold``.
        channels: C.
        bounds: least and greatest sum, ``[C or 1]`` each.

    Returns:
        The limits, and ``[C rounded up, 3]`` low, scale and steps of a guess. Positive steps: ``int((limit - low) *
        scale + 0.5)`` in float32 is off by less than ``2^(steps - 1)`` from ``k`` for the ``k``-th of all limits, of
        which there are ``2^steps - 1`` at least. Steps ``-1 - k``: ``int(sum * scale + low)``, clamped to
        ``0 .. 2^m - 1 - k``, is a sum's rank less ``k``, limits that all sums pass.
    """
    info = np.iinfo(np.int32)
    count = thresholds.shape[1]
    out = np.full((round_up(channels, CHUNK), (1 << count.bit_length()) - 1), info.max, np.int32)
    guess = np.zeros((len(out), 3), np.float32)
    for first in range(0, len(out), LIMITS_TOGETHER):
        here = slice(first, first + LIMITS_TOGETHER)
        limits = thresholds[here] - 1
        out[here][: len(limits), :count] = np.clip(limits, info.min, info.max)
        guess[here] = _guess(out[here])
    if count == out.shape[1] and bounds[0].min() >= info.min and bounds[1].max() <= info.max:
        low, high = bounds[0][:, None], bounds[1][:, None]
        passed = min(same_ends(thresholds, low, high)[0], count - 1)
        lines = fit_lines(thresholds[:, passed:], low, high)
        good = lines.right & (lines.slope > 0)
        fitted = np.stack([lines.intercept, lines.slope, np.full_like(lines.slope, -1 - passed)], axis=1)
        guess[:channels][good] = fitted[good]
    return out, guess


def _guess(limits: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """Low, scale and steps of a guess, ``[C, 3]``, for limits ``[C, 2^m - 1]``; see :func:`byte_limits`."""
    with np.errstate(over="ignore"):
        reals = limits.astype(np.float32)
        low, span = reals[:, 0], reals[:, -1] - reals[:, 0]
        scale = (np.float32(limits.shape[1] - 1) / np.where(span > 0, span, np.inf)).astype(np.float32)
        found = ((reals - low[:, None]) * scale[:, None] + np.float32(0.5)).astype(np.int64)
    off = abs(found - np.arange(limits.shape[1])).max(axis=1)
    steps = np.select([off == 0, off == 1, off <= MOST_OFF], [1, 2, 3], 0)
    steps = np.where((scale > 0) & (2**steps <= limits.shape[1] + 1), steps, 0)
    return np.stack([low, scale, steps], axis=1).astype(np.float32)
