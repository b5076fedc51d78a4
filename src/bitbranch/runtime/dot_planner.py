"""From a program to a plan of the dot-product path: see :mod:`~bitbranch.runtime.dot` for its layout.

A step fills tiles of 32 pixels by 32 channels with integers (a convolution, a pool, an interpolation, or a stored
value) and hands each tile, still in the cache, to a chain: requantize, add another stream, store, thresholds, scale.
The chain holds every following operation that needs nothing else, so a residual block is one step per convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ..contract import CodeType
from ..errors import FormatError
from . import dot, winograd
from . import program as p
from .dot import DEPTH, OUTPUTS, PIXELS, Ints, Tap
from .interpolation import Interpolation
from .layout import LINE, round_up
from .rewrite import interpolate_at_once, pool_first, requantize_last
from .steps import StepInfo

BAND = 384 << 10
"""Bytes of sums that a convolution and the pool behind it keep in the second cache."""
GATHERED, GATHERED_TILES = 512 << 10, 16
"""Most bytes and tiles of pixels that are kept for the blocks of outputs to come; at least one tile is."""
ROW = 0.6
"""Share of half a tile that the pixels of a row of a strided convolution fill at least, if they are not gathered."""
DENSE = 0.9
"""Share of pixels among pixels and pads from which on tiles are taken as they lie."""
SCRATCH_CHUNKS = 128
"""Chunks of weights that are expanded at once: 256 KiB, which the second cache holds."""


def gathers(core: Any, machine: Any) -> bool:
    """Whether products read whole chunks, so that it pays to put them together where a pixel's are not aligned."""
    return bool(core.dot_wants_whole_rows(machine))


@dataclass(eq=False)
class Place:
    """Where a value lies: bytes for codes, int32 for integers, channels side by side."""

    memory: Any
    start: int
    step: int
    """Bytes from pixel to pixel."""
    rows: int
    pitch: int
    shape: tuple[int, int, int]
    exact: bool
    """Whether what lies behind the last channel belongs to another value."""
    view: Any

    def pixels(self, images: int, size: int) -> npt.NDArray[np.uint8]:
        """A copy of the bytes ``[images, H, W, size]`` of the pixels."""
        pitch = self.pitch * self.step
        strides = (self.rows * pitch, pitch, self.step, 1)
        shape = (images, *self.shape[1:], size)
        return np.lib.stride_tricks.as_strided(
            self.memory.array()[self.start :], shape, strides, writeable=False
        ).copy()


@dataclass(frozen=True)
class Layout:
    """Where the codes of a value lie in its memory, and what lies around them."""

    head: int
    """Bytes before the first pixel."""
    step: int
    rows: int
    pitch: int
    shape: tuple[int, int, int]
    code_type: CodeType
    """Behind the last image there may be codes of an earlier run, and transforms of patches have room for no others."""


@dataclass(eq=False)
class DotPlanner:
    """Builds one plan; takes the arguments of :class:`~bitbranch.runtime.planner.Planner`."""

    core: Any
    machine: Any
    isa: str
    program: p.Program
    capacity: int
    packed: dict[tuple[int, str], Any]
    threads: int = 1
    steps: list[StepInfo] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.plan = self.core.DotPlan(self.machine)
        rewritten = requantize_last(interpolate_at_once(pool_first(self.program), _blends))
        self.operations, self.values, self.origin = rewritten.operations, rewritten.values, rewritten.origin
        self.readers: dict[int, list[int]] = {i: [] for i in range(len(self.values))}
        for i, op in enumerate(self.operations):
            for j in dict.fromkeys(op.inputs):
                self.readers[j].append(i)
        self.places: dict[int, Place] = {}
        self.free: list[tuple[Layout | None, Any]] = []  # memory that nothing reads any more; None: of integers
        self.size = 0
        self.done: set[int] = set()  # operations that are planned
        self.made: set[int] = set()  # values that lie in memory
        self.homes = self._homes()
        self.pads: dict[int, p.Pair] = {}  # by root: rows between images and columns between rows, for its readers
        self.reach: dict[int, p.Pair] = {}  # by root: furthest row and column that a tap is from its output pixel
        self.filtered = self._filtered()
        self._measure()
        scratch = max((f.scratch for f in self.filtered.values()), default=0)
        # Of threads, not of images: it does not count when a batch is cut into parts.
        self.winograd_scratch = self.core.Buffer(self.threads * scratch) if scratch else None
        self.scratch = self.core.Buffer(self.threads * SCRATCH_CHUNKS * DEPTH * OUTPUTS)
        self.gather_scratch: Any = None

    def build(self) -> None:
        """Append every step to the plan.

        Raises:
            FormatError: an operation that the engine does not know.
        """
        for i, op in enumerate(self.operations):
            if i in self.done:
                continue
            if isinstance(op, p.Encode):
                self._encode(i, op)
            elif isinstance(op, p.Conv):
                self._depthwise(i, op) if dot.is_depthwise(op) else self._convolution(i, op)
            elif isinstance(op, p.ConvTranspose):
                self._transposed(i, op)
            elif isinstance(op, (p.Requantize, p.Add, p.Threshold, p.Scale)):
                self._pointwise(i, op)
            elif isinstance(op, (p.MaxPool, p.SumPool, p.Upsample)):
                self._window(i, op)
            elif isinstance(op, Interpolation):
                self._interpolate(i, op)
            elif isinstance(op, p.Concat):
                self._concat(i, op)
            else:
                raise FormatError(f"the engine has no operation {type(op).__name__}")

    def value(self, operation: int, images: int) -> npt.NDArray[np.generic]:
        """The reference's form of a value that lies in memory, ``[images, C, H, W]``."""
        number = self.origin.index(operation)
        v, place = self.values[number], self.places[number]
        channels = v.shape[0]
        if isinstance(v, p.Codes):
            shift, add = dot.byte_of(v.code_type)
            rank = (place.pixels(images, channels).astype(np.int16) - add) >> shift
            return np.ascontiguousarray(v.code_type.from_rank(rank).transpose(0, 3, 1, 2))
        item = self._bytes(number)
        numbers = place.pixels(images, item * channels).view(np.int16 if item == 2 else np.int32)
        return np.ascontiguousarray(numbers.transpose(0, 3, 1, 2)).astype(np.int64)

    # ---- memory -------------------------------------------------------------------------------------------------

    def _homes(self) -> dict[int, tuple[int, int]]:
        """Values that are written where a concatenation wants them: its number, and their first channel in it."""
        homes: dict[int, tuple[int, int]] = {}
        for i, op in enumerate(self.operations):
            if not isinstance(op, p.Concat):
                continue
            first = 0
            for j in op.inputs:
                if j not in homes and not isinstance(self.operations[j], p.Encode) and op.inputs.count(j) == 1:
                    homes[j] = (i, first)
                first += self.values[j].shape[0]
        return homes

    def _root(self, value: int) -> int:
        while value in self.homes:
            value = self.homes[value][0]
        return value

    def _filtered(self) -> dict[int, winograd.Filtering]:
        """The convolutions that Winograd's filtering makes faster."""
        found: dict[int, winograd.Filtering] = {}
        narrow = self.core.dot_has_narrow_sums(self.machine)
        for i, op in enumerate(self.operations):
            if not isinstance(op, p.Conv) or self._pool_of(i) is not None:
                continue
            sums = self.values[i]
            assert isinstance(sums, p.Integers)
            side, _ = winograd.choose(op, self._code_type(op.inputs[0]), sums, self.isa, narrow)
            if side:
                patches = self.capacity * winograd.patches(side, sums.shape)
                channels = op.packed.shape[1]
                found[i] = winograd.plan(self.core, side, channels, sums.shape[0], patches, self.threads)
        return found

    def _measure(self) -> None:
        """Find the pads and the reach of all values of codes."""
        for i, op in enumerate(self.operations):
            if not isinstance(op, (p.Conv, p.ConvTranspose)):
                continue
            root, size, out = self._root(op.inputs[0]), self.values[op.inputs[0]].shape[1:], self.values[i].shape[1:]
            pads, reach = list(self.pads.get(root, (0, 0))), list(self.reach.get(root, (0, 0)))
            for phase, *counts in self._phases(op, out):
                positions = dot.taps(op) if isinstance(op, p.Conv) else dot.phase_taps(op, phase)
                for axis, count in enumerate(counts):
                    stride = op.stride[axis] if isinstance(op, p.Conv) else 1
                    at = [(t.y, t.x)[axis] for t in positions] or [0]
                    beyond = max(at) + (count - 1) * stride - (size[axis] - 1)
                    pads[axis] = max(pads[axis], -min(at), beyond, count - size[axis] if stride == 1 else 0)
                    patch = self.filtered[i].side - 1 if i in self.filtered else 0
                    reach[axis] = max(reach[axis], max(at) + patch + PIXELS * stride * axis)
            self.pads[root], self.reach[root] = (pads[0], pads[1]), (reach[0], reach[1])

    @staticmethod
    def _phases(op: p.Conv | p.ConvTranspose, out: tuple[int, ...]) -> list[tuple[p.Pair, int, int]]:
        """The phases of an output, each with its height and width."""
        if isinstance(op, p.Conv):
            return [((0, 0), out[0], out[1])]
        sy, sx = op.stride
        return [
            ((y, x), -(-(out[0] - y) // sy), -(-(out[1] - x) // sx))
            for y in range(min(sy, out[0]))
            for x in range(min(sx, out[1]))
        ]

    def _buffer(self, size: int, fill: int = 0) -> Any:
        """New memory that holds one byte all over."""
        self.size += size
        return self.core.Buffer(size, fill)

    def _memory(self, size: int, layout: Layout | None, fill: int = 0) -> Any:
        """Memory of this layout that nothing reads any more, where it fits, or else new one."""
        fitting = [m for other, m in self.free if other == layout and size <= m.size <= 2 * size]
        if not fitting:
            return self._buffer(size, fill)
        memory = min(fitting, key=lambda m: m.size)
        self.free = [pair for pair in self.free if pair[1] is not memory]
        return memory

    def _place(self, value: int) -> Place:
        """Room for a value, made when it is first asked for."""
        if value in self.places:
            return self.places[value]
        v = self.values[value]
        if value in self.homes:
            whole, first = self.homes[value]
            outer = self._place(whole)
            at = outer.start + first * self._bytes(whole)
            narrow = self._bytes(whole) == 2
            place = self._describe(outer.memory, at, outer.step, outer.rows, outer.pitch, v.shape, True, narrow)
        elif isinstance(v, p.Codes):
            place = self._codes(value, v)
        else:
            place = self._integers(value)
        self.places[value] = place
        return place

    def _codes(self, value: int, v: p.Codes) -> Place:
        channels, height, width = v.shape
        step = channels if channels <= 4 else round_up(channels, OUTPUTS)
        pad_rows, pad_columns = self.pads.get(value, (0, 0))
        rows, pitch = height + pad_rows, width + pad_columns
        head = round_up((pad_rows * pitch + pad_columns) * step, LINE)
        # As far as from any value of this shape, so that they can take over each other's memory.
        reaches = [reach for root, reach in self.reach.items() if self.values[root].shape == v.shape]
        reach = [max((r[axis] for r in reaches), default=0) for axis in (0, 1)]
        tail = ((max(reach[0], pad_rows) + 1) * pitch + reach[1] + PIXELS) * step + 2 * DEPTH
        if self._by_images(value):  # tiles of one pixel per image read beyond the last image
            tail += (PIXELS if self.capacity > 4 else 4) * rows * pitch * step
        fill = dot.zero(v.code_type)
        layout = Layout(head, step, rows, pitch, v.shape, v.code_type)
        memory = self._memory(head + self.capacity * rows * pitch * step + tail, layout, fill)
        return self._describe(memory, head, step, rows, pitch, v.shape, step < OUTPUTS)

    def _by_images(self, root: int) -> bool:
        return self.capacity > 1 and any(
            isinstance(op, p.Conv) and self._root(op.inputs[0]) == root and self.values[i].shape[1:] == (1, 1)
            for i, op in enumerate(self.operations)
        )

    def _bytes(self, value: int) -> int:
        """Bytes of a number of a value, as it or the concatenation that holds it is stored."""
        v = self.values[self._root(value)]
        return np.dtype(v.dtype).itemsize if isinstance(v, p.Integers) else 1

    def _integers(self, value: int) -> Place:
        (channels, height, width), item = self.values[value].shape, self._bytes(value)
        step = item * round_up(channels, OUTPUTS)
        size = self.capacity * height * width * step + item * OUTPUTS
        memory = self._memory(size, None)
        return self._describe(memory, 0, step, height, width, (channels, height, width), False, item == 2)

    def _describe(
        self, memory: Any, start: int, step: int, rows: int, pitch: int, shape: tuple[int, int, int],
        exact: bool, narrow: bool = False,
    ) -> Place:  # fmt: skip
        view = self.core.DotView(
            memory=memory, start=start, step=step, rows=rows, pitch=pitch, height=shape[1], width=shape[2],
            channels=shape[0], exact=exact, narrow=narrow,
        )  # fmt: skip
        return Place(memory, start, step, rows, pitch, shape, exact, view)

    def _finished(self, operation: int) -> None:
        """Mark an operation as planned; give back the memory of values that nothing reads any more."""
        self.done.add(operation)
        for value in dict.fromkeys(self.operations[operation].inputs):
            place, v = self.places.get(value), self.values[value]
            if place is None:
                continue
            own = value not in self.homes and not isinstance(self.operations[value], p.Concat)
            taken = any(place is other for v, other in self.places.items() if v != value)
            if own and not taken and all(r in self.done for r in self.readers[value]):
                self.free.append((self._layout(place, v), place.memory))

    @staticmethod
    def _layout(place: Place, v: p.Value) -> Layout | None:
        """Whose memory a value may take over: integers any, codes that of codes of one type with the same pads."""
        if not isinstance(v, p.Codes):
            return None
        return Layout(place.start, place.step, place.rows, place.pitch, place.shape, v.code_type)

    # ---- chains -------------------------------------------------------------------------------------------------

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
            key = (i, "lines")
            if key not in self.packed:
                self.packed[key] = dot.fit_lines(bars, v.lo, v.hi)
            lines: dot.Lines | None = self.packed[key]
            if lines is not None:
                slope, intercept = self._by_block(lines.slope, blocks), self._by_block(lines.intercept, blocks)
                last = bars.shape[1]
                if lines.exact:
                    return self.core.DotOp.line(target.view, slope, intercept, last, shift, add)
                never = np.full((len(op.thresholds), 1), 2**31 - 1, np.int32)
                limits = self._by_block(np.concatenate([op.thresholds, never], axis=1), blocks, 2**31 - 1)
                same = len(op.thresholds) == 1
                return self.core.DotOp.near(target.view, slope, intercept, limits, last, same, shift, add)
        limits = self._by_block(op.thresholds, blocks, 2**31 - 1)
        return self.core.DotOp.compare(target.view, limits, op.table, shift, add)

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

    # ---- operations ---------------------------------------------------------------------------------------------

    def _whole_blocks(self, channels: int) -> list[tuple[int, int]]:
        return [(first, min(OUTPUTS, channels - first)) for first in range(0, channels, OUTPUTS)]

    def _encode(self, i: int, op: p.Encode) -> None:
        multiplier, add = op.code_type.step, op.code_type.lo + dot.zero(op.code_type)
        table = None
        if op.table is not None:
            table = (op.code_type.to_rank(op.table).astype(np.int64) * multiplier + add).astype(np.uint8)
        target = self._place(i)
        self.plan.encode(
            input=self.program.input_names.index(op.name),
            thresholds=op.thresholds.tolist(),
            table=table,
            multiplier=multiplier,
            add=add,
            target=target.view,
        )
        self._finished(i)
        self._add(i, "encode", [i])

    def _convolution(self, i: int, op: p.Conv) -> None:
        if i in self.filtered:
            self._winograd(i, op, self.filtered[i])
            return
        out = self.values[i].shape
        pool = self._pool_of(i)
        if pool is not None:  # never whole in memory: the view only says how rows lie
            step, narrow = self._bytes(i) * round_up(out[0], OUTPUTS), self._bytes(i) == 2
            self.places[i] = self._describe(self.core.Buffer(LINE), 0, step, out[1], out[2], out, False, narrow)
        self._product(i, op, dot.taps(op), op.stride, out[1:], out[1:], (1, 1), (0, 0), "", by_rows=pool is not None)
        if pool is not None:
            self._band(i, pool)

    def _winograd(self, i: int, op: p.Conv, how: winograd.Filtering) -> None:
        source, out, codes = self._place(op.inputs[0]), self.values[i].shape, self._code_type(op.inputs[0])
        key = (i, f"winograd {how.side}")
        if key not in self.packed:
            self.packed[key] = dot.pack(self.core, op, dot.taps(op), winograd.chunks, by_tap=True)
        packed: dot.PackedWeights = self.packed[key]
        start = winograd.starts(how.side, codes, packed.sums.reshape(-1, 3, 3))
        narrow = self.core.dot_has_narrow_sums(self.machine)
        quads = winograd.narrow_quads(how.side, codes, op.weight_type) if narrow else 0
        self.done.add(i)
        chain, complete = self._chain(i, packed.blocks)
        self.plan.winograd(
            walk=self._walk(out), channels=out[0], chain=chain, source=source.view, side=how.side,
            top_left=(op.padding[0], op.padding[2]), outputs=packed.outputs, quads=packed.quads[::9].copy(),
            add=winograd.summands(how.side, codes), start=self._by_block(self._int32(start), packed.blocks),
            weights=packed.data, bits=packed.bits, tables=packed.tables, narrow_quads=quads, group=how.group,
            together=how.together, scratch=self.winograd_scratch, threads=self.threads,
        )  # fmt: skip
        self._finished(i)
        self._add(i, winograd.family(how.side, quads > 0), complete, op.macs(self.values[op.inputs[0]]))

    def _pool_of(self, i: int) -> p.MaxPool | None:
        """The max-pool that alone reads a convolution's sums: these are made, and pooled, band by band."""
        op = self.operations[self.readers[i][0]]
        return op if isinstance(op, p.MaxPool) and len(self.readers[i]) == 1 and i not in self.homes else None

    def _band(self, i: int, pool: p.MaxPool) -> None:
        """Make the convolution and the pool behind it one step, which goes through the image in bands of rows."""
        self._window(self.readers[i][0], pool, by_rows=True)
        place = self.places.pop(i)
        self.free = [pair for pair in self.free if pair[1] is not place.memory]
        self.made.discard(i)
        row = place.pitch * place.step
        reach = (pool.kernel[0] - 1) * pool.dilation[0] + 1
        rows = max(1, (BAND // row - reach) // pool.stride[0] + 1)
        size = round_up(((rows - 1) * pool.stride[0] + reach) * row + 4 * OUTPUTS, LINE)
        self.plan.band(rows=rows, scratch=self._buffer(self.threads * size), scratch_bytes=size)
        window, convolution = self.steps.pop(), self.steps.pop()
        self.steps.append(
            StepInfo(self.origin[i], convolution.name, convolution.family, convolution.macs, window.completes)
        )

    def _transposed(self, i: int, op: p.ConvTranspose) -> None:
        out = self.values[i].shape
        phases = self._phases(op, out[1:])
        # The same chain for every phase: it is planned once, and repeated.
        for k, (phase, height, width) in enumerate(phases):
            what = f" (phase {k + 1} of {len(phases)})" if len(phases) > 1 else ""
            self._product(
                i, op, dot.phase_taps(op, phase), (1, 1), (height, width), out[1:], op.stride, phase, what,
                last=k == len(phases) - 1,
            )  # fmt: skip

    def _product(
        self, i: int, op: p.Conv | p.ConvTranspose, positions: list[Tap], stride: p.Pair, size: tuple[int, ...],
        whole: tuple[int, ...], step: p.Pair, first: p.Pair, what: str, last: bool = True, by_rows: bool = False,
    ) -> None:  # fmt: skip
        """A dense or grouped convolution: the output pixels ``step * (y, x) + first``, ``size`` of them."""
        source = self._place(op.inputs[0])
        key = (i, f"dot {first}")
        pixel = isinstance(op, p.Conv) and tuple(size) == (1, 1) and not by_rows
        gathered = not pixel and self._gathered(source, stride, size)
        if key not in self.packed:
            lay = partial(dot.chunks, positions, step=source.step, pitch=source.pitch, gathered=gathered)
            self.packed[key] = dot.pack(self.core, op, positions, lay)
        packed: dot.PackedWeights = self.packed[key]
        codes = self._code_type(op.inputs[0])
        quads = dot.narrow_quads(codes, op.weight_type) if self.core.dot_has_narrow_sums(self.machine) else 0
        shift = -dot.zero(codes)
        start = self._by_block(self._int32(shift * packed.sums), packed.blocks)
        if pixel:
            walk = self.core.DotWalk("images", 1, 1, 1, 1)
        elif gathered and not by_rows:
            walk = self.core.DotWalk("flat", size[0], size[1], size[0], size[1], step, first)
        elif stride == (1, 1) and not by_rows:
            walk = self.core.DotWalk("flat", size[0], size[1], source.rows, source.pitch, step, first)
        else:
            walk = self.core.DotWalk("rows", size[0], size[1], 1, 1)
        if last:
            self.done.add(i)
            saved = None
        else:
            saved = (set(self.done), list(self.free))
        chain, complete = self._chain(i, packed.blocks)
        if saved is not None:  # the next phase runs the same chain
            self.done, self.free = saved
            complete = []
        self.plan.convolution(
            walk=walk, channels=len(packed.sums), chain=chain, source=source.view, stride=stride,
            outputs=packed.outputs, lists=[(offsets, packed.quads) for offsets in packed.lists], start=start,
            weights=packed.data, bits=packed.bits, tables=packed.tables, narrow_quads=quads,
            scratch=self.scratch, scratch_chunks=SCRATCH_CHUNKS, **self._gathering(packed),
        )  # fmt: skip
        if last:
            self._finished(i)
        macs = int(op.macs(self.values[op.inputs[0]]))
        share = macs * len(positions) // max(1, op.kernel[0] * op.kernel[1])
        self._add(i, "dot16" if quads else "dot", complete, share, what)

    def _gathered(self, source: Place, stride: p.Pair, size: tuple[int, ...]) -> bool:
        """Whether tiles would be sparse, for the pads between pixels or the ends of rows, or lie across cache lines.

        Where products read whole chunks they are so fast that pads cost less than putting pixels together.
        """
        if stride != (1, 1) and size[1] <= ROW * round_up(size[1], PIXELS // 2):
            return True
        if gathers(self.core, self.machine):
            return source.step % DEPTH != 0
        return stride == (1, 1) and size[0] * size[1] < DENSE * source.rows * source.pitch

    def _gathering(self, packed: dot.PackedWeights) -> dict[str, Any]:
        """Room for the chunks of as many tiles as the second cache may hold."""
        if packed.piece == 0 or len(packed.quads) == 0:
            return {}
        size = round_up(len(packed.lists[0]) * packed.piece, DEPTH) * PIXELS
        slots = max(1, min(GATHERED // size, GATHERED_TILES))
        if self.gather_scratch is None or self.gather_scratch.size < self.threads * slots * size:
            self.gather_scratch = self._buffer(self.threads * slots * size)
        return {"piece": packed.piece, "reads": packed.reads, "gather_scratch": self.gather_scratch, "slots": slots}

    def _code_type(self, value: int) -> Any:
        v = self.values[value]
        assert isinstance(v, p.Codes)
        return v.code_type

    @staticmethod
    def _int32(x: Ints) -> npt.NDArray[np.int32]:
        """Modulo 2^32: sums are modular, and in range in the end."""
        return np.ascontiguousarray((x & 0xFFFFFFFF).astype(np.uint32)).view(np.int32)

    def _depthwise(self, i: int, op: p.Conv) -> None:
        source, out = self._place(op.inputs[0]), self.values[i].shape
        blocks = self._whole_blocks(out[0])
        positions = dot.taps(op)
        offsets = np.asarray([(t.y * source.pitch + t.x) * source.step for t in positions], np.int32)
        values = op.values().reshape(out[0], -1).astype(np.int32)
        sums = -dot.zero(self._code_type(op.inputs[0])) * values.astype(np.int64).sum(axis=1)
        if op.stride == (1, 1):
            walk = self.core.DotWalk("flat", out[1], out[2], source.rows, source.pitch)
        else:
            walk = self.core.DotWalk("rows", out[1], out[2], 1, 1)
        self.done.add(i)
        chain, complete = self._chain(i, blocks)
        self.plan.depthwise(
            walk=walk, channels=out[0], chain=chain, source=source.view, stride=op.stride, offsets=offsets,
            weights=self._by_block(values, blocks), start=self._by_block(self._int32(sums), blocks),
        )  # fmt: skip
        self._finished(i)
        self._add(i, "depthwise", complete, op.macs(self.values[op.inputs[0]]))

    def _walk(self, shape: tuple[int, int, int], by_rows: bool = False) -> Any:
        """Through all pixels of a value without pads; by rows, tiles end where rows do."""
        return self.core.DotWalk("rows" if by_rows else "flat", shape[1], shape[2], shape[1], shape[2])

    def _pointwise(self, i: int, op: p.Operation) -> None:
        """Whatever takes stored integers on, and the chain behind it."""
        value = op.inputs[0]
        shape, source = self.values[value].shape, self._place(value)
        blocks = self._whole_blocks(shape[0])
        if isinstance(op, (p.Threshold, p.Scale)):
            chain = [self._threshold(i, blocks) if isinstance(op, p.Threshold) else self._scale(i, blocks)]
            complete = [i]
        else:
            head = self._change(i, value, blocks)
            self.done.add(i)
            chain, complete = self._chain(i, blocks)
            chain.insert(0, head)
        self.plan.window(
            walk=self._walk(shape), channels=shape[0], chain=chain, kind="copy", source=source.view, bytes=False
        )
        self._finished(i)
        self._add(i, type(op).__name__.lower(), complete)

    def _window(self, i: int, op: p.MaxPool | p.SumPool | p.Upsample, by_rows: bool = False) -> None:
        value = op.inputs[0]
        v, out, source = self.values[value], self.values[i], self._place(value)
        family = {"MaxPool": "max-pool", "SumPool": "sum-pool", "Upsample": "upsample"}[type(op).__name__]
        window: dict[str, Any] = {}
        if isinstance(op, p.Upsample):
            window["factor"] = op.factor
        else:
            window |= {"kernel": op.kernel, "stride": op.stride, "top_left": (op.padding[0], op.padding[2])}
        if isinstance(op, p.MaxPool):
            window["dilation"] = op.dilation
        if isinstance(out, p.Codes):
            self.plan.bytes(source=source.view, target=self._place(i).view, **window)
            self._finished(i)
            self._add(i, family, [i])
            return
        codes = isinstance(v, p.Codes)
        kind = "largest" if isinstance(op, p.MaxPool) else "sum"
        blocks = self._whole_blocks(out.shape[0])
        self.done.add(i)
        chain, complete = self._chain(i, blocks, window_of=op.inputs[0])
        self.plan.window(
            walk=self._walk(out.shape, by_rows), channels=out.shape[0], chain=chain, kind=kind, source=source.view,
            bytes=codes, zero=dot.zero(v.code_type) if isinstance(v, p.Codes) else 0, **window,
        )  # fmt: skip
        self._finished(i)
        self._add(i, family, complete)

    def _interpolate(self, i: int, op: Interpolation) -> None:
        v, out, source = self.values[op.inputs[0]], self.values[i], self._place(op.inputs[0])
        blocks = self._whole_blocks(out.shape[0])
        self.done.add(i)
        chain, complete = self._chain(i, blocks, window_of=op.inputs[0])
        self.plan.interpolate(
            walk=self._walk(out.shape), channels=out.shape[0], chain=chain, source=source.view,
            bytes=isinstance(v, p.Codes), zero=dot.zero(v.code_type) if isinstance(v, p.Codes) else 0,
            down=op.rows.rows, across=op.columns.rows,
        )  # fmt: skip
        self._finished(i)
        self._add(i, "interpolate", complete)

    def _concat(self, i: int, op: p.Concat) -> None:
        """Copies the parts that could not be written in place."""
        target, first = self._place(i), 0
        size = self._bytes(i)
        for j in op.inputs:
            shape = self.values[j].shape
            if self.homes.get(j) != (i, first):
                at = target.start + first * size
                part = self._describe(target.memory, at, target.step, target.rows, target.pitch, shape, True, size == 2)
                source = self._place(j)
                if size == 1:
                    self.plan.bytes(source=source.view, target=part.view)
                else:
                    self.plan.window(
                        walk=self._walk(shape), channels=shape[0], chain=[self.core.DotOp.store(part.view)],
                        kind="copy", source=source.view, bytes=False,
                    )  # fmt: skip
                self._add(i, "concat", [], what=" (copy)")
            first += shape[0]
        self._finished(i)
        if self.steps:
            last = self.steps[-1]
            self.steps[-1] = StepInfo(
                last.operation, last.name, last.family, last.macs, (*last.completes, self.origin[i])
            )


def _blends(op: Interpolation, source: p.Value) -> bool:
    """Whether pixels are blended as the kernels do it: see ``DotBlend``."""
    near = (np.diff(op.columns.at) <= 1).all() and (np.diff(op.columns.at) >= 0).all()
    plain = not isinstance(source, p.Codes) or dot.zero(source.code_type) == 0 or np.ptp(op.columns.sums) == 0
    return bool(near and plain and max(a.max() for a in (*op.rows.rows[1:], *op.columns.rows[1:])) < 1 << 15)


__all__ = ["DotPlanner"]
