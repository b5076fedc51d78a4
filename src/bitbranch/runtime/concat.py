"""Where the channels of a concatenation lie: which parts are written in place, how the others are moved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from . import program as p
from .layout import CHUNK, Form

Piece = tuple[int, int, int, int, int, int]
"""Plane of the whole, number of the part, plane of the part, bits to shift left, bits to shift right, mask."""


def homes(operations: Sequence[p.Operation], values: Sequence[p.Value]) -> dict[int, tuple[int, int]]:
    """For the values that can be written straight into a concatenation: its number, and their first channel in it.

    Steps write whole chunks of codes, so a part of codes starts at a chunk and fills its chunks, or is the last part.
    """
    found: dict[int, tuple[int, int]] = {}
    for i, op in enumerate(operations):
        if not isinstance(op, p.Concat):
            continue
        first, channels = 0, values[i].shape[0]
        for j in op.inputs:
            end = first + values[j].shape[0]
            whole = first % CHUNK == 0 and (end % CHUNK == 0 or end == channels)
            if j not in found and (whole or isinstance(values[j], p.Integers)):
                found[j] = (i, first)
            first = end
    return found


def pieces(form: Form | None, part: int, channels: int, first: int) -> Iterator[Piece]:
    """How a part's planes are put into those of the whole.

    Args:
        form: of both; ``None`` for integers.
        part: number of the part.
        channels: of the part.
        first: its first channel in the whole.
    """
    if form is None:
        yield from ((first + c, part, c, 0, 0, 0) for c in range(channels))
        return
    per_unit, planes = form.channels_per_unit, form.planes_per_unit
    bits = 8 if form.bits == 0 else form.bits if form.sextets else 1  # between neighbours in a pixel
    lane = (1 << bits) - 1 if form.bits == 0 or form.sextets else 0x11 if form.bits > 1 else 1
    for unit in range(first // per_unit, -(-(first + channels) // per_unit)):
        for source in range(-(-channels // per_unit)):
            shift = first + (source - unit) * per_unit  # of the source's channels within the unit
            lanes = range(max(0, shift), min(per_unit, shift + min(per_unit, channels - source * per_unit)))
            mask = sum(lane << bits * k for k in lanes)
            for plane in range(planes if lanes else 0):
                left, right = bits * max(0, shift), bits * max(0, -shift)
                yield unit * planes + plane, part, source * planes + plane, left, right, mask
