"""One convolution layer: the native engine against the same layer in PyTorch float32, one thread.

The layer runs in both within one process, turn by turn, so that both see the same machine. Two times of the engine are
printed: of the convolution step, which reads packed codes and writes the packed codes of the next layer, thresholds
included, as it does inside a network; and of the whole call from float32 to float32, which for one layer alone also
pays for encoding and packing the input. PyTorch's time is of ``conv2d`` alone, the faster of its two memory formats.

    python benchmarks/conv_layer.py [--isa avx2] [--rounds 60]
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bitbranch.contract import CodeType
from bitbranch.runtime import program as p
from bitbranch.runtime.engine import Engine


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

    def __str__(self) -> str:
        window = f"{self.kernel}x{self.kernel}" + (f"/{self.stride}" if self.stride > 1 else "")
        shape = f"{self.size:2}x{self.size:<2} {self.channels:3} -> {self.outputs:<3}"
        return f"{shape} {window:5} {self.weights:>2} x {self.activations}"


LAYERS = [
    Layer(64, 56, 64, 3, 1, "t", "u2"),
    Layer(64, 56, 64, 3, 1, "b1", "b1"),
    Layer(64, 56, 64, 3, 1, "b2", "b2"),
    Layer(64, 56, 64, 3, 1, "t", "u4"),
    Layer(64, 56, 64, 3, 1, "s4", "u4"),
    Layer(64, 56, 64, 3, 1, "s8", "u8"),
    Layer(128, 28, 128, 3, 1, "t", "u2"),
    Layer(256, 14, 256, 3, 1, "t", "u2"),
    Layer(512, 7, 512, 3, 1, "t", "u2"),
    Layer(64, 56, 128, 3, 2, "t", "u2"),
    Layer(256, 56, 64, 1, 1, "t", "u2"),
]


def layer_program(layer: Layer) -> p.Program:
    """The layer with thresholds, and a last convolution of one pixel and one output, next to nothing."""
    rng = np.random.default_rng(0)
    codes, weights = CodeType.parse(layer.activations), CodeType.parse(layer.weights)
    count = codes.count - 1
    shape = (layer.channels, layer.size, layer.size)
    thresholds = ((np.arange(count) - (count - 1) / 2) * 4 / count).astype(np.float32)
    weight = rng.integers(0, weights.count, (layer.outputs, layer.channels, layer.kernel, layer.kernel), dtype=np.uint8)
    conv = p.Conv("conv", (0,), weight, weights, (layer.stride,) * 2, (layer.kernel // 2,) * 4)
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


def spread(seconds: list[float]) -> str:
    """Median, and the tenth and ninetieth percentile, in microseconds."""
    low, middle, high = np.percentile(np.asarray(seconds) * 1e6, [10, 50, 90])
    return f"{middle:7.0f} ({low:.0f}..{high:.0f})"


def measure(layer: Layer, isa: str | None, rounds: int) -> str:
    """One line of the table."""
    program = layer_program(layer)
    engine = Engine(program, threads=1, isa=isa)
    x = np.random.default_rng(1).normal(size=(1, *program.input.shape)).astype(np.float32)
    np.testing.assert_array_equal(engine(x), program.reference(x))

    weight = torch.randn(layer.outputs, layer.channels, layer.kernel, layer.kernel)
    formats = (torch.contiguous_format, torch.channels_last)
    floats = [(torch.from_numpy(x).to(memory_format=f), weight.to(memory_format=f)) for f in formats]
    torch_times: list[list[float]] = [[], []]
    step, call = [], []
    for _ in range(rounds):
        for times, (image, kernel) in zip(torch_times, floats, strict=True):
            start = time.perf_counter()
            torch.nn.functional.conv2d(image, kernel, stride=layer.stride, padding=layer.kernel // 2)
            times.append(time.perf_counter() - start)
        profile = engine.profile(x, repeat=1)
        step.append(max(profile.rows, key=lambda row: row.macs).seconds)
        call.append(profile.seconds)
    best = min(torch_times, key=np.median)
    macs = max(op.macs(*(program.values[j] for j in op.inputs)) for op in program.operations)
    ratio, whole = np.median(best) / np.median(step), np.median(best) / np.median(call)
    return (
        f"{layer!s:34} {spread(best):22} {spread(step):20} {macs / np.median(step) / 1e9:5.0f} {ratio:6.1f}x"
        f"   {spread(call):22} {whole:5.1f}x"
    )


def machine() -> str:
    """Processor, load and versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return (
        f"{model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; Python {platform.python_version()}, "
        f"NumPy {np.__version__}, PyTorch {torch.__version__}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--isa", help="instruction set to force; default: the widest")
    parser.add_argument("--rounds", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    print(f"one thread, instruction set {Engine(layer_program(LAYERS[0]), isa=arguments.isa).isa}; ", end="")
    print(f"medians (10th..90th percentile) of {arguments.rounds} rounds, microseconds; outputs equal the reference's")
    print(f"{'layer':34} {'PyTorch float32':22} {'engine, step':20} GMAC/s  ratio   {'engine, whole call':22} ratio")
    with torch.inference_mode():
        for layer in LAYERS:
            print(measure(layer, arguments.isa, arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
