"""What happens to a kernel's sums: to accumulators, ``multiplier * sum + constant + border term``, and to codes.

The terms of the native engine's ``Epilogue``. Where no output reads padding that needs a correction, and thresholds
follow, the thresholds are moved instead and the sums are compared as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from . import layout, tiles
from . import program as p
from .choice import Choice
from .layout import CHUNK, Form, Geometry, Ints


def from_sums(
    op: p.Conv,
    size: p.Pair,
    out: tuple[int, int, int],
    choice: Choice,
    source: Geometry,
    bias: Ints,
    target: Form | None,
    threshold: p.Threshold | None,
) -> dict[str, Any]:
    """Arguments for a convolution's sums.

    Args:
        op: the convolution.
        size: height and width of its input.
        out: shape of its output.
        choice: how it is executed.
        source: geometry of the stored input, whose pixels the sums belong to.
        bias: what the sums hold beyond the products of weights and stored numbers, per output in whole chunks.
        target: form of the codes that are written; ``None`` for accumulators.
        threshold: the thresholds that follow, if codes are written.
    """
    outputs, height, width = out
    form = choice.form
    total = np.zeros(len(bias), np.int64)
    total[:outputs] = op.sums()[0]
    # Where the value is multiplier * number + add, and the stored padding 0 means `add`:
    constant = form.add * total - form.multiplier * bias
    edges = layout.border(op, size, (height, width)) if form.add and choice.taps is not None else None

    arguments: dict[str, Any] = {}
    if threshold is not None:
        assert target is not None
        bars = threshold.thresholds.astype(np.int64)
        if edges is None:  # multiplier * sum + constant >= T
            bars = -((constant[:outputs, None] - bars) // form.multiplier)
            return to_codes(threshold, bars, outputs, choice.wide, target)
        arguments = to_codes(threshold, bars, outputs, choice.wide, target)
    assert not choice.folded
    if form.multiplier != 1 or constant.any() or edges is not None:
        arguments |= {"multiplier": form.multiplier, "constants": _int32(constant)}
    if edges is not None:
        classes, missing = edges
        pixels = np.zeros((source.rows, source.pitch), np.int32)
        pixels[:height, :width] = classes
        terms = np.zeros((len(bias), missing.shape[1]), np.int64)
        terms[:outputs] = -form.add * missing
        by_chunk = terms.reshape(-1, CHUNK, terms.shape[1]).transpose(0, 2, 1)
        arguments |= {"border_class": pixels, "border_terms": _int32(by_chunk), "border_classes": terms.shape[1]}
    return arguments


def to_codes(op: p.Threshold, bars: Ints, channels: int, wide: bool, target: Form) -> dict[str, Any]:
    """Arguments for writing codes.

    Args:
        op: the thresholds.
        bars: the thresholds as they apply to what is compared, ``[channels or 1, n]``.
        channels: number of channels.
        wide: whether int32 is compared, else int16.
        target: form of the codes.
    """
    table = np.broadcast_to(bars, (channels, bars.shape[1]))
    # The epilogue's own form: how a rank becomes the stored number.
    multiplier, add = target.stored(op.code_type)
    form = Form(target.bits, target.is_signed, multiplier, add)
    if target.bits:
        limits = tiles.plane_limits(table, channels, wide)
        return {"form": form, "limits": limits, "thresholds": limits.shape[1]}
    limits, guess = tiles.byte_limits(table, channels)
    return {"form": form, "limits": limits, "thresholds": limits.shape[1], "guess": guess}


def _int32(x: Ints) -> npt.NDArray[np.int32]:
    """Modulo 2^32: the engine's sums are modular, and in range in the end."""
    return np.ascontiguousarray((x & 0xFFFFFFFF).astype(np.uint32)).view(np.int32)
