"""One run of a table: train, compile, and answer the whole test set by the engine and by the integer reference."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..compiler import compile
from ..disk import remove_leftovers, write_bytes
from ..errors import BitbranchError, CompileError
from ..runtime import program as p
from ..runtime.engine import Engine
from ..training import checkpoint, config, run_folder, runner, tasks

Result = dict[str, Any]
Say = Callable[[str], None]

REPORTING = {*run_folder.FREE, "name", "source", "evaluate_every", "threads"}
"""Keys of a configuration that change no figure."""

REPORTED = 2000
"""Images after which the reference says how far it is."""


def finished(folder: Path) -> Result | None:
    """The result of a run that ended well, if there is one in its folder."""
    try:
        found: Result = json.loads((folder / "row.json").read_text())
    except (OSError, ValueError):
        return None
    return None if "error" in found else found


def failure(folder: Path) -> str:
    """Why a run that has not :func:`finished` failed."""
    try:
        return str(json.loads((folder / "row.json").read_text())["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"{folder / 'row.json'}: damaged"


def changed(folder: Path, content: Mapping[str, Any], base: Path) -> str:
    """The first key in which a run's configuration is another than the given one, or an empty text.

    What says how a run is reported is not compared. Of files the names are, for results may have been moved; and their
    contents, where they are there and the run has kept what it read. Arguments as for :func:`run`.
    """
    try:
        then = config.parse(json.loads((folder / "config.json").read_text())).as_dict()
    except (OSError, ValueError):  # an InputError among them; it cannot be told
        return ""
    checked = config.parse(content, base)
    now = checked.as_dict()
    named = next((key for key in sorted({*then, *now} - REPORTING) if _named(then, key) != _named(now, key)), "")
    read, there = (finished(folder) or {}).get("read", {}), _read(checked)
    return named or next((f"the content of {key}" for key in read if there.get(key, read[key]) != read[key]), "")


def _read(checked: config.Config) -> dict[str, str]:
    """SHA-256 of the files that a configuration names and that are there, by the keys that name them."""
    network, teachers = checked.network, checked.teacher.checkpoint
    named = {"network.file": network.file, "network.start": network.start, "network.trunk": network.trunk}
    named |= {f"teacher.checkpoint[{i}]" if len(teachers) > 1 else "teacher.checkpoint": t
              for i, t in enumerate(teachers)}  # fmt: skip
    found = {}
    for key, name in named.items():
        if name:
            with suppress(OSError):
                found[key] = sha256(Path(name).read_bytes()).hexdigest()
    return found


def _named(content: Mapping[str, Any], key: str) -> object:
    """A part of a configuration, in which files go by their names, those of runs by their folder's as well."""
    part = content.get(key)
    if not isinstance(part, Mapping):
        return part
    paths = {"start": 2, "checkpoint": 2, "file": 1, "trunk": 1, "path": 1}
    return {name: _last(value, paths[name]) if name in paths else value for name, value in part.items()}


def _last(value: object, count: int) -> object:
    if isinstance(value, (list, tuple)):
        return [_last(item, count) for item in value]
    return Path(str(value)).parts[-count:]


def judged(result: Mapping[str, Any]) -> float:
    """The figure, 0..1, that a run is judged by."""
    return float(result[result.get("figure", "accuracy")])


def run(content: Mapping[str, Any], folder: Path, base: Path, say: Say) -> Result:
    """Train (or go on with) a run, compile its network and run that on the test images; ``row.json`` keeps the result.

    Args:
        content: of the configuration.
        folder: of the run.
        base: what relative paths in the configuration are relative to.
        say: takes progress lines.

    Returns:
        ``figure``, the name of what it is judged by, ``accuracy``, ``map`` or ``miou``; under that name the figure of
        the program where there is one, else of the network; ``torch``, that of the network; ``seconds`` of training,
        ``scheme``, ``source`` of the data and what was ``left_out`` of it; of a program its ``bytes``, other figures,
        and of how many ``images`` the outputs ``differ`` between engine and reference; or ``not compiled``, the
        reason; and hashes of the files that it ``read``. A run that fails gives only ``error``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("row.json", "net.bb", "error.txt"):
        remove_leftovers(folder / name)
    (folder / "error.txt").unlink(missing_ok=True)
    try:
        checked = config.parse(content, base)
        read = _read(checked)
        trained = runner.run(checked, folder, progress=say)
        task = tasks.read(checked.data)
        figure = trained[task.figure]
        result = {"figure": task.figure, task.figure: figure, "torch": figure, "scheme": trained["scheme"] or ""}
        result |= {"seconds": trained["seconds"], "phases": trained["phases"], "seed": checked.seed}
        result |= {"read": read} if read else {}
        result |= {"left_out": list(task.left_out)} if task.left_out else {}
        result |= _compiled(Path(trained["net"]), task, folder / "net.bb", say)
    except Exception as error:  # whatever it is, the other rows go on
        result = {"error": " ".join(str(error).split()) or type(error).__name__}
        with suppress(BitbranchError):  # the disk may be full
            write_bytes(folder / "error.txt", traceback.format_exc().encode())
    try:
        write_bytes(folder / "row.json", json.dumps(result, indent=2).encode())
    except BitbranchError as error:
        result = {"error": result.get("error", str(error))}
    return result


def _compiled(net: Path, task: tasks.Task, file: Path, say: Say) -> Result:
    """What the compiled network is and does."""
    recipe, network = checkpoint.load(net)
    result: Result = {"source": task.test.source, "parameters": sum(x.numel() for x in network.parameters())}
    if recipe.scheme is None:
        return result | {"not compiled": "float"}
    try:
        compiled = compile(network, recipe.example, info=recipe.info, mean=recipe.mean, std=recipe.std)
    except CompileError as error:
        return result | {"not compiled": " ".join(str(error).split())}
    compiled.save(file)
    both = _Both(p.load(file), say)
    found = task.score(network, both)
    return result | {
        **found,
        "bytes": file.stat().st_size,
        "file": file.name,
        "images": both.images,
        "differ": both.differ,
    }


class _Both:
    """The engine, which is compared with the integer reference on the way.

    Attributes:
        images: that were answered.
        differ: those of them where any bit of any output differs.
    """

    def __init__(self, program: p.Program, say: Say) -> None:
        self.program, self.engine, self.say = program, Engine(program), say
        self.images = self.differ = 0

    def __call__(self, images: npt.NDArray[np.uint8]) -> p.Output:
        outputs, expected = self.engine(images), self.program.reference(images)
        different = np.zeros(len(images), bool)
        for a, b in zip(_several(outputs), _several(expected), strict=True):
            different |= (a.view(np.uint32) != b.view(np.uint32)).reshape(len(images), -1).any(1)
        before, self.images = self.images, self.images + len(images)
        self.differ += int(different.sum())
        if before // REPORTED != self.images // REPORTED:
            self.say(f"engine and reference: {self.images} images")
        return outputs


def _several(output: p.Output) -> tuple[npt.NDArray[np.float32], ...]:
    return output if isinstance(output, tuple) else (output,)
