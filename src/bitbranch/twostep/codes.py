"""Step 1 of two-step quantization: learn the activation codes, with weights still float.

Source: Wang et al., Two-Step Quantization for Low-bit Neural Networks, CVPR 2018, section 3.1.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import InputError
from ..layers import QuantizedLayer
from ..quantizers.base import per_output
from ..quantizers.tsq import SparseActivation
from ..training.loop import Batches, fit, to_stderr
from .chains import Graph

LOW_BITS = 7
"""Weights of at most so many bits are left float by step 1 and solved by step 2; 8-bit ones are as good as float."""


def has_low_bit_weight(layer: nn.Module) -> bool:
    """Whether a layer's weights are for step 2 to find."""
    return (
        isinstance(layer, QuantizedLayer)
        and layer.weight_quantizer is not None
        and layer.weight_quantizer.code_type.bits <= LOW_BITS
    )


def learn_codes(
    q: nn.Module,
    loader: Batches,
    *,
    epochs: int,
    lr: float = 1e-3,
    optimizer: str = "adam",
    weight_decay: float = 0.0,
    teacher: nn.Module | None = None,
    seed: int | None = None,
    progress: Callable[[str], None] | None = to_stderr,
) -> nn.Module:
    """Train a copy of a quantized network with low-bit activations and float weights: the network of step 1.

    Weights of 8 bits (first and last layers) stay quantized. BatchNorms that feed sparse codes lose their affine part,
    see :func:`strip_affine`.

    Args:
        q: a network from ``quantize()``; not changed.
        loader: batches of images and labels.
        epochs: passes over them.
        lr: peak learning rate, under a cosine schedule.
        optimizer: ``"adam"`` or ``"sgd"``.
        weight_decay: of the weights.
        teacher: a float network to distil from as well.
        seed: makes the training repeatable.
        progress: takes one line per epoch; None is silent.

    Returns:
        The step-1 network, in evaluation mode: the teacher of :func:`learn_transforms`.

    Raises:
        InputError: no layer has low-bit weights, or ``forward`` cannot be traced.
    """
    net = codes_network(q, progress)
    fit(
        net,
        loader,
        epochs=epochs,
        lr=lr,
        optimizer=optimizer,
        weight_decay=weight_decay,
        teacher=teacher,
        seed=seed,
        progress=progress,
        label="codes",
    )
    return net


def codes_network(q: nn.Module, progress: Callable[[str], None] | None = None) -> nn.Module:
    """A copy of a quantized network as step 1 trains it: low-bit weights float, see :func:`strip_affine`.

    Raises:
        InputError: no layer has low-bit weights, or ``forward`` cannot be traced.
    """
    net = copy.deepcopy(q)
    layers = [m for m in net.modules() if isinstance(m, QuantizedLayer) and has_low_bit_weight(m)]
    if not layers:
        raise InputError(f"two-step quantization: {type(q).__name__} has no layer with low-bit weights")
    for layer in layers:
        layer.weight_quantizer = None
    lossy = strip_affine(net)
    if progress is not None and lossy:
        progress(f"codes: the scale of {', '.join(lossy)} is dropped, as no layer next to it could take it over")
    return net


@torch.no_grad()
def strip_affine(model: nn.Module) -> list[str]:
    """Fix weight 1 and bias 0 in every BatchNorm that feeds sparse codes, so that one ``(eps, D)`` serves all.

    The function is kept as far as a network without affine parts can: ``relu(gamma n + beta)`` becomes ``|gamma|
    relu(sign(gamma) n)``; the sign goes into the output channels of the layer in front, ``|gamma|`` into the input
    channels of the layers behind. The shift ``beta`` is lost and left to training, as is a sign or a size that has no
    layer to go to.

    Args:
        model: a network with quantized layers, changed in place; the parameters stay, without gradient.

    Returns:
        Names of the BatchNorms whose ``gamma`` was lost, because not only such layers are around them, or because the
        layers behind read other channels beside.

    Raises:
        InputError: ``forward`` cannot be traced.
    """
    graph = Graph(model)
    lossy: list[str] = []
    for node in graph.calls(_BatchNorm):
        batchnorm = graph.module(node)
        assert isinstance(batchnorm, _BatchNorm)
        readers, obstacles = graph.readers(node)
        behind = [layer for r in readers if isinstance(layer := graph.modules[r.layer], QuantizedLayer)]
        if batchnorm.weight is None or not any(isinstance(r.input_quantizer, SparseActivation) for r in behind):
            continue
        gamma = batchnorm.weight.detach().clone()
        kept = not (gamma < 0).any() or _flip_outputs(graph, node, gamma < 0)
        if not obstacles and all(r.lo in (0, -math.inf) and r.hi == math.inf and not r.joined for r in readers):
            for layer in behind:
                _scale_inputs(layer, gamma.abs())
        else:
            kept = False
        if not kept:
            lossy.append(str(node.target))
        batchnorm.weight.fill_(1).requires_grad_(False)
        batchnorm.bias.zero_().requires_grad_(False)
    return lossy


def _flip_outputs(graph: Graph, batchnorm: fx.Node, negative: Tensor) -> bool:
    """Negate output channels of the layer in front of a BatchNorm, if there is one that feeds nothing else."""
    (source,) = batchnorm.all_input_nodes
    layer, norm = graph.module(source), graph.module(batchnorm)
    if not isinstance(layer, QuantizedLayer) or len(graph.users(source)) != 1:
        return False
    assert isinstance(norm, _BatchNorm)
    sign = torch.where(negative, -1.0, 1.0)
    weight = layer.outputs_first(layer.weight)
    layer.weight.copy_(layer.native_order(weight * per_output(sign, weight)))
    if layer.bias is not None:
        layer.bias *= sign
    if norm.running_mean is not None:
        norm.running_mean *= sign
    return True


def _scale_inputs(layer: QuantizedLayer, scale: Tensor) -> None:
    """Multiply the weights that read each channel by its scale; flattened positions of a channel lie together."""
    groups = getattr(layer, "groups", 1)
    weight = layer.outputs_first(layer.weight).unflatten(0, (groups, -1))
    per_input = scale.repeat_interleave(groups * weight.shape[2] // len(scale))
    per_input = per_input.view(groups, 1, -1, *[1] * (weight.dim() - 3))
    layer.weight.copy_(layer.native_order((weight * per_input).flatten(0, 1)))
