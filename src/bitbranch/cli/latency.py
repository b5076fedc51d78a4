"""Times of several executors of networks, measured side by side in one process."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ..bench import stats
from ..bench.convert import export_onnx, quantize_onnx
from ..runtime.engine import Engine
from ..runtime.program import Program
from ..training.threads import using_threads

Images = npt.NDArray[np.float32]
Run = Callable[[Images], object]
Executor = Callable[[int], Run]
"""Takes a number of threads and gives the function that runs a batch ``[N, C, H, W]`` on them."""

Latency = dict[str, dict[str, float]]
"""Threads, then batch size, to milliseconds a call."""

REST = 0.1
"""Seconds between two executors, in which the idle threads of the one before stop spinning: ONNX Runtime's take tens of
milliseconds, and the next on two threads half as long again."""


def engine(program: Program) -> Executor:
    """The native engine on its widest instruction set."""
    return lambda threads: Engine(program, threads=threads)


def torch_float(network: nn.Module) -> Executor:
    """The float network in PyTorch, channels last, which is the faster memory format there."""
    network = copy.deepcopy(network).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def prepare(threads: int) -> Run:
        def run(images: Images) -> object:
            with torch.inference_mode():
                return network(torch.from_numpy(images))

        return run

    return prepare


def onnxruntime_file(model: Path) -> Executor:
    """ONNX Runtime on an ONNX file."""
    import onnxruntime

    def prepare(threads: int) -> Run:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda images: session.run(None, {name: images})

    return prepare


@dataclass(frozen=True)
class Peer:
    """Another way to run the float network: its executor and its file's size."""

    executor: Executor
    file_bytes: int


@contextmanager
def onnxruntime_peers(network: nn.Module, calibration: Images) -> Iterator[dict[str, Peer]]:
    """ONNX Runtime in float32 and, statically quantized on calibration images ``[N, C, H, W]``, in int8.

    Gives nothing where onnx, onnxscript or onnxruntime is not installed.
    """
    if any(find_spec(package) is None for package in ("onnx", "onnxruntime", "onnxscript")):
        yield {}
        return
    with tempfile.TemporaryDirectory() as folder:
        files = {"onnxruntime f32": Path(folder, "float.onnx"), "onnxruntime int8": Path(folder, "int8.onnx")}
        export_onnx(network, calibration[:1], files["onnxruntime f32"])
        quantize_onnx(files["onnxruntime f32"], files["onnxruntime int8"], calibration)
        yield {name: Peer(onnxruntime_file(file), file.stat().st_size) for name, file in files.items()}


def measure(
    executors: Mapping[str, Executor],
    images: Images,
    *,
    threads: Sequence[int] = (1, 2),
    batches: Sequence[int] = (1, 64),
    rounds: int = 9,
    slice_seconds: float = 0.03,
) -> dict[str, Latency]:
    """Median milliseconds a call of every executor.

    The executors take turns, ``rounds`` times, each for a slice of time after one call that is not counted; so a
    machine that is slow for a while is slow for all.

    Args:
        executors: by name.
        images: at least as many as the largest batch.
        threads: numbers of threads.
        batches: batch sizes.
        rounds: turns of each executor.
        slice_seconds: length of a turn; at least one call is timed.
    """
    result: dict[str, Latency] = {name: {str(t): {} for t in threads} for name in executors}
    for count in threads:
        with using_threads(count):
            runs = {name: prepare(count) for name, prepare in executors.items()}
            for batch in batches:
                times: dict[str, list[float]] = {name: [] for name in runs}
                for _ in range(rounds):
                    for name, run in runs.items():
                        times[name] += _turn(run, images[:batch], slice_seconds)
                for name in runs:
                    result[name][str(count)][str(batch)] = 1e3 * statistics.median(times[name])
    return result


def _turn(run: Run, images: Images, seconds: float) -> list[float]:
    time.sleep(REST)
    return stats.turn(lambda: run(images), seconds)
