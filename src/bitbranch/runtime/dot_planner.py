"""From a program to a plan of the dot-product path: see :mod:`~bitbranch.runtime.dot` for its layout.

A step fills tiles of 32 pixels by 32 channels with integers (a convolution, a pool, an interpolation, or a stored
value) and hands each tile, still in the cache, to a chain: requantize, add another stream, store, thresholds, scale.
The chain holds every following operation that needs nothing else, so a residual block is one step per convolution.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError
from . import dot, winograd
from . import program as p
from .dot import DEPTH, OUTPUTS, PIXELS, Ints, Tap
from .dot_chains import DotChains
from .dot_memory import SCRATCH_CHUNKS, Place
from .interpolation import Interpolation
from .layout import LINE, round_up
from .steps import StepInfo

BAND = 384 << 10
"""Bytes of sums that a convolution and the pool behind it keep in the second cache."""
GATHERED, GATHERED_TILES = 512 << 10, 16
"""Most bytes and tiles of pixels that are kept for the blocks of outputs to come; at least one tile is."""
ROW = 0.6
"""Share of half a tile that the pixels of a row of a strided convolution fill at least, if they are not gathered."""
DENSE = 0.9
"""Share of pixels among pixels and pads from which on tiles are taken as they lie."""


def gathers(core: Any, machine: Any) -> bool:
    """Whether products read whole chunks, so that it pays to put them together where a pixel's are not aligned."""
    return bool(core.dot_wants_whole_rows(machine))


class DotPlanner(DotChains):
    """Builds one plan; takes the arguments of :class:`~bitbranch.runtime.planner.Planner`."""

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
        packed = self._product(
            i, op, dot.taps(op), op.stride, out[1:], out[1:], (1, 1), (0, 0), "", by_rows=pool is not None
        )
        if pool is not None:
            self._band(i, pool, self._half(i, op, packed))

    def _half(self, i: int, op: p.Conv, packed: dot.PackedWeights) -> bool:
        """Whether the sums in a band may be kept modulo 2^16."""
        narrow = self.core.dot_has_narrow_sums(self.machine)
        pairs = not narrow or dot.pairs_fit(self._code_type(op.inputs[0]), op.weight_type)
        aligned = not (packed.outputs[:, 0] % OUTPUTS).any()
        together = len(packed.outputs) * len(packed.quads) <= SCRATCH_CHUNKS
        return self.core.dot_has_halves(self.machine) and self._bytes(i) == 2 and pairs and aligned and together

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
            weights=packed.data, bits=packed.bits, tables=packed.tables, narrow_quads=quads, half=how.half,
            group=how.group, together=how.together, scratch=self.winograd_scratch, threads=self.threads,
        )  # fmt: skip
        self._finished(i)
        self._add(i, winograd.family(how.side, quads > 0), complete, op.macs(self.values[op.inputs[0]]))

    def _band(self, i: int, pool: p.MaxPool, half: bool) -> None:
        """Make the convolution and the pool behind it one step, which goes through the image in bands of rows."""
        self._window(self.readers[i][0], pool, by_rows=True)
        place = self.places.pop(i)
        self.free = [pair for pair in self.free if pair[1] is not place.memory]
        self.made.discard(i)
        row = place.pitch * place.step
        reach = (pool.kernel[0] - 1) * pool.dilation[0] + 1
        rows = max(1, (BAND // row - reach) // pool.stride[0] + 1)
        size = round_up(((rows - 1) * pool.stride[0] + reach) * row + 4 * place.step, LINE)
        self.plan.band(rows=rows, scratch=self._buffer(self.threads * size), scratch_bytes=size, half=half)
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
    ) -> dot.PackedWeights:  # fmt: skip
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
        return packed

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


__all__ = ["DotPlanner"]
