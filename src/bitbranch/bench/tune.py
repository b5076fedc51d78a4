"""``bitbranch tune``: measure every family of kernels on every kind of layer, and keep the rates for the planner."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..runtime import program as p
from ..runtime import tuning
from ..runtime.choice import candidates_of
from ..runtime.engine import PLANAR_SETS, Engine, instruction_sets
from .layers import Layer, layer_images, layer_program

ACTIVATIONS = ("u1", "u2", "u3", "u4", "u8")
WEIGHTS = ("b1", "t", "s4", "s8")
"""Types that stand for their bits; one bit of weights is bipolar, two are ternary."""
LAYERS = {
    "large": Layer(64, 28, 64, 3, 1, "", ""),
    "small": Layer(128, 7, 128, 3, 1, "", ""),
    "grouped": Layer(64, 28, 64, 3, 1, "", "", groups=64),
    "pixel": Layer(512, 1, 256, 1, 1, "", ""),
    "pixel-batch": Layer(512, 1, 256, 1, 1, "", ""),
}
"""What stands for each of :data:`bitbranch.runtime.tuning.SHAPES`."""
BATCH = {"pixel-batch": 32}
"""Images of a call where it is not one."""
REPEAT = 25
"""Runs of which the median counts."""
Result = dict[str, object]


def run(out: Path | None, isas: Sequence[str], say: Callable[[str], None]) -> Result:
    """Measure and save.

    Args:
        out: the file to write; ``None``: the user's own (:func:`bitbranch.runtime.tuning.path`).
        isas: instruction sets; empty: all but the scalar one, which needs no tuning.
        say: told about progress.

    Raises:
        InputError: unknown instruction set.
    """
    available = [isa for isa in instruction_sets() if isa in PLANAR_SETS]
    wrong = [isa for isa in isas if isa not in available]
    if wrong:
        raise InputError(f"tune: no instruction set {wrong[0]!r} here; there are {', '.join(available)}")
    wanted = list(isas) or [isa for isa in available if isa != "scalar"] or available
    target = out or tuning.path()
    start = time.perf_counter()
    table: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    changed, lines = 0, []
    with tuning.off():
        for isa in wanted:
            table[isa] = {}
            for shape in tuning.SHAPES:
                say(f"{isa}: {shape} layers")
                for bits, rates, rule in measure(isa, shape):
                    table[isa].setdefault(shape, {})[bits] = rates
                    best = max(rates, key=lambda family: rates[family])
                    if best != rule:
                        changed += 1
                        gain = f"{best} {rates[best]:.0f} GMAC/s, {rule} {rates[rule]:.0f}"
                        lines.append(f"{isa}, {shape}, {bits} bits: {gain}")
    tuning.save(table, target)
    seconds = time.perf_counter() - start
    count = sum(len(kinds) for shapes in table.values() for kinds in shapes.values())
    lines.append(f"{target}: {count} kinds of layers in {seconds:.0f} s; {changed} run otherwise than by the rules")
    return {"file": str(target), "rates": table, "changed": changed, "seconds": seconds, "text": "\n".join(lines)}


def measure(isa: str, shape: str) -> Iterator[tuple[str, dict[str, float], str]]:
    """Rates of the families on layers of a shape with all pairs of types.

    Yields:
        Bits, as tables have them; GMAC/s by family, as tables name them; and the family that the rules choose.
    """
    layer, batch = LAYERS[shape], BATCH.get(shape, 1)
    for activations in ACTIVATIONS:
        for weights in WEIGHTS:
            fields = {**layer.__dict__, "activations": activations, "weights": weights}
            of_types = Layer(**fields)
            program, x = layer_program(of_types), layer_images(of_types, batch)
            conv = program.operations[1]
            assert isinstance(conv, p.Conv)
            rates = {}
            for family in candidates_of(program, 1):
                rates[tuning.named(family)] = _rate(Engine(program, isa=isa, families={"conv": family}), x)
            rule = max(
                Engine(program, isa=isa, path="planar").profile(x, repeat=1).rows, key=lambda row: row.macs
            ).family
            source = program.values[0]
            assert isinstance(source, p.Codes)
            yield f"{source.code_type.bits}x{conv.weight_type.bits}", rates, tuning.named(rule)


def _rate(engine: Engine, x: np.ndarray[Any, Any]) -> float:
    """10^9 multiply-accumulates per second of the layer, with the flattening that its family may need.

    Repacking is not counted: inside a network the step before writes the form that the family reads.
    """
    rows = engine.profile(x, repeat=REPEAT).rows
    return max(row.macs for row in rows) / sum(row.seconds for row in rows if "conv" in row.name) / 1e9
