"""What the steps of a plan do, for profiles and traces."""

from __future__ import annotations

from dataclasses import dataclass


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
