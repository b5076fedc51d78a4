"""The commands that work on files: compile, verify, bench, info, run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..disk import write_bytes
from ..errors import BitbranchError, InputError
from ..runtime import program as p
from ..runtime import reference
from ..runtime.container import bit_budget, read
from ..runtime.engine import Engine, instruction_sets
from ..runtime.program import Codes, Conv, Integers, Program, Value

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
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not a readable .npy array ({' '.join(str(error).split())})") from None


def save_array(path: Path, array: Array) -> None:
    """Write a ``.npy`` file, atomically."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_bytes(path, buffer.getvalue())


def random_images(program: Program, count: int, seed: int) -> Array:
    """Float images ``[count, C, H, W]`` that reach every input code of a program."""
    if seed < 0:
        raise InputError(f"--seed must be at least 0, got {seed}")
    edge = float(np.abs(program.input.thresholds).max(initial=1.0))
    rng = np.random.default_rng(seed)
    return rng.uniform(-1.1 * edge, 1.1 * edge, (count, *program.input.shape)).astype(np.float32)


def check_apart(out: Path, source: Path) -> None:
    """Raise :class:`InputError` where a result would be written over what it is made of, or into no folder."""
    if out.resolve() == source.resolve():
        raise InputError(f"--out {out}: is what is read; give another file")
    if out.is_dir() or not out.resolve().parent.is_dir():
        raise InputError(f"--out {out}: " + ("is a folder" if out.is_dir() else "its folder is not there"))


def compile_checkpoint(checkpoint: Path, out: Path) -> Result:
    """Compile a quantized network's checkpoint and save it."""
    check_apart(out, checkpoint)
    program = _compiled(checkpoint)[1]
    size = program.save(out)
    return {
        "file": str(out),
        "bytes": size,
        "bit_budget": bit_budget(program),
        "operations": len(program.operations),
        "macs": program.macs,
        "text": f"{out}: {size:,} bytes, {len(program.operations)} operations, {program.macs:,} multiply-accumulates",
    }


def verify(net: Path, images: Path | None, *, checkpoint: Path | None, count: int, seed: int) -> Result:
    """Compare the engine with the reference on every instruction set, with 1 and 2 threads; with torch, too, if asked.

    Args:
        net: a ``.bb`` file, or a checkpoint, which is compiled in memory and compared with its torch network.
        images: a ``.npy`` file ``[N, C, H, W]``; ``None`` takes random images.
        checkpoint: what ``net`` was compiled from, to compare with its torch network. Where residual sums, averages or
            upsampling are rounded to integers, what differs from it is counted, and no failure.
        count, seed: of the random images.
    """
    network = None
    if _is_checkpoint(net):
        network, program = _compiled(net)
    else:
        program = read(net)
        if checkpoint is not None:
            network = _checkpoint_network(checkpoint)
    (batch,) = program.check_input(random_images(program, count, seed) if images is None else load_array(images))
    if not len(batch):
        raise InputError(f"{images}: holds no image")
    expected = dict(reference.trace(program, batch))
    rows, total = [], 0
    for isa in instruction_sets():
        for threads in (1, 2):
            compared = different = 0
            for i, value in Engine(program, threads=threads, isa=isa).trace(batch):
                compared += value.size
                different += int(np.count_nonzero(value != expected[i]))
            rows.append({"executor": f"engine {isa}, {threads} threads", "compared": compared, "different": different})
            total += different
    if network is not None:
        if batch.dtype == np.uint8:
            raise InputError(f"{images}: comparing with the torch network needs float32 images, got uint8")
        from ..compiler.verify import verify as verify_torch

        found = verify_torch(network, program, [batch])
        counts = [n for layer in found.layers for n in (layer.codes, layer.accumulators)]
        compared = sum(n.compared for n in counts)
        rounds = any(
            isinstance(op, (p.Requantize, p.SumPool)) or (isinstance(op, p.Upsample) and op.mode == "bilinear")
            for op in program.operations
        )
        rows.append(
            {"executor": "torch float64", "compared": compared, "different": found.mismatches, "rounds": rounds}
        )
        total += 0 if rounds else found.mismatches
    lines = [
        f"{r['executor']}: {r['compared']:,} numbers compared, {r['different']:,} differ"
        + (" (residual sums, averages and upsampling are rounded to integers)" if r.get("rounds") else "")
        for r in rows
    ]
    return {
        "file": str(net),
        "images": len(batch),
        "equality": rows,
        "mismatches": total,
        "failed": total > 0,
        "text": "\n".join(lines),
    }


def _is_checkpoint(path: Path) -> bool:
    """Whether a file begins as a zip archive, as checkpoints do."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _checkpoint_network(path: Path) -> nn.Module:
    from ..training.checkpoint import load

    return load(path)[1]


def _compiled(checkpoint: Path) -> tuple[nn.Module, Program]:
    """The network of a checkpoint, and the program made of it."""
    from ..compiler import compile
    from ..training.checkpoint import load

    recipe, network = load(checkpoint)
    try:
        program = compile(network, recipe.example, info=recipe.info, mean=recipe.mean or None, std=recipe.std or None)
    except BitbranchError as error:
        raise type(error)(f"{checkpoint}: {error}") from None
    return network, program


def profile(net: Path, *, threads: int, batch: int, isa: str | None, repeat: int) -> Result:
    """Where the time of a compiled network goes, step by step, and how near it comes to the kernels' ceilings."""
    engine = Engine(read(net), threads=threads, isa=isa)
    x = np.random.default_rng(0).standard_normal((batch, *engine.program.input.shape), np.float32)
    found = engine.profile(x, repeat=repeat)
    head = f"{net}: {engine.isa}, {threads} thread(s), batch {batch}, median of {repeat} runs"
    text = "\n\n".join([head, found.table(), "the longest first", found.table(by_time=True)])
    return {"file": str(net), "isa": engine.isa, "threads": threads, **found.as_dict(), "text": text}


def info(net: Path) -> Result:
    """What a file holds: its operations, types, bounds and sizes. Needs no compiled core."""
    program = read(net)
    size, budget = net.stat().st_size, bit_budget(program)
    rows = [
        {"number": i, "operation": type(op).__name__.lower(), "name": op.name, "inputs": list(op.inputs)}
        | {"output": _describe(value), "weights": str(op.weight_type) if isinstance(op, Conv) else ""}
        for i, (op, value) in enumerate(zip(program.operations, program.values, strict=True))
    ]
    width = max(len(str(r["name"])) for r in rows)
    lines = [f"{k}: {v}" for k, v in program.info.items()]
    lines.append(f"{size:,} bytes, bit budget {budget:,}, {program.macs:,} multiply-accumulates an image")
    lines += [
        f"{r['number']:>3}  {r['operation']:<10}  {r['name']:<{width}}  {r['weights'] or '':<3}  {r['output']}"
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


def run(net: Path, path: Path, *, out: Path | None, threads: int, isa: str | None) -> Result:
    """Run the engine on a file of images; write the outputs, or print the largest output's number of each image."""
    program: Program = read(net)
    outputs = Engine(program, threads=threads, isa=isa)(load_array(path))
    if isinstance(outputs, tuple):
        return _save_all(net, out, dict(zip(program.output_names, outputs, strict=True)))
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
