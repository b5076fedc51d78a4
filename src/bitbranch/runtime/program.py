"""The integer program: what a compiled network is.

A program is a list of operations; operation ``i`` makes value ``i`` from earlier values. A value is one of

* codes      ``[N, C, H, W]`` uint8, of a :class:`~bitbranch.contract.CodeType`;
* integers   ``[N, C, H, W]`` accumulators or residual streams, with proven bounds ``lo .. hi`` within int32;
* reals      ``[N, C, H, W]`` float32, outputs only.

A linear layer is a convolution whose kernel covers the image, so nothing is ever flattened. Constructing a
:class:`Program` validates everything; executors may rely on it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..contract import ACCUMULATOR_MAX
from ..errors import FormatError, InputError
from .checks import ELEMENTS_MAX, NAME_MAX, SIZE_MAX, Padding, Pair, is_text, require, require_ints, window_size
from .operations import (
    Add,
    Concat,
    Conv,
    Convolution,
    ConvTranspose,
    Encode,
    MaxPool,
    Operation,
    Requantize,
    Scale,
    SumPool,
    Threshold,
    Upsample,
)
from .values import Codes, Images, Integers, Output, Reals, Value

if TYPE_CHECKING:
    from .engine import Engine


@dataclass(frozen=True, repr=False)
class Program:
    """A compiled network: operations in order, an :class:`Encode` for each input and a :class:`Scale` for each output.

    Inputs and outputs are numbered as their operations come, and carry their names.

    Args:
        operations: see the module's text.
        output_shapes: shape of one image's outputs, in order, each ``(C,)`` or ``(C, H, W)``.
        info: free text about the network (name, scheme, class names, ..); kept in the file.

    Raises:
        FormatError: names the operation and what is wrong with it.
    """

    operations: tuple[Operation, ...]
    output_shapes: tuple[tuple[int, ...], ...]
    info: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _ = self.values

    def __repr__(self) -> str:
        name = self.info.get("name", "")
        return f"<Program {name!r}: {len(self.operations)} operations, {self.macs:,} multiply-accumulates>"

    @cached_property
    def values(self) -> tuple[Value, ...]:
        """The type of every value; value ``i`` is made by operation ``i``."""
        require(isinstance(self.operations, tuple), "operations must be a tuple")
        require(len(self.operations) >= 2, "a program needs an input and an output")
        values: list[Value] = []
        for i, op in enumerate(self.operations):
            require(isinstance(op, Operation), f"operation {i} is a {type(op).__name__}")
            try:
                values.append(self._infer(i, op, values))
            except FormatError as error:
                raise FormatError(f"operation {i} ({type(op).__name__} {op.name!r:.100}): {error}") from None
        inner = (i for i, value in enumerate(values) if not isinstance(value, Reals))
        unused = set(inner).difference(*(op.inputs for op in self.operations))
        require(not unused, f"operation {min(unused, default=0)}: its value is never used")
        self._check_ends([value for value in values if isinstance(value, Reals)])
        texts = isinstance(self.info, Mapping) and all(is_text(t) for pair in self.info.items() for t in pair)
        require(texts, "info must map text to text")
        return tuple(values)

    def _check_ends(self, outputs: list[Reals]) -> None:
        """Check the names of inputs and outputs and the outputs' shapes."""
        for what, names in (("input", self.input_names), ("output", self.output_names)):
            require(names, f"a program needs an {what}")
            require(len(set(names)) == len(names), f"two {what}s have one name: {', '.join(names):.100}")
        fits = isinstance(self.output_shapes, tuple) and len(self.output_shapes) == len(outputs)
        require(fits, f"output shapes {self.output_shapes!r:.100} are not those of {len(outputs)} outputs")
        for shape, value in zip(self.output_shapes, outputs, strict=True):
            fits = isinstance(shape, tuple) and all(type(n) is int for n in shape)
            fits = fits and shape in (value.shape, (int(np.prod(value.shape)),))
            require(fits, f"output shape {shape!r:.100} does not hold {value.shape}")

    def _infer(self, i: int, op: Operation, values: list[Value]) -> Value:
        require(is_text(op.name) and len(op.name) <= NAME_MAX, f"its name must be text of at most {NAME_MAX} letters")
        require(isinstance(op.inputs, tuple), f"inputs must be a tuple, got {op.inputs!r:.100}")
        arity = max(1, len(op.inputs)) if op.arity is None else op.arity
        require_ints("inputs (earlier operations)", op.inputs, arity, 0, i - 1)
        value = op.infer(*(values[j] for j in op.inputs))
        good = all(1 <= n <= SIZE_MAX for n in value.shape) and int(np.prod(value.shape)) <= ELEMENTS_MAX
        require(good, f"shape {value.shape} out of range")
        if isinstance(value, Integers):
            bounded = -ACCUMULATOR_MAX <= value.lo <= value.hi <= ACCUMULATOR_MAX
            require(bounded, f"accumulators {value.lo}..{value.hi} may overflow 32 bits")
        return value

    @cached_property
    def inputs(self) -> tuple[Encode, ...]:
        """The input operations, in the order of the network's arguments."""
        return tuple(op for op in self.operations if isinstance(op, Encode))

    @property
    def input(self) -> Encode:
        """The input operation of a program with one.

        Raises:
            InputError: it has several.
        """
        if len(self.inputs) != 1:
            raise InputError(f"the program has {len(self.inputs)} inputs ({', '.join(self.input_names)}), not one")
        return self.inputs[0]

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of the inputs, in order."""
        return tuple(op.name for op in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the outputs, in order."""
        return tuple(op.name for op in self.operations if isinstance(op, Scale))

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The output shape of a program with one output.

        Raises:
            InputError: it has several.
        """
        if len(self.output_shapes) != 1:
            names = ", ".join(self.output_names)
            raise InputError(f"the program has {len(self.output_shapes)} outputs ({names}), not one")
        return self.output_shapes[0]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image."""
        return sum(op.macs(*(self.values[j] for j in op.inputs)) for op in self.operations)

    def check_input(self, *x: npt.ArrayLike, nan: bool = True) -> tuple[Images, ...]:
        """A batch as C-contiguous arrays, one per input: float32 (normalised) or uint8 images, ``[N, C, H, W]``.

        Args:
            x: an array for each input.
            nan: whether to look for NaN; the engine does so itself while it encodes.

        Raises:
            InputError: another number of arrays, batch sizes that differ, wrong shape or type, NaN, or uint8 images
                for an input without a pixel table.
        """
        inputs = self.inputs
        if len(x) != len(inputs):
            raise InputError(f"the program takes {len(inputs)} inputs ({', '.join(self.input_names)}), got {len(x)}")
        batch = tuple(
            _check_images(self.describe_input(i), images, op)
            for i, (images, op) in enumerate(zip(x, inputs, strict=True))
        )
        with np.errstate(invalid="ignore"):
            for i, images in enumerate(batch):
                if nan and images.dtype == np.float32 and images.size and np.isnan(images.min()):
                    raise self.holds_nan(i)
        if len({len(a) for a in batch}) > 1:
            raise InputError(f"inputs of different batch sizes: {', '.join(str(len(a)) for a in batch)}")
        return batch

    def describe_input(self, i: int) -> str:
        """What errors call an input."""
        return f"input {self.input_names[i]!r}" if len(self.inputs) > 1 else "input"

    def holds_nan(self, i: int) -> InputError:
        """The error about a NaN in an input."""
        return InputError(f"{self.describe_input(i)}: holds NaN")

    def reference(self, *x: npt.ArrayLike) -> Output:
        """Run the NumPy oracle, see :func:`bitbranch.runtime.reference.run`."""
        from .reference import run

        return run(self, *x)

    def engine(self, threads: int | None = 1, isa: str | None = None, callers: int | None = None) -> Engine:
        """A native engine for this program, see :class:`~bitbranch.runtime.engine.Engine`."""
        from .engine import Engine

        return Engine(self, threads=threads, isa=isa, callers=callers)

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write a ``.bb`` file, atomically; returns its size in bytes."""
        from .container import write

        return write(self, path)


def _check_images(what: str, x: npt.ArrayLike, op: Encode) -> Images:
    """One input's batch; raises :class:`InputError` as :meth:`Program.check_input` says."""
    try:
        a = np.asarray(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what}: not an array ({str(error).splitlines()[0]:.200})") from None
    if a.ndim != 4 or a.shape[1:] != op.shape:
        raise InputError(f"{what}: expected shape (N, {', '.join(map(str, op.shape))}), got {a.shape}")
    if a.dtype == np.uint8:
        if op.table is None:
            raise InputError(f"{what}: uint8 images need a program compiled with mean= and std=; give float32")
        return np.ascontiguousarray(a)
    if a.dtype.newbyteorder("=") not in (np.float32, np.float64, np.float16):
        raise InputError(f"{what}: expected float32 or uint8, got {a.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):  # beyond float32 it is infinite, which is beyond any threshold
        return np.require(a, np.float32, ["C", "A"])


def load(path: str | os.PathLike[str]) -> Program:
    """Read and validate a ``.bb`` file.

    Raises:
        FormatError: malformed, truncated or altered.
        InputError: no such file, or not readable.
    """
    from .container import read

    return read(path)


__all__ = [
    "Add", "Codes", "Concat", "Conv", "ConvTranspose", "Convolution", "Encode", "Images", "Integers", "MaxPool",
    "Operation", "Output", "Padding", "Pair", "Program", "Reals", "Requantize", "Scale", "SumPool", "Threshold",
    "Upsample", "Value", "load", "window_size",
]  # fmt: skip
