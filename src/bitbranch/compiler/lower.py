"""From the graph to the integer program.

While lowering, a real tensor is known as ``clip(slope * v + intercept)`` of an integer value ``v`` of the
program, followed by max-pools (:class:`~bitbranch.compiler.real.Real`). Where a layer reads it, its encoder is folded
into exact integer thresholds on ``v``; where a sum reads it, ``v`` is rescaled to the sum's stream. There is one
direction of comparison, so channels of negative slope are turned round: in the convolution's weights if nothing has
read it yet, else by a multiplication.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..contract import ACCUMULATOR_MAX, Encoder, Ints, accumulator_bounds
from ..errors import CompileError, FormatError, InputError
from ..runtime import program as p
from . import graph as g
from .real import Real
from .streams import Stream, intervals, steps_outward, stream_of_average, stream_of_sums


@dataclass(frozen=True)
class Table:
    """How uint8 pixels become reals: ``(pixel / 255 - mean) / std`` per channel, in float32, in this order."""

    mean: npt.NDArray[np.float32]
    std: npt.NDArray[np.float32]

    def codes(self, encoder: Encoder) -> npt.NDArray[np.uint8]:
        """``[C, 256]``: the code of every pixel."""
        pixels = np.arange(256, dtype=np.float32) / np.float32(255)
        reals = (pixels[None, :] - self.mean[:, None]) / self.std[:, None]
        rank = np.searchsorted(encoder.float32_thresholds(), reals, side="right")
        return encoder.code_type.from_rank(rank)


def lower(graph: g.Graph, info: Mapping[str, str], table: Table | None) -> p.Program:
    """Turn a graph, as :func:`~bitbranch.compiler.passes.simplify` leaves it, into a program.

    Raises:
        CompileError: what has no integer form here, with the layer's name and the reason.
    """
    return _Lowering(graph, table).program(info)


class _Lowering:
    def __init__(self, graph: g.Graph, table: Table | None) -> None:
        self.graph = graph
        self.table = table
        self.streams = stream_of_sums(graph)
        self.intervals = intervals(graph)
        self.operations: list[p.Operation] = []
        self.values: list[p.Value] = []
        self.reals: dict[int, Real] = {}
        self.codes: dict[tuple[int, Encoder], int] = {}
        self.signs: dict[int, Ints] = {}  # of values read so far: +1, or -1 where a channel is turned round
        self.turned: dict[tuple[int, bytes], int] = {}

    def program(self, info: Mapping[str, str]) -> p.Program:
        for i, node in enumerate(self.graph.nodes):
            try:
                if isinstance(node, g.Output):
                    self.output(node)
                elif not isinstance(node, g.Input):
                    self.reals[i] = self.real(i, node)
            except (FormatError, InputError) as error:
                raise CompileError(f"layer {node.name!r}: {error}") from error
        output = self.graph.nodes[-1]
        assert isinstance(output, g.Output)
        try:
            return p.Program(tuple(self.operations), (output.output_shape,), dict(info))
        except FormatError as error:
            raise CompileError(f"the compiled program is not valid: {error}") from error

    # ---- nodes

    def real(self, number: int, node: g.Node) -> Real:
        if isinstance(node, g.Layer):
            return self.layer(node)
        if any(isinstance(self.graph.nodes[j], g.Input) for j in node.inputs):
            raise CompileError(
                f"layer {node.name!r}: {type(node).__name__} reads the network's input, but only quantized layers can, "
                "which encode it; do it to the images, or give a normalisation to compile as mean= and std="
            )
        if isinstance(node, g.Add):
            return self.add(number, node)
        x = self.reals[node.inputs[0]]
        if isinstance(node, g.Affine):
            return self.affine(node, x)
        if isinstance(node, g.Clip):
            return replace(x, lo=np.clip(x.lo, node.lo, node.hi), hi=np.clip(x.hi, node.lo, node.hi))
        if isinstance(node, g.MaxPool):
            return replace(x, pools=(*x.pools, node))
        if isinstance(node, g.AvgPool):
            return self.average(number, node, x)
        if isinstance(node, g.Flatten):
            raise CompileError(f"layer {node.name!r}: flatten is compiled before a linear layer or the output only")
        raise CompileError(f"layer {node.name!r}: {type(node).__name__} has no integer form")

    def layer(self, node: g.Layer) -> Real:
        codes = self.encoded(node)
        lo, hi = accumulator_bounds(node.weight, node.encoder.code_type)
        # A threshold that is never reached is one above the greatest accumulator, so one more has to fit.
        if max(-int(lo.min()), int(hi.max())) >= ACCUMULATOR_MAX:
            raise CompileError(
                f"layer {node.name!r}: accumulators of {int(lo.min())}..{int(hi.max())} do not fit 32 bits; "
                "use fewer bits or groups"
            )
        operation = p.Conv(
            node.name,
            (codes,),
            weight=node.weight_type.encode(node.weight),
            weight_type=node.weight_type,
            stride=node.stride,
            padding=node.padding,
            dilation=node.dilation,
            groups=node.groups,
        )
        return Real.affine(self.emit(operation), node.weight_scale * node.scale, node.bias)

    def affine(self, node: g.Affine, x: Real) -> Real:
        if x.pools:  # some slope is negative, or the map would have moved before the pool
            x = self.pooled(node.name, x)
        lo, hi = node.limits(x.lo, x.hi)
        return Real(x.source, node.slope * x.slope, node.slope * x.intercept + node.intercept, lo, hi)

    def add(self, number: int, node: g.Add) -> Real:
        stream = self.streams[number]
        sides = tuple(self.stream(node.name, j, stream) for j in node.inputs)
        lo, hi = -stream.limit, stream.limit
        clip = self.graph.only(g.Clip, number)
        if clip is not None:  # the limits themselves are applied where the sum is encoded
            lo, hi = steps_outward(float(clip.lo.min()), float(clip.hi.max()), stream)
        value = self.emit(p.Add(node.name, sides, lo=lo, hi=hi))
        channels = self.graph.shapes[number][0]
        return Real.affine(value, np.full(channels, stream.scale), np.zeros(channels))

    def average(self, number: int, node: g.AvgPool, x: Real) -> Real:
        """Sum exactly: plain accumulators where that means the same, else a stream; the division stays real."""
        plain = not x.pools and self.loose(x) and not (any(node.padding) and (x.intercept != 0).any())
        bound = self.bound(x.source) * node.taps
        if not plain or bound >= ACCUMULATOR_MAX:
            stream = stream_of_average(self.graph, number)
            source = self.stream(node.name, node.inputs[0], stream)
            x = Real.affine(source, np.full_like(x.slope, stream.scale), np.zeros_like(x.slope))
        value = self.emit(p.SumPool(node.name, (x.source,), node.kernel, node.stride, node.padding))
        self.signs[value] = self.direction(x.source)
        return Real.affine(value, x.slope / node.divisor, x.intercept * (node.taps / node.divisor))

    def output(self, node: g.Output) -> None:
        (number,) = node.inputs
        if number not in self.reals:
            raise CompileError("the network has no quantized layer")
        x = self.reals[number]
        name = self.graph.nodes[number].name
        if x.pools:
            x = self.pooled(name, x)
        if x.clipped:
            raise CompileError(
                f"layer {name!r}: a clip (ReLU, Hardtanh, clamp) at the network's output is not compiled; leave it to "
                "the program's caller"
            )
        scale = (x.slope * self.direction(x.source)).astype(np.float32)
        self.emit(p.Scale(name, (x.source,), scale=scale, bias=x.intercept.astype(np.float32)))

    # ---- values

    def encoded(self, node: g.Layer) -> int:
        """The codes that a layer reads; layers of equal encoders share them."""
        (number,) = node.inputs
        key = (number, node.encoder)
        if key not in self.codes:
            if isinstance(self.graph.nodes[number], g.Input):
                self.codes[key] = self.encode_input(node)
            else:
                self.codes[key] = self.threshold(self.graph.nodes[number].name, self.reals[number], node.encoder)
        return self.codes[key]

    def encode_input(self, node: g.Layer) -> int:
        if self.operations:
            raise CompileError(
                f"layer {node.name!r}: reads the network's input with other thresholds than the first layer; "
                "a program encodes its input once"
            )
        encoder, shape = node.encoder, self.graph.shapes[node.inputs[0]]
        table = None if self.table is None else self.table.codes(encoder)
        return self.emit(p.Encode("input", (), shape, encoder.code_type, encoder.float32_thresholds(), table))

    def threshold(self, name: str, x: Real, encoder: Encoder) -> int:
        """Codes of a real: exact thresholds on the integers, then the max-pools, which commute with them."""
        source = self.turn(name, x.source, np.sign(x.slope).astype(np.int64))
        value = self.values[source]
        assert isinstance(value, p.Integers)
        thresholds = x.thresholds(encoder, value.lo, value.hi)
        codes = self.emit(p.Threshold(name, (source,), encoder.code_type, thresholds))
        return self.max_pool(codes, x.pools)

    def stream(self, name: str, number: int, stream: Stream) -> int:
        """The integers of a graph value on a stream's scale; nothing to do where they are on it already."""
        x, limit = self.reals[number], stream.limit
        slope = x.slope * self.direction(x.source)
        if not x.pools and (slope == stream.scale).all() and not x.intercept.any() and self.loose(x):
            return x.source
        if (x.lo == x.lo[0]).all() and (x.hi == x.hi[0]).all():
            lo = round(max(float(x.lo[0]) / stream.scale, -limit))
            hi = round(min(float(x.hi[0]) / stream.scale, limit))
            return self.max_pool(self.requantize(name, x, stream, lo, hi), x.pools)
        # A clip that differs from channel to channel (an activation, then BatchNorm), where an operation has one pair
        # of limits for all: shift every channel's lower limit to 0, then its upper one, turned round, then back.
        interval = self.intervals[number]
        assert interval is not None
        lowest, highest = interval
        unit = np.full_like(x.slope, stream.scale)
        above = self.requantize(name, replace(x, intercept=x.intercept - lowest), stream, 0, 2 * limit)
        below = self.requantize(name, Real.affine(above, -unit, highest - lowest), stream, 0, 2 * limit)
        value = self.requantize(name, Real.affine(below, -unit, highest), stream, -limit, limit)
        return self.max_pool(value, x.pools)

    def requantize(self, name: str, x: Real, stream: Stream, lo: int, hi: int) -> int:
        """The affine map of a real on a stream's scale, saturated to ``lo .. hi``."""
        multiplier, shift, offset = x.rescaling(stream.scale, self.direction(x.source), self.bound(x.source))
        return self.emit(p.Requantize(name, (x.source,), multiplier, shift, offset, lo, hi))

    def pooled(self, name: str, x: Real) -> Real:
        """The same real with its max-pools done on the integers, in the direction in which it grows."""
        sign = np.where(x.slope < 0, -1, 1)
        value = self.max_pool(self.turn(name, x.source, sign), x.pools)
        return replace(x, source=value, slope=np.abs(x.slope), pools=())

    def max_pool(self, value: int, pools: tuple[g.MaxPool, ...]) -> int:
        for pool in pools:
            value = self.emit(p.MaxPool(pool.name, (value,), pool.kernel, pool.stride, pool.padding, pool.dilation))
        return value

    def turn(self, name: str, value: int, sign: Ints) -> int:
        """The value with channels of sign -1 negated; sign 0 does not care."""
        conv = self.operations[value]
        if isinstance(conv, p.Conv) and value not in self.signs:
            try:
                weight = np.where(sign[:, None, None, None] < 0, conv.weight_type.negate(conv.weight), conv.weight)
            except InputError:  # a weight without a negative, as -128 of 8 bits
                pass
            else:
                self.signs[value] = np.where(sign < 0, -1, 1)
                self.operations[value] = replace(conv, weight=weight)
                self.values[value] = self.operations[value].infer(*(self.values[j] for j in conv.inputs))
        wanted = np.where(sign == 0, 1, sign * self.direction(value))
        if (wanted == 1).all():
            return value
        key = (value, wanted.tobytes())
        if key not in self.turned:
            bound, zeros = self.bound(value), np.zeros(len(wanted))
            multiplier, shift, offset = wanted.astype(np.int32), zeros.astype(np.uint8), zeros.astype(np.int64)
            self.turned[key] = self.emit(p.Requantize(name, (value,), multiplier, shift, offset, -bound, bound))
        return self.turned[key]

    def direction(self, value: int) -> Ints:
        """+1 per channel, or -1 where the channel is turned round; from here on that is settled."""
        return self.signs.setdefault(value, np.ones(self.values[value].shape[0], np.int64))

    def bound(self, value: int) -> int:
        """Largest magnitude of an integer value."""
        made = self.values[value]
        assert isinstance(made, p.Integers)
        return max(abs(made.lo), abs(made.hi))

    def loose(self, x: Real) -> bool:
        """Whether the clip changes nothing, because there is none, or the sum itself saturates there."""
        if not x.clipped:
            return True
        value, operation, scale = self.values[x.source], self.operations[x.source], float(x.slope[0])
        if not isinstance(operation, p.Add) or (x.slope != scale).any() or x.intercept.any():
            return False
        assert isinstance(value, p.Integers)
        lo, hi = steps_outward(float(x.lo.max()), float(x.hi.min()), Stream(scale, ACCUMULATOR_MAX))
        return lo <= value.lo and value.hi <= hi

    def emit(self, operation: p.Operation) -> int:
        self.values.append(operation.infer(*(self.values[j] for j in operation.inputs)))
        self.operations.append(operation)
        return len(self.operations) - 1
