"""XNOR-Net: signs of weights and inputs, a scale per filter, and a scale of the input at every output position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..contract import CodeType, Encoder, Kind, bipolar_encoder
from .base import ActivationQuantizer, per_output, signs, straight_through
from .bwn import BinaryWeight

NO_INTEGERS = (
    "XNOR-Net multiplies every output position by its inputs' mean magnitude K, a real product that no integer program "
    "has; take xnor(input_scale=False), which leaves K out"
)


def input_scale(x: Tensor, layer: Any) -> Tensor:
    """``K``: the mean magnitude of the inputs that each output position reads, padding counted as 0.

    Published as the mean over channels, ``A = mean_c |x|``, convolved with a box ``1 / (w h)``; that is the layer's own
    linear operation on ``|x|`` with equal weights, in which groups, strides and transposed layers have their meaning.

    Args:
        x: inputs ``[N, C, *]``, or ``[N, *, C]`` of a linear layer.
        layer: a :class:`~bitbranch.layers.QuantizedLayer`.

    Returns:
        ``[N, 1, *]`` (with groups ``[N, O, *]``), without gradient: it is taken as a constant.

    Source: Rastegari et al., ECCV 2016, section 3.2 and equation (11).
    """
    with torch.no_grad():
        weight = layer.outputs_first(layer.weight)
        outputs = weight if getattr(layer, "groups", 1) > 1 else weight[:1]
        box = torch.full_like(outputs, 1 / weight[0].numel())
        factor: Tensor = layer.accumulate(x.abs(), layer.native_order(box), None)
    return factor


class XnorActivation(ActivationQuantizer):
    """Signs of the inputs (``sign(0) = +1``), whose gradient passes where ``|x| <= 1``; outputs times ``K``.

    Warns, once, if its first training batch has no negative input.

    Args:
        input_scale: multiply the layer's output by :func:`input_scale`, as published. A program cannot: the layer then
            trains and evaluates in PyTorch only.

    Source: Rastegari et al., ECCV 2016, section 3.2.
    """

    reads_signs = True

    def __init__(self, *, input_scale: bool = True) -> None:
        super().__init__()
        self.input_scale = input_scale
        self.obstacle = NO_INTEGERS if input_scale else ""

    @property
    def code_type(self) -> CodeType:
        return CodeType(Kind.BIPOLAR, 1)

    def scale(self) -> float:
        return 1.0

    def encoder(self) -> Encoder:
        return bipolar_encoder(1)

    def start(self, x: Tensor) -> None:
        self.check_signs(x)

    def output_factor(self, x: Tensor, layer: nn.Module) -> Tensor | None:
        return input_scale(x, layer) if self.input_scale else None

    def quantize(self, x: Tensor) -> Tensor:
        return straight_through(x, signs(x), x.detach().abs() <= 1)

    def extra_repr(self) -> str:
        return f"input_scale={self.input_scale}"


class XnorWeight(BinaryWeight):
    """Binary weights ``alpha sign(w)`` by :func:`~bitbranch.quantizers.bwn.binary`, with the paper's gradient.

    The gradient of a weight ``w`` of a filter of ``n`` weights is that of its binary weight times ``1 / n + alpha
    [|w| <= 1]``: the first part goes through ``alpha = mean |w|``, simplified as published, the second through the
    sign. Beside a straight-through gradient it is smaller by about ``alpha``; learning rates are larger in proportion.

    Source: Rastegari et al., ECCV 2016, equations (4), (6) and the gradient of section 3.1.
    """

    def quantize(self, weight: Tensor) -> Tensor:
        t, alpha = self.integers(weight)
        scale = per_output(alpha, weight)
        slope = 1 / weight[0].numel() + scale * (weight.detach().abs() <= 1)
        return straight_through(weight, t * scale, slope)

    def trap(self, weight: Tensor) -> str:
        slow = bool((weight.detach().abs() > 1).any())
        return "latent weights beyond -1..1 hardly have a gradient; scale them down first" if slow else ""
