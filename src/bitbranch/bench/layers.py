"""Programs of a single layer, for benchmarks and for tuning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..contract import CodeType
from ..runtime import program as p


@dataclass(frozen=True)
class Layer:
    """A convolution with padding of half its kernel, and the types of its weights and activations."""

    channels: int
    size: int
    outputs: int
    kernel: int
    stride: int
    weights: str
    activations: str
    groups: int = 1

    def __str__(self) -> str:
        kind = "dw" if self.groups > 1 else ""
        window = f"{self.kernel}x{self.kernel}{kind}" + (f"/{self.stride}" if self.stride > 1 else "")
        shape = f"{self.size:2}x{self.size:<2} {self.channels:3} -> {self.outputs:<3}"
        return f"{shape} {window:7} {self.weights:>2} x {self.activations}"


def layer_program(layer: Layer) -> p.Program:
    """The layer with thresholds, and a last convolution of one pixel and one output, next to nothing."""
    rng = np.random.default_rng(0)
    codes, weights = CodeType.parse(layer.activations), CodeType.parse(layer.weights)
    count = codes.count - 1
    shape = (layer.channels, layer.size, layer.size)
    thresholds = ((np.arange(count) - (count - 1) / 2) * 4 / count).astype(np.float32)
    per_group = layer.channels // layer.groups
    weight = rng.integers(0, weights.count, (layer.outputs, per_group, layer.kernel, layer.kernel), dtype=np.uint8)
    padding = (layer.kernel // 2,) * 4 if layer.kernel < layer.size else (0,) * 4
    conv = p.Conv("conv", (0,), weight, weights, (layer.stride,) * 2, padding, groups=layer.groups)
    sums = conv.infer(p.Codes(shape, codes))
    limits = np.linspace(sums.lo / 8, sums.hi / 8, count).astype(np.int32)
    last = np.zeros((1, layer.outputs, 1, 1), np.uint8)
    one = np.ones(1, np.float32)
    operations = (
        p.Encode("input", (), shape, codes, thresholds),
        conv,
        p.Threshold("codes", (1,), codes, np.tile(limits, (layer.outputs, 1))),
        p.Conv("last", (2,), last, CodeType.parse("t"), stride=sums.shape[1:]),
        p.Scale("output", (3,), one, one),
    )
    return p.Program(operations, ((1,),))


def layer_images(layer: Layer, batch: int = 1) -> npt.NDArray[np.float32]:
    """Random images for the layer, ``[batch, C, H, W]``."""
    shape = (batch, layer.channels, layer.size, layer.size)
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)
