"""Depthwise layers of MobileNetV2 by every family of planar kernels that is exact for them, on one thread.

Each layer stands between two pointwise convolutions, as it does in the network, so that the forms of its input and
output are those of the network. The families run turn by turn in one process; printed are medians: microseconds of the
layer with its repacking, its 10^9 multiply-accumulates per second, and microseconds of the call.

    python benchmarks/depthwise.py [--isa avx2] [--rounds 60]
"""

from __future__ import annotations

import argparse
import platform

import numpy as np

from bitbranch.contract import CodeType
from bitbranch.runtime import program as p
from bitbranch.runtime.choice import candidates_of
from bitbranch.runtime.engine import Engine, instruction_sets

LAYERS = [(96, 112, 2), (144, 56, 1), (192, 28, 1), (384, 14, 1), (576, 14, 1), (960, 7, 1)]
"""Channels, height and width, stride."""
WHAT = ("codes (repack)", "depthwise", "codes2 (repack)")
"""The steps that count."""
SCHEMES = [("s4", "u4"), ("t", "u2"), ("s8", "u8")]
"""Types of weights and activations."""


def network(channels: int, size: int, stride: int, weights: str, activations: str) -> p.Program:
    """Pointwise convolution, depthwise 3x3, pointwise convolution."""
    rng = np.random.default_rng(0)
    codes, weight_type = CodeType.parse(activations), CodeType.parse(weights)
    operations: list[p.Operation] = []
    values: list[p.Value] = []

    def add(op: p.Operation) -> None:
        values.append(op.infer(*(values[i] for i in op.inputs)))
        operations.append(op)

    def convolution(name: str, outputs: int, inputs: int, kernel: int, **where: object) -> None:
        weight = rng.integers(0, weight_type.count, (outputs, inputs, kernel, kernel), dtype=np.uint8)
        add(p.Conv(name, (len(values) - 1,), weight, weight_type, **where))  # type: ignore[arg-type]

    def thresholds(name: str) -> None:
        sums = values[-1]
        assert isinstance(sums, p.Integers)
        reals = np.linspace(-1, 1, codes.count - 1) * rng.uniform(0.5, 1, (sums.shape[0], 1))
        limits = np.rint((sums.lo + sums.hi) / 2 + reals * (sums.hi - sums.lo) / 4)
        add(p.Threshold(name, (len(values) - 1,), codes, limits.astype(np.int32)))

    reals = np.linspace(-1, 1, codes.count - 1).astype(np.float32)
    add(p.Encode("input", (), (8, size, size), codes, reals))
    convolution("expand", channels, 8, 1)
    thresholds("codes")
    convolution("depthwise", channels, 1, 3, stride=(stride, stride), padding=(1, 1, 1, 1), groups=channels)
    thresholds("codes2")
    convolution("project", 8, channels, 1)
    add(p.Scale("output", (len(values) - 1,), np.ones(8, np.float32), np.ones(8, np.float32)))
    return p.Program(tuple(operations), (values[-1].shape,))


def main() -> None:
    """Print one line for each layer and scheme."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isa", default=next(i for i in instruction_sets() if "vnni" not in i and i != "amx"))
    parser.add_argument("--rounds", type=int, default=60)
    arguments = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {arguments.isa}, medians of {arguments.rounds}; us GMAC/s (us)"
    )
    for weights, activations in SCHEMES:
        for channels, size, stride in LAYERS:
            program = network(channels, size, stride, weights, activations)
            x = np.random.default_rng(1).normal(size=(1, 8, size, size)).astype(np.float32)
            found = candidates_of(program, next(i for i, op in enumerate(program.operations) if op.name == "depthwise"))
            engines = {f: Engine(program, isa=arguments.isa, families={"depthwise": f}, threads=1) for f in found}
            times: dict[str, list[tuple[float, float]]] = {family: [] for family in found}
            for _ in range(arguments.rounds):
                for family, engine in engines.items():
                    profile = engine.profile(x, repeat=1)
                    layer = sum(r.seconds for r in profile.rows if r.name in WHAT)
                    times[family].append((layer, profile.seconds))
            macs = channels * 9 * (-(-size // stride)) ** 2
            line = f"{weights:>2} x {activations} {channels:4}@{size:<3} s{stride}"
            for family, seconds in times.items():
                layer, call = np.median(seconds, axis=0)
                line += f"  {family:13} {layer * 1e6:7.1f} {macs / layer / 1e9:5.1f} ({call * 1e6:7.1f})"
            print(line, flush=True)


if __name__ == "__main__":
    main()
