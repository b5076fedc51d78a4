"""A transposed convolution as ordinary ones: one for each phase of its output pixels. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd

import numpy as np

from ..contract import CodeType
from . import program as p

NOTHING = CodeType.parse("t")
"""Weights of a phase that no kernel position reaches: all 0."""


@dataclass(frozen=True, eq=False)
class Phase:
    """The output pixels ``(sy * y + first[0], sx * x + first[1])`` of a transposed convolution of stride (sy, sx)."""

    first: p.Pair
    step: p.Pair
    """The stride."""
    conv: p.Conv
    """What makes them. Its padding may be negative: columns that it does not read."""
    size: p.Pair
    """How many there are."""
    macs: int
    """Multiply-accumulates of one image, as the transposed convolution counts them."""


def phases(op: p.ConvTranspose, size: p.Pair, out: p.Pair) -> list[Phase]:
    """The phases of an output of this size, for an input of ``size``; together they do ``op.macs``."""
    inputs, per_group = op.packed.shape[:2]
    by_output = op.weight.reshape(op.groups, inputs // op.groups, per_group, *op.kernel).transpose(0, 2, 1, 3, 4)
    weight = by_output.reshape(op.groups * per_group, inputs // op.groups, *op.kernel)
    found, rest = [], op.packed.size * size[0] * size[1]
    for first in np.ndindex(min(op.stride[0], out[0]), min(op.stride[1], out[1])):
        (rows, top, down), (columns, left, across) = (_reached(op, axis, first[axis]) for axis in (0, 1))
        count = tuple(-(-(out[axis] - first[axis]) // op.stride[axis]) for axis in (0, 1))
        if rows and columns:
            here = np.ascontiguousarray(weight[:, :, rows][:, :, :, columns])
            padding = (top, 0, left, 0)
            conv = p.Conv(op.name, op.inputs, here, op.weight_type, (1, 1), padding, (down, across), op.groups)
        else:
            zeros = np.full((*weight.shape[:2], 1, 1), NOTHING.encode([0])[0], np.uint8)
            conv = p.Conv(op.name, op.inputs, zeros, NOTHING, groups=op.groups)
        macs = len(rows) * len(columns) * weight.shape[0] * weight.shape[1] * size[0] * size[1]
        rest -= macs
        found.append(Phase((first[0], first[1]), op.stride, conv, (count[0], count[1]), macs))
    last = found[-1]  # of an output that is too small for all phases, the positions of those that are not there
    found[-1] = replace(last, macs=last.macs + rest)
    return found


def _reached(op: p.ConvTranspose, axis: int, first: int) -> tuple[list[int], int, int]:
    """Kernel positions that reach a phase along an axis, in the order of what they read; padding; dilation."""
    stride, dilation = op.stride[axis], op.dilation[axis]
    start = first + op.padding[2 * axis]
    positions = [i for i in reversed(range(op.kernel[axis])) if (start - dilation * i) % stride == 0]
    least = (start - dilation * positions[0]) // stride if positions else 0
    return positions, -least, dilation // gcd(dilation, stride)
