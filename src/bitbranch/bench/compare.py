"""The comparison: every executor in a process of its own, pinned, taking turns round by round."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BitbranchError
from . import levels, stats
from .files import Files
from .peers import Contestant, Peer, contestants
from .worker import CALL_LIMIT, Worker, WorkerFailure

Row = dict[str, Any]
Say = Callable[[str], None]
ROUNDS = 12
"""Turns of each executor in a setting."""


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        programs: name to the path of a ``.bb`` file.
        peers: of the float network; none where there is no float network.
        shape: (C, H, W) of an image.
        levels: of instruction sets; see :mod:`bitbranch.bench.levels`.
        threads, batches: all pairs of them are measured.
        seconds: that each executor is measured in each setting, warm-up calls not counted.
        rounds: turns into which these are divided.
        images: a ``.npy`` file of images whose outputs are wanted, or ``None``.
    """

    programs: Mapping[str, str]
    peers: Sequence[Peer]
    shape: tuple[int, int, int]
    levels: Sequence[str] = (levels.NATIVE,)
    threads: Sequence[int] = (1,)
    batches: Sequence[int] = (1,)
    seconds: float = 1.0
    rounds: int = ROUNDS
    images: Path | None = None

    def settings(self) -> list[tuple[str, int]]:
        """Level and threads of the groups of executors that take turns."""
        return [(level, threads) for threads in self.threads for level in self.levels]


def processors(threads: int) -> list[int] | None:
    """The processors to pin to: the last ones, since the first ones serve more interrupts."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    return sorted(os.sched_getaffinity(0))[-threads:]


PROFILE_RUNS, PROFILE_SECONDS = 20, 30.0
"""Runs of a profile: so many, or as fit this time."""


def compare(
    plan: Plan, files: Files, available: Sequence[str], say: Say, done: Sequence[Row] = (), outputs: Path | None = None
) -> Iterator[list[Row]]:
    """Measure a plan and yield the rows of one setting after another.

    A row has ``executor``, ``precision``, ``variant``, ``level``, ``isa``, ``threads``, ``batch``, and either what
    :meth:`bitbranch.bench.stats.Times.as_dict` gives, for the engine with ``steps`` and ``profile``, or ``reason``,
    why it was not measured.

    Args:
        plan: what to measure.
        files: of the float network.
        available: the engine's instruction sets, the widest first.
        say: told about progress.
        done: rows of an earlier run; settings that have rows are left out.
        outputs: folder for the outputs on ``plan.images``: ``<executor> <variant>.npy``.
    """
    have = {(row["level"], row["threads"], row["batch"]) for row in done}
    for level, threads in plan.settings():
        batches = [b for b in plan.batches if (level, threads, b) not in have]
        if not batches:
            continue
        here, absent = contestants(plan.programs, plan.peers, level, available, plan.shape)
        with ExitStack() as stack:
            workers: dict[Contestant, Worker] = {}
            failed: dict[Contestant, str] = {}
            for contestant in here:
                say(f"{level}, {threads} thread(s): starting {contestant.name} {contestant.variant}".rstrip())
                try:
                    worker = contestant.start(files, threads, batches, processors(threads))
                    workers[contestant] = stack.enter_context(worker)
                except (BitbranchError, OSError) as error:
                    failed[contestant] = str(error)
            for batch in batches:
                say(f"{level}, {threads} thread(s), batch {batch}: {len(workers)} executors take turns")
                rounds = _turns(workers, failed, batch, plan)
                rows = [
                    {"executor": name, "precision": "", "variant": "", "isa": "", "reason": reason}
                    for name, reason in absent.items()
                ]
                rows += [_row(c, rounds.get(c), failed.get(c)) for c in here]
                for c in [c for c in here if c in rounds and c.peer is None]:
                    row = next(r for r in rows if r["executor"] == c.name)
                    row |= _profile(workers, c, batch, row, say)
                if plan.images is not None and outputs is not None and level == levels.NATIVE and batch == batches[-1]:
                    _outputs(workers, plan.images, outputs, max(batches), say)
                yield [{"level": level, "threads": threads, "batch": batch} | row for row in rows]


def _profile(workers: dict[Contestant, Worker], contestant: Contestant, batch: int, row: Row, say: Say) -> Row:
    """Steps and profile of the engine, in so many runs as time allows; nothing where it fails, and it is taken out."""
    seconds = row["milliseconds"] / 1e3
    repeat = max(1, min(PROFILE_RUNS, int(PROFILE_SECONDS / (2 * seconds))))
    try:
        limit = max(CALL_LIMIT, 10 * seconds)
        profile = workers[contestant].call("profile", limit=limit, batch=batch, repeat=repeat)
    except WorkerFailure as error:
        say(f"  no profile: {error}")
        workers.pop(contestant).close()
        return {}
    return {"steps": profile.pop("steps"), "profile": profile}


def _turns(
    workers: dict[Contestant, Worker], failed: dict[Contestant, str], batch: int, plan: Plan
) -> dict[Contestant, list[list[float]]]:
    """Seconds of each call, by contestant and round; those who fail are taken out of ``workers``."""
    rounds: dict[Contestant, list[list[float]]] = {c: [] for c in workers}

    def turn(contestant: Contestant, method: str, **arguments: Any) -> Any:
        try:
            return workers[contestant].call(method, **arguments)
        except WorkerFailure as error:
            failed[contestant] = str(error)
            workers.pop(contestant).close()
            return None

    for contestant in list(workers):
        turn(contestant, "prepare", batch=batch)
    for number in range(plan.rounds):
        order = list(workers)
        start = number % max(1, len(order))  # nobody has the same neighbour's heat and cache every time
        for contestant in order[start:] + order[:start]:
            times = turn(contestant, "time", batch=batch, seconds=plan.seconds / plan.rounds)
            if times:
                rounds[contestant].append(times)
    return {c: rounds[c] for c in workers}


def _row(contestant: Contestant, rounds: list[list[float]] | None, reason: str | None) -> Row:
    row: Row = {
        "executor": contestant.name,
        "precision": contestant.precision,
        "variant": contestant.variant,
        "isa": contestant.isa,
    }
    return row | (stats.summarize(rounds).as_dict() if rounds else {"reason": reason or "not measured"})


def _outputs(workers: Mapping[Contestant, Worker], images: Path, folder: Path, batch: int, say: Say) -> None:
    for contestant, worker in workers.items():
        if contestant.precision == "1-bit":
            continue  # the signs of weights that were not trained for it
        file = folder / f"{contestant.name} {contestant.variant}".rstrip().replace("/", "-")
        target = file.with_name(f"{file.name}.npy")
        if target.exists():
            continue
        say(f"outputs of {contestant.name} {contestant.variant}".rstrip())
        try:
            worker.call("outputs", limit=600, images=str(images), out=str(target), batch=batch)
        except WorkerFailure as error:
            say(f"  {error}")


def accuracy(folder: Path, labels: np.ndarray[Any, Any], base: str) -> dict[str, dict[str, float]]:
    """Top-1 accuracy of every executor's outputs, and how often its answer is that of ``base``, both 0..1.

    Args:
        folder: see :func:`compare`.
        labels: ``[N]``.
        base: name of the executor that the others are compared with; where its outputs are not there, no agreement.
    """
    answers = {file.stem: np.load(file).reshape(len(labels), -1).argmax(1) for file in sorted(folder.glob("*.npy"))}
    given = next((a for name, a in answers.items() if name.startswith(base)), None)
    result = {}
    for name, a in answers.items():
        result[name] = {"accuracy": float((a == labels).mean())}
        if given is not None:
            result[name]["agreement"] = float((a == given).mean())
    return result
