"""Executors for the tests of the bench: some that work, and one for each way to fail."""

from __future__ import annotations

import os
import signal
import sys
import time

import numpy as np


class Fake:
    """Pretends to take so many milliseconds a call.

    Args:
        file: unused.
        threads: unused.
        milliseconds: of each call.
        fails: method at which it misbehaves.
        how: ``raise``, ``exit``, ``kill`` or ``hang``.
    """

    def __init__(
        self, file: str = "", threads: int = 1, milliseconds: float = 1.0, fails: str = "", how: str = "raise"
    ) -> None:
        self.milliseconds, self.fails, self.how = milliseconds, fails, how
        print("what a library prints to standard output")
        self._perhaps("init")

    def prepare(self, batch: int) -> float:
        self._perhaps("prepare")
        return 0.0

    def time(self, batch: int, seconds: float) -> list[float]:
        self._perhaps("time")
        return [self.milliseconds / 1e3 * batch] * 3

    def outputs(self, images: str, out: str, batch: int) -> None:
        np.save(out, np.load(images).reshape(len(np.load(images)), -1))

    def profile(self, batch: int, repeat: int) -> dict[str, object]:
        self._perhaps("profile")
        return {"steps": [], "seconds": 1.0, "images": batch, "glue": 0.0, "of_ceiling": None}

    def where(self) -> list[int]:
        return sorted(os.sched_getaffinity(0))

    def variable(self, name: str) -> str | None:
        return os.environ.get(name)

    def ticks(self, seconds: float) -> int:
        """Processor time, in nanoseconds, after spinning for a while."""
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass
        return time.process_time_ns()

    def _perhaps(self, method: str) -> None:
        if method != self.fails:
            return
        if self.how == "exit":
            print("the reason on standard error", file=sys.stderr)
            os._exit(3)
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGSEGV)
        while self.how == "hang":
            time.sleep(1)
        raise ValueError(f"{method} does not work\nand says so in two lines")
