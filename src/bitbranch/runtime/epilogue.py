"""What happens to a kernel's sums: to accumulators, ``multiplier * sum + constant + border term``, and to codes.

The terms of the native engine's ``Epilogue``. Where no output reads padding that needs a correction, and thresholds
follow, the thresholds are moved instead and the sums are compared as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from . import layout, tiles
from . import program as p
from .choice import Choice
from .layout import CHUNK, Form, Geometry, Ints


@dataclass(frozen=True, eq=False)
class Sums:
    """The sums of a convolution's kernel.

    Args:
        op: the convolution.
        size: height and width of its input.
        out: shape of its output.
        choice: how it is executed.
        source: geometry of the stored input, whose pixels the sums belong to.
        bias: what the sums hold beyond the products of weights and stored numbers, per output in whole chunks.
    """

    op: p.Conv
    size: p.Pair
    out: tuple[int, int, int]
    choice: Choice
    source: Geometry
    bias: Ints

    @cached_property
    def constant(self) -> Ints:
        """``value = multiplier * number + add``, and the stored padding 0 means ``add``: what that adds, per output."""
        total = np.zeros(len(self.bias), np.int64)
        if self.choice.form.add:
            total[: self.out[0]] = self.op.sums()[0]
        return self.choice.form.add * total - self.choice.form.multiplier * self.bias

    def bars(self, thresholds: Ints) -> Ints:
        """Thresholds ``[O or 1, n]`` of accumulators as they apply to what is compared: accumulators or sums."""
        if not self.choice.folded:
            return thresholds
        return -((self.constant[: self.out[0], None] - thresholds) // self.choice.form.multiplier)

    def arguments(self) -> dict[str, Any]:
        """What makes accumulators of the sums, if that is wanted."""
        if self.choice.folded:
            return {}
        form, (outputs, height, width) = self.choice.form, self.out
        edges = layout.border(self.op, self.size, (height, width)) if form.add and self.choice.taps else None
        arguments: dict[str, Any] = {}
        if form.multiplier != 1 or self.constant.any() or edges is not None:
            arguments |= {"multiplier": form.multiplier, "constants": _int32(self.constant)}
        if edges is not None:
            classes, missing = edges
            pixels = np.zeros((self.source.rows, self.source.pitch), np.int32)
            pixels[:height, :width] = classes
            terms = np.zeros((len(self.bias), missing.shape[1]), np.int64)
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
    form = Form(target.bits, target.is_signed, multiplier, add, target.sextets)
    if op.table is not None:
        stored = np.zeros(256, np.uint8)
        stored[: len(op.table)] = multiplier * op.table.astype(np.int64) + add
        limits, guess = tiles.byte_limits(table, channels)
        return {"form": form, "limits": limits, "thresholds": limits.shape[1], "guess": guess, "table": stored}
    if target.bits:
        limits = tiles.plane_limits(table, channels, wide)
        return {"form": form, "limits": limits, "thresholds": limits.shape[1]}
    limits, guess = tiles.byte_limits(table, channels)
    return {"form": form, "limits": limits, "thresholds": limits.shape[1], "guess": guess}


def _int32(x: Ints) -> npt.NDArray[np.int32]:
    """Modulo 2^32: the engine's sums are modular, and in range in the end."""
    return np.ascontiguousarray((x & 0xFFFFFFFF).astype(np.uint32)).view(np.int32)
