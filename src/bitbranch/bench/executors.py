"""The executors that a worker can hold, each made from a file, and what is asked of all of them.

Every peer's package is imported where it is used: a package that is not installed takes out its own rows alone.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import stats

Images = npt.NDArray[np.float32]
Run = Callable[[Images], npt.NDArray[np.float32]]
"""A batch ``[N, C, H, W]`` to the network's first output ``[N, ..]``."""


class Executor:
    """One way to run one network, on images of one shape.

    Args:
        shape: (C, H, W) of an image.
        prepare: batch size to the function that runs such batches.
    """

    def __init__(self, shape: tuple[int, int, int], prepare: Callable[[int], Run]) -> None:
        self._shape, self._prepare = shape, prepare
        self._ready: tuple[int, Run, Images] | None = None

    def time(self, batch: int, seconds: float) -> list[float]:
        """Seconds of each call of one :func:`~bitbranch.bench.stats.turn`."""
        run, images = self._get(batch)
        return stats.turn(lambda: run(images), seconds)

    def prepare(self, batch: int) -> float:
        """Get ready for a batch size; returns the seconds that it took, the first call included."""
        start = time.perf_counter()
        run, images = self._get(batch)
        run(images)
        return time.perf_counter() - start

    def outputs(self, images: str, out: str, batch: int = 1) -> None:
        """Run a ``.npy`` file of images and write the outputs to another."""
        x = np.load(images)
        run, _ = self._get(batch)
        parts = []
        for first in range(0, len(x), batch):
            part = x[first : first + batch]
            short = batch - len(part)
            whole = np.concatenate([part, part[-1:].repeat(short, 0)]) if short else part
            parts.append(np.array(run(whole)[: len(part)]))  # a copy: the next call may overwrite it
        np.save(out, np.concatenate(parts))

    def memory(self) -> int:
        """Most bytes of memory that the process has had resident so far."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def _get(self, batch: int) -> tuple[Run, Images]:
        if self._ready is None or self._ready[0] != batch:
            images = np.random.default_rng(0).standard_normal((batch, *self._shape), np.float32)
            self._ready = None  # frees what the last batch size needed
            self._ready = (batch, self._prepare(batch), images)
        return self._ready[1:]


class EngineExecutor(Executor):
    """bitbranch's engine on a ``.bb`` file."""

    def __init__(self, file: str, threads: int, isa: str) -> None:
        from ..runtime.engine import Engine

        start = time.perf_counter()
        self.engine = Engine(file, threads=threads, isa=isa)
        self.loading = time.perf_counter() - start
        super().__init__(self.engine.program.input.shape, lambda batch: self.engine)

    def profile(self, batch: int, repeat: int = 20) -> dict[str, Any]:
        """Where the time of a batch goes; see :meth:`bitbranch.runtime.engine.Profile.as_dict`."""
        return self.engine.profile(self._get(batch)[1], repeat=repeat).as_dict()

    def load_seconds(self) -> float:
        """What reading the file and planning took."""
        return self.loading


def engine(file: str, threads: int, isa: str) -> Executor:
    """bitbranch's engine on a ``.bb`` file."""
    return EngineExecutor(file, threads, isa)


def torch(file: str, threads: int, shape: list[int], memory_format: str) -> Executor:
    """PyTorch float32 on a checkpoint, in eager mode.

    Args:
        file: a float network's checkpoint.
        threads: of the processor.
        shape: (C, H, W) of an image.
        memory_format: ``contiguous_format`` or ``channels_last``.
    """
    import torch as t

    from ..training import checkpoint

    t.set_num_threads(threads)
    form = getattr(t, memory_format)
    network = checkpoint.load(Path(file))[1].eval().to(memory_format=form)  # type: ignore[call-overload]

    def prepare(batch: int) -> Run:
        def run(images: Images) -> npt.NDArray[np.float32]:
            with t.inference_mode():
                return _first(network(t.from_numpy(images).to(memory_format=form))).numpy()

        return run

    return Executor(_chw(shape), prepare)


def onnxruntime(file: str, threads: int, shape: list[int]) -> Executor:
    """ONNX Runtime on an ONNX file, CPU provider, all graph optimizations."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return Executor(_chw(shape), lambda batch: lambda images: session.run(None, {name: images})[0])


def openvino(file: str, threads: int, shape: list[int], precision: str = "") -> Executor:
    """OpenVINO on its own file, in its latency mode, compiled for the batch size.

    Args:
        file: an ``.xml`` file.
        threads: of the processor.
        shape: (C, H, W) of an image.
        precision: of what is not quantized: ``f32`` forbids the bfloat16 that it else takes where there is AMX.
    """
    import openvino as ov

    core = ov.Core()
    model = core.read_model(file)
    properties: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # the process is pinned already
    }
    if precision:
        properties["INFERENCE_PRECISION_HINT"] = precision

    def prepare(batch: int) -> Run:
        model.reshape([batch, *shape])
        request = core.compile_model(model, "CPU", properties).create_infer_request()

        def run(images: Images) -> npt.NDArray[np.float32]:
            request.infer([images], share_inputs=True)
            return request.get_output_tensor(0).data

        return run

    return Executor(_chw(shape), prepare)


def litert(file: str, threads: int, shape: list[int]) -> Executor:
    """LiteRT's interpreter with its XNNPACK delegate.

    Args:
        file: pattern of the names of ``.tflite`` files, one for each batch size, with ``{batch}``.
        threads: of the processor.
        shape: (C, H, W) of an image.
    """
    from ai_edge_litert.interpreter import Interpreter

    def prepare(batch: int) -> Run:
        interpreter = Interpreter(file.format(batch=batch), num_threads=threads)
        interpreter.allocate_tensors()
        source, target = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

        def run(images: Images) -> npt.NDArray[np.float32]:
            interpreter.set_tensor(source, images)
            interpreter.invoke()
            return interpreter.get_tensor(target)

        return run

    return Executor(_chw(shape), prepare)


def ncnn(file: str, threads: int, shape: list[int]) -> Executor:
    """ncnn on a ``.param`` file and the ``.bin`` file beside it; it has no batches, so images run one by one."""
    import ncnn as n

    net = n.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = net.opt.use_fp16_packed = False
    for path, load in ((file, net.load_param), (str(Path(file).with_suffix(".bin")), net.load_model)):
        if load(path):
            raise ValueError(f"{path}: ncnn cannot read it")
    source, target = net.input_names()[0], net.output_names()[0]

    def run(images: Images) -> npt.NDArray[np.float32]:
        outputs = []
        for image in images:
            with net.create_extractor() as extractor:
                extractor.input(source, n.Mat(np.ascontiguousarray(image)))
                status, out = extractor.extract(target)
                if status:
                    raise ValueError(f"ncnn stopped with status {status}")
                outputs.append(np.array(out))
        return np.stack(outputs)

    return Executor(_chw(shape), lambda batch: run)


def _first(outputs: Any) -> Any:
    """The first of a network's outputs, however they are nested."""
    while isinstance(outputs, (tuple, list)):
        outputs = outputs[0]
    return outputs


def _chw(shape: list[int]) -> tuple[int, int, int]:
    channels, height, width = shape
    return channels, height, width
