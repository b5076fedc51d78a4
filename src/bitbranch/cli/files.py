"""The commands that work on files: compile, profile, info, run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..disk import write_bytes
from ..errors import BitbranchError, InputError
from ..runtime.container import bit_budget, read
from ..runtime.engine import Engine
from ..runtime.program import Codes, Convolution, Integers, Program, Value

if TYPE_CHECKING:
    from torch import nn

Result = dict[str, object]
Array = npt.NDArray[np.generic]


def load_array(path: Path) -> Array:
    """An array of a ``.npy`` file.

    Raises:
        InputError: missing, damaged, or not a plain array; names the file.
    """
    try:
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except MemoryError:
        raise
    except Exception as error:  # a damaged header is read as Python, which raises nearly anything
        said = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: not a readable .npy array ({said})") from None


def save_array(path: Path, array: Array) -> None:
    """Write a ``.npy`` file, atomically."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_bytes(path, buffer.getvalue())


def check_apart(out: Path, source: Path) -> None:
    """Raise :class:`InputError` where a result would be written over what it is made of, or into no folder."""
    if out.resolve() == source.resolve():
        raise InputError(f"--out {out}: is what is read; give another file")
    if out.is_dir() or not out.resolve().parent.is_dir():
        raise InputError(f"--out {out}: " + ("is a folder" if out.is_dir() else "its folder is not there"))


def compiled(checkpoint: Path) -> tuple[nn.Module, Program]:
    """The network of a checkpoint, and the program made of it."""
    from ..compiler import compile
    from ..training.checkpoint import load

    recipe, network = load(checkpoint)
    try:
        program = compile(network, recipe.example, info=recipe.info, mean=recipe.mean or None, std=recipe.std or None)
    except BitbranchError as error:
        raise type(error)(f"{checkpoint}: {error}") from None
    return network, program


def compile_checkpoint(checkpoint: Path, out: Path) -> Result:
    """Compile a quantized network's checkpoint and save it."""
    check_apart(out, checkpoint)
    program = compiled(checkpoint)[1]
    size = program.save(out)
    return {
        "file": str(out),
        "bytes": size,
        "bit_budget": bit_budget(program),
        "operations": len(program.operations),
        "macs": program.macs,
        "text": f"{out}: {size:,} bytes, {len(program.operations)} operations, {program.macs:,} multiply-accumulates",
    }


def profile(net: Path, *, threads: int, batch: int, isa: str | None, repeat: int) -> Result:
    """Where the time of a compiled network goes, step by step, and how near it comes to the kernels' ceilings."""
    engine = Engine(read(net), threads=threads, isa=isa)
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((batch, *op.shape), np.float32) for op in engine.program.inputs]
    found = engine.profile(*inputs, repeat=repeat)
    head = f"{net}: {engine.isa}, {threads} thread(s), batch {batch}, median of {repeat} runs"
    text = "\n\n".join([head, found.table(), "the longest first", found.table(by_time=True)])
    return {"file": str(net), "isa": engine.isa, "threads": threads, **found.as_dict(), "text": text}


def info(net: Path) -> Result:
    """What a file holds: its operations, types, bounds and sizes. Needs no compiled core."""
    program = read(net)
    size, budget = net.stat().st_size, bit_budget(program)
    rows = [
        {"number": i, "operation": type(op).__name__.lower(), "name": op.name, "inputs": list(op.inputs)}
        | {"output": _describe(value), "weights": str(op.weight_type) if isinstance(op, Convolution) else ""}
        for i, (op, value) in enumerate(zip(program.operations, program.values, strict=True))
    ]
    width = max(len(str(r["name"])) for r in rows)
    lines = [f"{k}: {v}" for k, v in program.info.items()]
    lines.append(f"{size:,} bytes, bit budget {budget:,}, {program.macs:,} multiply-accumulates an image")
    lines += [
        f"{r['number']:>3}  {r['operation']:<13}  {r['name']:<{width}}  {r['weights'] or '':<3}  {r['output']}"
        for r in rows
    ]
    return {
        "file": str(net),
        "bytes": size,
        "bit_budget": budget,
        "macs": program.macs,
        "info": dict(program.info),
        "operations": rows,
        "text": "\n".join(lines),
    }


def _describe(value: Value) -> str:
    shape = "x".join(map(str, value.shape))
    if isinstance(value, Codes):
        return f"codes {value.code_type} {shape}"
    if isinstance(value, Integers):
        return f"integers {value.lo}..{value.hi} {shape}"
    return f"float32 {shape}"


def run(net: Path, images: Sequence[Path], *, out: Path | None, threads: int, isa: str | None) -> Result:
    """Run the engine on a file of images for each input; write the outputs, or print each image's largest one's number.

    Raises:
        InputError: files that are not what the network takes, or ``out`` is one of them; several outputs or maps, and
            no ``out``.
    """
    if out is not None:
        for source in (net, *images):
            check_apart(out, source)
    program: Program = read(net)
    outputs = Engine(program, threads=threads, isa=isa)(*map(load_array, images))
    if isinstance(outputs, tuple) or (out is not None and out.suffix == ".npz"):
        every = outputs if isinstance(outputs, tuple) else (outputs,)
        return _save_all(net, out, dict(zip(program.output_names, every, strict=True)))
    if out is not None:
        save_array(out, outputs)
        return {"file": str(out), "shape": list(outputs.shape), "text": f"{out}: float32 {outputs.shape}"}
    if outputs.ndim != 2:
        raise InputError(f"{net}: its output is {outputs.shape[1:]} an image, not class scores; write it with --out")
    guesses = outputs.argmax(1).tolist()
    return {"images": len(guesses), "classes": guesses, "text": "\n".join(map(str, guesses))}


def _save_all(net: Path, out: Path | None, outputs: dict[str, Array]) -> Result:
    """Write several outputs, by their names."""
    if out is None or out.suffix != ".npz":
        raise InputError(f"{net}: has {len(outputs)} outputs; write them with --out FILE.npz")
    buffer = io.BytesIO()
    np.savez(buffer, **outputs)  # type: ignore[arg-type]  # names are any, its stubs know better
    write_bytes(out, buffer.getvalue())
    shapes = {name: list(array.shape) for name, array in outputs.items()}
    return {"file": str(out), "shapes": shapes, "text": f"{out}: " + ", ".join(f"{n} {s}" for n, s in shapes.items())}
