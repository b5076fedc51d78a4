"""From a float network's checkpoint to the files that the peers run, and to the engine's program.

Each function writes one file, by the peer's own tools: static post-training quantization on the same calibration
images everywhere, weights per channel. They run in a process of their own each; see :mod:`bitbranch.bench.worker`.
"""

from __future__ import annotations

import copy
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

Images = npt.NDArray[np.float32]
STATISTICS = 4
"""Calibration images that programs take BatchNorm's statistics and quantizers' steps from."""


class Converter:
    """The functions of this module as methods of an object, for a worker."""

    def run(self, name: str, arguments: dict[str, Any]) -> Any:
        """Call a function by its name."""
        return FUNCTIONS[name](**arguments)


def program(checkpoint: str, scheme: str, images: str, out: str) -> None:
    """Quantize a float network, set its statistics and steps on images, compile it and write a ``.bb`` file.

    Nothing is trained: this program is for times, not for accuracy.
    """
    import torch

    from ..compiler import compile
    from ..swap import calibrate, quantize

    recipe, network = _load(checkpoint)
    x = torch.from_numpy(np.load(images)[:STATISTICS])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        q = quantize(network, scheme)
        settle(q, x)
        calibrate(q.eval(), [x])
        compile(q, x[:1], name=f"{recipe.model} {scheme}", info={"weights": "random"}).save(out)


def settle(network: nn.Module, x: Tensor) -> None:
    """Give BatchNorm the statistics of a batch, so that numbers neither vanish nor overflow on the way."""
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]
    before = [m.momentum for m in norms]
    for m in norms:
        m.momentum = 1.0
    try:
        with torch.no_grad():
            network.train()(x)
    except RuntimeError as error:
        said = " ".join(str(error).split())
        raise InputError(f"the network does not take images {tuple(x.shape[1:])} ({said})") from None
    for m, momentum in zip(norms, before, strict=True):
        m.momentum = momentum


def onnx_float(checkpoint: str, images: str, out: str) -> None:
    """An ONNX file with a free batch size."""
    export_onnx(_load(checkpoint)[1], np.load(images)[:1], Path(out))


def onnx_int8(model: str, images: str, out: str, form: str, activations: str) -> None:
    """ONNX Runtime's ``quantize_static`` on an ONNX file; see :func:`quantize_onnx`."""
    quantize_onnx(Path(model), Path(out), np.load(images), form, activations)


def openvino_float(model: str, out: str) -> None:
    """OpenVINO's file of an ONNX file, weights in float32."""
    import openvino as ov

    ov.save_model(ov.convert_model(model), out, compress_to_fp16=False)


def openvino_int8(model: str, images: str, out: str) -> None:
    """OpenVINO's file of an ONNX file, quantized by NNCF with its default settings (``nncf.quantize``)."""
    import nncf
    import openvino as ov

    x = np.load(images)
    nncf.set_log_level(logging.ERROR)
    quantized = nncf.quantize(ov.convert_model(model), nncf.Dataset([i[None] for i in x]), subset_size=len(x))
    ov.save_model(quantized, out, compress_to_fp16=False)


def openvino_binary(model: str, out: str) -> None:
    """OpenVINO's file of an ONNX file with 1-bit convolutions; see :func:`bitbranch.bench.binary.binarize`."""
    import openvino as ov

    from .binary import binarize

    ov.save_model(binarize(ov.convert_model(model)), out, compress_to_fp16=False)


def litert_float(checkpoint: str, images: str, out: str, batch: int) -> None:
    """A LiteRT file of one batch size."""
    import litert_torch
    import torch

    x = torch.from_numpy(np.load(images)[:1]).expand(batch, -1, -1, -1).contiguous()
    litert_torch.convert(foldable(_load(checkpoint)[1]), (x,)).export(out)


def litert_int8(model: str, images: str, out: str, batch: int) -> None:
    """A LiteRT file quantized by ai-edge-quantizer: weights and activations of 8 bits, input and output in float."""
    from ai_edge_quantizer import algorithm_manager, qtyping, quantizer, recipe

    tool = quantizer.Quantizer(model, recipe.static_wi8_ai8())
    names = qtyping.TFLOperationName
    for edge in (names.INPUT, names.OUTPUT):
        tool.update_quantization_recipe(
            regex=".*", operation_name=edge, algorithm_key=algorithm_manager.AlgorithmName.NO_QUANTIZE
        )
    x = np.load(images)
    batches = [{"args_0": np.resize(x[i:], (batch, *x.shape[1:]))} for i in range(0, len(x), batch)]
    tool.quantize(tool.calibrate({"serving_default": batches})).export_model(out, overwrite=True)


def ncnn_float(checkpoint: str, images: str, out: str) -> None:
    """ncnn's ``.param`` file, and ``.bin`` beside it, by pnnx; weights in float32."""
    import pnnx
    import torch

    network, x = foldable(_load(checkpoint)[1]), torch.from_numpy(np.load(images)[:1])
    target = Path(out).resolve()
    with tempfile.TemporaryDirectory() as folder, _inside(Path(folder)):
        pnnx.export(network, "net.pt", x, fp16=False)
        for suffix in (".param", ".bin"):
            Path(f"net.ncnn{suffix}").replace(target.with_suffix(suffix))


def ncnn_int8(model: str, images: str, out: str) -> None:
    """ncnn's files with 8-bit weights and inputs; see :func:`bitbranch.bench.ncnn_int8.quantize`."""
    from .ncnn_int8 import quantize

    quantize(Path(model), np.load(images), Path(out))


FUNCTIONS = {
    function.__name__: function
    for function in (
        program,
        onnx_float,
        onnx_int8,
        openvino_float,
        openvino_int8,
        openvino_binary,
        litert_float,
        litert_int8,
        ncnn_float,
        ncnn_int8,
    )
}


def foldable(network: nn.Module) -> nn.Module:
    """The same function with each BatchNorm in front of the max-pooling that it follows, where peers can fold it.

    They fold BatchNorm into a convolution next to it only. Max-pooling gives the same numbers on either side of a
    BatchNorm with no negative gain; with one, or where ``forward`` cannot be traced, all stays as it is.

    Args:
        network: float, in evaluation mode; not changed.
    """
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    from ..chains import POOLING, Graph

    try:
        graph = Graph(network)
    except InputError:
        return network
    moved = False
    for norm in list(graph.calls(_BatchNorm)):
        pool = norm.all_input_nodes[0]
        gain = graph.modules[str(norm.target)].weight
        if graph.kind(pool) not in POOLING or len(pool.users) > 1 or (gain is not None and bool((gain < 0).any())):
            continue
        with graph.traced.inserting_before(pool):
            before = graph.traced.call_module(str(norm.target), (pool.all_input_nodes[0],))
        pool.replace_input_with(pool.all_input_nodes[0], before)
        norm.replace_all_uses_with(pool)
        graph.traced.erase_node(norm)
        moved = True
    return torch.fx.GraphModule(network, graph.traced) if moved else network


def export_onnx(network: nn.Module, example: Images, path: Path) -> None:
    """Write an ONNX file with a free batch size; the exporter's remarks on its own packages are dropped."""
    import torch

    two = torch.from_numpy(np.repeat(example, 2, axis=0))
    batch = {0: torch.export.Dim("batch")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            foldable(network), (two,), path, dynamo=True, dynamic_shapes=(batch,), external_data=False, verbose=False
        )  # fmt: skip


def quantize_onnx(model: Path, int8: Path, calibration: Images, form: str = "QDQ", activations: str = "QUInt8") -> None:
    """Write an ONNX file, quantized by ``quantize_static`` on calibration images ``[N, C, H, W]``.

    Args:
        model: the float ONNX file.
        int8: the file to write; a prepared float file is written beside it.
        calibration: a few of them are looked at together.
        form: ``QDQ`` or ``QOperator``.
        activations: ``QUInt8`` or ``QInt8``. With signed ones residual sums stay float, and ``QOperator`` is slow; with
            unsigned ones it is mostly the fastest; on the demo's network it loses 19 points, ``QDQ`` none.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Calibration images, a few at a time."""

        def __init__(self) -> None:
            self.parts = iter(np.array_split(calibration, max(1, len(calibration) // 50)))

        def get_next(self) -> dict[str, Images] | None:
            part = next(self.parts, None)
            return None if part is None else {name: part}

    name = onnx.load(model).graph.input[0].name
    prepared = int8.with_name(f"{int8.stem}-prepared.onnx")  # with BatchNorm folded into the convolutions
    quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared), str(int8), Reader(), quant_format=QuantFormat[form], per_channel=True,
        activation_type=QuantType[activations], weight_type=QuantType.QInt8,
    )  # fmt: skip


def _load(checkpoint: str) -> tuple[Any, nn.Module]:
    from ..training.checkpoint import load

    recipe, network = load(Path(checkpoint))
    return recipe, copy.deepcopy(network).eval()


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """In another working directory: pnnx writes there, and prints its steps, which nobody reads."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
