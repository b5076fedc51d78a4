"""The torch operations that have an integer form, as nodes of the small graph; one entry of a table per operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..contract import Floats
from ..errors import CompileError
from ..runtime.checks import Padding, Pair
from . import functions
from . import graph as g
from .functions import Function

OFFER = 'a program holds integers only; quantize it, the first and last layers with first="w8a8", last="w8a8"'
"""What to do about a float layer."""

SELU_ALPHA, SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
"""Of :class:`torch.nn.SELU`; Klambauer et al., arXiv 1706.02515."""
COMPILED = (
    "convolution, transposed convolution, linear, BatchNorm, ReLU, ReLU6, Hardtanh, clamp, LeakyReLU, Hardswish, "
    "Hardsigmoid, SiLU, Sigmoid, Tanh, ELU, SELU, CELU, PReLU, max-pool, average-pool, upsampling, concatenation, "
    "flatten, dropout, addition"
)
"""What a network may consist of, for error messages."""


WINDOW = "takes windows along an axis that is a map's height, or its height and width in one"
"""Why some operations are refused behind ``flatten(2)`` or ``mean(3)``."""


@dataclass(frozen=True)
class Value:
    """A value of the graph: its number, (C, H, W), and the number of dimensions that it has in torch."""

    number: int
    shape: g.Shape
    dimensions: int

    @property
    def spread(self) -> bool:
        """Whether torch has one axis for both the height and the width of a map, or for its height alone."""
        return self.dimensions == 3 and self.shape[1] > 1


@dataclass(frozen=True)
class Call:
    """One exported operation.

    Args:
        operation: torch's name, as ``aten::relu``.
        name: the user's name of the layer it belongs to.
        args: arguments by name: :class:`Value`, constant tensor, number or list of numbers.
        result: what it makes; its number is not known yet.
        next_number: number that the first node made will get.
    """

    operation: str
    name: str
    args: dict[str, Any]
    result: Value
    next_number: int

    @property
    def x(self) -> Value:
        """The operation's first argument, or the first of its first argument."""
        value = self.args.get("self", self.args.get("input", self.args.get("tensors")))
        value = value[0] if isinstance(value, list) and value else value
        if not isinstance(value, Value):
            raise self.refuse("its first argument must be a value of the network")
        return value

    def refuse(self, reason: str) -> CompileError:
        """The error that names the layer, the operation and the reason."""
        return CompileError(f"layer {self.name!r} ({self.operation.replace('::', '.')}): {reason}")

    def constant(self, number: object, default: float = 0.0) -> Floats:
        """A constant of one number, or of one per channel, as ``[C]`` float64; ``None`` is the default.

        Raises:
            CompileError: a value of the network, a tensor that differs within a channel, or a NaN.
        """
        channels = self.x.shape[0]
        if number is None:
            return np.full(channels, default)
        if isinstance(number, Value):
            raise self.refuse("takes two values of the network; one of them must be a constant")
        a = torch.as_tensor(number, dtype=torch.float64).numpy()
        shape = (1,) * (self.x.dimensions - a.ndim) + a.shape
        if len(shape) != self.x.dimensions or a.size != shape[1] or a.size not in (1, channels):
            raise self.refuse(f"a constant of shape {a.shape}; it must be one number or one per channel")
        if not np.isfinite(a).all():
            raise self.refuse("its constant holds a NaN or an infinity")
        return np.zeros(channels) + a.reshape(-1)

    def affine(self, slope: Floats, intercept: Floats) -> g.Affine:
        """The affine map of the first argument."""
        if not (np.isfinite(slope).all() and np.isfinite(intercept).all()):
            raise self.refuse("its parameters hold a NaN or an infinity")
        return g.Affine(self.name, (self.x.number,), slope, intercept)

    def clip(self, lo: float | Floats, hi: float | Floats) -> g.Clip:
        """The clip of the first argument."""
        zeros = np.zeros(self.x.shape[0])
        return g.Clip(self.name, (self.x.number,), zeros + lo, zeros + hi)

    def pair(self, key: str, single: int) -> Pair:
        """One or two numbers as (vertical, horizontal); a 1-d operation's vertical number is ``single``."""
        if self.x.spread:
            raise self.refuse(f"{WINDOW}; do that to the map as it was before")
        numbers = self.args[key]
        first, *rest = numbers if isinstance(numbers, Sequence) else [numbers]
        if self.x.dimensions == 3:
            return (single, int(first))
        return (int(first), int(rest[0] if rest else first))


def read(call: Call) -> Sequence[g.Node]:
    """The nodes that an operation becomes, the last making its result.

    Raises:
        CompileError: no integer form; names the layer and the reason.
    """
    reader = READERS.get(call.operation)
    if reader is None:
        reason = REASONS.get(call.operation, f"has no integer form; compiled are {COMPILED}")
        axis = call.args.get("dim")
        if reason == _SPLIT and isinstance(axis, int) and (axis := axis % call.x.dimensions) != 1:
            reason = _CROPPED if axis else _OF_BATCH
        raise call.refuse(reason)
    nodes = reader(call)
    return [nodes] if isinstance(nodes, g.Node) else nodes


def _identity(call: Call) -> g.Node:
    if call.args.get("train"):
        raise call.refuse("drops values at random; it must follow eval()")
    return g.Identity(call.name, (call.x.number,))


def _reshape(call: Call) -> g.Node:
    """Flatten, squeeze, view, ..: either (C, H, W) stays, or becomes one axis, or everything becomes channels."""
    before, after = call.x.shape, call.result.shape
    if before == after or (call.result.dimensions == 3 and after == (before[0], 1, before[1] * before[2])):
        return g.Identity(call.name, (call.x.number,))
    if after == (before[0] * before[1] * before[2], 1, 1):
        return g.Flatten(call.name, (call.x.number,))
    raise call.refuse(
        f"from {before} to {after}; of the changes of shape only flatten to [N, -1] and to [N, C, -1] are compiled; "
        "return the maps [N, C, H, W] of a detection head as they are"
    )


def _batch_norm(call: Call) -> g.Node:
    mean, variance = call.args["running_mean"], call.args["running_var"]
    if mean is None or call.args.get("training"):
        raise call.refuse("a BatchNorm without running statistics depends on the batch; track them and use eval()")
    mean, variance = mean.double().numpy(), variance.double().numpy()
    slope = call.constant(1.0) if call.args["weight"] is None else call.args["weight"].double().numpy()
    shift = call.constant(0.0) if call.args["bias"] is None else call.args["bias"].double().numpy()
    with np.errstate(all="ignore"):  # what is not finite is refused
        slope = slope / np.sqrt(variance + call.args["eps"])
        return call.affine(slope, shift - mean * slope)


def _instance_norm(call: Call) -> g.Node:
    if call.args.get("use_input_stats", True):
        raise call.refuse(_IMAGE)
    return _batch_norm(call)


def _add(call: Call) -> Sequence[g.Node]:
    return _sum(call, call.args["other"], float(call.args.get("alpha", 1)))


def _sub(call: Call) -> Sequence[g.Node]:
    return _sum(call, call.args["other"], -float(call.args.get("alpha", 1)))


def _sum(call: Call, other: object, factor: float) -> Sequence[g.Node]:
    """``x + factor * other``, where either may be the constant."""
    first = call.args["self"]
    if not isinstance(first, Value) and isinstance(other, Value):
        swapped = Call(call.operation, call.name, {"self": other, "other": first}, call.result, call.next_number)
        return [swapped.affine(np.full(other.shape[0], factor), swapped.constant(first))]
    if not isinstance(other, Value):
        return [call.affine(call.constant(1.0), factor * call.constant(other))]
    if other.dimensions != call.x.dimensions or other.shape != call.x.shape:
        raise call.refuse(f"adds shapes {call.x.shape} and {other.shape}; they must be equal")
    if factor == 1:
        return [g.Add(call.name, (call.x.number, other.number))]
    scaled = g.Affine(call.name, (other.number,), np.full(other.shape[0], factor), np.zeros(other.shape[0]))
    return [scaled, g.Add(call.name, (call.x.number, call.next_number))]


def _rsub(call: Call) -> g.Node:
    return call.affine(call.constant(-float(call.args.get("alpha", 1))), call.constant(call.args["other"]))


def _mul(call: Call) -> g.Node:
    first, other = call.args["self"], call.args["other"]
    if not isinstance(first, Value):
        call = Call(call.operation, call.name, {"self": other, "other": first}, call.result, call.next_number)
    return call.affine(call.constant(call.args["other"]), call.constant(0.0))


def _div(call: Call) -> g.Node:
    if call.args.get("rounding_mode") is not None:
        raise call.refuse("rounds; only a plain division by a constant is compiled")
    with np.errstate(divide="ignore"):
        return call.affine(1 / call.constant(call.args["other"]), call.constant(0.0))


def _hardtanh(call: Call) -> g.Node:
    return call.clip(call.args["min_val"], call.args["max_val"])


def _clamp(call: Call) -> g.Node:
    lo, hi = call.constant(call.args.get("min"), -np.inf), call.constant(call.args.get("max"), np.inf)
    return call.clip(np.minimum(lo, hi), hi)  # torch: where the limits cross, the upper one holds


def _curve(function: Callable[[Call], Function]) -> Reader:
    """The reader of an activation that is a scalar function, made from the call."""
    return lambda call: g.Curve(call.name, (call.x.number,), function(call))


def _leaky_relu(call: Call) -> Function:
    return functions.leaky_relu(float(call.args["negative_slope"]))


def _prelu(call: Call) -> Function:
    slopes = np.unique(call.constant(call.args["weight"].reshape(1, -1, *[1] * (call.x.dimensions - 2))))
    if len(slopes) > 1:
        raise call.refuse("has another slope for each channel; use one for all (PReLU with num_parameters=1)")
    return functions.leaky_relu(float(slopes[0]))


def _elu(call: Call) -> Function:
    numbers = [float(call.args[key]) for key in ("alpha", "scale", "input_scale")]
    if min(numbers) <= 0:
        raise call.refuse("an ELU is compiled where its alpha and scales are positive")
    return functions.elu(*numbers)


def _celu(call: Call) -> Function:
    alpha = float(call.args["alpha"])
    if alpha <= 0:
        raise call.refuse("a CELU is compiled where its alpha is positive")
    return functions.elu(alpha, input_scale=1 / alpha)


def _hardsigmoid(call: Call) -> Sequence[g.Node]:
    sixth = call.affine(call.constant(1 / 6), call.constant(0.5))
    zeros = np.zeros(call.x.shape[0])
    return [sixth, g.Clip(call.name, (call.next_number,), zeros, zeros + 1)]


def _cat(call: Call) -> g.Node:
    values = call.args["tensors"]
    if not all(isinstance(v, Value) for v in values):
        raise call.refuse("joins a constant with values of the network; only those are joined")
    if call.args["dim"] % call.x.dimensions != 1:
        raise call.refuse("joins along an axis other than the channels; return the parts as outputs of their own")
    return g.Concat(call.name, tuple(v.number for v in values))


def _upsample(mode: str) -> Reader:
    def reader(call: Call) -> g.Node:
        before, after = call.x.shape[1:], call.result.shape[1:]
        if before == after:  # the centres of the pixels, or their corners, are the same
            return g.Identity(call.name, (call.x.number,))
        if before == (1, 1):  # there is one number to interpolate between
            return g.Upsample(call.name, (call.x.number,), after, "nearest")
        if call.args.get("align_corners"):
            raise call.refuse("align_corners=True interpolates by fractions of no common unit; use align_corners=False")
        if any(a % b for b, a in zip(before, after, strict=True)):
            raise call.refuse(f"from {before} to {after}; upsampling is compiled where the factors are whole")
        factor = after[0] // before[0], after[1] // before[1]
        given = call.args.get("scale_factors")
        if given is None and call.args.get("output_size") is None:
            given = [call.args[key] for key in ("scales_h", "scales_w", "scales") if key in call.args]
        given = [f for f in given or () if f is not None]
        if given and list(factor)[-len(given) :] != given:
            raise call.refuse(
                f"by {given} from {before} to {after}; upsampling is compiled where the factors are whole"
            )
        return g.Upsample(call.name, (call.x.number,), factor, mode)

    return reader


def _window(call: Call, dimensions: int) -> tuple[Pair, Pair, Pair]:
    """Kernel, stride (the kernel where not given) and padding of a pool."""
    if call.x.dimensions != dimensions:
        raise call.refuse(f"its input must have {dimensions} dimensions, a batch of them")
    kernel = call.pair("kernel_size", 1)
    return kernel, call.pair("stride", 1) if call.args["stride"] else kernel, call.pair("padding", 0)


def _ceiling(call: Call, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Padding:
    """Padding that gives torch's output size: where ``ceil_mode`` rounds it up, more at the bottom and right."""
    more = []
    for axis in (0, 1):
        reach = dilation[axis] * (kernel[axis] - 1) + 1
        covered = (call.result.shape[1 + axis] - 1) * stride[axis] + reach
        more.append(max(0, covered - call.x.shape[1 + axis] - 2 * padding[axis]))
    return (padding[0], padding[0] + more[0], padding[1], padding[1] + more[1])


def _max_pool(dimensions: int) -> Reader:
    def reader(call: Call) -> g.Node:
        kernel, stride, padding = _window(call, dimensions)
        dilation = call.pair("dilation", 1)
        full = _ceiling(call, kernel, stride, padding, dilation)
        return g.MaxPool(call.name, (call.x.number,), kernel, stride, full, dilation)

    return reader


def _avg_pool(dimensions: int) -> Reader:
    def reader(call: Call) -> g.Node:
        kernel, stride, padding = _window(call, dimensions)
        full = _ceiling(call, kernel, stride, padding, (1, 1))
        if sum(full) > 2 * sum(padding):
            raise call.refuse("ceil_mode divides by another number at the border; use sizes that the stride divides")
        divisor = call.args.get("divisor_override")
        if any(padding) and not call.args["count_include_pad"] and divisor is None:
            raise call.refuse("count_include_pad=False divides by another number at the border")
        divisor = float(kernel[0] * kernel[1] if divisor is None else divisor)
        return g.AvgPool(call.name, (call.x.number,), kernel, stride, full, divisor)

    return reader


def _ratio(call: Call) -> Pair:
    """Window of an adaptive pool, which must divide the image into equal parts."""
    before, after = call.x.shape[1:], call.result.shape[1:]
    if call.x.spread and after != (1, 1):
        raise call.refuse(f"{WINDOW}; do that to the map as it was before")
    if any(b % a for b, a in zip(before, after, strict=True)):
        raise call.refuse(f"from {before} to {after}; an adaptive pool is compiled where its windows are equal")
    return before[0] // after[0], before[1] // after[1]


def _enlarged(call: Call) -> g.Node | None:
    """An adaptive pool to a multiple of the image's size repeats its pixels."""
    before, after = call.x.shape[1:], call.result.shape[1:]
    if any(a % b for b, a in zip(before, after, strict=True)):
        return None
    return g.Upsample(call.name, (call.x.number,), (after[0] // before[0], after[1] // before[1]), "nearest")


def _adaptive_avg_pool(call: Call) -> g.Node:
    if (enlarged := _enlarged(call)) is not None:
        return enlarged
    window = _ratio(call)
    return g.AvgPool(call.name, (call.x.number,), window, window, (0, 0, 0, 0), float(window[0] * window[1]))


def _adaptive_max_pool(call: Call) -> g.Node:
    if (enlarged := _enlarged(call)) is not None:
        return enlarged
    window = _ratio(call)
    return g.MaxPool(call.name, (call.x.number,), window, window)


def _reduced(call: Call) -> Pair:
    """Window of a reduction over whole image axes."""
    axes = call.args.get("dim")
    axes = range(call.x.dimensions) if axes is None else [axes] if isinstance(axes, int) else axes
    reduced = {a % call.x.dimensions for a in axes}
    image = dict(zip(range(2, call.x.dimensions), call.x.shape[1:][4 - call.x.dimensions :], strict=True))
    if not reduced <= image.keys():
        raise call.refuse("reduces over images or channels; only height and width are compiled")
    if call.x.spread:
        return (call.x.shape[1], call.x.shape[2]) if reduced else (1, 1)
    sizes = [image[a] if a in reduced else 1 for a in image]
    return (1, sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])


def _mean(call: Call) -> g.Node:
    window = _reduced(call)
    return g.AvgPool(call.name, (call.x.number,), window, window, (0, 0, 0, 0), float(window[0] * window[1]))


def _total(call: Call) -> g.Node:
    window = _reduced(call)
    return g.AvgPool(call.name, (call.x.number,), window, window, (0, 0, 0, 0), 1.0)


def _max(call: Call) -> g.Node:
    if call.args.get("dim") is None:
        raise call.refuse("is compiled along height or width only")
    return _amax(call)


def _amax(call: Call) -> g.Node:
    window = _reduced(call)
    return g.MaxPool(call.name, (call.x.number,), window, window)


Reader = Callable[[Call], "g.Node | Sequence[g.Node]"]

READERS: dict[str, Reader] = {
    **dict.fromkeys(("aten::clone", "aten::alias", "aten::contiguous", "aten::detach"), _identity),
    **dict.fromkeys(("aten::dropout", "aten::feature_dropout", "aten::alpha_dropout"), _identity),
    **dict.fromkeys(("aten::flatten", "aten::view", "aten::reshape", "aten::_unsafe_view"), _reshape),
    **dict.fromkeys(("aten::squeeze", "aten::unsqueeze", "aten::unflatten"), _reshape),
    "aten::batch_norm": _batch_norm,
    "aten::instance_norm": _instance_norm,
    "aten::_native_batch_norm_legit_no_training": _batch_norm,
    "aten::add": _add,
    "aten::sub": _sub,
    "aten::rsub": _rsub,
    "aten::neg": lambda call: call.affine(call.constant(-1.0), call.constant(0.0)),
    "aten::mul": _mul,
    "aten::div": _div,
    "aten::relu": lambda call: call.clip(0.0, np.inf),
    "aten::relu6": lambda call: call.clip(0.0, 6.0),
    "aten::hardtanh": _hardtanh,
    **dict.fromkeys(("aten::clamp", "aten::clamp_min", "aten::clamp_max"), _clamp),
    **dict.fromkeys(("aten::max_pool1d", "aten::max_pool1d_with_indices"), _max_pool(3)),
    **dict.fromkeys(("aten::max_pool2d", "aten::max_pool2d_with_indices"), _max_pool(4)),
    "aten::avg_pool1d": _avg_pool(3),
    "aten::avg_pool2d": _avg_pool(4),
    **dict.fromkeys(("aten::adaptive_avg_pool1d", "aten::adaptive_avg_pool2d", "aten::_adaptive_avg_pool2d"),
                    _adaptive_avg_pool),
    **dict.fromkeys(("aten::adaptive_max_pool1d", "aten::adaptive_max_pool2d"), _adaptive_max_pool),
    "aten::mean": _mean,
    "aten::sum": _total,
    "aten::leaky_relu": _curve(_leaky_relu),
    "aten::prelu": _curve(_prelu),
    "aten::elu": _curve(_elu),
    "aten::selu": _curve(lambda call: functions.elu(SELU_ALPHA, SELU_SCALE)),
    "aten::celu": _curve(_celu),
    "aten::hardswish": _curve(lambda call: functions.hardswish()),
    "aten::silu": _curve(lambda call: functions.silu()),
    "aten::sigmoid": _curve(lambda call: functions.sigmoid()),
    "aten::tanh": _curve(lambda call: functions.tanh()),
    "aten::hardsigmoid": _hardsigmoid,
    **dict.fromkeys(("aten::cat", "aten::concat", "aten::concatenate"), _cat),
    **dict.fromkeys(("aten::upsample_nearest1d", "aten::upsample_nearest2d"), _upsample("nearest")),
    **dict.fromkeys(("aten::_upsample_nearest_exact1d", "aten::_upsample_nearest_exact2d"), _upsample("nearest")),
    **dict.fromkeys(("aten::upsample_linear1d", "aten::upsample_bilinear2d"), _upsample("bilinear")),
    "aten::amax": _amax,
    "aten::max": _max,
}  # fmt: skip
"""How each operation is read."""

_FLOAT = f"a float layer: {OFFER}; a function such as F.conv2d, which quantize() does not see, must become a layer"
_CURVED = "has no integer form; use ReLU, ReLU6, Hardtanh, LeakyReLU, Hardswish, SiLU, ELU, Sigmoid or Tanh"
_MIXED = "mixes the numbers of an image; leave it to the program's caller"
_SPLIT = "takes a part of the channels, which is not compiled; use two layers in place of one whose output is split"
_CROPPED = (
    "takes a part of the image, which is not compiled; let the padding of the layer before make it as large as it has "
    "to be, or return the whole maps"
)
_OF_BATCH = "takes some of the images; leave it to the program's caller"
_MOVED = (
    "moves axes, which is not compiled; return the maps [N, C, H, W] as they are and leave it to the program's caller"
)
_IMAGE = "normalises by statistics of each image, which has no integer form; use BatchNorm"

REASONS: dict[str, str] = {
    **dict.fromkeys((f"aten::{op}" for op in (
        "conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "linear", "addmm", "mm",
        "matmul", "bmm")), _FLOAT),
    **dict.fromkeys((f"aten::{op}" for op in (
        "gelu", "softplus", "mish", "log_sigmoid", "softsign", "hardshrink", "softshrink")), _CURVED),
    **dict.fromkeys((f"aten::{op}" for op in ("softmax", "_softmax", "log_softmax", "_log_softmax")), _MIXED),
    **dict.fromkeys((f"aten::{op}" for op in (
        "chunk", "split", "split_with_sizes", "tensor_split", "slice", "select", "narrow", "index", "index_select",
        "unbind", "unsafe_split", "unsafe_chunk", "pixel_shuffle", "channel_shuffle")), _SPLIT),
    **dict.fromkeys((f"aten::{op}" for op in ("permute", "transpose", "movedim", "t", "swapaxes")), _MOVED),
    "aten::upsample_bicubic2d": "is compiled as nearest or bilinear only",
    "aten::_upsample_bilinear2d_aa": "is compiled without antialias only",
    **dict.fromkeys((f"aten::{op}" for op in (
        "group_norm", "native_group_norm", "layer_norm", "native_layer_norm")), _IMAGE),
    "aten::_native_batch_norm_legit": "a BatchNorm without running statistics depends on the batch; track them",
    "aten::constant_pad_nd": "padding by itself is not compiled; use the padding of the convolution or pool",
    "aten::pad": "padding by itself or by a padding_mode is not compiled; use the padding of the convolution or pool",
    "aten::native_dropout": "drops values at random; it must follow eval()",
}  # fmt: skip
"""Why common operations are refused."""

__all__ = ["COMPILED", "OFFER", "Call", "Value", "read"]
