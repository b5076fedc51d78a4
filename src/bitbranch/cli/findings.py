"""What the demo finds out about a compiled network: equality of executors, time and bits per step, codes, mistakes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ..compiler import compile
from ..compiler.verify import verify
from ..data import Dataset
from ..decomposition import decompose
from ..overview import summary
from ..runtime import program as p
from ..runtime import reference
from ..runtime.comparison import Count
from ..runtime.engine import Engine, instruction_sets
from ..training import checkpoint
from ..training.loop import predict
from .demo_training import Trained
from .report import Mistake

Row = dict[str, Any]
Images = npt.NDArray[np.float32]

THREADS = (1, 2)


@dataclass(frozen=True)
class Compiled:
    """A low-bit network, and the same as a program, loaded from its file, with its answers to the test images."""

    trained: Trained
    scheme: str
    network: nn.Module
    program: p.Program
    file: Path
    engine: Engine
    guesses: npt.NDArray[np.int64]


def compile_and_run(trained: Trained, test: Dataset) -> Compiled:
    """Compile a checkpoint, save the program beside it, load it and run it on all test images, given as bytes."""
    recipe, network = checkpoint.load(trained.path)
    program = compile(network, recipe.example, info=recipe.info, mean=recipe.mean, std=recipe.std)
    file = trained.path.with_suffix(".bb")
    program.save(file)
    loaded = p.load(file)
    engine = Engine(loaded)
    guesses = engine(test.images).argmax(1)
    return Compiled(trained, str(recipe.scheme), network, loaded, file, engine, guesses)


def equality(c: Compiled, images: Images, count: int) -> list[Row]:
    """For every executor: how many numbers were compared and how many differ in any bit.

    Args:
        c: the compiled network.
        images: the test images; the engine's and the reference's outputs are compared on all of them.
        count: of so many images, every layer is compared.
    """
    settings = [(isa, threads) for isa in instruction_sets() for threads in THREADS]
    engines = [Engine(c.program, isa=isa, threads=threads) for isa, threads in settings]
    checked = verify(c.network, c.program, [images[:count]], engines=engines)
    layers = [n for layer in checked.layers for n in (layer.codes, layer.accumulators)]
    compared, different = sum(n.compared for n in layers), sum(n.differing for n in layers)
    rows = [_row("PyTorch in float64: codes and accumulators", compared, different)]
    branches = predict(decompose(c.network), images[:count]).numpy()
    layered = predict(c.network, images[:count]).numpy()
    rows.append(_row("PyTorch, as {-1, +1} branches: outputs", *_differing(layered, branches)))
    for (isa, threads), check in zip(settings, checked.engines, strict=True):
        name = f"engine, {isa}, {threads} thread{'s' if threads > 1 else ''}: values and outputs"
        rows.append(_row(name, check.values.compared, check.values.differing))
    outputs = _differing(c.program.reference(images), c.engine(images))
    return [*rows, _row(f"engine, {c.engine.isa}: outputs of all test images", *outputs)]


def _row(executor: str, compared: int, different: int) -> Row:
    return {"executor": executor, "compared": compared, "different": different}


def _differing(expected: Images, got: Images) -> tuple[int, int]:
    """How many float32 numbers there are, and how many differ in any bit."""
    count = Count()
    count.compare(0, expected, got)
    return count.compared, count.differing


def steps(c: Compiled, image: Images) -> list[Row]:
    """Bits, work and time of each step that the engine takes for one image ``[1, C, H, W]``."""
    layers = {layer.name: layer for layer in summary(c.network, torch.from_numpy(image)).layers}
    rows = []
    for step in c.engine.profile(image, repeat=200).rows:
        # A convolution that makes codes at once is called after what makes them: "act2 (conv2)".
        inner = step.name.partition(" (")[2].rstrip(")")
        name = inner if inner in layers else step.name
        row: Row = {"name": name, "kernel": step.family, "milliseconds": 1e3 * step.seconds}
        if name in layers and step.macs:
            layer = layers[name]
            row |= {"weights": str(layer.weight), "inputs": str(layer.input)}
            row |= {"macs": layer.macs, "bytes": layer.weight_bytes}
        rows.append(row)
    return rows


def histograms(program: p.Program, images: Images) -> dict[str, Row]:
    """How often each value occurs at the input of each convolution or linear layer: its ``type`` and ``counts``.

    Counts are in the order of the values, smallest first.
    """
    readers = {op.inputs[0]: op.name for op in program.operations if isinstance(op, p.Convolution)}
    found: dict[str, Row] = {}
    for i, codes in reference.trace(program, images):
        value = program.values[i]
        if i in readers and isinstance(value, p.Codes):
            t = value.code_type
            rank = (t.decode(codes) - t.lo) // t.step
            counts = np.bincount(rank.ravel(), minlength=t.count)
            found[readers[i]] = {"type": str(t), "counts": counts.tolist()}
    return found


def mistakes(c: Compiled, test: Dataset, count: int) -> list[Mistake]:
    """Some of the images that the network got wrong, spread over all of them."""
    wrong = np.flatnonzero(c.guesses != test.labels)
    chosen = wrong[:: max(1, len(wrong) // count)][:count]
    return [Mistake(test.images[i, 0], test.classes[test.labels[i]], test.classes[c.guesses[i]]) for i in chosen]


def float_bytes(network: nn.Module) -> int:
    """Bytes of a network's parameters and BatchNorm statistics in float32."""
    return 4 * sum(tensor.numel() for tensor in network.state_dict().values() if tensor.is_floating_point())
