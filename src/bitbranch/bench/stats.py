"""What is said of repeated times: median, quartiles, and the ratio of two executors that took turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError


def turn(call: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of each call of one turn: one that is not counted, then calls until time is up, at least one."""
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


@dataclass(frozen=True)
class Times:
    """Seconds of one call. Every round counts the same, however many calls fit into it.

    Attributes:
        median, low, high: median, first and third quartile of the rounds' medians.
        least: the shortest call.
        calls: how many there were.
        rounds: the median of each round, in order.
    """

    median: float
    low: float
    high: float
    least: float
    calls: int
    rounds: tuple[float, ...]

    def as_dict(self) -> dict[str, object]:
        """For JSON, in milliseconds; see :meth:`from_dict`."""
        return {
            "milliseconds": 1e3 * self.median,
            "quartiles": [1e3 * self.low, 1e3 * self.high],
            "least": 1e3 * self.least,
            "calls": self.calls,
            "rounds": [1e3 * seconds for seconds in self.rounds],
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Times:
        """What :meth:`as_dict` was made of."""
        low, high = values["quartiles"]
        rounds = tuple(ms / 1e3 for ms in values["rounds"])
        median, least = values["milliseconds"] / 1e3, values["least"] / 1e3
        return Times(median, low / 1e3, high / 1e3, least, values["calls"], rounds)


@dataclass(frozen=True)
class Ratio:
    """How many times longer one executor takes than another: median and quartiles of the rounds' ratios."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f}..{self.high:.2f})"


def summarize(rounds: Sequence[Sequence[float]]) -> Times:
    """Summary of the calls of several rounds.

    Args:
        rounds: seconds of each call, round by round; no round is empty.

    Raises:
        InputError: no rounds, an empty one, or times that are not positive and finite.
    """
    if not rounds or not all(len(r) for r in rounds):
        raise InputError("times: every round needs at least one call")
    calls = np.concatenate([np.asarray(r, float) for r in rounds])
    if not (np.isfinite(calls).all() and (calls > 0).all()):
        raise InputError("times: seconds must be positive and finite")
    medians = tuple(float(np.median(r)) for r in rounds)
    low, median, high = np.percentile(medians, [25, 50, 75])
    return Times(float(median), float(low), float(high), float(calls.min()), calls.size, medians)


def ratio(slow: Times, fast: Times) -> Ratio:
    """How many times longer ``slow`` takes than ``fast``; both took turns in the same rounds.

    Raises:
        InputError: different numbers of rounds.
    """
    if len(slow.rounds) != len(fast.rounds):
        raise InputError(f"ratio: {len(slow.rounds)} rounds against {len(fast.rounds)}")
    low, median, high = np.percentile(np.asarray(slow.rounds) / np.asarray(fast.rounds), [25, 50, 75])
    return Ratio(float(median), float(low), float(high))
