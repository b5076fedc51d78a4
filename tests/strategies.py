"""Hypothesis strategies that the tests share: code types, and random valid programs with images for them."""

from __future__ import annotations

import os

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from bitbranch.contract import CodeType, Kind
from bitbranch.runtime import program as p

CODE_TYPES = [CodeType(kind, bits) for kind in Kind for bits in ([2] if kind is Kind.TERNARY else range(1, 9))]

code_types = st.sampled_from(CODE_TYPES)
seeds = st.integers(0, 2**32 - 1)

MOST_EXAMPLES = int(os.environ.get("BITBRANCH_MOST_EXAMPLES", 10**9))
"""Cap for slow builds of the core (tools/sanitize.sh)."""


def examples(count: int) -> settings:
    """Settings of a property test of so many examples, or the share of them that ``BITBRANCH_EXAMPLES`` asks for."""
    share = float(os.environ.get("BITBRANCH_EXAMPLES", "1"))
    most = min(MOST_EXAMPLES, max(1, round(count * share)))
    return settings(max_examples=most, deadline=None, suppress_health_check=list(HealthCheck))


class _Builder:
    """A program under construction: operations, the types of their values, and the source of their numbers."""

    def __init__(self, draw: st.DrawFn, rng: np.random.Generator) -> None:
        self.draw, self.rng = draw, rng
        self.operations: list[p.Operation] = []
        self.values: list[p.Value] = []

    def add(self, operation: type[p.Operation], *arguments: object, inputs: tuple[int, ...] | None = None) -> None:
        last = len(self.operations) - 1
        inputs = inputs if inputs is not None else ((last,) if self.operations else ())
        op = operation(f"block{last // 3}.{operation.__name__.lower()}{last}", inputs, *arguments)
        self.values.append(op.infer(*(self.values[j] for j in inputs)))
        self.operations.append(op)

    @property
    def value(self) -> p.Value:
        return self.values[-1]

    def window(self, kernels: int, dilations: int) -> tuple[p.Pair, p.Pair, p.Padding, p.Pair]:
        """Kernel, stride, padding and dilation that fit the last value."""
        kernel, stride, dilation = [], [], []
        padding: list[int] = []
        for size in self.value.shape[1:]:
            k, d = self.draw(st.integers(1, min(kernels, size))), self.draw(st.integers(1, dilations))
            k = min(k, (size - 1) // d + 1)  # the window fits without padding, so no padding is too little
            reach = d * (k - 1)
            kernel.append(k)
            dilation.append(d)
            stride.append(self.draw(st.integers(1, 3)))
            padding += [self.draw(st.integers(0, reach)), self.draw(st.integers(0, reach))]
        return (kernel[0], kernel[1]), (stride[0], stride[1]), tuple(padding), (dilation[0], dilation[1])  # type: ignore[return-value]

    def conv(self, channels: int, weight_type: CodeType) -> None:
        inputs = self.value.shape[0]
        groups = self.draw(st.sampled_from([g for g in range(1, inputs + 1) if inputs % g == 0]))
        outputs = groups * self.draw(st.integers(1, max(1, channels // groups)))
        kernel, stride, padding, dilation = self.window(kernels=3, dilations=2)
        weight = self.rng.integers(0, weight_type.count, (outputs, inputs // groups, *kernel)).astype(np.uint8)
        self.add(p.Conv, weight, weight_type, stride, padding, dilation, groups)

    def conv_transpose(self, channels: int, weight_type: CodeType) -> None:
        inputs, *size = self.value.shape
        groups = self.draw(st.sampled_from([g for g in range(1, inputs + 1) if inputs % g == 0]))
        per_group = self.draw(st.integers(1, max(1, channels // groups)))
        kernel, stride, dilation = (self.draw(st.tuples(*[st.integers(1, n)] * 2)) for n in (3, 3, 2))
        padding: list[int] = []
        for a in (0, 1):
            full = (size[a] - 1) * stride[a] + dilation[a] * (kernel[a] - 1) + 1
            before = self.draw(st.integers(0, (full - 1) // 2))
            padding += [before, self.draw(st.integers(1 - max(stride[a], dilation[a]), (full - 1) // 2))]
        weight = self.rng.integers(0, weight_type.count, (inputs, per_group, *kernel)).astype(np.uint8)
        self.add(p.ConvTranspose, weight, weight_type, stride, tuple(padding), dilation, groups)

    def upsample(self) -> None:
        if max(self.value.shape[1:]) <= 9:
            factor = self.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
            self.add(p.Upsample, factor, self.draw(st.sampled_from(["nearest", "bilinear"])))

    def encode(self, shape: tuple[int, int, int], code_type: CodeType) -> None:
        thresholds = np.sort(self.rng.normal(size=code_type.count - 1)).astype(np.float32)
        pixels = self.rng.integers(0, code_type.count, (shape[0], 256)).astype(np.uint8)
        self.add(p.Encode, shape, code_type, thresholds, pixels if self.draw(st.booleans()) else None, inputs=())

    def concat(self, channels: int, weights: st.SearchStrategy[CodeType], code_type: CodeType) -> None:
        """The last integers with a stream made of them, or with a convolution of another input, in any order."""
        source = len(self.operations) - 1
        if self.draw(st.booleans()):
            self.encode((self.draw(st.integers(1, channels)), *self.value.shape[1:]), code_type)
            weight_type = self.draw(weights)
            weight = self.rng.integers(0, weight_type.count, (channels, self.value.shape[0], 1, 1)).astype(np.uint8)
            self.add(p.Conv, weight, weight_type)
            other = len(self.operations) - 1
        else:
            other = self.requantize(source)
        parts = self.draw(st.permutations([source, other, *([source] if self.draw(st.booleans()) else [])]))
        self.add(p.Concat, inputs=tuple(parts))

    def output(self) -> tuple[int, ...]:
        """An output of the last integers; returns its shape."""
        c, h, w = self.value.shape
        self.add(p.Scale, *self.rng.normal(size=(2, c)).astype(np.float32))
        return (c, h, w) if self.draw(st.booleans()) else (c * h * w,)

    def pool(self, operation: type[p.MaxPool] | type[p.SumPool]) -> None:
        kernel, stride, padding, dilation = self.window(kernels=3, dilations=2 if operation is p.MaxPool else 1)
        if operation is p.MaxPool:  # half a window of padding at most, and without gaps: each window sees the image
            padding, dilation = tuple(min(n, kernel[i // 2] // 2) for i, n in enumerate(padding)), (1, 1)
            self.add(operation, kernel, stride, padding, dilation)
        else:
            self.add(operation, kernel, stride, padding)

    def threshold(self, code_type: CodeType, source: int) -> None:
        x = self.values[source]
        assert isinstance(x, p.Integers)
        rows = self.draw(st.sampled_from([1, x.shape[0]]))
        table, count = None, code_type.count - 1
        if self.draw(st.integers(0, 3)) == 0:
            count = self.draw(st.integers(1, 255))
            table = self.rng.integers(0, code_type.count, count + 1).astype(np.uint8)
        thresholds = np.sort(self.rng.integers(x.lo, x.hi + 2, (rows, count)), axis=1)
        self.add(p.Threshold, code_type, thresholds.astype(np.int32), table, inputs=(source,))

    def requantize(self, source: int) -> int:
        """A residual stream from value ``source``; returns its number."""
        x = self.values[source]
        multiplier = self.rng.integers(-(2**12), 2**12, x.shape[0]).astype(np.int32)
        shift = self.rng.integers(0, 14, x.shape[0]).astype(np.uint8)
        offset = self.rng.integers(-(2**16), 2**16, x.shape[0])
        lo, hi = sorted(self.draw(st.tuples(st.integers(-1000, 1000), st.integers(-1000, 1000))))
        self.add(p.Requantize, multiplier, shift, offset, lo, hi, inputs=(source,))
        return len(self.operations) - 1

    def residual(self) -> None:
        """Two streams from the last integers, and their sum."""
        source = len(self.operations) - 1
        streams = self.requantize(source), self.requantize(source)
        lo, hi = sorted(self.draw(st.tuples(st.integers(-1500, 1500), st.integers(-1500, 1500))))
        self.add(p.Add, lo, hi, inputs=streams)


@st.composite
def programs(
    draw: st.DrawFn,
    channels: int = 9,
    size: int = 9,
    depth: int = 3,
    weights: st.SearchStrategy[CodeType] = code_types,
    activations: st.SearchStrategy[CodeType] = code_types,
) -> p.Program:
    """Valid programs: inputs, up to ``depth`` convolutions with what may stand between them, outputs.

    Args:
        channels, size: largest channel count, height and width.
        depth: most convolutions before the last one.
        weights, activations: where their code types come from.
    """
    b = _Builder(draw, np.random.default_rng(draw(seeds)))
    shape = (draw(st.integers(1, channels)), draw(st.integers(1, size)), draw(st.integers(1, size)))
    b.encode(shape, draw(activations))
    output_shapes = []
    for _ in range(draw(st.integers(0, depth))):
        if draw(st.integers(0, 3)) == 0:
            b.pool(p.MaxPool)
        if draw(st.integers(0, 4)) == 0:
            b.conv_transpose(channels, draw(weights))
        else:
            b.conv(channels, draw(weights))
        glue = draw(st.sampled_from(["", "", "max", "sum", "residual", "upsample", "concat"]))
        if glue == "residual":
            b.residual()
        elif glue == "upsample":
            b.upsample()
        elif glue == "concat":
            b.concat(channels, weights, draw(activations))
        elif glue:
            b.pool(p.MaxPool if glue == "max" else p.SumPool)
        source = len(b.operations) - 1
        if draw(st.integers(0, 4)) == 0:
            output_shapes.append(b.output())
        b.threshold(draw(activations), source)
        if draw(st.integers(0, 4)) == 0 and max(b.value.shape[1:]) <= 9:
            b.add(p.Upsample, draw(st.tuples(st.integers(1, 2), st.integers(1, 2))))
    if draw(st.integers(0, 3)) == 0:
        b.pool(p.SumPool)
    else:
        b.conv(channels, draw(weights))
    output_shapes.append(b.output())
    info = draw(st.dictionaries(st.text(), st.text(), max_size=2))
    return p.Program(tuple(b.operations), tuple(output_shapes), info)


def images(program: p.Program, seed: int, count: int = 3) -> tuple[np.ndarray, ...]:
    """Float32 images that reach every code, thresholds hit exactly among them: for each input ``[count, C, H, W]``."""
    rng = np.random.default_rng(seed)
    batch = []
    for op in program.inputs:
        x = rng.normal(size=(count, *op.shape)).astype(np.float32)
        ties = rng.choice(op.thresholds, x.shape)
        batch.append(np.where(rng.random(x.shape) < 0.2, ties, x))
    return tuple(batch)


def pixels(program: p.Program, seed: int, count: int = 3) -> tuple[np.ndarray, ...]:
    """Random uint8 images, for each input ``[count, C, H, W]``."""
    rng = np.random.default_rng(seed)
    return tuple(rng.integers(0, 256, (count, *op.shape)).astype(np.uint8) for op in program.inputs)
