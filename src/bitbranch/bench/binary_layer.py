"""A single 1-bit convolution: the engine beside OpenVINO's BinaryConvolution, its node alone and its whole graph."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ..runtime.engine import Engine
from . import levels, stats
from .layers import Layer, layer_images, layer_program
from .worker import Worker

SIZES = ((64, 56), (256, 14))
"""Channels and image size of the 3x3 convolutions that are compared."""
ROUNDS = 15
SLICE = 0.05
"""Seconds of a turn."""


class OpenVinoLayer:
    """A 3x3 BinaryConvolution with float input and output, one thread."""

    def __init__(self, channels: int, size: int) -> None:
        import openvino as ov
        from openvino import opset1 as ops

        from .binary import convolution

        image = ops.parameter([1, channels, size, size], np.float32)
        weights = np.random.default_rng(0).standard_normal((channels, channels, 3, 3)).astype(np.float32)
        model = ov.Model([convolution(image, weights, (1, 1), (1, 1), (1, 1))], [image])
        options: dict[str, Any] = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        core = ov.Core()
        self._plain = core.compile_model(model, "CPU", options).create_infer_request()
        self._counted = core.compile_model(model, "CPU", options | {"PERF_COUNT": True}).create_infer_request()
        self._x = np.random.default_rng(1).standard_normal((1, channels, size, size), np.float32)

    def turn(self, seconds: float) -> dict[str, list[float]]:
        """Seconds of the whole graph, and of the node by OpenVINO's own counters, call by call."""
        times: dict[str, list[float]] = {"graph": [], "node": []}
        self._plain.infer([self._x])
        self._counted.infer([self._x])
        end = time.perf_counter() + seconds
        while not times["graph"] or time.perf_counter() < end:
            start = time.perf_counter()
            self._plain.infer([self._x], share_inputs=True)
            times["graph"].append(time.perf_counter() - start)
            self._counted.infer([self._x], share_inputs=True)
            nodes = [n for n in self._counted.profiling_info if n.node_type == "BinaryConvolution"]
            times["node"].append(max(1e-9, sum(n.real_time.total_seconds() for n in nodes)))
        return times


class EngineLayer:
    """The same layer in the engine: 1-bit codes in, thresholds, 1-bit codes out; and the whole call from floats."""

    def __init__(self, channels: int, size: int, isa: str) -> None:
        layer = Layer(channels, size, channels, 3, 1, "b1", "b1")
        self._engine, self._x = Engine(layer_program(layer), isa=isa), layer_images(layer)

    def turn(self, seconds: float) -> dict[str, list[float]]:
        """Seconds of the convolution's step with its thresholds, and of the whole call, call by call."""
        times: dict[str, list[float]] = {"step": [], "call": []}
        self._engine(self._x)
        end = time.perf_counter() + seconds
        while not times["step"] or time.perf_counter() < end:
            profile = self._engine.profile(self._x, repeat=1)
            times["step"].append(max(profile.rows, key=lambda row: row.macs).seconds)
            times["call"].append(profile.seconds)
        return times


def measure(isa: str, level: str, cpus: list[int] | None, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Times and ratios for each of :data:`SIZES`, the two in processes of their own that take turns.

    Args:
        isa: the engine's instruction set.
        level: that OpenVINO is held to.
        cpus: processors to pin to.
        say: told about progress.

    Raises:
        WorkerFailure: one of the two does not work.
    """
    rows = []
    for channels, size in SIZES:
        say(f"3x3 binary, {channels} channels at {size}x{size}, {level}")
        where: dict[str, Any] = {"channels": channels, "size": size}
        environment = levels.environment(level) or {}
        with (
            Worker(f"{__name__}:EngineLayer", where | {"isa": isa}, cpus=cpus) as ours,
            Worker(f"{__name__}:OpenVinoLayer", where, cpus=cpus, environment=environment) as theirs,
        ):
            turns: dict[str, list[list[float]]] = {}
            for _ in range(ROUNDS):
                for worker in (ours, theirs):
                    for name, times in worker.call("turn", seconds=SLICE).items():
                        turns.setdefault(name, []).append(times)
        summaries = {name: stats.summarize(rounds) for name, rounds in turns.items()}
        ratios = {
            "node_over_step": stats.ratio(summaries["node"], summaries["step"]),
            "graph_over_call": stats.ratio(summaries["graph"], summaries["call"]),
            "graph_over_step": stats.ratio(summaries["graph"], summaries["step"]),
        }
        rows.append(
            {"channels": channels, "size": size, "level": level, "isa": isa}
            | {name: times.as_dict() for name, times in summaries.items()}
            | {name: {"value": r.value, "quartiles": [r.low, r.high]} for name, r in ratios.items()}
        )
    return rows


def text(rows: list[dict[str, Any]]) -> str:
    """The rows as a table."""
    lines = [
        f"{'3x3 binary':<14} {'engine':<12} {'step us':>8} {'call us':>8}   {'OpenVINO':<12} {'node us':>8} "
        f"{'graph us':>8}   node / step       graph / call      graph / step"
    ]
    for r in rows:
        us = {name: 1e3 * r[name]["milliseconds"] for name in ("step", "call", "node", "graph")}
        found = [
            "{:.2f} ({:.2f}..{:.2f})".format(r[name]["value"], *r[name]["quartiles"])
            for name in ("node_over_step", "graph_over_call", "graph_over_step")
        ]
        lines.append(
            f"{r['channels']:>3} at {r['size']}x{r['size']:<5} {r['isa']:<12} {us['step']:8.1f} {us['call']:8.1f}   "
            f"{r['level']:<12} {us['node']:8.1f} {us['graph']:8.1f}   " + " ".join(f"{f:<17}" for f in found)
        )
    return "\n".join(lines)
