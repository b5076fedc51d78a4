"""Memory and threads for several callers of one engine at once."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Lane:
    """What one call runs on: threads, and for every batch size a plan with buffers of its own."""

    machine: Any
    plans: dict[int, Any] = field(default_factory=dict)


class Lanes:
    """Hands out lanes, each to one call at a time; they are made when they are first needed, up to a limit.

    Beyond the limit a call waits for a lane, unless its own thread holds one already (a signal handler, a finalizer):
    it then gets an extra one. After ``os.fork`` the child starts without lanes, since those of other threads would
    never come back.

    Args:
        make: makes a lane.
        limit: most lanes at once.
    """

    def __init__(self, make: Callable[[], Lane], limit: int) -> None:
        self.make, self.limit = make, limit
        self._start()
        _all.add(self)

    def _start(self) -> None:
        self.planning = threading.RLock()
        """For whoever adds to what the lanes share."""
        self._changed = threading.Condition()
        self._free: list[Lane] = []
        # The threads that hold lanes. A lane that an interrupt between two instructions loses is none any more.
        self._busy: weakref.WeakKeyDictionary[Lane, int] = weakref.WeakKeyDictionary()

    def take(self) -> Lane:
        """A lane for the calling thread; :meth:`give_back` returns it."""
        me = threading.get_ident()
        with self._changed:
            while not self._free and len(self._busy) >= self.limit and me not in self._busy.values():
                self._changed.wait(1)
            lane = self._free.pop() if self._free else self.make()
            self._busy[lane] = me
            return lane

    def give_back(self, lane: Lane) -> None:
        """Let others use a lane."""
        with self._changed:
            self._busy.pop(lane, None)
            if len(self._free) + len(self._busy) < self.limit:
                self._free.append(lane)
            self._changed.notify()


_all: weakref.WeakSet[Lanes] = weakref.WeakSet()


def _after_fork() -> None:
    for lanes in list(_all):
        lanes._start()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
