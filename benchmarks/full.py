"""Every figure that is asked of the engine's speed, size and memory, beside what is asked: ``make bench-full``.

Each part's result lies in the output folder as soon as it is there, setting by setting; a second call goes on where
the first one ended. Delete the folder to measure anew.

    python benchmarks/full.py [--out build/bench] [--only resnet18 ..] [--seconds 1.0]
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitbranch.bench import binary_layer, command, footprint, levels, report, stats
from bitbranch.bench.compare import processors
from bitbranch.bench.networks import code_digest
from bitbranch.disk import write_bytes
from bitbranch.errors import BitbranchError
from bitbranch.reporting.machine import describe_machine, describe_versions
from bitbranch.runtime.container import read
from bitbranch.runtime.engine import instruction_sets

Result = dict[str, Any]
ALL_LEVELS = ("native", "avx512_vnni", "avx512", "avx2")
THREE_LEVELS = ("native", "avx512_vnni", "avx512")
INT8_PEERS = ("openvino int8", "litert int8", "onnxruntime int8", "openvino f32", "onnxruntime f32")
"""The peers of the larger networks: the fastest ones."""


@dataclass(frozen=True)
class Part:
    """One network's comparison."""

    name: str
    model: str
    schemes: Sequence[str]
    levels: Sequence[str]
    threads: Sequence[int] = (1,)
    batches: Sequence[int] = (1,)
    peers: Sequence[str] = INT8_PEERS
    minutes: float = 1.0
    """About how long it takes, making the files included."""


RESNET = ("tsq:wt-a2", "mbn:w1-a1", "mbn:w2-a2", "lsq:w4-a4")
PARTS = [
    Part("resnet18", "resnet18", RESNET, ALL_LEVELS, threads=(1, 2), peers=("all",), minutes=7.0),
    Part("resnet18-batch", "resnet18", RESNET[:1], THREE_LEVELS, (1, 2), (1, 8), ("openvino int8",), minutes=1.5),
    Part("alexnet", "alexnet", ("tsq:wt-a2",), THREE_LEVELS, minutes=1.5),
    Part("vgg16_bn", "vgg16_bn", ("tsq:wt-a2",), THREE_LEVELS, minutes=5.0),
    Part("mobilenet_v2", "mobilenet_v2", ("tsq:wt-a2", "lsq:w4-a4"), THREE_LEVELS, minutes=1.5),
]
OTHERS = {"binary": 0.4, "footprint": 0.3}
"""Parts that are not comparisons of networks, and their minutes."""


@dataclass(frozen=True)
class Line:
    """A line of the table: what was measured at a level, and what is asked (a ratio unless the unit says otherwise)."""

    figure: str
    level: str
    found: str
    value: float | None
    least: float
    aim: float
    smaller: bool = False

    @property
    def verdict(self) -> str:
        """Whether the figure is reached."""
        if self.value is None:
            return "not measured"

        def reached(bound: float) -> bool:
            assert self.value is not None
            return self.value <= bound if self.smaller else self.value >= bound

        return "aim" if reached(self.aim) else "reached" if reached(self.least) else "short"


def network(part: Part, out: Path, seconds: float, say: Callable[[str], None]) -> None:
    """Measure one network, or go on with it."""
    command.run(
        command.Options(
            nets=[part.model],
            schemes=part.schemes,
            peers=part.peers,
            levels=part.levels,
            threads=part.threads,
            batches=part.batches,
            seconds=seconds,
            out=out / part.name,
            resume=True,
        ),
        say,
    )


def others(name: str, out: Path, say: Callable[[str], None]) -> None:
    """Measure what is not a comparison of networks, if it is not there of this code and machine."""
    target = out / f"{name}.json"
    of = {"machine": describe_machine(), "versions": describe_versions(report.PACKAGES), "code": code_digest()}
    before = json.loads(target.read_text()) if target.exists() else {}
    if all(before.get(key) == value for key, value in of.items()):
        return
    found: Any = []
    if name == "binary":
        for level in ALL_LEVELS:
            isa = levels.engine_set(level, instruction_sets())
            if isa is not None:
                found += binary_layer.measure(isa, level, processors(1), say)
    else:
        nets = sorted(
            (out / "resnet18" / "files").glob("*/program-tsq-wt-a2-*/net.bb"), key=lambda f: f.stat().st_mtime
        )
        if not nets:
            raise BitbranchError("the network of part resnet18 is not there")
        say(f"memory and load time of {nets[-1]}")
        read(nets[-1])
        found = footprint.measure(nets[-1])
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    write_bytes(target, json.dumps({**of, "date": date, "measured": found}, indent=1).encode())


def measured_on(out: Path) -> list[str]:
    """Where and when the parts were measured: a line for each machine, the engine's code and versions."""
    files = [out / part.name / "bench.json" for part in PARTS] + [out / f"{name}.json" for name in OTHERS]
    dates: dict[str, list[str]] = {}
    for file in files:
        part = json.loads(file.read_text()) if file.exists() else None
        if not isinstance(part, dict) or "machine" not in part:
            continue
        machine = {name: value for name, value in part["machine"].items() if name != "load before"}
        told = ", ".join(f"{name}: {value}" for name, value in {**machine, **part["versions"]}.items())
        dates.setdefault(told, []).append(part["date"][:10])
    return [f"{min(days)} to {max(days)}: {told}" for told, days in dates.items()]


def lines(out: Path) -> list[Line]:
    """The table, of whatever has been measured."""
    found: list[Line] = []

    def load(name: str) -> Result | None:
        file = out / name / "bench.json"
        return command.read(file) if file.exists() else None

    def ratio(
        part: str, figure: str, peers: Sequence[str], scheme: str, threads: int, least: float, aim: float
    ) -> None:
        result = load(part)
        for level in next(p.levels for p in PARTS if p.name == part):
            best = None
            if result is not None:
                ratios = report.ratios(result, (threads, 1, level))
                against = [(r.value, peer, r) for (peer, own), r in ratios.items() if own == scheme and peer in peers]
                best = min(against, default=None, key=lambda item: item[0])
            text = f"{best[2]} against {best[1]}" if best else ""
            found.append(Line(figure, level, text, best[0] if best else None, least, aim))

    ov = ("openvino int8",)
    floats = ("torch f32", "onnxruntime f32", "openvino f32", "litert f32", "ncnn f32")
    names = {scheme: f"bitbranch {scheme}" for scheme in RESNET}
    t2, b1, b2, u4 = (names[s] for s in RESNET)
    int8 = "against OpenVINO int8"
    ratio("resnet18", f"ResNet-18 wt-a2 {int8}, 1 thread", ov, t2, 1, 2.5, 3.0)
    ratio("resnet18", f"ResNet-18 wt-a2 {int8}, 2 threads", ov, t2, 2, 2.3, 3.0)
    ratio("resnet18", "ResNet-18 wt-a2 against the best f32, 1 thread", floats, t2, 1, 4.0, 5.0)
    ratio("resnet18", f"ResNet-18 w1-a1 {int8}, 1 thread", ov, b1, 1, 4.0, 5.0)
    ratio("resnet18", f"ResNet-18 w2-a2 {int8}, 1 thread", ov, b2, 1, 2.3, 3.0)
    ratio("resnet18", f"ResNet-18 w4-a4 {int8}, 1 thread", ov, u4, 1, 1.1, 1.3)
    ratio("alexnet", f"AlexNet wt-a2 {int8}, 1 thread", ov, t2, 1, 1.8, 2.5)
    ratio("vgg16_bn", f"VGG-16 wt-a2 {int8}, 1 thread", ov, t2, 1, 1.7, 2.2)
    ratio("mobilenet_v2", f"MobileNetV2 wt-a2 {int8}, 1 thread", ov, t2, 1, 1.5, 2.0)
    ratio("mobilenet_v2", f"MobileNetV2 w4-a4 {int8}, 1 thread", ov, u4, 1, 0.9, 1.2)

    binary = out / "binary.json"
    for row in json.loads(binary.read_text())["measured"] if binary.exists() else []:
        for key, what, least, aim in (
            ("node_over_step", "node", 1.7, 2.0),
            ("graph_over_call", "whole graph", 3.0, 4.0),
        ):
            r = stats.Ratio(row[key]["value"], *row[key]["quartiles"])
            figure = f"3x3 binary {row['channels']}@{row['size']} against OpenVINO's {what}"
            found.append(Line(figure, row["level"], str(r), r.value, least, aim))

    result = load("resnet18")
    for row in result["times"] if result else []:
        if row["executor"] == t2 and row["threads"] == 1 and "profile" in row:
            glue = row["profile"]["glue"]
            found.append(
                Line("share outside arithmetic, %", row["level"], f"{100 * glue:.1f}", 100 * glue, 15, 10, True)
            )
    found += scaling(load("resnet18-batch"), t2)
    size = out / "footprint.json"
    if size.exists():
        f = json.loads(size.read_text())["measured"]
        for figure, value, least, aim in (
            ("file of ResNet-18 wt-a2, MB", f["bytes"] / 1e6, 3.3, 2.8),
            ("load and plan, ms", 1e3 * f["load"], 150, 80),
            ("memory of a run beyond the file, MB", f["beyond_file"] / 1e6, 12, 8),
        ):
            found.append(Line(figure, "native", f"{value:.2f}", value, least, aim, True))
    return found


def scaling(result: Result | None, name: str) -> list[Line]:
    """Two threads over one, and batch 8 over batch 1."""
    if result is None:
        return []
    ms = {
        (r["level"], r["threads"], r["batch"]): r["milliseconds"]
        for r in result["times"]
        if r["executor"] == name and "milliseconds" in r
    }
    found = []
    for level in dict.fromkeys(level for level, _, _ in ms):
        one, two, eight = (ms.get((level, *setting)) for setting in ((1, 1), (2, 1), (1, 8)))
        if one and two:
            value = one / two
            found.append(Line("ResNet-18 wt-a2, 2 threads over 1", level, f"{value:.2f}", value, 1.8, 1.9))
        if one and eight:
            value = eight / 8 / one
            found.append(Line("batch 8 over batch 1, time an image", level, f"{value:.2f}", value, 1.0, 0.95, True))
    return found


def table(rows: Sequence[Line]) -> str:
    """The table as Markdown."""
    text = ["| figure | instructions | measured | at least | aim | |", "|---|---|---|---|---|---|"]
    for r in rows:
        sign = "<= " if r.smaller else ""
        text.append(f"| {r.figure} | {r.level} | {r.found} | {sign}{r.least:g} | {sign}{r.aim:g} | {r.verdict} |")
    return "\n".join(text)


def main() -> int:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    names = [part.name for part in PARTS] + list(OTHERS)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each executor and setting")
    parser.add_argument("--table", action="store_true", help="measure nothing, print what is there")
    options = parser.parse_args()
    start, failed = time.perf_counter(), []
    minutes = {part.name: part.minutes for part in PARTS} | OTHERS

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - start:6.0f} s] {text}", file=sys.stderr, flush=True)

    wanted = [] if options.table else [name for name in names if name in options.only]
    say(f"{len(wanted)} parts, about {sum(minutes[name] for name in wanted):.0f} minutes if none is there already")
    for number, name in enumerate(wanted, start=1):
        left = sum(minutes[other] for other in wanted[number - 1 :])
        say(f"part {number} of {len(wanted)}: {name}; at most about {left:.0f} minutes left")
        part = next((part for part in PARTS if part.name == name), None)
        try:
            if part is not None:
                network(part, options.out, options.seconds, say)
            else:
                others(name, options.out, say)
        except BitbranchError as error:  # the other parts are still worth measuring
            failed.append(f"{name}: {error}")
            say(f"failed: {error}")
    text = table(lines(options.out))
    head = "\n".join([*measured_on(options.out), "Random weights, batch 1, 224x224 where not said otherwise.\n"])
    options.out.mkdir(parents=True, exist_ok=True)
    write_bytes(options.out / "figures.md", f"{head}\n{text}\n".encode())
    print(head, text, *failed, sep="\n")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
