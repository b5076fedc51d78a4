"""The native executor: the reference's integers by packed kernels. The only importer of the compiled core."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..contract import CodeType
from ..errors import BitbranchError, InputError
from . import dot, layout, paths, tuning
from . import program as p
from .choice import forced
from .dot_planner import DotPlanner
from .lanes import Lane, Lanes
from .planner import Planner
from .profile import Profile, ProfileRow, ceiling
from .recipe import Recipe
from .steps import StepInfo
from .workspace import Stored

WORKSPACE = 4 << 20
"""Large batches are run in parts whose buffers take about this many bytes.

Measured: the time per image falls while small images fill the vectors better, and is flat from there on.
"""
PART_MAX = 64
"""Largest part of a batch."""
RACE_TURNS, RACE_SECONDS = 6, 0.03
"""How often a path runs an image when it is timed, at most; after so many seconds no more than twice."""
COUNT_MAX = 1024
"""Most threads of a call, and most calls at once."""


@lru_cache(maxsize=1)
def _core() -> Any:
    try:
        return importlib.import_module("._core", __package__)
    except ImportError as error:
        raise BitbranchError(
            f"the native engine is not installed ({error}); build it with `pip install .` in bitbranch's folder"
            " (needs a C++17 compiler), or use the program's reference()"
        ) from None


def compiled_core() -> Any:
    """The compiled core itself, for what is no network.

    Raises:
        BitbranchError: it is not installed.
    """
    return _core()


def instruction_sets() -> list[str]:
    """Names for ``isa=`` that this build and this processor have, the widest first.

    Raises:
        BitbranchError: the compiled core is not installed.
    """
    return list(_core().instruction_sets())


def chosen_isa(isa: str | None = None) -> str:
    """The instruction set to use: the given one, else the environment's ``BITBRANCH_ISA``, else the widest.

    Raises:
        InputError: there is no such set here.
        BitbranchError: the compiled core is not installed.
    """
    usable = instruction_sets()
    isa = isa or os.environ.get("BITBRANCH_ISA") or usable[0]
    if isa not in usable:
        raise InputError(f"instruction set {isa!r} is not available here; there are {', '.join(usable)}")
    return isa


PLANAR_SETS = ("avx512_vbmi", "avx512", "avx2", "neon", "scalar")
"""The instruction sets with planar kernels of their own; the others have those of one of these."""


def has_dot_products(isa: str) -> bool:
    """Whether an instruction set multiplies bytes and adds them up in one instruction."""
    core = _core()
    return bool(core.has_fast_dot(core.Machine(isa, 1)))


def takes_dot(program: p.Program, isa: str) -> bool | None:
    """Whether the dot-product path runs a program: where the processor has instructions for it, and it is faster.

    ``None``: only timing both paths would tell.
    """
    if dot.refuses(program) or not has_dot_products(isa):
        return False
    sextets = any(kernel.family == "sextets" for kernel in _core().kernels(isa))
    return None if paths.are_close(program, isa, sextets) else paths.prefers_products(program, isa, sextets)


@dataclass(frozen=True, eq=False)
class _Planned:
    """A plan that every lane makes for itself."""

    recipe: Recipe
    plan: Any
    """What stands for it in the recipe."""
    steps: list[StepInfo]
    size: int
    """Bytes of its buffers."""


def _count(what: str, given: object, default: int) -> int:
    """A count from a caller: a whole number of at least 1, or ``None`` for the default."""
    if given is None:
        return default
    whole = isinstance(given, (int, np.integer)) and not isinstance(given, bool)
    if not whole or not 1 <= given <= COUNT_MAX:  # type: ignore[operator]
        raise InputError(f"{what} must be a whole number, at least 1 and at most {COUNT_MAX}, got {given!r:.100}")
    return int(given)  # type: ignore[call-overload]


class Engine:
    """Runs a program with packed integer kernels; equal to the reference bit for bit.

    Calls from several Python threads run at the same time, each on a lane: buffers and ``threads`` threads of its own.
    Weights, thresholds and tables are shared. Lanes are made when they are first needed and kept; beyond ``callers``
    calls wait for one. No lock is held while a program runs, and nothing but its output is allocated. Ctrl-C and
    other signals are handled between steps of a run. An engine works in a forked process, and in another one by pickle.

    Args:
        source: a program, or the path of a ``.bb`` file.
        threads: of the processor for one call, more than cores if you like; ``None`` for all cores. Results do not
            depend on it.
        isa: an instruction set to force, one of :func:`instruction_sets`; else the environment's ``BITBRANCH_ISA``,
            else the widest.
        families: families of kernels to force, by a convolution's name, or ``"*"`` for every one where the family is
            exact; else the environment's ``BITBRANCH_FAMILY``, as for ``"*"``; else the fastest. Results do not
            depend on it.
        callers: most calls that run at once; ``None`` for as many as have ``threads`` cores each, at least one.
        path: ``"planar"`` or ``"products"``, to force one of the engine's two paths; ``None`` for the faster one, which
            is estimated or, where it is close, timed. A forced family is planar. Results do not depend on it.

    Raises:
        InputError: unknown instruction set or path, one that cannot run the program, ``threads`` or ``callers`` out of
            range, a family that a named convolution cannot have, or one beside ``path="products"``.
        FormatError: malformed file.
        BitbranchError: the compiled core is not installed.
    """

    def __init__(
        self,
        source: p.Program | str | os.PathLike[str],
        threads: int | None = 1,
        isa: str | None = None,
        families: Mapping[str, str] | None = None,
        callers: int | None = None,
        path: str | None = None,
    ) -> None:
        core = _core()
        threads = _count("threads", threads, tuning.cores())
        isa = chosen_isa(isa)
        self.program = source if isinstance(source, p.Program) else p.load(source)
        self.threads = threads
        self.isa = isa
        everywhere = os.environ.get("BITBRANCH_FAMILY")
        if families is not None and not isinstance(families, Mapping):
            raise InputError(f"families must say one by name, as {{'*': 'byte'}}, got {families!r:.100}")
        self.families = dict(families or ({"*": everywhere} if everywhere else {}))
        self._forced = forced(self.program, self.families)
        self._rates = tuning.rates(isa)
        self.callers = _count("callers", callers, max(1, tuning.cores() // threads))
        self._packed: dict[tuple[int, str], Any] = {}
        self._plans: dict[int, _Planned] = {}
        self._lanes = Lanes(lambda: Lane(core.Machine(isa, threads)), self.callers)
        lane = self._lanes.take()
        self._part = PART_MAX  # of the first plan, which needs one image
        takes_dot = self._takes_dot(path)
        if takes_dot is None:
            takes_dot = self._race(lane)
        self._dot = takes_dot
        images = WORKSPACE // self._planned(1, lane).size
        self._part = max(1, min(PART_MAX, 1 << max(0, images.bit_length() - 1)))
        self._lanes.give_back(lane)

    def _takes_dot(self, path: str | None) -> bool | None:
        """Whether the dot-product path runs the program, given which one is forced; see :func:`takes_dot`."""
        if path not in (None, "planar", "products"):
            raise InputError(f"path {path!r}: expected 'planar', 'products' or None")
        if self._forced:
            if path == "products":
                raise InputError("path 'products': families of kernels are the planar path's, and one is forced")
            return False
        if path == "products" and (reason := dot.refuses(self.program)):
            raise InputError(f"path 'products': {reason}")
        return takes_dot(self.program, self.isa) if path is None else path == "products"

    def _race(self, lane: Lane) -> bool:
        """Plan both ways, one after the other, time an image on each, and say whether dot products were faster.

        The plans are those of dot products, which mostly are, or none; so memory never holds both.
        """
        batch = [np.zeros((1, *op.shape), np.float32) for op in self.program.inputs]
        outputs = self._outputs(1)
        best = {}
        for self._dot in (False, True):
            self._packed, self._plans, lane.plans = {}, {}, {}
            self._planned(1, lane)
            plan, seconds, start = lane.plans[1], list[float](), time.perf_counter()
            while len(seconds) < 2 or (len(seconds) < RACE_TURNS and time.perf_counter() - start < RACE_SECONDS):
                begin = time.perf_counter()
                plan.run(batch, outputs, 0, len(plan))
                seconds.append(time.perf_counter() - begin)
            best[self._dot] = min(seconds[1:])  # the first fills the caches
            del plan
        if best[False] < best[True]:
            self._packed, self._plans, lane.plans = {}, {}, {}
        return best[True] <= best[False]

    def __reduce__(self) -> tuple[object, ...]:
        """Pickled and copied as the program and how it runs: a copy plans again."""
        path = "products" if self._dot else "planar"
        return Engine, (self.program, self.threads, self.isa, self.families, self.callers, path)

    def __repr__(self) -> str:
        return f"Engine({self.program.info.get('name', 'program')!r}, threads={self.threads}, isa={self.isa!r})"

    def __call__(self, *x: npt.ArrayLike, out: p.Output | None = None) -> p.Output:
        """Run a batch.

        Args:
            x: for each input float32 (normalised) or uint8 images ``[N, C, H, W]``.
            out: where to write what is returned: an array, or one for each output, that is C-contiguous and shares no
                memory with another or with an input. What it holds after an error is not defined.

        Returns:
            float32 ``[N, *output_shape]``; a tuple of them in order if the program has several outputs.

        Raises:
            InputError: see :meth:`~bitbranch.runtime.program.Program.check_input`; ``out`` does not fit.
        """
        batch = self.program.check_input(*x, nan=False)
        outputs = self._outputs(len(batch[0])) if out is None else self._check_out(out, batch)
        self._run(batch, outputs)
        return outputs if len(outputs) > 1 else outputs[0]

    def trace(self, *x: npt.ArrayLike) -> Iterator[tuple[int, npt.NDArray[np.generic]]]:
        """Run a batch and yield ``(operation number, its value)`` for every value that is materialised.

        The values are the reference's (:func:`bitbranch.runtime.reference.trace`): codes as uint8, integers as int64,
        the outputs as float32, each ``[N, C, H, W]``. Accumulators that go straight into thresholds are not among them.
        """
        batch = self.program.check_input(*x)
        n = len(batch[0])
        core = _core()
        # A plan of its own: between two steps no other call may use the buffers.
        plan = self._new_plan(core, core.Machine(self.isa, self.threads), max(1, n))
        reals = {
            i: np.empty((n, *v.shape), np.float32) for i, v in enumerate(self.program.values) if isinstance(v, p.Reals)
        }
        for number, step in enumerate(plan.steps):
            if n:
                plan.plan.run(list(batch), list(reals.values()), number, number + 1)
            for operation in step.completes:
                yield operation, reals[operation] if operation in reals else self._value(plan, operation, n)

    def profile(self, *x: npt.ArrayLike, repeat: int = 20) -> Profile:
        """Median time of every step and of the whole call, over ``repeat`` runs of a batch, beside the ceilings.

        The first profile in a process measures the ceilings of the kernels that the program uses, some milliseconds
        each.
        """
        repeat = _count("repeat", repeat, 1)
        batch = self.program.check_input(*x)
        n = len(batch[0])
        outputs = self._outputs(n)
        self._run(batch, outputs)
        plan = self._plans[self._capacity(n)]
        whole, steps = [], []
        for _ in range(repeat):
            start = time.perf_counter()
            self._run(batch, outputs)
            whole.append(time.perf_counter() - start)
            steps.append(np.zeros(len(plan.steps)))
            self._run(batch, outputs, steps[-1])  # summed over the parts of the batch
        seconds = np.median(np.asarray(steps), axis=0)
        rows = [
            ProfileRow(step.name, step.family, float(s), step.macs * n, self._ceiling(step))
            for step, s in zip(plan.steps, seconds, strict=True)
        ]
        return Profile(tuple(rows), float(np.median(whole)), n)

    # ---- plans --------------------------------------------------------------------------------------------------

    def _capacity(self, images: int) -> int:
        """Of the plan for a batch, or for each part of a large one: a power of two."""
        return 1 << (max(1, min(images, self._part)) - 1).bit_length()

    def _planned(self, capacity: int, lane: Lane) -> _Planned:
        """How to run batches of up to ``capacity`` images, planned on first use; with a plan for the lane."""
        with self._lanes.planning:
            planned = self._plans.get(capacity)
            if planned is None:
                recipe = Recipe(_core(), lane.machine)
                planner = self._new_plan(recipe, recipe.machine, capacity)
                planned = self._plans[capacity] = _Planned(recipe, planner.plan.thing, planner.steps, planner.size)
                lane.plans[capacity] = planner.plan.real
            elif capacity not in lane.plans:
                lane.plans[capacity] = planned.recipe.repeat(lane.machine, planned.plan)
        return planned

    def _new_plan(self, core: Any, machine: Any, capacity: int) -> Planner | DotPlanner:
        plan: Planner | DotPlanner
        arguments = (core, machine, self.isa, self.program, capacity, self._packed)
        if self._dot:
            plan = DotPlanner(*arguments, threads=self.threads)
        else:
            plan = Planner(*arguments, self._forced, self._rates)
        plan.build()
        return plan

    def _run(
        self,
        batch: Sequence[npt.NDArray[Any]],
        outputs: Sequence[npt.NDArray[np.float32]],
        seconds: npt.NDArray[np.float64] | None = None,
    ) -> None:
        """Run a batch in parts, on one lane and, where steps are timed, on one plan; looks for NaN."""
        n = len(batch[0])
        lane = self._lanes.take()
        try:
            for first in range(0, n, self._part):
                part = slice(first, first + self._part)
                capacity = self._capacity(n if seconds is not None else n - first)
                if capacity not in lane.plans:
                    self._planned(capacity, lane)
                plan = lane.plans[capacity]
                bad = plan.run([x[part] for x in batch], [y[part] for y in outputs], 0, len(plan), seconds)
                if bad >= 0:
                    raise self.program.holds_nan(bad)
        finally:
            self._lanes.give_back(lane)

    def _outputs(self, images: int) -> tuple[npt.NDArray[np.float32], ...]:
        return tuple(np.empty((images, *shape), np.float32) for shape in self.program.output_shapes)

    def _check_out(self, out: Any, batch: Sequence[npt.NDArray[Any]]) -> tuple[npt.NDArray[np.float32], ...]:
        """The arrays of ``out=``; raises :class:`InputError` if they do not fit."""
        names, shapes = self.program.output_names, self.program.output_shapes
        outputs = (out,) if isinstance(out, np.ndarray) else out
        if not isinstance(outputs, (tuple, list)) or len(outputs) != len(shapes):
            raise InputError(f"out: expected an array for each output ({', '.join(names)})")
        for i, (name, shape, y) in enumerate(zip(names, shapes, outputs, strict=True)):
            expected = (len(batch[0]), *shape)
            if not isinstance(y, np.ndarray) or y.dtype != np.float32 or y.shape != expected:
                got = f"{y.dtype} {y.shape}" if isinstance(y, np.ndarray) else type(y).__name__
                raise InputError(f"out {name!r}: expected a float32 array {expected}, got {got}")
            if not (y.flags.c_contiguous and y.flags.writeable and y.flags.aligned):
                raise InputError(f"out {name!r}: must be C-contiguous, aligned and writable")
            if any(np.may_share_memory(y, other) for other in (*batch, *outputs[:i])):
                raise InputError(f"out {name!r}: shares memory with an input or another output")
        return tuple(outputs)

    def _ceiling(self, step: StepInfo) -> float | None:
        """10^9 multiply-accumulates per second of the step's kernel at its best, on all threads."""
        rate = ceiling(_core(), self.isa, step.family, step.bits) if step.macs else None
        return None if rate is None else rate * self.threads

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
