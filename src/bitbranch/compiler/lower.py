"""From the graph to the integer program.

A layer asks for the codes of its input. They go through concats, max-pools and nearest upsampling as they are, down to
a real tensor, ``clip(slope * v + intercept)`` of an integer value ``v`` of the program or a curve of that
(:class:`~bitbranch.compiler.real.Real`), and there its encoder is folded into exact integer thresholds on ``v``. A sum
asks for integers on its stream's scale, and ``v`` is rescaled. There is one direction of comparison, so channels of
negative slope are turned round: in the convolution's weights if nothing has read it yet, else by a multiplication.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from ..contract import ACCUMULATOR_MAX, CodeType, Encoder, Ints, Kind, accumulator_bounds
from ..errors import CompileError, FormatError, InputError
from ..layers import native_order
from ..runtime import program as p
from . import graph as g
from .real import Real
from .streams import Stream, intervals, level_distances, steps_outward, stream_of_average, stream_of_sums

INQ_TYPE = CodeType(Kind.SIGNED, 8)
"""Type of weights that may reach 128, one beyond it; see ``read_twice``."""


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


def lower(graph: g.Graph, info: Mapping[str, str], tables: Mapping[int, Table]) -> p.Program:
    """Turn a graph, as :func:`~bitbranch.compiler.passes.simplify` leaves it, into a program.

    Args:
        graph: the graph.
        info: of the program.
        tables: how pixels become reals, for each input's node by its number; an input without takes reals only.

    Raises:
        CompileError: what has no integer form here, with the layer's name and the reason.
    """
    return _Lowering(graph, tables).program(info)


class _Lowering:
    def __init__(self, graph: g.Graph, tables: Mapping[int, Table]) -> None:
        self.graph = graph
        self.tables = tables
        self.intervals = intervals(graph)
        self.distances = level_distances(graph)
        self.streams = stream_of_sums(graph, self.intervals, self.distances)
        self.operations: list[p.Operation] = []
        self.values: list[p.Value] = []
        self.reals: dict[int, Real] = {}
        self.codes: dict[tuple[int, Encoder], int] = {}
        self.images: dict[int, Encoder] = {}  # of inputs: how they are encoded
        self.scaled: dict[tuple[int, Stream], int] = {}
        self.signs: dict[int, Ints] = {}  # of values read so far: +1, or -1 where a channel is turned round
        self.turned: dict[tuple[int, bytes], int] = {}

    def program(self, info: Mapping[str, str]) -> p.Program:
        for i, node in enumerate(self.graph.nodes):
            if isinstance(node, g.Output):
                with _named(node.name):
                    self.output(node)
            elif isinstance(node, g.Layer):
                self.real(i)
        inputs = [node.name for node in self.graph.nodes if isinstance(node, g.Input)]
        shapes = [node.output_shape for node in self.graph.nodes if isinstance(node, g.Output)]
        try:
            return p.Program(_scheduled(self.operations, inputs), tuple(shapes), dict(info))
        except FormatError as error:
            raise CompileError(f"the compiled program is not valid: {error}") from error

    # ---- reals

    def real(self, number: int) -> Real:
        """What a value of the graph is in terms of the program's integers."""
        if number not in self.reals:
            node = self.graph.nodes[number]
            with _named(node.name):
                self.reals[number] = self.made(number, node)
        return self.reals[number]

    def made(self, number: int, node: g.Node) -> Real:
        if isinstance(node, g.Layer):
            return self.layer(node)
        if any(isinstance(self.graph.nodes[j], g.Input) for j in node.inputs):
            raise CompileError(
                f"layer {node.name!r}: {type(node).__name__} reads the network's input, but only quantized layers can, "
                "which encode it; do it to the images, or give a normalisation to compile as mean= and std="
            )
        if isinstance(node, g.Add):
            return self.add(number, node)
        if isinstance(node, g.Concat):
            return self.concat(node)
        if isinstance(node, g.Flatten):
            readers = [self.graph.nodes[i] for i in self.graph.users[number]]
            between = next((n for n in readers if not isinstance(n, (g.Layer, g.Output))), readers[0])
            raise CompileError(
                f"layer {node.name!r}: flatten is compiled before a linear layer or an output only, and "
                f"{type(between).__name__.lower()} {between.name!r} comes between; do that to the map before"
            )
        if isinstance(node, g.AvgPool):
            return self.average(number, node)
        if isinstance(node, g.Upsample) and node.mode == "bilinear":
            return self.bilinear(number, node)
        x = self.real(node.inputs[0])
        if isinstance(node, (g.Affine, g.Clip, g.Curve)):
            return x.then(node)
        if isinstance(node, g.MaxPool):
            self.plain(node.name, x)
            # On the integers, in the direction in which the real grows.
            value = self.move(self.turn(node.name, x.source, np.where(x.slope < 0, -1, 1)), node)
            return replace(x, source=value, slope=np.abs(x.slope))
        if isinstance(node, g.Upsample):
            value = self.move(x.source, node)
            self.signs[value] = self.direction(x.source)
            return replace(x, source=value)
        raise CompileError(f"layer {node.name!r}: {type(node).__name__} has no integer form")

    def layer(self, node: g.Layer) -> Real:
        codes = self.encoded(node.inputs[0], node.encoder, node.name)
        lo, hi = accumulator_bounds(node.weight, node.encoder.code_type)
        # A threshold that is never reached is one above the greatest accumulator, so one more has to fit.
        if max(-int(lo.min()), int(hi.max())) >= ACCUMULATOR_MAX:
            raise CompileError(
                f"layer {node.name!r}: accumulators of {int(lo.min())}..{int(hi.max())} do not fit 32 bits; "
                "use fewer bits or groups"
            )
        values = node.weight
        if node.weight_type == INQ_TYPE and values.max(initial=0) > INQ_TYPE.hi:
            codes, values = self.read_twice(node, codes)
        weight = node.weight_type.encode(values)
        kind: type[p.Conv] | type[p.ConvTranspose] = p.Conv
        if node.transposed:
            kind, weight = p.ConvTranspose, native_order(torch.from_numpy(weight), node.groups).contiguous().numpy()
        operation = kind(
            node.name,
            (codes,),
            weight=weight,
            weight_type=node.weight_type,
            stride=node.stride,
            padding=node.padding,
            dilation=node.dilation,
            groups=node.groups,
        )
        return Real.affine(self.emit(operation), node.weight_scale * node.scale, node.bias)

    def read_twice(self, node: g.Layer, codes: int) -> tuple[int, Ints]:
        """The input's codes twice, and weights that share what is beyond their type: ``128 x`` is ``64 x + 64 x``.

        INQ's powers of two reach 128 on both sides, one more than 8-bit integers; so its accumulators stay exact. -128
        is shared, too: then a channel can be turned round by its weights.
        """
        if node.groups > 1:
            raise CompileError(
                f"layer {node.name!r}: weights of +-{np.abs(node.weight).max()} do not fit {node.weight_type} codes, "
                "and in a grouped layer are not shared among two inputs; take fewer bits there"
            )
        beyond = np.abs(node.weight) > node.weight_type.hi
        half = np.where(beyond, node.weight // 2, 0)
        return self.emit(p.Concat(node.name, (codes, codes))), np.concatenate([node.weight - half, half], axis=1)

    def add(self, number: int, node: g.Add) -> Real:
        stream = self.streams[number]
        sides = tuple(self.stream(j, stream) for j in node.inputs)
        lo, hi = -stream.limit, stream.limit
        clip = self.graph.only(g.Clip, number)
        if clip is not None:  # the limits themselves are applied where the sum is encoded
            lo, hi = steps_outward(float(clip.lo.min()), float(clip.hi.max()), stream)
        value = self.emit(p.Add(node.name, sides, lo=lo, hi=hi))
        return self.streamed(value, number, stream)

    def streamed(self, value: int, number: int, stream: Stream) -> Real:
        """A value of the graph as integers on a stream's scale."""
        channels = self.graph.shapes[number][0]
        return Real.affine(value, np.full(channels, stream.scale), np.zeros(channels))

    def concat(self, node: g.Concat) -> Real:
        """The parts' integers side by side, each with its own scale."""
        parts = [self.real(j) for j in node.inputs]
        for part in parts:
            self.plain(node.name, part)
        value = self.emit(p.Concat(node.name, tuple(part.source for part in parts)))
        self.signs[value] = np.concatenate([self.direction(part.source) for part in parts])
        return Real(
            value,
            slope=np.concatenate([part.slope for part in parts]),
            intercept=np.concatenate([part.intercept for part in parts]),
            lo=np.concatenate([part.lo for part in parts]),
            hi=np.concatenate([part.hi for part in parts]),
        )

    def average(self, number: int, node: g.AvgPool) -> Real:
        """Sum exactly: plain accumulators where that means the same, else a stream; the division stays real."""
        x = self.summable(number, node)
        if any(node.padding) and x.intercept.any():
            x = self.streamed(self.stream(node.inputs[0], self.stream_of(number)), number, self.stream_of(number))
        value = self.emit(p.SumPool(node.name, (x.source,), node.kernel, node.stride, node.padding))
        self.signs[value] = self.direction(x.source)
        return Real.affine(value, x.slope / node.divisor, x.intercept * (node.taps / node.divisor))

    def bilinear(self, number: int, node: g.Upsample) -> Real:
        """Interpolate exactly, likewise; the integers grow by the weights' common denominator."""
        x = self.summable(number, node)
        value = self.emit(p.Upsample(node.name, (x.source,), node.factor, node.mode))
        self.signs[value] = self.direction(x.source)
        return Real.affine(value, x.slope / node.taps, x.intercept)

    def summable(self, number: int, node: g.AvgPool | g.Upsample) -> Real:
        """The input of a linear map of ``taps`` weights as integers that stand for it without a clip."""
        (source,) = node.inputs
        x = self.real(source)
        self.plain(node.name, x)
        if self.loose(x) and self.bound(x.source) * node.taps < ACCUMULATOR_MAX:
            return x
        return self.streamed(self.stream(source, self.stream_of(number)), source, self.stream_of(number))

    def stream_of(self, number: int) -> Stream:
        """The stream in which the input of an average-pool or bilinear upsampling is."""
        return stream_of_average(self.graph, number, self.intervals, self.distances)

    def output(self, node: g.Output) -> None:
        (number,) = node.inputs
        if isinstance(self.graph.nodes[number], g.Input):
            raise CompileError(f"{node.name}: the network has no quantized layer between an input and this output")
        x = self.real(number)
        name = self.graph.nodes[number].name
        if x.clipped or x.curved is not None:
            what = "clip (ReLU, Hardtanh, clamp)" if x.curved is None else f"{x.curved.function.name} activation"
            raise CompileError(
                f"layer {name!r}: a {what} at the network's output is not compiled; leave it to the program's caller"
            )
        scale = (x.slope * self.direction(x.source)).astype(np.float32)
        self.emit(p.Scale(node.name, (x.source,), scale=scale, bias=x.intercept.astype(np.float32)))

    # ---- codes

    def encoded(self, number: int, encoder: Encoder, reader: str) -> int:
        """The codes of a graph value that a layer reads; layers of equal encoders share them."""
        key = (number, encoder)
        if key not in self.codes:
            node = self.graph.nodes[number]
            if isinstance(node, g.Input):
                self.codes[key] = self.image(number, node, encoder, reader)
            elif isinstance(node, g.Concat):
                parts = tuple(self.encoded(j, encoder, reader) for j in node.inputs)
                self.codes[key] = self.emit(p.Concat(node.name, parts))
            elif isinstance(node, g.MaxPool) or (isinstance(node, g.Upsample) and node.mode == "nearest"):
                self.codes[key] = self.move(self.encoded(node.inputs[0], encoder, reader), node)
            else:
                x = self.real(number)
                with _named(node.name):
                    self.codes[key] = self.threshold(node.name, x, encoder)
        return self.codes[key]

    def image(self, number: int, node: g.Input, encoder: Encoder, reader: str) -> int:
        if self.images.setdefault(number, encoder) != encoder:
            raise CompileError(
                f"layer {reader!r}: reads the network's input with other thresholds than the first layer; "
                "a program encodes its input once"
            )
        table = self.tables[number].codes(encoder) if number in self.tables else None
        thresholds = encoder.float32_thresholds()
        return self.emit(p.Encode(node.name, (), node.shape, encoder.code_type, thresholds, table))

    def threshold(self, name: str, x: Real, encoder: Encoder) -> int:
        """Codes of a real: exact thresholds on the integers."""
        source = self.turn(name, x.source, x.rising.astype(np.int64))
        value = self.values[source]
        assert isinstance(value, p.Integers)
        thresholds, table = x.thresholds(encoder, value.lo, value.hi)
        return self.emit(p.Threshold(name, (source,), encoder.code_type, thresholds, table))

    # ---- streams

    def stream(self, number: int, stream: Stream) -> int:
        """The integers of a graph value on a stream's scale; nothing to do where they are on it already."""
        key = (number, stream)
        if key not in self.scaled:
            node = self.graph.nodes[number]
            with _named(node.name):
                if isinstance(node, g.Concat):
                    parts = tuple(self.stream(j, stream) for j in node.inputs)
                    self.scaled[key] = self.emit(p.Concat(node.name, parts))
                elif isinstance(node, g.MaxPool) or (isinstance(node, g.Upsample) and node.mode == "nearest"):
                    self.scaled[key] = self.move(self.stream(node.inputs[0], stream), node)
                else:
                    self.scaled[key] = self.rescaled(number, node.name, self.real(number), stream)
        return self.scaled[key]

    def rescaled(self, number: int, name: str, x: Real, stream: Stream) -> int:
        self.plain(name, x)
        limit = stream.limit
        slope = x.slope * self.direction(x.source)
        if (slope == stream.scale).all() and not x.intercept.any() and self.loose(x):
            return x.source
        if (x.lo == x.lo[0]).all() and (x.hi == x.hi[0]).all():
            lo = round(max(float(x.lo[0]) / stream.scale, -limit))
            hi = round(min(float(x.hi[0]) / stream.scale, limit))
            return self.requantize(name, x, stream, lo, hi)
        # A clip that differs from channel to channel (an activation, then BatchNorm), where an operation has one pair
        # of limits for all: shift every channel's lower limit to 0, then its upper one, turned round, then back.
        interval = self.intervals[number]
        assert interval is not None
        lowest, highest = interval
        unit = np.full_like(x.slope, stream.scale)
        above = self.requantize(name, replace(x, intercept=x.intercept - lowest), stream, 0, 2 * limit)
        below = self.requantize(name, Real.affine(above, -unit, highest - lowest), stream, 0, 2 * limit)
        return self.requantize(name, Real.affine(below, -unit, highest), stream, -limit, limit)

    def requantize(self, name: str, x: Real, stream: Stream, lo: int, hi: int) -> int:
        """The affine map of a real on a stream's scale, saturated to ``lo .. hi``."""
        multiplier, shift, offset = x.rescaling(stream.scale, self.direction(x.source), self.bound(x.source))
        return self.emit(p.Requantize(name, (x.source,), multiplier, shift, offset, lo, hi))

    # ---- values

    def move(self, value: int, node: g.MaxPool | g.Upsample) -> int:
        """A max-pool or a nearest upsampling of codes or integers."""
        if isinstance(node, g.MaxPool):
            return self.emit(p.MaxPool(node.name, (value,), node.kernel, node.stride, node.padding, node.dilation))
        return self.emit(p.Upsample(node.name, (value,), node.factor, node.mode))

    def turn(self, name: str, value: int, sign: Ints) -> int:
        """The value with channels of sign -1 negated; sign 0 does not care."""
        conv = self.operations[value]
        if isinstance(conv, (p.Conv, p.ConvTranspose)) and value not in self.signs:
            try:
                weight = _negated(conv, sign < 0)
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

    def plain(self, name: str, x: Real) -> None:
        """Raise where a curve's reals would be needed as integers."""
        if x.curved is not None:
            raise CompileError(
                f"layer {x.curved.name!r}: {x.curved.function.name} has no integer form where {name!r} reads it; only "
                "quantized layers can, through max-pools, nearest upsampling and concatenations; use ReLU or ReLU6"
            )

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


def _negated(conv: p.Conv | p.ConvTranspose, which: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """The weights with these output channels negated; raises :class:`InputError` where one has no negative."""
    weight = conv.weight
    if isinstance(conv, p.Conv):
        shaped = which[:, None, None, None]
    else:  # [I, O / groups, ..]: the output channels of every group of input channels
        shaped = which.reshape(conv.groups, -1).repeat(len(weight) // conv.groups, axis=0)[:, :, None, None]
    return np.where(shaped, conv.weight_type.negate(weight), weight)


def _scheduled(operations: Sequence[p.Operation], inputs: Sequence[str]) -> tuple[p.Operation, ...]:
    """The operations that outputs depend on: inputs first, in order, and what makes integers smaller directly behind.

    Thresholds and rescalings follow the operation that they read at once, so that its integers need not be kept.
    """
    live: set[int] = set()
    behind: dict[int, list[int]] = {}
    for i in range(len(operations) - 1, -1, -1):
        if i in live or isinstance(operations[i], p.Scale):
            live |= {i, *operations[i].inputs}
    for i in sorted(live):
        if isinstance(operations[i], (p.Threshold, p.Requantize)):
            behind.setdefault(operations[i].inputs[0], []).append(i)
    order: list[int] = []

    def place(i: int) -> None:
        order.append(i)
        for j in behind.get(i, ()):
            place(j)

    encodes = {operations[i].name: i for i in sorted(live) if isinstance(operations[i], p.Encode)}
    moved = {*encodes.values(), *(j for group in behind.values() for j in group)}
    for i in (*(encodes[name] for name in inputs), *(i for i in sorted(live) if i not in moved)):
        place(i)
    number = {old: new for new, old in enumerate(order)}
    return tuple(operations[i].reading(tuple(number[j] for j in operations[i].inputs)) for i in order)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors of the program's operations become the layer's."""
    try:
        yield
    except (FormatError, InputError) as error:
        raise CompileError(f"layer {name!r}: {error}") from error
