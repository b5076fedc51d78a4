"""The native executor: the reference's integers by packed kernels. The only importer of the compiled core."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..contract import CodeType
from ..errors import BitbranchError, InputError
from . import dot, layout
from . import program as p
from .dot_planner import DotPlanner
from .planner import Planner, StepInfo
from .workspace import Stored

WORKSPACE = 4 << 20
"""Large batches are run in parts whose buffers take about this many bytes.

Measured: the time per image falls while small images fill the vectors better, and is flat from there on.
"""
PART_MAX = 64
"""Largest part of a batch."""


@lru_cache(maxsize=1)
def _core() -> Any:
    try:
        return importlib.import_module("._core", __package__)
    except ImportError as error:
        raise BitbranchError(
            f"the native engine is not installed ({error}); build it with `pip install .` in bitbranch's folder"
            " (needs a C++17 compiler), or use the program's reference()"
        ) from None


def instruction_sets() -> list[str]:
    """Names for ``isa=`` that this build and this processor have, the widest first.

    Raises:
        BitbranchError: the compiled core is not installed.
    """
    return list(_core().instruction_sets())


def takes_dot(core: Any, machine: Any, program: p.Program) -> bool:
    """Whether the dot-product path runs a program: where the processor has instructions for it, if it can."""
    return not dot.refuses(program) and bool(core.has_fast_dot(machine))


@dataclass(frozen=True)
class ProfileRow:
    """Time of one step of the plan, for one batch."""

    name: str
    family: str
    seconds: float
    """Median."""
    macs: int
    """Multiply-accumulates of the batch."""

    @property
    def gmacs(self) -> float:
        """10^9 multiply-accumulates per second."""
        return self.macs / self.seconds / 1e9 if self.seconds else 0.0


@dataclass(frozen=True)
class Profile:
    """Where the time of a batch goes.

    Attributes:
        rows: one per step, in order.
        seconds: median of the whole call, Python included.
        images: size of the batch.
    """

    rows: tuple[ProfileRow, ...]
    seconds: float
    images: int

    @property
    def glue(self) -> float:
        """Share of the whole call that is not multiply-accumulate steps, 0..1."""
        arithmetic = sum(row.seconds for row in self.rows if row.macs)
        return max(0.0, 1 - arithmetic / self.seconds) if self.seconds else 0.0


class Engine:
    """Runs a program with packed integer kernels; equal to the reference bit for bit.

    Calls are safe from several threads, which take turns.

    Args:
        source: a program, or the path of a ``.bb`` file.
        threads: of the processor; results do not depend on it.
        isa: an instruction set to force, one of :func:`instruction_sets`; else the environment's ``BITBRANCH_ISA``,
            else the widest.

    Raises:
        InputError: unknown instruction set, or ``threads`` below 1.
        FormatError: malformed file.
        BitbranchError: the compiled core is not installed.
    """

    def __init__(self, source: p.Program | str | os.PathLike[str], threads: int = 1, isa: str | None = None) -> None:
        core = _core()
        if threads < 1:
            raise InputError(f"threads must be at least 1, got {threads}")
        isa = isa or os.environ.get("BITBRANCH_ISA") or core.instruction_sets()[0]
        if isa not in core.instruction_sets():
            raise InputError(
                f"instruction set {isa!r} is not available here; there are {', '.join(core.instruction_sets())}"
            )
        self.program = source if isinstance(source, p.Program) else p.load(source)
        self.threads = threads
        self.isa = isa
        self._machine = core.Machine(isa, threads)
        self._packed: dict[tuple[int, str], Any] = {}
        self._plans: dict[int, Planner | DotPlanner] = {}
        self._dot = takes_dot(core, self._machine, self.program)
        self._part = self._part_size()

    def __repr__(self) -> str:
        return f"Engine({self.program.info.get('name', 'program')!r}, threads={self.threads}, isa={self.isa!r})"

    def __call__(self, *x: npt.ArrayLike) -> p.Output:
        """Run a batch.

        Args:
            x: for each input float32 (normalised) or uint8 images ``[N, C, H, W]``.

        Returns:
            float32 ``[N, *output_shape]``; a tuple of them in order if the program has several outputs.

        Raises:
            InputError: see :meth:`~bitbranch.runtime.program.Program.check_input`.
        """
        outputs = self._run(self.program.check_input(*x), None)
        return outputs if len(outputs) > 1 else outputs[0]

    def trace(self, *x: npt.ArrayLike) -> Iterator[tuple[int, npt.NDArray[np.generic]]]:
        """Run a batch and yield ``(operation number, its value)`` for every value that is materialised.

        The values are the reference's (:func:`bitbranch.runtime.reference.trace`): codes as uint8, integers as int64,
        the outputs as float32, each ``[N, C, H, W]``. Accumulators that go straight into thresholds are not among them.
        """
        batch = self.program.check_input(*x)
        n = len(batch[0])
        plan = self._new_plan(max(1, n))  # its own: between two steps no other call may use the buffers
        reals = {
            i: np.empty((n, *v.shape), np.float32) for i, v in enumerate(self.program.values) if isinstance(v, p.Reals)
        }
        for number, step in enumerate(plan.steps):
            if n:
                plan.plan.run(list(batch), list(reals.values()), number, number + 1)
            for operation in step.completes:
                yield operation, reals[operation] if operation in reals else self._value(plan, operation, n)

    def profile(self, *x: npt.ArrayLike, repeat: int = 20) -> Profile:
        """Median time of every step and of the whole call, over ``repeat`` runs of a batch."""
        batch = self.program.check_input(*x)
        n = len(batch[0])
        self._run(batch, None)
        whole, steps = [], []
        for _ in range(repeat):
            start = time.perf_counter()
            self._run(batch, None)
            whole.append(time.perf_counter() - start)
            steps.append(np.zeros(len(self._steps(n))))
            self._run(batch, steps[-1])  # summed over the parts of the batch
        seconds = np.median(np.asarray(steps), axis=0)
        rows = [
            ProfileRow(step.name, step.family, float(s), step.macs * n)
            for step, s in zip(self._steps(n), seconds, strict=True)
        ]
        return Profile(tuple(rows), float(np.median(whole)), n)

    # ---- plans --------------------------------------------------------------------------------------------------

    def _plan(self, capacity: int) -> Planner | DotPlanner:
        """The plan for batches up to ``capacity``, rounded up to a power of two; made on first use."""
        capacity = 1 << (capacity - 1).bit_length()
        plan = self._plans.get(capacity)
        if plan is None:
            plan = self._plans[capacity] = self._new_plan(capacity)
        return plan

    def _new_plan(self, capacity: int) -> Planner | DotPlanner:
        plan: Planner | DotPlanner
        arguments = (_core(), self._machine, self.isa, self.program, capacity, self._packed)
        plan = DotPlanner(*arguments, threads=self.threads) if self._dot else Planner(*arguments)
        plan.build()
        return plan

    def _part_size(self) -> int:
        images = WORKSPACE // self._plan(1).size
        return max(1, min(PART_MAX, 1 << max(0, images.bit_length() - 1)))

    def _run(
        self, batch: Sequence[npt.NDArray[Any]], seconds: npt.NDArray[np.float64] | None
    ) -> tuple[npt.NDArray[np.float32], ...]:
        n = len(batch[0])
        outputs = tuple(np.empty((n, *shape), np.float32) for shape in self.program.output_shapes)
        for first in range(0, n, self._part):
            part = slice(first, first + self._part)
            plan = self._plan(min(self._part, n - first))
            plan.plan.run([x[part] for x in batch], [y[part] for y in outputs], 0, len(plan.steps), seconds)
        return outputs

    def _steps(self, images: int) -> list[StepInfo]:
        return self._plan(min(images, self._part)).steps

    def _value(self, plan: Planner | DotPlanner, operation: int, n: int) -> npt.NDArray[np.generic]:
        """Codes or integers that lie in memory."""
        value = self.program.values[operation]
        channels, height, width = value.shape
        if n == 0:
            return np.empty((0, *value.shape), np.uint8 if isinstance(value, p.Codes) else np.int64)
        if isinstance(plan, DotPlanner):
            return plan.value(operation, n)
        stored: Stored = plan.stored[operation][0]
        memory = stored.buffer.array()
        if stored.form is None:
            rows, pitch = stored.geometry.rows, stored.geometry.pitch
            planes_at = stored.start + np.arange(channels)[:, None] * stored.plane_stride
            at = planes_at + np.arange(n * rows * pitch * 4)
            planes = memory[at].view(np.int32).reshape(channels, n, rows, pitch)[:, :, :height, :width]
            return planes.transpose(1, 0, 2, 3).astype(np.int64)
        assert isinstance(value, p.Codes)
        numbers = layout.unpack(memory, stored.start, stored.plane_stride, stored.geometry, stored.form, channels, n)
        return _codes(numbers, stored.form, value.code_type)


def _codes(numbers: npt.NDArray[np.uint8], form: layout.Form, code_type: CodeType) -> npt.NDArray[np.uint8]:
    """Stored numbers back to plain codes."""
    multiplier, add = form.stored(code_type)
    rank = (numbers.astype(np.int16) - add) % 256 // multiplier
    return code_type.from_rank(rank)
