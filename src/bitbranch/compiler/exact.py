"""A quantized network in float64, which records the integers that its layers compute.

In float64 a real that lies near a threshold is on the side where exact arithmetic has it; in float32 the network
itself may round it over. The quantizers are asked once, in their own precision, so that the integers are the trained
ones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..contract import CodeType, Encoder
from ..errors import InputError
from ..layers import QuantizedLayer, accumulator_dtype
from ..quantizers.base import ActivationQuantizer, WeightQuantizer


class FixedActivation(ActivationQuantizer):
    """What an activation quantizer said in its own precision."""

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        self._code_type, self._scale, self._encoder = quantizer.code_type, quantizer.scale(), quantizer.encoder()

    @property
    def code_type(self) -> CodeType:
        return self._code_type

    def scale(self) -> float:
        return self._scale

    def encoder(self) -> Encoder:
        return self._encoder


class FixedWeight(WeightQuantizer):
    """The integers and scales that a weight quantizer gave in its own precision."""

    def __init__(self, layer: QuantizedLayer) -> None:
        super().__init__()
        self._values, self._scale, self._code_type = layer.integer_weight()

    @property
    def code_type(self) -> CodeType:
        return self._code_type

    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return self._values.to(weight.dtype), self._scale.to(weight.dtype)


def _refusing(text: str) -> Callable[..., None]:
    def refuse(*_: object) -> None:
        raise InputError(text)

    return refuse


@dataclass(frozen=True)
class Call:
    """Integer inputs and exact accumulators of a layer's evaluation."""

    inputs: Tensor
    accumulators: Tensor


class Recorder:
    """A float64 copy of a network that records what its quantized layers compute."""

    def __init__(self, q: nn.Module) -> None:
        self.network = copy.deepcopy(q).cpu().eval()
        self.calls: dict[str, list[Call]] = {}
        for name, layer in self.network.named_modules():
            if isinstance(layer, QuantizedLayer) and layer.input_quantizer and layer.weight_quantizer:
                try:
                    fixed = FixedActivation(layer.input_quantizer), FixedWeight(layer)
                except InputError as error:  # no matter where evaluation does not call it
                    layer.register_forward_pre_hook(_refusing(f"layer {name!r}: {error}"))
                    continue
                layer.input_quantizer, layer.weight_quantizer = fixed
                layer.accumulate = self.recording(name, layer)  # type: ignore[assignment, method-assign]
        self.network.double()
        for module in self.network.modules():  # constants that are no buffers
            for name, value in vars(module).items():
                if isinstance(value, Tensor) and value.is_floating_point():
                    setattr(module, name, value.double())

    def recording(self, name: str, layer: QuantizedLayer) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
        """A layer's linear operation, in float32 where that is exact and so many times faster, and recorded."""
        accumulate = layer.accumulate
        assert layer.input_quantizer is not None
        dtype = accumulator_dtype(layer.integer_weight()[0], layer.input_quantizer.code_type, torch.empty(0))

        def recorded(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            acc = accumulate(x.to(dtype), weight.to(dtype), bias)
            self.calls.setdefault(name, []).append(Call(x, acc))
            return acc.double()

        return recorded

    def run(self, *x: Tensor) -> tuple[Any, dict[str, list[Call]]]:
        """What the network makes of a batch, and the calls of every layer by name.

        Raises:
            InputError: a layer is called that has seen no data; the network does not run in float64.
        """
        self.calls = {}
        try:
            return self.network(*(a.double() for a in x)), self.calls
        except RuntimeError as error:  # of torch, as where forward makes a float32 constant
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"{type(self.network).__name__} does not run in float64 ({reason})") from None
