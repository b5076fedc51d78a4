"""The small graph between a torch network and an integer program: frozen nodes over real tensors.

A graph is a list of nodes; node ``i`` makes value ``i`` from earlier values, a real tensor ``[N, C, H, W]``. A
vector ``[N, C]`` has height and width 1, a sequence ``[N, C, L]`` has height 1. Per-channel numbers are float64
arrays ``[C]``. :func:`evaluate` says what every node means.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from ..contract import CodeType, Encoder, Floats, Ints
from ..errors import CompileError
from ..layers import native_order
from ..runtime.checks import Padding, Pair, window_size
from .functions import Function

Shape = tuple[int, int, int]
"""(C, H, W) of one image's value."""


@dataclass(frozen=True, eq=False)
class Node:
    """Base of all nodes. ``name`` is the layer's name in the user's network, ``inputs`` are value numbers."""

    name: str
    inputs: tuple[int, ...]

    def infer(self, *shapes: Shape) -> Shape:
        """Shape of the value from the shapes of the inputs; most nodes keep it."""
        return shapes[0]


NodeType = TypeVar("NodeType", bound=Node)


@dataclass(frozen=True, eq=False)
class Input(Node):
    """An input of the network; its name is the input's."""

    shape: Shape

    def infer(self, *shapes: Shape) -> Shape:
        return self.shape


@dataclass(frozen=True, eq=False)
class Layer(Node):
    """A quantized convolution or linear layer: encode, accumulate, scale: ``acc * weight_scale * scale + bias``.

    Args:
        weight: values ``[O, I / groups, kh, kw]``, of a transposed convolution, too.
        weight_type: the code type that has these values.
        weight_scale: ``[O]``.
        bias: ``[O]``.
        encoder: from the input's reals to codes.
        scale: the real number that an input value of 1 means.
        stride, padding, dilation, groups: as in :class:`~bitbranch.runtime.operations.Conv`, or where ``transposed`` as
            in :class:`~bitbranch.runtime.operations.ConvTranspose`.
        transposed: whether it is the transposed convolution.
    """

    weight: Ints
    weight_type: CodeType
    weight_scale: Floats
    bias: Floats
    encoder: Encoder
    scale: float
    stride: Pair = (1, 1)
    padding: Padding = (0, 0, 0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    transposed: bool = False

    def infer(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        outputs, channels, *kernel = self.weight.shape
        if channels * self.groups != shape[0]:
            raise CompileError(f"layer {self.name!r}: takes {channels * self.groups} channels, gets {shape[0]}")
        window = (kernel[0], kernel[1])
        if self.transposed:
            full = [(shape[1 + a] - 1) * self.stride[a] + self.dilation[a] * (window[a] - 1) + 1 for a in (0, 1)]
            return (outputs, full[0] - sum(self.padding[:2]), full[1] - sum(self.padding[2:]))
        size = window_size(self.name, shape[1:], window, self.stride, self.padding, self.dilation)
        return (outputs, *size)


@dataclass(frozen=True, eq=False)
class Affine(Node):
    """``slope * x + intercept`` per channel: BatchNorm in evaluation, or a multiplication or addition of constants."""

    slope: Floats
    intercept: Floats

    def limits(self, lo: Floats, hi: Floats) -> tuple[Floats, Floats]:
        """Limits behind the map of a clip before it; none where the slope is 0, as that makes a constant."""
        with np.errstate(invalid="ignore"):
            ends = self.slope * lo + self.intercept, self.slope * hi + self.intercept
        constant = self.slope == 0
        return np.where(constant, -np.inf, np.minimum(*ends)), np.where(constant, np.inf, np.maximum(*ends))


@dataclass(frozen=True, eq=False)
class Clip(Node):
    """``min(max(x, lo), hi)`` with limits per channel, which may be infinite: ReLU, ReLU6, HTanh, HReLU, clamp."""

    lo: Floats
    hi: Floats


@dataclass(frozen=True, eq=False)
class Curve(Node):
    """A scalar function of every number: an activation that is neither affine nor a clip."""

    function: Function


@dataclass(frozen=True, eq=False)
class MaxPool(Node):
    """Largest value of each window; padding never wins."""

    kernel: Pair
    stride: Pair
    padding: Padding = (0, 0, 0, 0)
    dilation: Pair = (1, 1)

    def infer(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        return (shape[0], *window_size(self.name, shape[1:], self.kernel, self.stride, self.padding, self.dilation))


@dataclass(frozen=True, eq=False)
class AvgPool(Node):
    """Sum over each window, divided by ``divisor``; padding is 0 and counts."""

    kernel: Pair
    stride: Pair
    padding: Padding
    divisor: float

    @property
    def taps(self) -> int:
        """Number of values in a window."""
        return self.kernel[0] * self.kernel[1]

    def infer(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        return (shape[0], *window_size(self.name, shape[1:], self.kernel, self.stride, self.padding, (1, 1)))


@dataclass(frozen=True, eq=False)
class Upsample(Node):
    """Enlarges by whole factors (vertical, horizontal), nearest or bilinear with pixel centres aligned.

    Source: ``torch.nn.functional.interpolate`` with ``align_corners=False``.
    """

    factor: Pair
    mode: str

    @property
    def taps(self) -> int:
        """What the integers of :class:`~bitbranch.runtime.operations.Upsample` are multiplied by."""
        return 4 * self.factor[0] * self.factor[1] if self.mode == "bilinear" else 1

    def infer(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        return (shape[0], shape[1] * self.factor[0], shape[2] * self.factor[1])


@dataclass(frozen=True, eq=False)
class Concat(Node):
    """Channels of several values one after the other."""

    def infer(self, *shapes: Shape) -> Shape:
        if len({shape[1:] for shape in shapes}) != 1:
            raise CompileError(f"layer {self.name!r}: joins shapes {', '.join(map(str, shapes))}; sizes must be equal")
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])


@dataclass(frozen=True, eq=False)
class Flatten(Node):
    """``[N, C, H, W]`` to ``[N, C H W, 1, 1]``."""

    def infer(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        return (shape[0] * shape[1] * shape[2], 1, 1)


@dataclass(frozen=True, eq=False)
class Add(Node):
    """Sum of two values of one shape."""

    def infer(self, *shapes: Shape) -> Shape:
        if shapes[0] != shapes[1]:
            raise CompileError(f"layer {self.name!r}: adds shapes {shapes[0]} and {shapes[1]}; they must be equal")
        return shapes[0]


@dataclass(frozen=True, eq=False)
class Identity(Node):
    """Nothing: dropout in evaluation, a change of memory layout."""


@dataclass(frozen=True, eq=False)
class Output(Node):
    """An output of the network; its name is the output's, ``output_shape`` one image's shape as torch gives it."""

    output_shape: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """Nodes in an order of computation; inputs and outputs are in the order of the network's."""

    nodes: tuple[Node, ...]

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """(C, H, W) of every value.

        Raises:
            CompileError: shapes that do not fit, with the layer's name.
        """
        shapes: list[Shape] = []
        for node in self.nodes:
            shapes.append(node.infer(*(shapes[j] for j in node.inputs)))
        return tuple(shapes)

    @cached_property
    def users(self) -> tuple[tuple[int, ...], ...]:
        """For every value, the nodes that read it, in order."""
        users: list[list[int]] = [[] for _ in self.nodes]
        for i, node in enumerate(self.nodes):
            for j in dict.fromkeys(node.inputs):
                users[j].append(i)
        return tuple(map(tuple, users))

    def only(self, kind: type[NodeType], number: int) -> NodeType | None:
        """The one node that reads a value, if there is just one and it is of this kind."""
        users = self.users[number]
        node = self.nodes[users[0]] if len(users) == 1 else None
        return node if isinstance(node, kind) else None


def evaluate(graph: Graph, *x: npt.ArrayLike) -> tuple[Floats, ...]:
    """Interpret a graph in float64; this is the meaning that every pass keeps.

    Args:
        graph: the graph.
        x: for each input ``[N, C, H, W]``, or any shape of as many numbers.

    Returns:
        For each output ``[N, *output_shape]``.
    """
    images = iter(x)
    values: list[Tensor] = []
    for node in graph.nodes:
        if isinstance(node, Input):
            image = torch.from_numpy(np.asarray(next(images), np.float64))
            values.append(image.reshape(len(image), *node.shape))
        else:
            values.append(_value(node, [values[j] for j in node.inputs]))
    return tuple(v.numpy() for node, v in zip(graph.nodes, values, strict=True) if isinstance(node, Output))


def _value(node: Node, inputs: list[Tensor]) -> Tensor:
    x = inputs[0]
    if isinstance(node, Layer):
        code_type = node.encoder.code_type
        seen = torch.from_numpy(code_type.decode(node.encoder.codes(x.numpy())).astype(np.float64))
        weight = torch.from_numpy(node.weight.astype(np.float64))
        if node.transposed:
            acc = _transposed(node, seen, weight)
        else:
            acc = F.conv2d(_pad(seen, node.padding, 0.0), weight, None, node.stride, 0, node.dilation, node.groups)
        return acc * _channels(node.weight_scale * node.scale) + _channels(node.bias)
    if isinstance(node, Affine):
        return x * _channels(node.slope) + _channels(node.intercept)
    if isinstance(node, Clip):
        return torch.minimum(torch.maximum(x, _channels(node.lo)), _channels(node.hi))
    if isinstance(node, Curve):
        return torch.from_numpy(node.function.real(x.numpy()))
    if isinstance(node, MaxPool):
        return F.max_pool2d(_pad(x, node.padding, -np.inf), node.kernel, node.stride, 0, node.dilation)
    if isinstance(node, AvgPool):
        return F.avg_pool2d(_pad(x, node.padding, 0.0), node.kernel, node.stride) * (node.taps / node.divisor)
    if isinstance(node, Upsample):
        factor = [float(f) for f in node.factor]
        return F.interpolate(x, scale_factor=factor, mode=node.mode)
    if isinstance(node, Concat):
        return torch.cat(inputs, 1)
    if isinstance(node, Flatten):
        return x.reshape(len(x), -1, 1, 1)
    if isinstance(node, Add):
        return x + inputs[1]
    if isinstance(node, Identity):
        return x
    if isinstance(node, Output):
        return x.reshape(len(x), *node.output_shape)
    raise CompileError(f"layer {node.name!r}: the interpreter has no {type(node).__name__}")


def _transposed(node: Layer, x: Tensor, weight: Tensor) -> Tensor:
    """The whole transposed convolution, cut or extended to the output's size."""
    full = F.conv_transpose2d(x, native_order(weight, node.groups), None, node.stride, 0, 0, node.groups, node.dilation)
    top, bottom, left, right = node.padding
    return F.pad(full, (-left, -right, -top, -bottom))


def _channels(a: Floats) -> Tensor:
    return torch.from_numpy(np.asarray(a, np.float64)).reshape(-1, 1, 1)


def _pad(x: Tensor, padding: Padding, fill: float) -> Tensor:
    top, bottom, left, right = padding
    return F.pad(x, (left, right, top, bottom), value=fill) if any(padding) else x
