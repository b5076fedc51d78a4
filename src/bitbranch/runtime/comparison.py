"""Whether executors of a program agree with the reference: how many numbers differ, and where the first one does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from . import program as p

Array = npt.NDArray[np.generic]

Executor: TypeAlias = Callable[..., p.Output]
"""What runs a program on a batch, such as :class:`~bitbranch.runtime.engine.Engine`.

One that also has ``trace(*x)``, yielding ``(operation number, value)`` as
:func:`bitbranch.runtime.reference.trace` does, in any order and not necessarily for all, is compared there too.
"""


@dataclass(frozen=True)
class Divergence:
    """The first place where two tensors differ: numbers of the batch and the image in it, channel, row, column."""

    batch: int
    image: int
    channel: int
    y: int
    x: int
    expected: float
    got: float

    def __str__(self) -> str:
        place = f"batch {self.batch} image {self.image} channel {self.channel} y {self.y} x {self.x}"
        return f"{place}: expected {self.expected:g}, got {self.got:g}"


@dataclass
class Count:
    """How many numbers were compared, how many differ, and where the first difference is."""

    compared: int = 0
    differing: int = 0
    first: Divergence | None = None

    def compare(self, batch: int, expected: Array, got: Array) -> None:
        """Add a comparison of two tensors ``[N, ...]`` of one size: by bits where both are floats of one type."""
        # Shapes differ where the program keeps an image that torch has flattened; the order of numbers does not.
        expected, got = np.asarray(expected).reshape(got.shape), np.ascontiguousarray(got)
        differs = _bits(expected) != _bits(got) if expected.dtype == got.dtype else expected != got
        self.compared += differs.size
        self.differing += int(np.count_nonzero(differs))
        if self.first is None and differs.any():
            place = np.unravel_index(int(np.argmax(differs)), differs.shape)
            image, channel, y, x = (*(int(i) for i in place), 0, 0)[:4]
            self.first = Divergence(batch, image, channel, y, x, float(expected[place]), float(got[place]))


@dataclass(eq=False)
class EngineCheck:
    """One engine against the reference: its outputs and, where it can show them, the values of its operations."""

    name: str
    values: Count = field(default_factory=Count)
    operation: str = ""
    """The first operation that differs."""

    def compare(
        self, batch: int, engine: Executor, program: p.Program, images: Sequence[Array], values: Mapping[int, Array]
    ) -> None:
        """Run an engine on a batch, and compare what it gives and shows.

        Args:
            batch: its number.
            engine: it.
            program: what it runs.
            images: the batch, for each input.
            values: the reference's, by operation.

        Raises:
            InputError: the engine gives another number of numbers.
        """
        trace: Callable[..., Iterable[tuple[int, Array]]] | None = getattr(engine, "trace", None)
        shown = dict(trace(*images)) if trace is not None else {}
        made, outputs = engine(*images), output_numbers(program)
        # Both, since an engine may plan otherwise where it shows its values.
        for i, value in [*sorted(shown.items()), *zip(outputs, made if len(outputs) > 1 else (made,), strict=True)]:
            where = f"operation {i} ({type(program.operations[i]).__name__} {program.operations[i].name!r})"
            if value.size != values[i].size:
                raise InputError(f"{self.name}: {where}: gives shape {value.shape}, the reference {values[i].shape}")
            clean = self.values.first is None
            self.values.compare(batch, values[i], value)
            if clean and self.values.first is not None:
                self.operation = where


def executor_name(engine: Executor) -> str:
    """Its type and, of an engine, the instruction set, the path that is forced and the number of threads."""
    isa, path, threads = (getattr(engine, name, None) for name in ("isa", "path", "threads"))
    return " ".join([type(engine).__name__, *filter(None, (isa, path)), *([f"x{threads}"] if threads else [])])


def output_numbers(program: p.Program) -> list[int]:
    """The operations that make the outputs."""
    return [i for i, op in enumerate(program.operations) if isinstance(op, p.Scale)]


def _bits(array: Array) -> Array:
    """Floats as integers of their bits; others as they are."""
    return np.ascontiguousarray(array).view(f"u{array.itemsize}") if array.dtype.kind == "f" else array
