"""Where the dot-product path keeps values and scratch: see :mod:`~bitbranch.runtime.dot` for how they lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..contract import CodeType
from . import dot, winograd
from . import program as p
from .dot import DEPTH, OUTPUTS, PIXELS
from .interpolation import Interpolation
from .layout import LINE, round_up
from .rewrite import interpolate_at_once, pool_first, requantize_last
from .steps import Planning

SCRATCH_CHUNKS = 128
"""Chunks of weights that are expanded at once: 256 KiB, which the second cache holds."""


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
class DotMemory(Planning):
    """A program as it will run, and the memory of its values; what :class:`~.dot_planner.DotPlanner` plans with."""

    threads: int = 1

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

    def _code_type(self, value: int) -> Any:
        v = self.values[value]
        assert isinstance(v, p.Codes)
        return v.code_type

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
        narrow, halves = self.core.dot_has_narrow_sums(self.machine), self.core.dot_has_halves(self.machine)
        for i, op in enumerate(self.operations):
            if not isinstance(op, p.Conv) or self._pool_of(i) is not None:
                continue
            sums = self.values[i]
            assert isinstance(sums, p.Integers)
            codes = self._code_type(op.inputs[0])
            side, _ = winograd.choose(op, codes, sums, self.isa, narrow)
            if side:
                half = halves and winograd.fits_half(side, codes, op.weight_type, sums, narrow)
                patches = self.capacity * winograd.patches(side, sums.shape)
                channels = op.packed.shape[1]
                found[i] = winograd.plan(self.core, side, half, channels, sums.shape[0], patches, self.threads)
        return found

    def _pool_of(self, i: int) -> p.MaxPool | None:
        """The max-pool that alone reads a convolution's sums: these are made, and pooled, band by band."""
        op = self.operations[self.readers[i][0]]
        return op if isinstance(op, p.MaxPool) and len(self.readers[i]) == 1 and i not in self.homes else None

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


def _blends(op: Interpolation, source: p.Value) -> bool:
    """Whether pixels are blended as the kernels do it: see ``DotBlend``."""
    near = (np.diff(op.columns.at) <= 1).all() and (np.diff(op.columns.at) >= 0).all()
    plain = not isinstance(source, p.Codes) or dot.zero(source.code_type) == 0 or np.ptp(op.columns.sums) == 0
    return bool(near and plain and max(a.max() for a in (*op.rows.rows[1:], *op.columns.rows[1:])) < 1 << 15)


__all__ = ["DotMemory", "Layout", "Place"]
