"""Quantized layers as multi-branch binary networks: the same integers from M x K convolutions on {-1, +1}.

(The file is not called ``decompose.py``, because a submodule of that name would hide the function
``bitbranch.decompose``.)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from .contract import CodeType, branch_weights, branches
from .errors import InputError
from .layers import QuantizedLayer, accumulator_dtype, channel_shape, plain_layer, replace_modules, rescale


class MultiBranch(nn.Module):
    """One quantized layer as binary layers: weight branch ``m`` meets input branch ``k`` in ``binary[m][k]``.

    With ``w = sum_m a_m c_m + a`` and ``x = sum_k b_k d_k + b`` (:func:`~bitbranch.contract.branch_weights`) the
    accumulator is ``sum_m sum_k a_m b_k <c_m, d_k> + b <w, 1> + a <1, x - b>``. Bipolar and ternary codes have no
    constant ``a`` or ``b``; unsigned and signed ones do. Zero padding is exact for every kind, because a padded element
    is 0 in every branch, and in the ones and in ``x - b`` too.

    Attributes:
        binary: M lists of K torch layers without bias; the weights of each are a branch of {-1, +1}, and the layers
            of one list share them.
        weight_sums: the layer that gives ``<w, 1>``, the sums of the weights over what is not padding; or None.
        input_sums: the layer of ones that gives ``<1, x - b>``; or None.
        input_quantizer: gives the values that the inputs' branches come from.
        scale: ``[O]``, real of accumulator 1, without the inputs' scale.
        bias: ``[O]`` or None.

    Source: Sun et al., arXiv 2106.09886, the multi-branch decomposition; the constants extend it to other codes.
    """

    scale: Tensor
    weight_sums: nn.Module | None
    input_sums: nn.Module | None

    def __init__(self, layer: QuantizedLayer) -> None:
        super().__init__()
        if layer.input_quantizer is None:
            raise InputError("its inputs are float")
        if layer.obstacle:
            raise InputError(layer.obstacle)
        values, scale, weight_type = layer.integer_weight()
        input_type = layer.input_quantizer.code_type
        self.input_quantizer = copy.deepcopy(layer.input_quantizer)
        self.weight_coefficients, self.weight_constant = branch_weights(weight_type)
        self.input_coefficients, self.input_constant = branch_weights(input_type)
        self.binary = nn.ModuleList()
        for branch in value_branches(values, weight_type):
            one = plain_layer(layer, layer.native_order(branch))
            self.binary.append(nn.ModuleList([one, *(copy.copy(one) for _ in self.input_coefficients[1:])]))
        weight = layer.native_order(values).double()  # the constants are halves, so float64
        self.weight_sums = plain_layer(layer, weight) if self.input_constant else None
        self.input_sums = plain_layer(layer, torch.ones_like(weight)) if self.weight_constant else None
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
        self.register_buffer("scale", scale)
        self.shape = channel_shape(layer)
        self.dtype = accumulator_dtype(values, input_type, values)
        self.training = layer.training

    def accumulator(self, x: Tensor, *size: Sequence[int]) -> Tensor:
        """The integer accumulators of a batch of reals: those of the quantized layer, exactly.

        ``size`` is that which a transposed convolution's output is to reach, if any.
        """
        with torch.autocast(x.device.type, enabled=False):
            return self._accumulator(self.input_quantizer.values(x), *size)

    def _accumulator(self, inputs: Tensor, *size: Sequence[int]) -> Tensor:
        input_branches = value_branches(inputs, self.input_quantizer.code_type)
        # Coefficients may be quarters, and single terms exceed their sum: float64 holds them all.
        total = torch.zeros((), dtype=torch.float64, device=inputs.device)
        for a_m, row in zip(self.weight_coefficients, self.binary, strict=True):
            assert isinstance(row, nn.ModuleList)
            for b_k, branch, binary in zip(self.input_coefficients, input_branches, row, strict=True):
                total = total + binary(branch, *size).double() * float(a_m * b_k)
        a, b = float(self.weight_constant), float(self.input_constant)
        if self.weight_sums is not None:
            total = total + b * self.weight_sums(torch.ones_like(inputs).double(), *size)
        if self.input_sums is not None:
            total = total + a * self.input_sums(inputs.double() - b, *size)
        return total.to(torch.float64 if self.dtype == torch.float64 else inputs.dtype)

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        x, size = input, () if output_size is None else (output_size,)
        dtype = torch.promote_types(x.dtype, torch.float32)
        scale = self.scale.to(dtype) * self.input_quantizer.scale()
        bias = None if self.bias is None else self.bias.to(dtype)
        return rescale(self.accumulator(x, *size).to(dtype), scale, bias, self.shape).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{len(self.weight_coefficients)} x {len(self.input_coefficients)} branches"


def value_branches(values: Tensor, code_type: CodeType) -> list[Tensor]:
    """Branches {-1, +1} of integer values, any shape, least significant first, in the dtype of ``values``."""
    codes = code_type.encode(values.detach().cpu().numpy().astype(np.int64))
    return list(torch.from_numpy(branches(codes, code_type)).to(values))


def decompose(network: nn.Module) -> nn.Module:
    """A copy of a quantized network, in evaluation mode, whose quantized layers are :class:`MultiBranch` modules.

    It computes the same: integer accumulators are equal, and so is every output, bit for bit. Layers with float
    weights or inputs stay as they are.

    Raises:
        InputError: the network has no quantized layer, or none that has seen data; levels that have no such form, as
            TTQ's; weights beyond their type, as 128 of INQ with 5 bits. A layer without data beside others stays as it
            is: evaluation does not call it.
    """
    network = copy.deepcopy(network).eval()
    new: dict[nn.Module, nn.Module] = {}
    unready = None
    for name, layer in network.named_modules():
        if not isinstance(layer, QuantizedLayer) or layer.input_quantizer is None or layer.weight_quantizer is None:
            continue
        try:
            new[layer] = MultiBranch(layer)
        except InputError as error:
            named = InputError(f"layer {name!r}: {error}")
            if layer.input_quantizer.ready:
                raise named from None
            unready = unready or named
    if unready and not new:
        raise unready
    if not new:
        raise InputError(f"{type(network).__name__} has no layer with quantized weights and inputs to decompose")
    return replace_modules(network, new)
