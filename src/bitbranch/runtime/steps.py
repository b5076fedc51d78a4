"""What planners start from, and what the steps of a plan do, for profiles and traces."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .program import Program


@dataclass(frozen=True)
class StepInfo:
    """One step."""

    operation: int
    """Number of the operation that it completes or serves."""
    name: str
    family: str
    macs: int
    """Multiply-accumulates of one image."""
    completes: tuple[int, ...]
    """The operations whose values are there after this step."""
    bits: int = 0
    """Of the codes that a convolution reads as bit-planes; 0: bytes."""


@dataclass(eq=False)
class Planning:
    """What a planner of either path plans, and the steps that it has made.

    Args:
        core: the compiled module.
        machine: its instruction set and threads.
        isa: name of the instruction set.
        program: what to run.
        capacity: largest batch.
        packed: packed weights by (operation, family), shared by the plans of an engine.
    """

    core: Any
    machine: Any
    isa: str
    program: Program
    capacity: int
    packed: dict[tuple[int, str], Any]
    steps: list[StepInfo] = field(default_factory=list, init=False)
