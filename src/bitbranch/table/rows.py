"""One run of a table: train, compile, and answer the whole test set by the engine and by the integer reference."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..compiler import compile
from ..data import Dataset, sets
from ..disk import write_bytes
from ..errors import CompileError, InputError
from ..runtime import program as p
from ..runtime.engine import Engine
from ..training import checkpoint, config, runner

Result = dict[str, Any]
Say = Callable[[str], None]

REPORTED = 2000
"""Images after which the reference says how far it is."""


def finished(folder: Path) -> Result | None:
    """The result of a run that ended well, if there is one in its folder."""
    try:
        found: Result = json.loads((folder / "row.json").read_text())
    except (OSError, ValueError):
        return None
    return found if "accuracy" in found else None


def run(content: Mapping[str, Any], folder: Path, base: Path, say: Say) -> Result:
    """Train (or go on with) a run, compile its network and run that on the test images; ``row.json`` keeps the result.

    Args:
        content: of the configuration.
        folder: of the run.
        base: what relative paths in the configuration are relative to.
        say: takes progress lines.

    Returns:
        ``accuracy`` (of the program where there is one, else of the network), ``torch`` (of the network), ``seconds``
        of training, ``scheme``, ``source`` of the data; of a program its ``bytes`` and the ``images`` whose outputs
        ``differ`` between engine and reference; or ``not compiled``, the reason. A run that fails gives only ``error``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "error.txt").unlink(missing_ok=True)
    try:
        checked = config.parse(content, base)
        trained = runner.run(checked, folder, progress=say)
        result = {"torch": trained["accuracy"], "accuracy": trained["accuracy"], "scheme": trained["scheme"] or ""}
        result |= {"seconds": trained["seconds"], "phases": trained["phases"], "seed": checked.seed}
        result |= _compiled(Path(trained["net"]), _test_set(checked), folder / "net.bb", say)
    except Exception as error:  # whatever it is, the other rows go on
        write_bytes(folder / "error.txt", traceback.format_exc().encode())
        result = {"error": " ".join(str(error).split()) or type(error).__name__}
    write_bytes(folder / "row.json", json.dumps(result, indent=2).encode())
    return result


def _test_set(checked: config.Config) -> Dataset:
    wanted = sets.find(checked.data.set)
    test = wanted.load("test", Path(checked.data.path) if checked.data.path else wanted.place())
    if not isinstance(test, Dataset):
        raise InputError(f"table: {checked.data.set} has pictures of many sizes; a table needs images of one")
    return test.spread(checked.data.test_images) if checked.data.test_images else test


def _compiled(net: Path, test: Dataset, file: Path, say: Say) -> Result:
    """What the compiled network is and does."""
    recipe, network = checkpoint.load(net)
    result: Result = {"source": test.source, "parameters": sum(x.numel() for x in network.parameters())}
    if recipe.scheme is None:
        return result | {"not compiled": "float"}
    try:
        compiled = compile(network, recipe.example, info=recipe.info, mean=recipe.mean, std=recipe.std)
    except CompileError as error:
        return result | {"not compiled": " ".join(str(error).split())}
    compiled.save(file)
    program = p.load(file)
    outputs = Engine(program)(test.images)
    expected = _reference(program, test.images, say)
    accuracy = float((outputs.argmax(1) == test.labels).mean())
    differ = int((outputs.view(np.uint32) != expected.view(np.uint32)).any(axis=1).sum())
    return result | {
        "accuracy": accuracy,
        "bytes": file.stat().st_size,
        "file": file.name,
        "images": len(outputs),
        "differ": differ,
    }


def _reference(program: p.Program, images: npt.NDArray[np.uint8], say: Say) -> npt.NDArray[np.float32]:
    parts = []
    for start in range(0, len(images), REPORTED):
        if start:
            say(f"reference: {start} of {len(images)} images")
        parts.append(program.reference(images[start : start + REPORTED]))
    return np.concatenate(parts)
