"""Post-training quantization of ncnn's files to 8 bits.

ncnn's wheel has no tools for it, so this writes what they write: convolutions and linear layers with int8 weights, one
scale per output, one scale for each layer's input, and requantization between convolutions that follow each other.
Scales map the largest magnitude to 127, of the weights and of the inputs on calibration images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
MAGIC = "7767517"
INT8_TAG, FLOAT_TAG = 0x000D4B38, 0
"""Before a layer's weights: what they are."""
LARGEST = 127
INT8_TERM = 8
"""Parameter that says which scales follow the weights: 1, or 101 with one for the output."""
OUTPUTS, BIAS, WEIGHTS, GROUPS = 0, 1, 2, 3
PARAMETERS = {
    "Convolution": (0, 5, 6, None),
    "ConvolutionDepthWise": (0, 5, 6, 7),
    "InnerProduct": (0, 1, 2, None),
}
"""Numbers of a layer type's parameters: outputs, whether it has a bias, size of the weights, groups."""
PLAIN = {
    "BinaryOp", "Clip", "Concat", "Crop", "Flatten", "HardSigmoid", "HardSwish", "Input", "Interp", "Noop", "Padding",
    "Permute", "Pooling", "ReLU", "ReLU6", "Reduction", "Reshape", "Sigmoid", "Softmax", "Split", "Swish", "UnaryOp",
}  # fmt: skip
"""Layer types without weights."""


@dataclass
class Layer:
    """A line of a ``.param`` file, with the layer's numbers from the ``.bin`` file."""

    kind: str
    name: str
    bottoms: list[str]
    tops: list[str]
    parameters: dict[int, str]
    weight: Floats | None = None
    bias: Floats | None = None

    def number(self, which: int) -> int:
        """One of the parameters that :data:`PARAMETERS` lists."""
        key = PARAMETERS[self.kind][which]
        return int(self.parameters.get(key, 0)) if key is not None else 0

    def line(self) -> str:
        """As it stands in a ``.param`` file."""
        words = [self.kind, self.name, str(len(self.bottoms)), str(len(self.tops)), *self.bottoms, *self.tops]
        return " ".join(words + [f"{key}={value}" for key, value in self.parameters.items()])


def read(param: Path) -> list[Layer]:
    """The layers of a ``.param`` file and the ``.bin`` file beside it, which holds float32.

    Raises:
        ValueError: not such files, or a layer type whose weights are not known.
    """
    lines = param.read_text().splitlines()
    if not lines or lines[0].strip() != MAGIC:
        raise ValueError(f"{param}: not a .param file")
    data, at = param.with_suffix(".bin").read_bytes(), 0

    def take(count: int) -> Floats:
        nonlocal at
        if at + 4 * count > len(data):
            raise ValueError(f"{param.with_suffix('.bin')}: ends early")
        at += 4 * count
        return np.frombuffer(data, "<f4", count, at - 4 * count)

    layers = []
    for line in lines[2:]:
        kind, name, bottoms, tops, *rest = line.split()
        split = int(bottoms) + int(tops)
        blobs = rest[:split]
        parameters = {int(k): v for k, v in (word.split("=", 1) for word in rest[split:])}
        layer = Layer(kind, name, blobs[: int(bottoms)], blobs[int(bottoms) :], parameters)
        if kind in PARAMETERS:
            tag = int(take(1).view("<u4")[0])
            if tag != FLOAT_TAG:
                raise ValueError(f"{param}: the weights of {name} are not float32")
            layer.weight = take(layer.number(WEIGHTS))
            if layer.number(BIAS):
                layer.bias = take(layer.number(OUTPUTS))
        elif kind not in PLAIN:
            raise ValueError(f"{param}: layer type {kind} is not known here")
        layers.append(layer)
    if at != len(data):
        raise ValueError(f"{param.with_suffix('.bin')}: {len(data) - at} bytes are left")
    return layers


def write(layers: list[Layer], scales: dict[str, float], param: Path) -> None:
    """Write ``.param`` and ``.bin`` with 8-bit weights for the layers that have an input scale.

    Args:
        layers: see :func:`read`.
        scales: of inputs, by layer name: the integer that stands for 1.
        param: the ``.param`` file to write.
    """
    parts: list[bytes] = []
    lines = []
    for layer in layers:
        if layer.weight is None:
            lines.append(layer.line())
            continue
        bias = b"" if layer.bias is None else layer.bias.tobytes()
        if layer.name not in scales:
            parts += [np.uint32(FLOAT_TAG).tobytes(), layer.weight.tobytes(), bias]
            lines.append(layer.line())
            continue
        rows = layer.weight.reshape(layer.number(GROUPS) or layer.number(OUTPUTS), -1)
        magnitude = np.abs(rows).max(axis=1)
        weight_scale = np.where(magnitude > 0, LARGEST / np.maximum(magnitude, 1e-30), 1).astype("<f4")
        integers = np.clip(np.rint(rows * weight_scale[:, None]), -LARGEST, LARGEST).astype(np.int8)
        packed = integers.tobytes()
        ends = [scales[layer.name]]
        following = _following(layers, layer)
        requantized = layer.kind != "InnerProduct" and bool(following) and all(
            after.kind in ("Convolution", "ConvolutionDepthWise") and after.name in scales for after in following
        )  # fmt: skip
        if requantized:
            ends.append(scales[following[0].name])
        layer.parameters[INT8_TERM] = "101" if requantized else "1"
        parts += [np.uint32(INT8_TAG).tobytes(), packed, bytes(-len(packed) % 4), bias, weight_scale.tobytes()]
        parts.append(np.asarray(ends, "<f4").tobytes())
        lines.append(layer.line())
    blobs = {blob for layer in layers for blob in layer.tops}
    param.write_text("\n".join([MAGIC, f"{len(layers)} {len(blobs)}", *lines]) + "\n")
    param.with_suffix(".bin").write_bytes(b"".join(parts))


def _following(layers: list[Layer], layer: Layer) -> list[Layer]:
    """The layers that read a layer's output, through splits."""
    found = []
    for other in layers:
        if set(other.bottoms) & set(layer.tops):
            found += _following(layers, other) if other.kind == "Split" else [other]
    return found


def quantize(model: Path, images: Floats, out: Path) -> None:
    """Quantize a float model.

    Args:
        model: its ``.param`` file, with the ``.bin`` file beside it.
        images: calibration images ``[N, C, H, W]``.
        out: the ``.param`` file to write; ``.bin`` beside it.

    Raises:
        ValueError: a model that cannot be read; see :func:`read`.
    """
    layers = read(model)
    readers = [layer for layer in layers if layer.weight is not None]
    largest = _magnitudes(model, sorted({layer.bottoms[0] for layer in readers}), images)
    scales = {layer.name: LARGEST / max(largest[layer.bottoms[0]], 1e-30) for layer in readers}
    write(layers, scales, out)


def _magnitudes(model: Path, blobs: list[str], images: Floats) -> dict[str, float]:
    """The largest magnitude of each blob over all images."""
    import ncnn

    net = ncnn.Net()
    net.opt.lightmode = False  # keeps what is between the layers
    net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = net.opt.use_fp16_packed = False
    net.load_param(str(model))
    net.load_model(str(model.with_suffix(".bin")))
    result = dict.fromkeys(blobs, 0.0)
    for image in images:
        with net.create_extractor() as extractor:
            extractor.input(net.input_names()[0], ncnn.Mat(np.ascontiguousarray(image)))
            for blob in blobs:
                _, value = extractor.extract(blob)
                result[blob] = max(result[blob], float(np.abs(np.array(value)).max()))
    return result
