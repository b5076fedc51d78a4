"""The command ``bitbranch table``: runs what is missing, measures latencies side by side, writes table and plot."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..bench import stats
from ..disk import remove_leftovers, write_bytes
from ..errors import BitbranchError
from ..reporting.machine import describe_machine, describe_versions
from ..runtime.engine import Engine
from . import page, rows, spec

Result = dict[str, object]
Say = Callable[[str], None]

MEASURED = ("date", "machine", "versions")
"""What a table says of the measurement of its latencies, and is kept with them."""

ROUNDS, TURN = 9, 0.05
"""Turns of each network when latencies are measured, and seconds of a turn."""


@dataclass(frozen=True)
class Options:
    """The arguments of the command.

    Attributes:
        table: TOML file.
        out: folder of the table and of its runs.
        rows, seeds: the chosen ones; none are all.
        hours: begin no run after so many.
        measure: whether latencies are measured.
    """

    table: Path
    out: Path
    rows: Sequence[str] = ()
    seeds: Sequence[int] = ()
    hours: float = float("inf")
    measure: bool = True


def run(options: Options, say: Say) -> Result:
    """Do the runs that are not done, then write ``table.md``, ``table.json``, ``table.svg`` and ``table.html``.

    A run that is done is not repeated; one that was interrupted goes on; one that failed is tried again, and reported
    if it fails again, while the rest goes on.

    Raises:
        InputError: a wrong table, or rows that it does not have.
    """
    table = spec.load(options.table)
    begin, left = time.monotonic(), 0
    runs, network = table.runs(options.rows, options.seeds), partial(_network, table, options.out)

    for number, (row, seed) in enumerate(runs, 1):
        folder = _folder(options.out, row, seed)
        if rows.finished(folder) is not None:
            if key := rows.changed(folder, spec.configured(row, seed, network), table.folder):
                say(f"{row.name}, seed {seed}: was run otherwise ({key} differs); to redo it, remove {folder}")
            continue
        if time.monotonic() - begin > 3600 * options.hours:
            left += 1
            continue
        needed = [(name, seed) for name in row.needs] + [(name, s) for name in row.gathers for s in row.seeds]
        missing = [f"{name}, seed {s}" for name, s in needed if not network(name, s).is_file()]
        title = f"table {number}/{len(runs)}: {row.name}, seed {seed}"
        if missing:
            say(f"{title}: not run, for want of {'; '.join(missing)}")
            continue
        say(title)
        result = rows.run(spec.configured(row, seed, network), folder, table.folder, say)
        say(f"{title}: {_verdict(result)}")
        _write(table, options.out, say)
    document = _write(table, options.out, say, measure=options.measure)
    failed = [f"{r['name']}, seed {seed}" for r in document["rows"] for seed in r["failed"]]
    text = [page.text(document), f"written to {options.out}: table.md, table.html, table.json, table.svg"]
    if left:
        text.append(f"{left} runs are left; run the command again")
    wrong = any(run.get("left_out") for r in document["rows"] for run in r["runs"])
    status = {"status": 2} if wrong and not failed else {}
    return {**document, "left": left, "failed": bool(failed), **status, "text": "\n".join(text)}


def _folder(out: Path, row: spec.Row, seed: int) -> Path:
    return out / "runs" / f"{row.folder}-{seed}"


def _network(table: spec.Table, out: Path, name: str, seed: int) -> Path:
    """Of a row's run; absolute, for paths in a configuration are relative to the table's folder."""
    return (_folder(out, _named(table, name), seed) / "net.pt").absolute()


def _named(table: spec.Table, name: str) -> spec.Row:
    return next(row for row in table.rows if row.name == name)


def _verdict(result: Mapping[str, Any]) -> str:
    if "error" in result:
        return f"failed: {result['error']}"
    text = f"{100 * rows.judged(result):.2f} %"
    if "differ" in result:
        text += f", engine and reference differ on {result['differ']} of {result['images']} images"
    return text


def _write(table: spec.Table, out: Path, say: Say, *, measure: bool = False) -> dict[str, Any]:
    """The whole table from what is in the folders, written; latencies are kept until they are measured anew."""
    document, before = collect(table, out), _before(out / "table.json", say)
    if measure:
        document["latency"] = _latencies(table, out, say)
    elif before.get("latency"):
        document |= {key: before[key] for key in ("latency", *MEASURED) if key in before}
    out.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("table.json", json.dumps(document, indent=1) + "\n"), ("table.md", page.markdown(document)),
        ("table.svg", page.plot(document)), ("table.html", page.html(document)),
    ):  # fmt: skip
        remove_leftovers(out / name)
        write_bytes(out / name, text.encode())
    return document


def _before(path: Path, say: Say) -> dict[str, Any]:
    """The table as it was written before."""
    try:
        found = json.loads(path.read_text()) if path.is_file() else {}
    except (OSError, ValueError) as error:
        say(f"{path}: damaged ({' '.join(str(error).split())}); its latencies are not kept")
        return {}
    return dict(found) if isinstance(found, dict) else {}


def collect(table: spec.Table, out: Path) -> dict[str, Any]:
    """All rows with what their finished runs gave, as ``table.json`` holds it."""
    found: list[dict[str, Any]] = []
    for row in table.rows:
        runs, failed, changed = [], dict[str, str](), dict[str, str]()
        for seed in row.seeds:
            folder = _folder(out, row, seed)
            result = rows.finished(folder)
            if result is not None:
                runs.append({"seed": seed, **result})
                content = spec.configured(row, seed, partial(_network, table, out))
                if key := rows.changed(folder, content, table.folder):
                    changed[str(seed)] = key
            elif (folder / "row.json").is_file():
                failed[str(seed)] = rows.failure(folder)
        found.append(
            {"name": row.name, "minus": row.minus or table.rows[0].name, "published": row.published}
            | {"reason": row.reason, "scheme": row.scheme, "runs": runs, "failed": failed, "changed": changed}
        )
    for entry in found:
        entry |= _summary(entry, {e["name"]: e for e in found})
    figures = [run.get("figure", "accuracy") for entry in found for run in entry["runs"]]
    return {
        "name": table.name, "note": table.note, "figure": (figures or ["accuracy"])[0],
        "date": date.today().isoformat(), "machine": describe_machine(),
        "versions": describe_versions(), "rows": found, "latency": {},
    }  # fmt: skip


def _summary(entry: Mapping[str, Any], entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and spread over seeds, and the mean difference to another row with the same seeds."""
    by_seed = {run["seed"]: rows.judged(run) for run in entry["runs"]}
    if not by_seed:
        return {}
    values = np.asarray(list(by_seed.values()))
    result: dict[str, Any] = {"mean": float(values.mean())}
    if len(values) > 1:
        result["spread"] = float(values.std(ddof=1))
    other = {run["seed"]: rows.judged(run) for run in entries[entry["minus"]]["runs"]}
    both = sorted(by_seed.keys() & other.keys())
    if both and entry["minus"] != entry["name"]:
        gaps = np.asarray([by_seed[s] - other[s] for s in both])
        result |= {"difference": float(gaps.mean()), "compared": both}
        if len(gaps) > 1:
            result["difference spread"] = float(gaps.std(ddof=1))
    return result


def _latencies(table: spec.Table, out: Path, say: Say) -> dict[str, Any]:
    """Milliseconds for one image on one thread, the networks taking turns: of the engine, and of torch for float.

    A network that cannot be read is reported, and has none.
    """
    calls: dict[str, Callable[[], object]] = {}
    for row in table.rows:
        for folder in (_folder(out, row, seed) for seed in row.seeds):
            result = rows.finished(folder)
            if result is None:
                continue
            try:
                if "file" in result:
                    calls[row.name] = _engine_call(folder / "net.bb")
                elif result.get("not compiled") == "float":
                    calls[row.name] = _torch_call(folder / "net.pt")
            except BitbranchError as error:
                say(f"latency: {row.name}: {error}")
                continue
            break
    if calls:
        say(f"latency: {len(calls)} networks taking turns")
    turns: dict[str, list[list[float]]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            turns[name].append(stats.turn(call, TURN))
    return {name: stats.summarize(rounds).as_dict() for name, rounds in turns.items()}


def _engine_call(file: Path) -> Callable[[], object]:
    engine = Engine(file, threads=1)
    image = np.zeros((1, *engine.program.input.shape), np.float32)
    return lambda: engine(image)


def _torch_call(net: Path) -> Callable[[], object]:
    """A call of the float network on one thread, channels last."""
    import torch

    from ..training import checkpoint
    from ..training.threads import using_threads

    recipe, network = checkpoint.load(net)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = recipe.example.to(memory_format=torch.channels_last)

    def call() -> None:
        with using_threads(1), torch.inference_mode():
            network(image)

    return call
