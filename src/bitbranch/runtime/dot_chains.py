"""What follows the sums of a tile on the dot-product path: requantize, add a stream, store, thresholds, scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from . import dot
from . import program as p
from .dot import OUTPUTS
from .dot_memory import DotMemory
from .layout import LINE
from .steps import StepInfo


class DotChains(DotMemory):
    """Chains of operations, each with its numbers by blocks of channels."""

    def _chain(
        self, value: int, blocks: Sequence[tuple[int, int]], window_of: int | None = None
    ) -> tuple[list[Any], list[int]]:
        """What follows a value that a step has just made, tile by tile.

        Args:
            value: the integers of the step.
            blocks: first channel and number of channels of each block.
            window_of: integers whose neighbouring pixels the step reads, too: nothing may be written over them.

        Returns:
            operations of the chain, and the values that they complete.
        """
        chain: list[Any] = []
        complete: list[int] = []
        fused: list[int] = []
        added: int | None = None  # the summand of the addition that has just been made
        while True:
            onward, stays = [], False
            for reader in self.readers[value]:
                op = self.operations[reader]
                if isinstance(op, (p.Threshold, p.Scale)):  # these leave the sums as they are
                    make = self._threshold if isinstance(op, p.Threshold) else self._scale
                    chain.append(make(reader, blocks))
                    complete.append(reader)
                    fused.append(reader)
                elif isinstance(op, p.Requantize) or (isinstance(op, p.Add) and self._is_ready(op, value)):
                    onward.append(reader)
                else:
                    stays = True
            if stays or len(onward) > 1:
                free = added is not None and added != window_of and self._may_overwrite(added, value)
                if value not in self.places and added is not None and free:
                    self.places[value] = self.places[added]
                chain.append(self.core.DotOp.store(self._place(value).view))
                complete.append(value)
            if not onward:
                break
            chain.append(self._change(onward[0], value, blocks))
            fused.append(onward[0])
            sum_of = self.operations[onward[0]]
            added = next((j for j in sum_of.inputs if j != value), None) if isinstance(sum_of, p.Add) else None
            value = onward[0]
        for done in fused:
            self._finished(done)
        return chain, complete

    def _may_overwrite(self, old: int, value: int) -> bool:
        """Whether a sum may take its summand's memory: it is read where the sum is written, then never again."""
        last = all(r == value or r in self.done for r in self.readers[old])
        bound = any(v in self.homes or isinstance(self.operations[v], p.Concat) for v in (old, value))
        same = self.values[old].shape == self.values[value].shape and self._bytes(old) == self._bytes(value)
        return last and same and not bound

    def _is_ready(self, op: p.Add, value: int) -> bool:
        """Whether the other summand lies in memory."""
        return all(j == value or j in self.made for j in op.inputs) and len(set(op.inputs)) == 2

    def _change(self, i: int, value: int, blocks: Sequence[tuple[int, int]]) -> Any:
        """A requantization, or the addition of what is not ``value``."""
        op = self.operations[i]
        if isinstance(op, p.Requantize):
            return self._requantize(op, blocks)
        assert isinstance(op, p.Add)
        other = op.inputs[1] if op.inputs[0] == value else op.inputs[0]
        return self.core.DotOp.add(self._place(other).view, op.lo, op.hi)

    def _by_block(self, a: npt.NDArray[Any], blocks: Sequence[tuple[int, int]], fill: float = 0) -> npt.NDArray[Any]:
        """Per-channel numbers ``[C, ...]`` (or ``[1, ...]``) as ``[blocks, ..., 32]``."""
        channels = max(first + count for first, count in blocks)
        whole = np.broadcast_to(a, (channels, *a.shape[1:]))
        out = np.full((len(blocks), *a.shape[1:], OUTPUTS), fill, a.dtype)
        for k, (first, count) in enumerate(blocks):
            out[k, ..., :count] = np.moveaxis(whole[first : first + count], 0, -1)
        return out

    def _requantize(self, op: p.Requantize, blocks: Sequence[tuple[int, int]]) -> Any:
        shift = op.shift.astype(np.int64)
        half = np.where(shift > 0, np.int64(1) << np.maximum(shift - 1, 0), 0)
        multiplier, shifts, offset = (
            self._by_block(a, blocks) for a in (op.multiplier.astype(np.int64), shift, op.offset + half)
        )
        v = self.values[op.inputs[0]]
        assert isinstance(v, p.Integers)
        ends = [(int(a) * op.multiplier.astype(np.int64) + op.offset + half) >> shift for a in (v.lo, v.hi)]
        fits = all(-(2**31) <= int(e.min()) and int(e.max()) < 2**31 for e in ends)
        narrow = fits and int(shift.max()) <= 32
        return self.core.DotOp.requantize(multiplier, shifts, offset, op.lo, op.hi, narrow)

    def _threshold(self, i: int, blocks: Sequence[tuple[int, int]]) -> Any:
        op, target = self.operations[i], self._place(i)
        assert isinstance(op, p.Threshold)
        v = self.values[op.inputs[0]]
        assert isinstance(v, p.Integers)
        shift, add = dot.byte_of(op.code_type)
        bars = op.thresholds.astype(np.int64)
        if op.table is None and bars.shape[1] > dot.FEW:
            passed, never = dot.same_ends(bars, v.lo, v.hi)
            inside = bars[:, passed : bars.shape[1] - never]
            key = (i, "lines")
            if key not in self.packed:
                self.packed[key] = self._lines(inside, v)
            if self.packed[key] is not None:
                lines, jump = self.packed[key]
                slope, intercept = self._by_block(lines.slope, blocks), self._by_block(lines.intercept, blocks)
                make = self.core.DotOp.line if slope.dtype == np.float32 else self.core.DotOp.fine_line
                limits = self._by_block(inside[:, 0].astype(np.int32), blocks, 2**31 - 1) if jump else None
                last = inside.shape[1] - jump
                return make(target.view, slope, intercept, last, shift, add + (passed << shift), limits, jump)
        limits = self._by_block(op.thresholds, blocks, 2**31 - 1)
        return self.core.DotOp.compare(target.view, limits, op.table, shift, add)

    @staticmethod
    def _lines(bars: dot.Ints, v: p.Integers) -> tuple[dot.Lines, int] | None:
        """Lines that count the thresholds of every channel, of the shortest numbers that do; ``None``: of none.

        And how many thresholds they leave out: the first, or several that are one, where it is off the line, as where a
        quantizer makes zero of what is small.
        """
        if not bars.shape[1]:
            return None
        equal = int((bars == bars[:, :1]).sum(axis=1).min())
        for jump in (0, equal) if equal < bars.shape[1] else (0,):
            for real in (np.float32, np.float64):
                lines = dot.fit_lines(bars[:, jump:], v.lo, v.hi, real)
                if lines.right.all():
                    return lines, jump
        return None

    def _scale(self, i: int, blocks: Sequence[tuple[int, int]]) -> Any:
        op, shape = self.operations[i], self.values[i].shape
        assert isinstance(op, p.Scale)
        empty = self.core.Buffer(LINE)
        output = self.program.output_names.index(op.name)
        target = self._describe(empty, 0, 0, shape[1], shape[2], shape, True)  # for its size; it writes the output
        return self.core.DotOp.scale(
            output, target.view, self._by_block(op.scale, blocks), self._by_block(op.bias, blocks)
        )

    def _add(self, operation: int, family: str, completes: list[int], macs: int = 0, what: str = "") -> None:
        op = self.operations[operation]
        name = f"{op.name or type(op).__name__.lower()}{what}"
        self.made.update(completes)
        done = tuple(self.origin[value] for value in completes if self.origin[value] >= 0)
        self.steps.append(StepInfo(self.origin[operation], name, family, macs, done))
