"""The files that executors run, made when they are wanted, kept in a folder and found there again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BitbranchError
from .worker import Worker, WorkerFailure

CONVERSION_LIMIT = 1200.0
"""Seconds that one conversion may take."""


@dataclass(frozen=True)
class Rule:
    """How a file is made.

    Attributes:
        file: its name.
        function: of :mod:`bitbranch.bench.convert`; its ``out`` is the file.
        needs: parameter to the key of the file that it takes.
        options: further arguments.
        by_batch: whether there is one for each batch size; the function then takes ``batch``.
    """

    file: str
    function: str
    needs: Mapping[str, str]
    options: Mapping[str, str]
    by_batch: bool = False


_NET, _IMAGES = {"checkpoint": "float"}, {"images": "images"}
RULES: dict[str, Rule] = {
    "onnx": Rule("net.onnx", "onnx_float", _NET | _IMAGES, {}),
    "onnx-qdq": Rule("net.onnx", "onnx_int8", {"model": "onnx"} | _IMAGES, {"form": "QDQ", "activations": "QInt8"}),
    **{
        f"onnx-{form.lower()}-u8": Rule(
            "net.onnx", "onnx_int8", {"model": "onnx"} | _IMAGES, {"form": form, "activations": "QUInt8"}
        )
        for form in ("QDQ", "QOperator")
    },
    "openvino": Rule("net.xml", "openvino_float", {"model": "onnx"}, {}),
    "openvino-int8": Rule("net.xml", "openvino_int8", {"model": "onnx"} | _IMAGES, {}),
    "openvino-binary": Rule("net.xml", "openvino_binary", {"model": "onnx"}, {}),
    "litert": Rule("net.tflite", "litert_float", _NET | _IMAGES, {}, by_batch=True),
    "litert-int8": Rule("net.tflite", "litert_int8", {"model": "litert"} | _IMAGES, {}, by_batch=True),
    "ncnn": Rule("net.param", "ncnn_float", _NET | _IMAGES, {}),
    "ncnn-int8": Rule("net.param", "ncnn_int8", {"model": "ncnn"} | _IMAGES, {}),
}


class Files:
    """A network's files.

    Args:
        folder: where they are kept; the same network must come with the same folder, and another with another.
        given: files that are there already: ``float`` (a checkpoint) and ``images`` (calibration, ``.npy``).
        say: told what is being made.
    """

    def __init__(self, folder: Path, given: Mapping[str, Path], say: Callable[[str], None]) -> None:
        self.folder, self.given, self.say = folder, dict(given), say
        self._failed: dict[str, str] = {}

    def get(self, key: str, batch: int = 1) -> Path:
        """The path of a file, made now if it is not there.

        Raises:
            BitbranchError: it cannot be made; the reason is remembered, and not tried again.
        """
        if key in self.given:
            return self.given[key]
        rule = RULES[key]
        name = f"{key}-{batch}" if rule.by_batch else key
        arguments: dict[str, Any] = dict(rule.options) | ({"batch": batch} if rule.by_batch else {})
        return self.make(name, rule.file, rule.function, rule.needs, arguments, batch)

    def make(
        self, name: str, file: str, function: str, needs: Mapping[str, str], options: Mapping[str, Any], batch: int = 1
    ) -> Path:
        """The path of ``file`` in the folder ``name``, made now if it is not there; see :class:`Rule`."""
        done = self.folder / name
        if name in self._failed:
            raise BitbranchError(self._failed[name])
        if not (done / file).exists():
            arguments = {parameter: str(self.get(key, batch)) for parameter, key in needs.items()} | dict(options)
            making = done.with_name(f".{name}")
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir(parents=True)
            self.say(f"making {name}")
            try:
                with Worker("bitbranch.bench.convert:Converter", {}, stopped=False) as worker:
                    request = arguments | {"out": str(making / file)}
                    worker.call("run", limit=CONVERSION_LIMIT, name=function, arguments=request)
            except WorkerFailure as error:
                self._failed[name] = str(error)
                raise
            shutil.rmtree(done, ignore_errors=True)
            making.rename(done)
        return done / file

    def pattern(self, key: str) -> str:
        """The path with ``{batch}`` where the batch size stands."""
        rule = RULES[key]
        return str(self.folder / (f"{key}-{{batch}}" if rule.by_batch else key) / rule.file)
