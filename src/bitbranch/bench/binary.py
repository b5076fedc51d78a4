"""OpenVINO's own 1-bit convolutions: the peer of networks with 1-bit weights and activations."""

from __future__ import annotations

from typing import Any

import numpy as np


def binarize(model: Any) -> Any:
    """An OpenVINO model with every ungrouped convolution but the first replaced by a ``BinaryConvolution``.

    A convolution becomes FakeQuantize of two levels (the signs of its input), BinaryConvolution with the signs of its
    weights, and a multiplication by the mean magnitude of each output's weights, as in XNOR-Net (Rastegari et al.,
    arXiv 1603.05279, eq. 6). A ReLU before it is skipped, since it does not change where the input is above 0. The
    model is changed in place, and returned.
    """
    from openvino import opset8 as ops

    convolutions = [op for op in model.get_ordered_ops() if op.get_type_name() == "Convolution"]
    for op in convolutions[1:]:
        weights = _constant(op.input_value(1).get_node())
        if weights is None:
            continue
        source = op.input_value(0)
        if source.get_node().get_type_name() == "Relu":
            source = source.get_node().input_value(0)
        sums = convolution(
            source, weights, op.get_strides(), op.get_pads_begin(), op.get_pads_end(), op.get_dilations()
        )
        scale = np.abs(weights).mean(axis=(1, 2, 3), dtype=np.float32).reshape(1, -1, 1, 1)
        op.output(0).replace(ops.multiply(sums, ops.constant(scale)).output(0))
    model.validate_nodes_and_infer_types()
    return model


def convolution(
    source: Any, weights: np.ndarray[Any, Any], strides: Any, begin: Any, end: Any, dilations: Any = (1, 1)
) -> Any:
    """The signs of an input convolved with the signs of weights ``[O, I, kh, kw]``, as OpenVINO nodes."""
    import openvino as ov
    from openvino import opset1 as ops

    zeros = ops.constant(np.zeros((1, weights.shape[1], 1, 1), np.float32))
    low, high = (ops.constant(np.full((1, 1, 1, 1), v, np.float32)) for v in (-1, 1))
    signs = ops.fake_quantize(source, zeros, zeros, low, high, 2)
    packed = np.packbits(weights > 0)
    filters = ov.op.Constant(ov.Tensor(packed, ov.Shape(list(weights.shape)), ov.Type.u1))
    return ops.binary_convolution(
        signs, filters, list(strides), list(begin), list(end), list(dilations), "xnor-popcount", 0.0
    )


def _constant(node: Any) -> np.ndarray[Any, Any] | None:
    """The numbers of a constant, looked for behind conversions; ``None`` where there is none."""
    while node.get_type_name() in ("Convert", "FakeQuantize"):
        node = node.input_value(0).get_node()
    return node.get_data() if node.get_type_name() == "Constant" else None
