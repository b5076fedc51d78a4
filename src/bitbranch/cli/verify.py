"""``bitbranch verify``: every engine against the reference, and both against the torch network if there is one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from ..runtime import dot, reference
from ..runtime.comparison import EngineCheck
from ..runtime.container import read
from ..runtime.engine import Engine, instruction_sets
from ..runtime.program import Program
from .files import Array, Result, compiled, load_array

if TYPE_CHECKING:
    from torch import nn

PART = 8
"""Images that are compared at a time: of each all values are kept."""
ROUNDED = 0.25
"""Share of the codes behind rounded sums that may differ from torch's. Rounding alone makes up to a tenth differ, in
networks whose sums often lie on a threshold; of two networks that are not the same most differ.
"""


def random_images(program: Program, count: int, seed: int) -> list[Array]:
    """For each input float images ``[count, C, H, W]`` that reach every code of it."""
    if seed < 0:
        raise InputError(f"--seed must be at least 0, got {seed}")
    rng, images = np.random.default_rng(seed), list[Array]()
    for op in program.inputs:
        edge = 1.1 * float(np.abs(op.thresholds).max(initial=1.0))
        images.append(rng.uniform(-edge, edge, (count, *op.shape)).astype(np.float32))
    return images


def verify(net: Path, images: Sequence[Path], *, checkpoint: Path | None, count: int, seed: int) -> Result:
    """Compare engines with the reference: all instruction sets, both paths, 1 and 2 threads; and torch, if asked.

    Args:
        net: a ``.bb`` file, or a checkpoint, which is compiled in memory and compared with its torch network.
        images: for each input a ``.npy`` file ``[N, C, H, W]``; none at all take random images.
        checkpoint: what ``net`` was compiled from, to compare with its torch network. Codes and sums behind residual
            sums, averages and upsampling that are rounded to integers may differ, up to :data:`ROUNDED` of the codes.
        count, seed: of the random images.

    Raises:
        InputError: a file of wrong contents; ``checkpoint`` beside a checkpoint.
    """
    network = None
    if _is_checkpoint(net):
        if checkpoint is not None:
            raise InputError(f"--checkpoint {checkpoint}: {net} is a checkpoint, and compared with its own network")
        network, program = compiled(net)
    else:
        program = read(net)
        if checkpoint is not None:
            network = _network(checkpoint)
    batch = program.check_input(*map(load_array, images) if images else random_images(program, count, seed))
    if not len(batch[0]):
        raise InputError(f"{images[0]}: holds no image")
    rows = _engines(program, batch)
    lines = [f"{r['executor']}: {r['compared']:,} numbers compared, {r['different']:,} differ" for r in rows]
    total = sum(int(str(r["different"])) for r in rows)
    if network is not None:
        for path, x in zip(images, batch, strict=False):
            if x.dtype == np.uint8:
                raise InputError(f"{path}: comparing with the torch network needs float32 images, got uint8")
        row, failures, text = _torch(network, program, batch)
        rows.append(row)
        total += failures
        lines += text
    return {
        "file": str(net),
        "images": len(batch[0]),
        "equality": rows,
        "mismatches": total,
        "failed": total > 0,
        "text": "\n".join(lines),
    }


def _parts(batch: Sequence[Array]) -> list[list[Array]]:
    """Of each input so many images as are compared at a time."""
    return [[x[first : first + PART] for x in batch] for first in range(0, len(batch[0]), PART)]


def _engines(program: Program, batch: Sequence[Array]) -> list[Result]:
    """Every engine: how many numbers were compared with the reference's, and how many differ in any bit."""
    paths = ("planar",) if dot.refuses(program) else ("planar", "products")
    engines = {
        EngineCheck(f"engine {isa}, {path}, {threads} thread{'s' if threads > 1 else ''}"): Engine(
            program, threads=threads, isa=isa, path=path
        )
        for isa in instruction_sets()
        for path in paths
        for threads in (1, 2)
    }
    for number, part in enumerate(_parts(batch)):
        values = dict(reference.trace(program, *part))
        for check, engine in engines.items():
            check.compare(number, engine, program, part, values)
    return [
        {"executor": check.name, "compared": check.values.compared, "different": check.values.differing}
        | ({"first": f"{check.operation}: {check.values.first}"} if check.values.first else {})
        for check in engines
    ]


def _torch(network: nn.Module, program: Program, batch: Sequence[Array]) -> tuple[Result, int, list[str]]:
    """The torch network: a row for it, how many of the differing numbers are failures, and lines that say so."""
    from ..compiler.verify import verify as verify_torch

    found = verify_torch(network, program, map(tuple, _parts(batch)))
    counts = [n for layer in found.layers for n in (layer.codes, layer.accumulators)]
    row: Result = {"executor": "torch float64", "compared": sum(n.compared for n in counts)}
    row |= {"different": found.mismatches, "rounds": any(layer.rounded for layer in found.layers)}
    exact = sum(layer.mismatches for layer in found.layers if not layer.rounded)
    rounded = [layer.codes for layer in found.layers if layer.rounded]
    behind = sum(codes.differing for codes in rounded)
    failures = found.mismatches if behind > ROUNDED * sum(codes.compared for codes in rounded) else exact
    said = f"torch float64: {row['compared']:,} numbers compared, {found.mismatches:,} differ"
    if row["rounds"]:
        share = behind / max(1, sum(codes.compared for codes in rounded))
        said += f" ({100 * share:.2g} % of the codes behind residual sums and averages, which are rounded to integers)"
    return row, failures, [said, *(str(found).splitlines() if found.mismatches else [])]


def _is_checkpoint(path: Path) -> bool:
    """Whether a file begins as a zip archive, as checkpoints do."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _network(path: Path) -> nn.Module:
    from ..training.checkpoint import load

    return load(path)[1]
