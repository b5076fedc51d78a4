"""Trainings in stages: INQ's partitions, and bits that become fewer step by step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from ..errors import InputError
from ..layers import QuantizedLayer
from ..quantizers.inq import PowerOfTwoWeight
from ..quantizers.registry import Method, Scheme, parse_scheme
from ..swap import quantize
from .loop import project

PORTIONS = (0.5, 0.75, 0.875, 1.0)
"""INQ's shares of fixed weights for AlexNet-like networks of 5 bits."""


@torch.no_grad()
def fix_weights(network: nn.Module, portion: float) -> None:
    """Fix this share of the weights of every INQ layer, the largest first, in place; what is fixed already stays.

    Args:
        network: from ``quantize(.., "inq:wM-aK")``.
        portion: 0..1.

    Raises:
        InputError: no layer has INQ weights, or a portion out of range.

    Source: Zhou et al., "Incremental Network Quantization", ICLR 2017, section 2.2.
    """
    layers = list(_incremental_layers(network))
    if not layers:
        raise InputError(f"INQ: {type(network).__name__} has no layer with INQ weights; quantize it by inq:wM-aK first")
    for layer, weights in layers:
        weights.fix(layer.outputs_first(layer.weight), portion)
    project(network)


def _incremental_layers(network: nn.Module) -> Iterator[tuple[QuantizedLayer, PowerOfTwoWeight]]:
    for layer in network.modules():
        if isinstance(layer, QuantizedLayer) and isinstance(layer.weight_quantizer, PowerOfTwoWeight):
            yield layer, layer.weight_quantizer


def incremental(
    network: nn.Module, train: Callable[[nn.Module, float], object], *, portions: Sequence[float] = PORTIONS
) -> None:
    """INQ: fix a share of the weights, train the rest, and again, until all are fixed; in place.

    Args:
        network: trained in float, then ``quantize(.., "inq:wM-aK")``: the exponents are those of the trained weights.
        train: called with the network and the share after each fixing but the last one; such as
            ``lambda network, _: fit(network, batches, epochs=4, lr=1e-3)``.
        portions: shares of fixed weights, rising, the last one 1.

    Raises:
        InputError: no layer has INQ weights, or portions that do not rise to 1.

    Source: Zhou et al., ICLR 2017, algorithm 1.
    """
    rising = all(a < b for a, b in zip([0.0, *portions], portions, strict=False))
    if not portions or not rising or portions[-1] != 1:
        raise InputError(f"INQ: portions must rise above 0 and end with 1, got {list(portions)}")
    for portion in portions:
        fix_weights(network, portion)
        if portion < 1:
            train(network, portion)


def progressive(
    model: nn.Module,
    train: Callable[[nn.Module, int], object],
    *,
    bits: Sequence[int],
    scheme: str = "mbn:w{bits}-a{bits}",
    method: Method | None = None,
    first: str | Scheme | None = "w8a8",
    last: str | Scheme | None = "w8a8",
) -> nn.Module:
    """Quantize to many bits, train, quantize to fewer, train, and so on; every stage starts from the one before.

    Args:
        model: trained in float; not changed.
        train: called with the network of each stage and its bits; such as
            ``lambda network, bits: fit(network, batches, epochs=4, lr=1e-3)``.
        bits: falling, such as ``range(8, 1, -1)``; the last is what remains.
        scheme: with ``{bits}`` in the place of the number.
        method: with options, as for :func:`~bitbranch.quantizers.registry.parse_scheme`.
        first, last: of the first and the last layer, as in :func:`~bitbranch.quantize`; they stay the same through all
            stages, with the ranges that they have learned.

    Returns:
        The network of the last stage, as ``train`` left it.

    Raises:
        InputError: bits that do not fall, or a scheme without ``{bits}`` or that is unknown at one of them.

    Source: Sun et al., arXiv 2106.09886: the quantized route, 8 bits down to ``k``.
    """
    if not bits or any(a <= b for a, b in itertools.pairwise(bits)):
        raise InputError(f"progressive bits: they must fall from stage to stage, got {list(bits)}")
    if "{bits}" not in scheme:
        raise InputError(f"progressive bits: scheme {scheme!r} has no {{bits}}")
    stages = [parse_scheme(scheme.replace("{bits}", str(b)), method) for b in bits]
    network = model
    for b, stage in zip(bits, stages, strict=True):
        network = quantize(network, stage, first=first, last=last)
        first = last = None  # they are there, and stay
        train(network, b)
    return network
