"""One convolution layer: the native engine against the same layer in PyTorch float32, one thread.

The layer runs in both within one process, turn by turn, so that both see the same machine. Two times of the engine are
printed: of the convolution step, which reads packed codes and writes the packed codes of the next layer, thresholds
included, as it does inside a network; and of the whole call from float32 to float32, which for one layer alone also
pays for encoding and packing the input. PyTorch's time is of ``conv2d`` alone, the faster of its two memory formats.

    python benchmarks/conv_layer.py [--isa avx2] [--rounds 60] [--all]
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from bitbranch.bench.layers import Layer, layer_images, layer_program
from bitbranch.bench.stats import Times, summarize
from bitbranch.reporting.machine import describe_machine, describe_versions
from bitbranch.runtime.engine import Engine

SIZES = [(64, 56), (128, 28), (256, 14), (512, 7)]
TYPES = [("t", "u2"), ("b1", "b1"), ("b2", "b2"), ("t", "u4"), ("s4", "u4"), ("s8", "u8")]
LAYERS = [
    *(Layer(64, 56, 64, 3, 1, *types) for types in TYPES),
    *(Layer(channels, size, channels, 3, 1, "t", "u2") for channels, size in SIZES[1:]),
    Layer(64, 56, 128, 3, 2, "t", "u2"),
    Layer(256, 56, 64, 1, 1, "t", "u2"),
    Layer(144, 56, 144, 3, 1, "t", "u2", groups=144),
    Layer(144, 56, 144, 3, 1, "s4", "u4", groups=144),
]
BITS = [("b1", "u1"), ("b2", "u2"), ("b3", "u3"), *((f"s{bits}", f"u{bits}") for bits in range(4, 9))]
ALL = [
    *(Layer(channels, size, channels, 3, 1, *types) for channels, size in SIZES for types in BITS),
    *(Layer(256, 14, 256, 1, 1, *types) for types in BITS),
    *(Layer(144, 28, 144, 3, 1, *types, groups=144) for types in BITS),
]


def spread(times: Times) -> str:
    """Median and quartiles in microseconds."""
    return f"{1e6 * times.median:7.0f} ({1e6 * times.low:.0f}..{1e6 * times.high:.0f})"


def measure(layer: Layer, isa: str | None, rounds: int) -> str:
    """One line of the table."""
    program, x = layer_program(layer), layer_images(layer)
    engine = Engine(program, threads=1, isa=isa)
    np.testing.assert_array_equal(engine(x), program.reference(x))

    weight = torch.randn(layer.outputs, layer.channels // layer.groups, layer.kernel, layer.kernel)
    formats = (torch.contiguous_format, torch.channels_last)
    floats = [(torch.from_numpy(x).to(memory_format=f), weight.to(memory_format=f)) for f in formats]
    torch_times: list[list[list[float]]] = [[], []]
    step, call, ceiling = [], [], None
    for _ in range(rounds):
        for times, (image, kernel) in zip(torch_times, floats, strict=True):
            for _ in range(2):  # the first is not counted, as in a profile
                start = time.perf_counter()
                torch.nn.functional.conv2d(
                    image, kernel, stride=layer.stride, padding=layer.kernel // 2, groups=layer.groups
                )
            times.append([time.perf_counter() - start])
        profile = engine.profile(x, repeat=1)
        row = max(profile.rows, key=lambda row: row.macs)
        ceiling, family = row.ceiling, row.family
        step.append([row.seconds])
        call.append([profile.seconds])
    best = min(map(summarize, torch_times), key=lambda times: times.median)
    inside, whole = summarize(step), summarize(call)
    macs = max(op.macs(*(program.values[j] for j in op.inputs)) for op in program.operations)
    rate = macs / inside.median / 1e9
    part = f"{100 * rate / ceiling:3.0f} %" if ceiling else ""
    return (
        f"{layer!s:36} {family:13} {spread(best):22} {spread(inside):20} {rate:6.0f} {part:>6}"
        f" {best.median / inside.median:6.1f}x   {spread(whole):22} {best.median / whole.median:5.1f}x"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--isa", help="instruction set to force; default: the widest")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--all", action="store_true", help="all sizes with 1 to 8 bits")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(describe_machine(), describe_versions())
    print(f"one thread, instruction set {Engine(layer_program(LAYERS[0]), isa=arguments.isa).isa}; ", end="")
    print(f"medians (quartiles) of {arguments.rounds} rounds, microseconds; outputs equal the reference's")
    head = f"{'layer':36} {'kernel':13} {'PyTorch float32':22} {'engine, step':20} GMAC/s ceiling   ratio"
    print(f"{head}   {'engine, whole call':22} ratio")
    with torch.inference_mode():
        for layer in ALL if arguments.all else LAYERS:
            print(measure(layer, arguments.isa, arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
