"""Depthwise layers of MobileNetV2: time and multiply-accumulates per second of the engine's planar steps, one thread.

Each layer stands between two pointwise convolutions, as it does in the network, so that the form of its input and
output are those of the network. Its own kernels and the general ones run turn by turn in one process; printed are
medians, and the share of the thresholds: the same layer with accumulators for codes.

    python benchmarks/depthwise.py [--isa avx2] [--rounds 60]
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from bitbranch.contract import CodeType
from bitbranch.runtime import choice
from bitbranch.runtime import program as p
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


@contextmanager
def depthwise(allowed: bool) -> Iterator[None]:
    """Whether plans may take depthwise kernels."""
    before = choice.DEPTHWISE
    choice.DEPTHWISE = allowed
    try:
        yield
    finally:
        choice.DEPTHWISE = before


def main() -> None:
    """Print one line for each layer and scheme."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isa", default=next(i for i in instruction_sets() if "vnni" not in i and i != "amx"))
    parser.add_argument("--rounds", type=int, default=60)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(f"{platform.processor() or platform.machine()}, {arguments.isa}, medians of {arguments.rounds}; us, GMAC/s")
    for weights, activations in SCHEMES:
        for channels, size, stride in LAYERS:
            program = network(channels, size, stride, weights, activations)
            x = np.random.default_rng(1).normal(size=(1, 8, size, size)).astype(np.float32)
            engines = []
            for allowed in (False, True):
                with depthwise(allowed):
                    engines.append(Engine(program, isa=arguments.isa))
                    engines[-1](x)
            times: list[list[float]] = [[], []]
            families = ["", ""]
            end = time.perf_counter() + 20
            for _ in range(arguments.rounds):
                for k, engine in enumerate(engines):
                    rows = [r for r in engine.profile(x, repeat=1).rows if r.name in WHAT]
                    times[k].append(sum(r.seconds for r in rows))
                    families[k] = "+".join(r.family for r in rows)
                if time.perf_counter() > end:
                    break
            macs = channels * 9 * (-(-size // stride)) ** 2
            line = f"{weights:>2} x {activations} {channels:4}@{size:<3} s{stride}"
            for seconds, family in zip(times, families, strict=True):
                median = float(np.median(seconds))
                line += f"  {family:24} {median * 1e6:8.1f} {macs / median / 1e9:6.1f}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
