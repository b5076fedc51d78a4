"""Quantized layers: an ordinary torch layer with a quantizer for its input and one for its weights.

While training, a layer computes with reals on the quantizers' levels and their gradients. In evaluation it computes
the integer contract: input values times weight values, accumulated exactly, then one scale per output channel. Sums
are exact because they stay below 2^24 in float32, or are taken in float64 where they might not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .contract import CodeType
from .errors import InputError
from .quantizers.base import ActivationQuantizer, WeightQuantizer

FLOAT32_EXACT = 2**24
"""Integers up to this are exact in float32."""


class QuantizedLayer(nn.Module):
    """Mixin of the quantized layers; ``None`` as a quantizer means float.

    Attributes:
        input_quantizer: encodes the layer's input.
        weight_quantizer: quantizes the weight, outputs first.
        scheme: name of the scheme that the quantizers came from, for reports.
    """

    scheme: str = ""

    weight: Tensor
    bias: Tensor | None
    input_quantizer: ActivationQuantizer | None
    weight_quantizer: WeightQuantizer | None

    @property
    def obstacle(self) -> str:
        """Why no integer program computes this layer, though it is quantized; an empty text where one does."""
        quantizers = [q for q in (self.weight_quantizer, self.input_quantizer) if q is not None]
        return next((q.obstacle for q in quantizers if q.obstacle), "")

    def outputs_first(self, weight: Tensor) -> Tensor:
        """The weight as ``[O, I / groups, *kernel]``."""
        return weight

    def native_order(self, weight: Tensor) -> Tensor:
        """Inverse of :meth:`outputs_first`."""
        return weight

    def accumulate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's own linear operation, with ``weight`` in torch's order."""
        raise NotImplementedError

    def integer_weight(self) -> tuple[Tensor, Tensor, CodeType]:
        """Weight values ``[O, I / groups, *kernel]``, scales ``[O]`` and the code type.

        Raises:
            InputError: the weights are float.
        """
        if self.weight_quantizer is None:
            raise InputError(f"{type(self).__name__} has float weights")
        values, scale = self.weight_quantizer.integers(self.outputs_first(self.weight).detach())
        return values, scale, self.weight_quantizer.code_type

    def quantized_weight(self) -> Tensor:
        """The real low-bit weight in torch's order, with gradient."""
        if self.weight_quantizer is None:
            return self.weight
        return self.native_order(self.weight_quantizer(self.outputs_first(self.weight)))

    def accumulator(self, x: Tensor) -> Tensor:
        """The exact integer accumulators of a batch of reals, in float32 or float64, also in mixed precision.

        Raises:
            InputError: the weights or the inputs are float.
        """
        return self._accumulator(x, self.integer_weight()[0])

    def _accumulator(self, x: Tensor, values: Tensor) -> Tensor:
        if self.input_quantizer is None:
            raise InputError(f"{type(self).__name__} has float inputs")
        inputs = self.input_quantizer.values(x)
        dtype = accumulator_dtype(values, self.input_quantizer.code_type, inputs)
        with torch.autocast(x.device.type, enabled=False):
            return self.accumulate(inputs.to(dtype), self.native_order(values).to(dtype), None)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        # Hooks, such as those that calibrate, find the input in its place even where the caller names it.
        given = (kwargs.pop("input"), *args) if "input" in kwargs else args
        return super().__call__(*given, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        factor = None if self.input_quantizer is None else self.input_quantizer.output_factor(x, self)
        if factor is None:
            return self._forward(x, self.bias)
        out = self._forward(x, None) * factor
        return out if self.bias is None else out + self.bias.reshape(channel_shape(self))

    def _forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        weights = self.weight_quantizer
        if self.training or self.input_quantizer is None or weights is None or weights.obstacle:
            inputs = x if self.input_quantizer is None else self.input_quantizer(x)
            weight = self.quantized_weight()
            if not torch.is_autocast_enabled(x.device.type):  # which would; quantizers may give float32
                inputs, weight = inputs.to(self.weight.dtype), weight.to(self.weight.dtype)
            out = self.accumulate(inputs, weight, bias)
            return out if self.input_quantizer is None else self.input_quantizer.behind(out)
        values, scale, _ = self.integer_weight()
        dtype = torch.promote_types(x.dtype, torch.float32)
        acc = self._accumulator(x, values).to(dtype)
        scale = scale.to(dtype) * self.input_quantizer.scale()
        return rescale(acc, scale, None if bias is None else bias.to(dtype), channel_shape(self)).to(x.dtype)


def accumulator_dtype(values: Tensor, inputs: CodeType, x: Tensor) -> torch.dtype:
    """A dtype in which sums of weight values ``[O, ...]`` times input values are exact.

    Float32 (or the dtype of ``x``, float32 or float64) where the bound stays below 2^24 and the processor sums plainly;
    libraries for accelerators may take TF32 or Winograd's algorithm for float32, which round.
    """
    bound = float(values.abs().flatten(1).sum(1).max()) * max(abs(inputs.lo), abs(inputs.hi))
    return torch.float64 if bound >= FLOAT32_EXACT or x.device.type != "cpu" else x.dtype


def channel_shape(layer: nn.Module) -> tuple[int, ...]:
    """Shape by which a vector ``[O]`` meets the output channels of a linear, 1-D or 2-D convolution layer."""
    return (-1,) if isinstance(layer, nn.Linear) else (-1, *[1] * (layer.weight.dim() - 2))  # type: ignore[operator]


def rescale(acc: Tensor, scale: Tensor, bias: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """Reals of accumulators: ``acc * scale + bias``, two rounded operations; ``scale`` and ``bias`` are ``[O]``."""
    out = acc * scale.reshape(shape)
    return out if bias is None else out + bias.reshape(shape)


class QuantizedConv1d(QuantizedLayer, nn.Conv1d):
    """Conv1d on codes; see :class:`QuantizedLayer`."""

    def accumulate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x, weight, bias)


class QuantizedConv2d(QuantizedLayer, nn.Conv2d):
    """Conv2d on codes; see :class:`QuantizedLayer`."""

    def accumulate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x, weight, bias)


def native_order(weight: Tensor, groups: int) -> Tensor:
    """A transposed convolution's weight in torch's order, ``[I, O / groups, ..]``, from outputs first, and back."""
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


class QuantizedConvTranspose(QuantizedLayer):
    """Base of transposed convolutions on codes. The inserted zeros are the real number 0."""

    groups: int
    output_padding: tuple[int, ...]

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        with self.reaching(x, output_size):
            return super().forward(x)

    @contextmanager
    def reaching(self, x: Tensor, output_size: Sequence[int] | None) -> Iterator[None]:
        """Let the output have a size meanwhile, as torch's layers take it, by another ``output_padding``."""
        before = self.output_padding
        if output_size is not None:
            geometry: Any = self  # one of torch's transposed convolutions
            self.output_padding = tuple(
                geometry._output_padding(
                    x, list(output_size), geometry.stride, geometry.padding, geometry.kernel_size,
                    len(geometry.kernel_size), geometry.dilation,
                )
            )  # fmt: skip
        try:
            yield
        finally:
            self.output_padding = before

    def outputs_first(self, weight: Tensor) -> Tensor:
        return native_order(weight, self.groups)

    def native_order(self, weight: Tensor) -> Tensor:
        return native_order(weight, self.groups)


class QuantizedConvTranspose1d(QuantizedConvTranspose, nn.ConvTranspose1d):
    """ConvTranspose1d on codes; see :class:`QuantizedLayer`."""

    def accumulate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert isinstance(self.padding, tuple)  # torch has no "same" here
        return F.conv_transpose1d(
            x, weight, bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )


class QuantizedConvTranspose2d(QuantizedConvTranspose, nn.ConvTranspose2d):
    """ConvTranspose2d on codes; see :class:`QuantizedLayer`."""

    def accumulate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert isinstance(self.padding, tuple)  # torch has no "same" here
        return F.conv_transpose2d(
            x, weight, bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )


class QuantizedLinear(QuantizedLayer, nn.Linear):  # type: ignore[misc]
    """Linear on codes; see :class:`QuantizedLayer`."""

    def accumulate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)


QUANTIZED: dict[type[nn.Module], type[QuantizedLayer]] = {
    nn.Conv1d: QuantizedConv1d,
    nn.Conv2d: QuantizedConv2d,
    nn.ConvTranspose1d: QuantizedConvTranspose1d,
    nn.ConvTranspose2d: QuantizedConvTranspose2d,
    nn.Linear: QuantizedLinear,
}


def why_float(layer: nn.Module) -> str:
    """The reason why a torch layer has no quantized form, or an empty text where it has one."""
    if type(layer) not in QUANTIZED and not isinstance(layer, QuantizedLayer):
        return f"{type(layer).__name__} has no quantized form"
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        return f"padding_mode {layer.padding_mode!r} has no integer form; only 'zeros'"
    if "weight" not in layer._parameters:
        return "its weight is computed, as by pruning or spectral_norm: make it permanent first"
    return ""


def quantized_layer(
    layer: nn.Module, input_quantizer: ActivationQuantizer | None, weight_quantizer: WeightQuantizer | None
) -> QuantizedLayer:
    """The quantized form of a torch layer; shares its parameters. A quantized layer gets other quantizers.

    The quantizers are brought to the layer's device and mode; steps that depend on the weights alone are chosen here.

    Raises:
        InputError: a layer type that has no quantized form, padding other than zeros, or a weight that is no parameter.
    """
    if reason := why_float(layer):
        raise InputError(reason)
    cls = QUANTIZED.get(type(layer), type(layer))
    new = _reborn(layer, cls)
    assert isinstance(new, QuantizedLayer)
    new._parameters = layer._parameters
    new.input_quantizer = input_quantizer
    new.weight_quantizer = weight_quantizer
    for quantizer in (input_quantizer, weight_quantizer):
        if quantizer is not None:
            quantizer.to(new.weight.device).train(layer.training)
    if weight_quantizer is not None:
        weight_quantizer.start(new.outputs_first(new.weight.detach()))
    return new


def plain_layer(layer: QuantizedLayer, weight: Tensor) -> nn.Module:
    """The torch layer of the same geometry with this fixed weight, in torch's order, and no bias."""
    cls = next(torch_type for torch_type, quantized in QUANTIZED.items() if isinstance(layer, quantized))
    new = _reborn(layer, cls)
    new.weight = nn.Parameter(weight, requires_grad=False)
    new.register_parameter("bias", None)
    return new


def replace_modules(network: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put new modules in the place of old ones, wherever a parent holds them; returns the network."""
    for parent in list(network.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in new:
                parent._modules[name] = new[child]
    return new.get(network, network)


def _reborn(layer: nn.Module, cls: type[nn.Module]) -> nn.Module:
    """A module of type ``cls`` with the plain attributes of ``layer`` and neither parameters nor submodules."""
    new = cls.__new__(cls)
    nn.Module.__init__(new)
    own = ("_parameters", "_modules", "_buffers")
    new.__dict__.update({k: v for k, v in layer.__dict__.items() if k not in own})
    return new
