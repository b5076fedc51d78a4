"""``bitbranch bench``: measure a network beside its peers, and write the results as they come."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..disk import write_bytes
from ..errors import InputError
from ..reporting.machine import describe_machine, describe_versions
from ..runtime import tuning
from ..runtime.engine import instruction_sets
from . import levels, networks, peers, report
from .compare import Plan, Row, accuracy, compare
from .files import Files

FORMAT = "bitbranch bench 1"
START_SECONDS = 3.0
"""What starting one executor takes, for the estimate."""
WARM = 1.5
"""Time of a turn over its measured part, for the estimate."""


@dataclass(frozen=True)
class Options:
    """What ``bitbranch bench`` is told; see its help."""

    nets: Sequence[str]
    schemes: Sequence[str] = ()
    model_arguments: Mapping[str, Any] | None = None
    image_size: tuple[int, int] | None = None
    float_checkpoint: Path | None = None
    data: Path | None = None
    peers: Sequence[str] = ("all",)
    levels: Sequence[str] = (levels.NATIVE,)
    threads: Sequence[int] = (1, 2)
    batches: Sequence[int] = (1,)
    seconds: float = 1.0
    out: Path | None = None
    resume: bool = False
    profile: bool = False


def run(options: Options, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure, report, and return the result that ``bench.json`` holds.

    Args:
        options: what to measure.
        say: told about progress.

    Raises:
        InputError: an unknown name, level, peer or scheme, or files that do not fit together.
        FormatError: a malformed file.
    """
    with tempfile.TemporaryDirectory() as temporary:
        work = options.out / "files" if options.out else Path(temporary)
        return _run(options, work.resolve(), say)


def _run(options: Options, work: Path, say: Callable[[str], None]) -> dict[str, Any]:
    available = instruction_sets()
    data = networks.Data.load(options.data) if options.data else None
    network = _network(options, data, work, say)
    wanted = list(dict.fromkeys(options.levels))
    asked = peers.choose(options.peers)
    chosen = asked if network.files is not None else []
    if not any("w1" in name and "a1" in name for name in network.programs):
        chosen = [p for p in chosen if p.precision != "1-bit"]
    if chosen and levels.NATIVE not in wanted:
        wanted.append(levels.NATIVE)  # nobody's best is left out
    for level in wanted:
        levels.engine_set(level, available)  # unknown names end here
    if asked and network.files is None:
        say("no peers: they are given the float network, --float CHECKPOINT")
    with tempfile.TemporaryDirectory() as temporary:
        images = outputs = None
        if data is not None:
            images, outputs = Path(temporary, "images.npy"), Path(temporary, "outputs")
            outputs.mkdir()
            np.save(images, data.images)
        plan = Plan(
            {name: str(file) for name, file in network.programs.items()}, chosen, network.shape, wanted,
            options.threads, options.batches, options.seconds, images=images,
        )  # fmt: skip
        description = network.describe()
        result = _result(options, plan, description)
        rows: list[Row] = result["times"]
        say(f"about {estimate(plan, rows) / 60:.1f} minutes")
        unused = Files(work, {}, say)
        for new in compare(plan, network.files or unused, available, say, rows, outputs):
            rows += new
            if data is not None and outputs is not None:
                result["accuracy"] = accuracy(outputs, data.labels, "torch f32") or result["accuracy"]
            _write(options.out, result)
    result["text"] = report.text(result, options.profile)
    _write(options.out, result, finished=True)
    return result


def _network(options: Options, data: networks.Data | None, work: Path, say: Callable[[str], None]) -> networks.Network:
    paths = [Path(net) for net in options.nets]
    if all(path.suffix == ".bb" or path.exists() for path in paths):
        if options.schemes or options.image_size or options.model_arguments:
            raise InputError(
                "bench: --scheme, --image-size and --model-arguments are for a model's name; a .bb file has its own"
            )
        return networks.from_files(paths, options.float_checkpoint, data, work, say)
    if len(paths) != 1:
        raise InputError(f"bench: expected .bb files or one model's name, got {' '.join(options.nets)}")
    if data is not None or options.float_checkpoint is not None:
        raise InputError("bench: a model's name stands for random weights; --data and --float are for .bb files")
    arguments = options.model_arguments or {}
    return networks.by_name(options.nets[0], arguments, options.schemes or ["tsq:wt-a2"], options.image_size, work, say)


def _result(options: Options, plan: Plan, description: Mapping[str, Any]) -> dict[str, Any]:
    """What is known before measuring, and the rows of an earlier run of the same, if it is to be resumed."""
    machine, versions = describe_machine(), describe_versions(report.PACKAGES)
    tuned = any(tuning.rates(isa) for isa in instruction_sets())
    machine["kernels chosen by"] = "the machine's cost table" if tuned else "built-in rules"
    same = {
        "network": dict(description), "peers": [p.name for p in plan.peers], "seconds": plan.seconds,
        "rounds": plan.rounds, "machine": machine, "versions": versions, "code": networks.code_digest(),
        "images": hashlib.sha256(plan.images.read_bytes()).hexdigest() if plan.images else "",
    }  # fmt: skip
    key = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:16]
    rows: list[Row] = []
    shares: dict[str, Any] = {}
    if options.resume and options.out is not None and (options.out / "bench.json").exists():
        before = read(options.out / "bench.json")
        if before["key"] == key:
            rows, shares = before["times"], before["accuracy"]
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "format": FORMAT, "key": key, "date": now.isoformat(timespec="seconds"),
        "machine": machine | {"load before": f"{os.getloadavg()[0]:.1f}"},
        "versions": versions, "network": dict(description),
        "seconds": plan.seconds, "rounds": plan.rounds, "labelled": plan.images is not None, "accuracy": shares,
        "times": rows,
    }  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    """A result that was written by :func:`run`.

    Raises:
        InputError: not such a file; names it.
    """
    try:
        result = json.loads(path.read_text())
        if result["format"] != FORMAT or not all(isinstance(r["executor"], str) for r in result["times"]):
            raise ValueError(f"format is not {FORMAT!r}")
        return dict(result)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a result of bitbranch bench ({error})") from None


def _write(out: Path | None, result: Mapping[str, Any], finished: bool = False) -> None:
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    write_bytes(out / "bench.json", (json.dumps({**result, "text": ""}, indent=1) + "\n").encode())
    if finished:
        write_bytes(out / "bench.md", report.markdown(result).encode())
        if report.can_plot():
            write_bytes(out / "bench.svg", report.plot(result).encode())


def estimate(plan: Plan, done: Sequence[Row] = ()) -> float:
    """Seconds that a plan takes, files that have to be made not counted."""
    have = {(row["level"], row["threads"], row["batch"]) for row in done}
    total = 0.0
    for level, threads in plan.settings():
        batches = [b for b in plan.batches if (level, threads, b) not in have]
        count = len(plan.programs) + sum(
            len(p.variants) for p in plan.peers if level == levels.NATIVE or (p.obeys and levels.environment(level))
        )
        total += count * (bool(batches) * START_SECONDS + WARM * plan.seconds * len(batches))
    return total
