"""The NumPy oracle: one plain function per operation; every executor equals it, bit for bit.

Sums are taken in float64 by matrix products where the program's bounds (below 2^31, so far below 2^53) make that
exact; nothing here is approximate.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..contract import CodeType, requantize
from ..errors import FormatError
from . import program as p

PART = 25
"""Images of a batch that go through the whole program at once: so few fit the caches, which is twice as fast."""

Array = npt.NDArray[Any]
Codes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


def encode(op: p.Encode, x: p.Images) -> Codes:
    """Images ``[N, C, H, W]`` to codes: float32 by thresholds, uint8 by the pixel table."""
    if x.dtype == np.uint8:
        assert op.table is not None
        return np.stack([op.table[c][x[:, c]] for c in range(x.shape[1])], axis=1)
    return op.code_type.from_rank(np.searchsorted(op.thresholds, x, side="right"))


def _windows(
    x: Array,
    kernel: p.Pair,
    stride: p.Pair,
    padding: p.Padding,
    dilation: p.Pair,
    fill: float,
) -> Iterator[tuple[int, int, Array]]:
    """For each tap (i, j) of a window: what it sees at every output position, ``[N, C, H', W']``."""
    top, bottom, left, right = padding
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    height, width = p.window_size("window", (x.shape[2], x.shape[3]), kernel, stride, padding, dilation)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            y0, x0 = i * dilation[0], j * dilation[1]
            rows = slice(y0, y0 + (height - 1) * stride[0] + 1, stride[0])
            columns = slice(x0, x0 + (width - 1) * stride[1] + 1, stride[1])
            yield i, j, padded[:, :, rows, columns]


def conv(op: p.Conv, x: Codes, code_type: CodeType) -> Ints:
    """Codes ``[N, I, H, W]`` to accumulators ``[N, O, H', W']``; padding adds nothing."""
    weight = op.values()
    most = int(np.abs(weight.astype(np.int64)).sum((1, 2, 3)).max()) * max(abs(code_type.lo), abs(code_type.hi))
    dtype = np.float32 if most < 1 << 24 else np.float64  # in which all the sums are exact
    taps = weight.astype(dtype).reshape(op.groups, len(weight) // op.groups, -1)
    size = p.window_size("convolution", (x.shape[2], x.shape[3]), op.kernel, op.stride, op.padding, op.dilation)
    out = np.empty((len(x), len(weight), *size), np.int64)
    for acc, image in zip(out, code_type.decode(x).astype(dtype), strict=True):
        windows = _windows(image[None], op.kernel, op.stride, op.padding, op.dilation, 0.0)
        columns = np.stack([seen[0] for _, _, seen in windows], axis=1)  # [I, taps, H', W']
        acc[:] = (taps @ columns.reshape(op.groups, -1, size[0] * size[1])).reshape(acc.shape)
    return out


def conv_transpose(op: p.ConvTranspose, x: Codes, code_type: CodeType, size: p.Pair) -> Ints:
    """Codes ``[N, I, H, W]`` to accumulators ``[N, O, *size]``: every input pixel adds its window of weights."""
    values, weight = code_type.decode(x).astype(np.float64), op.values().astype(np.float64)
    n, inputs, height, width = values.shape
    per_group, (top, _, left, _) = weight.shape[1], op.padding
    columns = values.reshape(n, op.groups, inputs // op.groups, height * width)
    room = [(values.shape[2 + a] - 1) * op.stride[a] + op.dilation[a] * (op.kernel[a] - 1) + 1 for a in (0, 1)]
    full = np.zeros((n, op.groups * per_group, max(room[0], top + size[0]), max(room[1], left + size[1])))
    for i in range(op.kernel[0]):
        for j in range(op.kernel[1]):
            taps = weight[:, :, i, j].reshape(op.groups, -1, per_group).transpose(0, 2, 1)
            rows = slice(i * op.dilation[0], i * op.dilation[0] + (height - 1) * op.stride[0] + 1, op.stride[0])
            cols = slice(j * op.dilation[1], j * op.dilation[1] + (width - 1) * op.stride[1] + 1, op.stride[1])
            full[:, :, rows, cols] += (taps @ columns).reshape(n, full.shape[1], height, width)
    return full[:, :, top : top + size[0], left : left + size[1]].astype(np.int64)


def upsample(op: p.Upsample, v: Array) -> Array:
    """Values ``[N, C, H, W]`` enlarged: repeated, or ``4 fy fx`` times their bilinear interpolation."""
    if op.mode == "nearest":
        return v.repeat(op.factor[0], axis=2).repeat(op.factor[1], axis=3)
    out = v.astype(np.int64)
    for axis, factor in ((2, op.factor[0]), (3, op.factor[1])):
        size = out.shape[axis]
        twice = 2 * np.arange(size * factor) + 1 - factor  # 2 * factor times the position among the inputs
        at, part = twice // (2 * factor), twice % (2 * factor)
        below, above = out.take(np.clip(at, 0, size - 1), axis), out.take(np.clip(at + 1, 0, size - 1), axis)
        weight = part.reshape([-1 if a == axis else 1 for a in range(4)])
        out = below * (2 * factor - weight) + above * weight
    return out


def threshold(op: p.Threshold, v: Ints) -> Codes:
    """Integers to codes: count the thresholds of the channel that each value reaches."""
    rank = np.empty(v.shape, np.uint8)  # a code has at most 8 bits
    for channel in range(v.shape[1]):
        ascending = op.thresholds[channel % len(op.thresholds)]  # its own, or those of all
        rank[:, channel] = np.searchsorted(ascending, v[:, channel], side="right")
    return op.code_type.from_rank(rank if op.table is None else op.table[rank])


def requantize_stream(op: p.Requantize, v: Ints) -> Ints:
    """Integers to a residual stream on another scale."""
    m, s, offset = (a.astype(np.int64).reshape(-1, 1, 1) for a in (op.multiplier, op.shift, op.offset))
    return requantize(v, m, s, offset, op.lo, op.hi)


def add(op: p.Add, a: Ints, b: Ints) -> Ints:
    """Sum of two streams, saturated."""
    return np.clip(a + b, op.lo, op.hi)


def max_pool(op: p.MaxPool, v: Array) -> Array:
    """Largest integer of each window; padding is smaller than everything."""
    seen = _windows(v, op.kernel, op.stride, op.padding, op.dilation, np.iinfo(v.dtype).min)
    return np.maximum.reduce([window for _, _, window in seen])


def sum_pool(op: p.SumPool, v: Array) -> Ints:
    """Sum of each window; padding is 0."""
    seen = _windows(v.astype(np.int64), op.kernel, op.stride, op.padding, (1, 1), 0)
    return np.sum([window for _, _, window in seen], axis=0, dtype=np.int64)


def scale(op: p.Scale, v: Ints) -> npt.NDArray[np.float32]:
    """Accumulators to the float32 output: rounded to float32, multiplied, then added."""
    product = v.astype(np.float32) * op.scale.reshape(-1, 1, 1)
    return product + op.bias.reshape(-1, 1, 1)


def trace(program: p.Program, *x: npt.ArrayLike) -> Iterator[tuple[int, Array]]:
    """Run the program and yield ``(operation number, its value)`` in order, each ``[N, C, H, W]``.

    Values that no later operation needs are dropped on the way.
    """
    images = iter(program.check_input(*x))
    last_use = {j: i for i, op in enumerate(program.operations) for j in op.inputs}
    live: dict[int, Array] = {}
    for i, op in enumerate(program.operations):
        inputs = [live[j] for j in op.inputs]
        types = [program.values[j] for j in op.inputs]
        live[i] = encode(op, next(images)) if isinstance(op, p.Encode) else _apply(op, inputs, types)
        yield i, live[i]
        live = {j: v for j, v in live.items() if last_use.get(j, -1) > i}


def _apply(op: p.Operation, inputs: list[Array], types: list[p.Value]) -> Array:
    source = types[0]
    if isinstance(op, p.Conv) and isinstance(source, p.Codes):
        return conv(op, inputs[0], source.code_type)
    if isinstance(op, p.ConvTranspose) and isinstance(source, p.Codes):
        return conv_transpose(op, inputs[0], source.code_type, op.infer(source).shape[1:])
    if isinstance(op, p.Concat):
        return np.concatenate(inputs, axis=1)
    if isinstance(op, p.Upsample):
        if isinstance(source, p.Codes) and op.mode == "bilinear":
            return upsample(op, source.code_type.decode(inputs[0]))
        return upsample(op, inputs[0])
    if isinstance(op, p.Threshold):
        return threshold(op, inputs[0])
    if isinstance(op, p.Requantize):
        return requantize_stream(op, inputs[0])
    if isinstance(op, p.Add):
        return add(op, inputs[0], inputs[1])
    if isinstance(op, p.MaxPool):
        if isinstance(source, p.Codes):
            return source.code_type.encode(max_pool(op, source.code_type.decode(inputs[0])))
        return max_pool(op, inputs[0])
    if isinstance(op, p.SumPool):
        return sum_pool(op, source.code_type.decode(inputs[0]) if isinstance(source, p.Codes) else inputs[0])
    if isinstance(op, p.Scale):
        return scale(op, inputs[0])
    raise FormatError(f"the reference has no operation {type(op).__name__}")


def run(program: p.Program, *x: npt.ArrayLike) -> p.Output:
    """The whole program on a batch.

    Args:
        program: the program.
        x: one array per input, float32 (normalised) or uint8 ``[N, C, H, W]``.

    Returns:
        float32 ``[N, *output_shape]``; of several outputs a tuple, in order.

    Raises:
        InputError: see :meth:`~bitbranch.runtime.program.Program.check_input`.
    """
    batch = program.check_input(*x)
    parts = [_part(program, [a[i : i + PART] for a in batch]) for i in range(0, max(1, len(batch[0])), PART)]
    outputs = [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _part(program: p.Program, batch: list[p.Images]) -> list[npt.NDArray[np.float32]]:
    outputs = [value for i, value in trace(program, *batch) if isinstance(program.values[i], p.Reals)]
    return [value.reshape(len(value), *shape) for value, shape in zip(outputs, program.output_shapes, strict=True)]
