"""Layers whose weights are no integers with one scale, as two layers of which each has them: :func:`split`."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError
from .layers import QuantizedConvTranspose, QuantizedLayer, QuantizedLinear, quantized_layer, replace_modules
from .quantizers.base import per_output
from .quantizers.ffn import FactorizedWeight
from .quantizers.tsq import TernaryWeight
from .quantizers.ttq import TrainedTernaryWeight
from .quantizers.uniform import UniformActivation


class SumOfTwo(nn.Module):
    """Two layers that read the same input, summed. The compiler takes the sum as a residual one."""

    def __init__(self, signs: nn.Module, support: nn.Module) -> None:
        super().__init__()
        self.signs, self.support = signs, support

    def forward(self, x: Tensor) -> Tensor:
        return self.signs(x) + self.support(x)


@torch.no_grad()
def split(network: nn.Module) -> nn.Module:
    """A copy of a network in which every layer with TTQ or FFN weights has become two ternary layers.

    * **TTQ**, levels ``+Wp, 0, -Wn``: with ``t`` of {-1, 0, 1} the weight is ``(Wp + Wn) / 2 t + (Wp - Wn) / 2 |t|``,
      exactly; so the layer becomes the sum of two. Each compiles exactly, their sum as every residual sum: rounded to
      one integer scale, which :func:`~bitbranch.verify` counts.
    * **FFN**, ``U diag(d) V``: a layer with the ternary ``V`` and scales ``d``, then a pointwise one with the ternary
      ``U``. The codes between them, signed and of 8 bits, are new: show them data by :func:`~bitbranch.calibrate` or
      training. After that everything compiles exactly.

    Both train on as ternary layers of :class:`~bitbranch.quantizers.tsq.TernaryWeight`. Where the inputs are float,
    so they stay, and so do the inputs of an FFN layer's second half.

    Args:
        network: from :func:`~bitbranch.quantize`; not changed. One without such layers comes back as a plain copy.

    Raises:
        InputError: FFN weights in a grouped layer, whose groups share factors.
    """
    network = copy.deepcopy(network)
    new: dict[nn.Module, nn.Module] = {}
    for name, layer in network.named_modules():
        if isinstance(layer, QuantizedLayer):
            if isinstance(layer.weight_quantizer, TrainedTernaryWeight):
                new[layer] = _two_scales(layer, layer.weight_quantizer)
            elif isinstance(layer.weight_quantizer, FactorizedWeight):
                if getattr(layer, "groups", 1) > 1:
                    raise InputError(
                        f"layer {name}: FFN weights of a grouped layer are not split: groups share factors"
                    )
                new[layer] = _two_factors(layer, layer.weight_quantizer)
    for old, module in new.items():
        module.train(old.training)
    return replace_modules(network, new)


def _two_scales(layer: QuantizedLayer, weights: TrainedTernaryWeight) -> nn.Module:
    t = weights.ternary(layer.outputs_first(layer.weight))
    positive, negative = weights.positive.double(), weights.negative.double()
    signs = _ternary(layer, t, ((positive + negative) / 2).expand(len(t)), layer.bias)
    support = _ternary(layer, t.abs(), ((positive - negative) / 2).expand(len(t)), None)
    return SumOfTwo(signs, support)


def _two_factors(layer: QuantizedLayer, weights: FactorizedWeight) -> nn.Module:
    left, scale, right = weights.factors()
    kernel = layer.outputs_first(layer.weight).shape[1:]
    first = _ternary(layer, right.view(-1, *kernel), scale, None)
    outputs, inputs = left.shape
    pointwise: nn.Module
    if isinstance(layer, QuantizedLinear):
        pointwise = nn.Linear(inputs, outputs, bias=layer.bias is not None)
    else:
        kind = nn.Conv1d if layer.weight.dim() == 3 else nn.Conv2d
        pointwise = kind(inputs, outputs, 1, bias=layer.bias is not None)
    pointwise.weight = nn.Parameter(left.view_as(pointwise.weight))
    if layer.bias is not None:
        pointwise.bias = nn.Parameter(layer.bias.detach().clone())
    codes = None if layer.input_quantizer is None else UniformActivation(8, signed=True)
    second = quantized_layer(pointwise.to(layer.weight.device), codes, TernaryWeight())
    second.scheme = layer.scheme
    return nn.Sequential(first, second)


def _ternary(layer: QuantizedLayer, values: Tensor, scale: Tensor, bias: Tensor | None) -> QuantizedLayer:
    """A layer of the same geometry with given ternary weights ``[O, ...]`` and scales, latent as ``scale * values``.

    Its number of outputs is that of the values.
    """
    latent = (values.double() * per_output(scale.double(), values)).to(layer.weight.dtype)
    new: Any = copy.copy(layer)  # shares the input quantizer
    new._parameters = {
        "weight": nn.Parameter(layer.native_order(latent)),
        "bias": None if bias is None else nn.Parameter(bias.detach().clone()),
    }
    if isinstance(layer, QuantizedLinear):
        new.out_features = len(values)
    else:
        new.out_channels = len(values)
    new = quantized_layer(new, layer.input_quantizer, TernaryWeight())
    assert isinstance(new, QuantizedLayer) and (new.weight.dim() == layer.weight.dim())
    assert not isinstance(new, QuantizedConvTranspose) or new.weight.shape[0] == layer.weight.shape[0]
    return new
