"""What a compiled network takes beside its time: bytes on disk, bytes in memory, seconds until it is ready."""

from __future__ import annotations

import re
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from .worker import Worker

PROCESSES = 5
"""Fresh processes of which the median counts."""


class Probe:
    """Loads a network in a fresh process and looks at the process's memory."""

    def load(self, file: str, threads: int, isa: str | None, batch: int) -> dict[str, float]:
        """Seconds of reading and planning, of the first call and of the second, and how much memory grew, in bytes."""
        from ..runtime.engine import Engine, instruction_sets

        instruction_sets()  # loads the core
        random = np.random.default_rng(0)  # before memory is looked at: its library is none of the engine's
        before = resident()
        start = time.perf_counter()
        engine = Engine(file, threads=threads, isa=isa)
        planned = time.perf_counter()
        x = random.standard_normal((batch, *engine.program.input.shape), np.float32)
        times = []
        for _ in range(3):
            began = time.perf_counter()
            engine(x)
            times.append(time.perf_counter() - began)
        return {
            "load": planned - start,
            "first": times[0],
            "second": times[1],
            "memory": resident("VmHWM") - before - x.nbytes,
        }


def resident(field: str = "VmRSS") -> int:
    """Bytes of this process in memory now, or with ``VmHWM`` at most so far; 0 where the system does not say."""
    status = Path("/proc/self/status")
    found = re.search(rf"^{field}:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.exists() else None
    return int(found[1]) * 1024 if found else 0


def measure(file: Path, *, threads: int = 1, isa: str | None = None, batch: int = 1) -> dict[str, Any]:
    """Medians over fresh processes of what :meth:`Probe.load` finds, and the file's bytes."""
    found = []
    for _ in range(PROCESSES):
        with Worker(f"{__name__}:Probe", {}, environment={"OMP_NUM_THREADS": "1"}, stopped=False) as worker:
            found.append(worker.call("load", file=str(file), threads=threads, isa=isa, batch=batch))
    medians = {name: statistics.median(f[name] for f in found) for name in found[0]}
    return {"bytes": file.stat().st_size, **medians, "beyond_file": medians["memory"] - file.stat().st_size}
