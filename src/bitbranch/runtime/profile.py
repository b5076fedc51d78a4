"""Where the time of a batch goes, and how near the kernels come to what the processor can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from . import winograd

CEILING_TAPS = 36
"""Of the micro-benchmark's tile: as many as a 3x3 convolution of 16 channels has, all in the first cache."""
MANY_QUADS = 1000
"""Of the dot-product path's 16-bit sums: more than its tile has."""
CEILING_SECONDS = 1e-3
"""Length of one measurement."""
CEILING_ROUNDS = 5
BAR = 24
"""Characters of the longest bar."""


@dataclass(frozen=True)
class ProfileRow:
    """Time of one step of the plan, for one batch.

    Attributes:
        name: of the step.
        family: of its kernel.
        seconds: median.
        macs: multiply-accumulates of the batch.
        ceiling: 10^9 multiply-accumulates per second that the kernel reaches on data in the first cache, all threads
            together; ``None`` where there is no micro-benchmark.
    """

    name: str
    family: str
    seconds: float
    macs: int
    ceiling: float | None = None

    @property
    def gmacs(self) -> float:
        """10^9 multiply-accumulates per second."""
        return self.macs / self.seconds / 1e9 if self.seconds else 0.0

    @property
    def of_ceiling(self) -> float | None:
        """Ratio to the ceiling."""
        return self.gmacs / self.ceiling if self.ceiling and self.macs else None


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
    def arithmetic(self) -> float:
        """Seconds of the steps with multiply-accumulates."""
        return sum(row.seconds for row in self.rows if row.macs)

    @property
    def glue(self) -> float:
        """Share of the whole call that is not multiply-accumulate steps, 0..1."""
        return max(0.0, 1 - self.arithmetic / self.seconds) if self.seconds else 0.0

    @property
    def of_ceiling(self) -> float | None:
        """How long the layers would take at their ceilings, over how long they take; ``None`` without ceilings."""
        rows = [row for row in self.rows if row.macs]
        if not rows or any(not row.ceiling for row in rows) or not self.arithmetic:
            return None
        return sum(row.macs / (row.ceiling or 1) / 1e9 for row in rows) / self.arithmetic

    def as_dict(self) -> dict[str, Any]:
        """For JSON; see :meth:`from_dict`."""
        steps = [asdict(row) for row in self.rows]
        return {
            "steps": steps,
            "seconds": self.seconds,
            "images": self.images,
            "glue": self.glue,
            "of_ceiling": self.of_ceiling,
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Profile:
        """What :meth:`as_dict` was made of."""
        return Profile(tuple(ProfileRow(**row) for row in values["steps"]), values["seconds"], values["images"])

    def __str__(self) -> str:
        return self.table()

    def table(self, by_time: bool = False) -> str:
        """Every step with its time, its share of the call as a bar, its rate and the ratio to the ceiling.

        Args:
            by_time: the longest first; else in the order in which they run.
        """
        rows = sorted(self.rows, key=lambda row: -row.seconds) if by_time else self.rows
        names, families = (
            max(map(len, texts)) for texts in ([r.name for r in self.rows], [r.family for r in self.rows])
        )
        longest = max((r.seconds for r in self.rows), default=0) or 1
        head = f"{'step':<{names}}  {'kernel':<{families}}  {'us':>9}  {'share':>6}  {'':<{BAR}}"
        lines = [f"{head}  {'GMAC/s':>8}  of ceiling"]
        for r in rows:
            bar = _bar(r.seconds / longest)
            rate = f"{r.gmacs:8.1f}" if r.macs else ""
            part = f"{100 * r.of_ceiling:4.0f} % of {r.ceiling:.0f}" if r.of_ceiling is not None else ""
            share = 100 * r.seconds / self.seconds if self.seconds else 0.0
            line = f"{r.name:<{names}}  {r.family:<{families}}  {1e6 * r.seconds:9.1f}  {share:5.1f}%  {bar:<{BAR}}"
            lines.append(f"{line}  {rate:>8}  {part}".rstrip())
        within = sum(r.seconds for r in self.rows)
        total = sum(r.macs for r in self.rows)
        gmacs = total / self.seconds / 1e9 if self.seconds else 0.0
        lines.append(
            f"{1e6 * self.seconds:.1f} us a call of {self.images} image{'s' * (self.images != 1)}, {gmacs:.1f} GMAC/s; "
            f"{100 * self.glue:.1f} % outside the layers' arithmetic, of it {1e6 * max(0, self.seconds - within):.1f}"
            " us outside all steps"
        )
        if self.of_ceiling is not None:
            lines.append(f"the layers' arithmetic runs at {100 * self.of_ceiling:.0f} % of its kernels' ceilings")
        return "\n".join(lines)


def _bar(share: float) -> str:
    """A bar of eighths of a character; ``share`` is of the longest, 0..1."""
    eighths = round(8 * BAR * share)
    return "\u2588" * (eighths // 8) + ("" if eighths % 8 == 0 else chr(0x2590 - eighths % 8))


@cache
def ceiling(core: Any, isa: str, family: str, bits: int) -> float | None:
    """10^9 multiply-accumulates per second of a family's fastest kernel on data in the first cache, one thread.

    Measured once in a process.

    Args:
        core: the compiled module.
        isa: instruction set.
        family: of kernels; ``linear`` stands for all linear kernels.
        bits: of the kernel's activations; 0: any.

    Returns:
        ``None`` where the instruction set has no such kernel, or there is no micro-benchmark for it. For Winograd's
        filtering, what the products alone would allow.
    """
    filtered = winograd.family_of(family)
    if filtered is not None:
        products, share = filtered
        plain = ceiling(core, isa, products, bits)
        return None if plain is None else plain / share
    machine = core.Machine(isa, 1)
    if family in ("dot", "dot16"):
        quads = 0 if family == "dot" else MANY_QUADS
        core.dot_rate(machine, 4, quads, 100)
        return max(macs / seconds / 1e9 for seconds, macs in (core.dot_rate(machine, 4, quads, 1000) for _ in range(9)))
    rates = []
    for kernel in core.kernels(isa):
        if kernel.family.rstrip("0123456789") != family and kernel.family != family:
            continue
        if bits and kernel.bits != bits:
            continue
        try:
            seconds, _ = machine.kernel_rate(kernel, CEILING_TAPS, 1)
        except ValueError:
            continue
        repeat = max(1, int(CEILING_SECONDS / max(seconds, 1e-8)))
        for _ in range(CEILING_ROUNDS):
            seconds, macs = machine.kernel_rate(kernel, CEILING_TAPS, repeat)
            repeat = max(1, int(repeat * CEILING_SECONDS / max(seconds, 1e-8)))
            rates.append(macs / seconds / 1e9)
    return max(rates, default=None)
