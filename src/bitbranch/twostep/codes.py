"""Step 1 of two-step quantization: learn the activation codes, with weights still float.

Source: Wang et al., Two-Step Quantization for Low-bit Neural Networks, CVPR 2018, section 3.1.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from .. import processes
from ..chains import Graph, scale_inputs
from ..errors import InputError
from ..layers import QuantizedLayer
from ..quantizers.base import per_output
from ..training.loop import Batches, Epoch, fit, to_stderr
from .histogram import SPARSE, Histogram, equalize

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
    affine: bool = False,
    seed: int | None = None,
    on_sparsity: Callable[[dict[str, float]], None] | None = None,
    progress: Callable[[str], None] | None = to_stderr,
) -> nn.Module:
    """Train a copy of a quantized network with low-bit activations and float weights: the network of step 1.

    Weights of 8 bits (first and last layers) stay quantized. BatchNorms that feed sparse codes lose their affine part,
    see :func:`strip_affine`, or keep and learn it. The network may be trained before or fresh.

    Args:
        q: a network from ``quantize()``; not changed.
        loader: batches of images and labels.
        epochs: passes over them.
        lr: peak learning rate, under a cosine schedule.
        optimizer: ``"adam"`` or ``"sgd"``.
        weight_decay: of the weights.
        teacher: a float network to distil from as well.
        affine: keep the affine part. Then each channel has an ``eps`` and a ``D`` of its own: those of the common codes
            over what the BatchNorm multiplies by, at the start the best for its mean and deviation, and learned from
            there.
        seed: makes the training repeatable.
        on_sparsity: takes, after each epoch, the share of codes 0 that each layer's input had in it, 0..1.
        progress: takes two lines per epoch, the second with these shares; None is silent.

    Returns:
        The step-1 network, in evaluation mode: the teacher of :func:`learn_transforms`.

    Raises:
        InputError: no layer has low-bit weights, or ``forward`` cannot be traced.
    """
    net = codes_network(q, progress, affine=affine)
    sparsity = Sparsity(net)

    def measured(epoch: Epoch) -> None:
        shares = sparsity.take()
        if progress is not None and shares:
            progress(f"codes: {sparsity.text(shares)}")
        if on_sparsity is not None:
            on_sparsity(shares)

    with sparsity:
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
            on_epoch=measured,
        )
    return net


def codes_network(q: nn.Module, progress: Callable[[str], None] | None = None, *, affine: bool = False) -> nn.Module:
    """A copy of a quantized network as step 1 trains it: low-bit weights float; arguments as for :func:`learn_codes`.

    Raises:
        InputError: no layer has low-bit weights, or ``forward`` cannot be traced.
    """
    net = copy.deepcopy(q)
    layers = [m for m in net.modules() if isinstance(m, QuantizedLayer) and has_low_bit_weight(m)]
    if not layers:
        raise InputError(f"two-step quantization: {type(q).__name__} has no layer with low-bit weights")
    for layer in layers:
        layer.weight_quantizer = None
    if affine:
        equalize(net, lambda norm, _: Histogram.normal(norm.bias, norm.weight.abs()))
    elif (lossy := strip_affine(net)) and progress is not None:
        progress(f"codes: the scale of {', '.join(lossy)} is dropped, as no layer next to it could take it over")
    return net


class Sparsity:
    """Measures, while a network trains, which share of each layer's input codes is 0; a context manager.

    Layers whose inputs are float are left out.
    """

    def __init__(self, network: nn.Module) -> None:
        self.layers = {
            name: layer
            for name, layer in network.named_modules()
            if isinstance(layer, QuantizedLayer) and isinstance(layer.input_quantizer, SPARSE)
        }
        self.zeros = dict.fromkeys(self.layers, 0)
        self.seen = dict.fromkeys(self.layers, 0)
        self.hooks: list[RemovableHandle] = []

    def __enter__(self) -> Sparsity:
        def count(name: str, module: nn.Module, _: object, codes: Tensor) -> None:
            self.zeros[name] += codes.numel() - int(torch.count_nonzero(codes))
            self.seen[name] += codes.numel()

        for name, layer in self.layers.items():
            assert layer.input_quantizer is not None
            self.hooks.append(layer.input_quantizer.register_forward_hook(partial(count, name)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def take(self) -> dict[str, float]:
        """Shares, 0..1, by the layers' names, since the last call; of all processes' images."""
        zeros, seen = self.counts().values()
        self.zeros, self.seen = dict.fromkeys(self.layers, 0), dict.fromkeys(self.layers, 0)
        return {name: zeros[name] / count for name, count in seen.items() if count}

    def counts(self) -> dict[str, dict[str, int]]:
        """``zeros`` and codes ``seen`` by the layers' names, since the last :meth:`take`; of all processes' images."""
        if not self.layers:
            return {"zeros": {}, "seen": {}}
        device = next(iter(self.layers.values())).weight.device
        own = torch.tensor([list(self.zeros.values()), list(self.seen.values())], dtype=torch.int64, device=device)
        zeros, seen = processes.total(own).tolist()
        return {"zeros": dict(zip(self.layers, zeros, strict=True)), "seen": dict(zip(self.layers, seen, strict=True))}

    @staticmethod
    def text(shares: Mapping[str, float]) -> str:
        """What :meth:`take` gave, for people."""
        return "zeros " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items())


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
        if batchnorm.weight is None or not any(isinstance(r.input_quantizer, SPARSE) for r in behind):
            continue
        gamma = batchnorm.weight.detach().clone()
        kept = not (gamma < 0).any() or _flip_outputs(graph, node, gamma < 0)
        if not obstacles and all(r.lo in (0, -math.inf) and r.hi == math.inf and not r.joined for r in readers):
            for layer in behind:
                scale_inputs(layer, gamma.abs())
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
