"""``bitbranch demo``: learn, solve, decompose, compile, verify, run and report, on real images of garments."""

from __future__ import annotations

import datetime
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
from torch import nn

from ..data import Dataset
from ..disk import write_bytes
from ..errors import InputError
from ..reporting.machine import describe_machine, describe_versions
from ..runtime.container import bit_budget
from ..training import checkpoint
from ..training.loop import predict
from . import findings, latency, report
from .demo_plan import PLANS
from .demo_training import LAST, Log, Trained, train_all
from .findings import THREADS, Compiled, Row

BATCHES = (1, 64)
"""Batch sizes of the latency measurement."""
EXPECTED_DROP = {"tsq:wt-a2": 1.0, "mbn:w2-a2": 1.0, "mbn:w1-a1": 4.0}
"""Percentage points of accuracy below float that a scheme may lose before the report remarks on it."""
MISTAKES = 12
"""Images in the report that a network got wrong."""
CALIBRATION_IMAGES = 200
"""Training images that ONNX Runtime's int8 form is calibrated on."""
HISTOGRAM_IMAGES = 200
"""Images whose codes are counted."""


def run(*, out: Path, size: str = "standard", seed: int = 0) -> Row:
    """Run the demo and write ``report.html``, ``summary.json``, ``.bb`` files and checkpoints.

    Args:
        out: folder for the files, made where missing.
        size: ``"standard"``, ``"full"`` or ``"quick"``.
        seed: of everything random.

    Returns:
        What ``summary.json`` holds, with ``text`` for people, and ``failed`` where an executor differs.

    Raises:
        InputError: ``out`` cannot be a folder, or the data is missing or damaged.
    """
    log = Log(time.time())
    plan = PLANS[size]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be the output folder ({error.strerror})") from None
    train, test = plan.data()
    log(f"{train.source}; {test.source}")

    reference, *low_bit = train_all(plan, out, seed=seed, log=log)
    network = checkpoint.load(reference.path)[1]
    compiled = [findings.compile_and_run(trained, test) for trained in low_bit]
    compiled[0].program.save(out / "net.bb")

    images = test.normalized()
    equality = []
    for c in compiled:
        equality.append(findings.equality(c, images, plan.verify_images))
        log(f"{c.file.name}: {sum(row['different'] for row in equality[-1])} of all compared numbers differ")
    log("latency: engine, PyTorch and ONNX Runtime, in turns")
    latencies, peers = _latencies(network, compiled, train, test, plan.timing_rounds)

    rows = [_float_row(reference, network, test, latencies)]
    rows += [_row(c, rows[0], e, latencies, test) for c, e in zip(compiled, equality, strict=True)]
    summary: Row = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["bitbranch", *sys.argv[1:]]) if sys.argv[1:2] == ["demo"] else "bitbranch demo",
        "size": size,
        "seed": seed,
        "epochs": plan.epochs,
        "seconds": time.time() - log.start,
        "data": {"name": "Fashion-MNIST", "train": len(train), "test": len(test), "source": train.source},
        "machine": describe_machine(),
        "versions": describe_versions(),
        "networks": rows,
        "peers": peers,
        "ablation": [asdict(row) for row in compiled[0].trained.ablation],
        "notes": _notes(compiled, rows, train, test),
    }
    write_bytes(out / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    wrong = {c.trained.name: findings.mistakes(c, test, MISTAKES) for c in compiled}
    page = report.render(summary, wrong)
    write_bytes(out / "report.html", page.encode())
    log(f"wrote {out / 'report.html'}")
    failed = any(row["bit_mismatches"] for row in rows)
    return {**summary, "failed": failed, "text": _text(rows, summary, out)}


def _latencies(
    network: nn.Module, compiled: Sequence[Compiled], train: Dataset, test: Dataset, rounds: int
) -> tuple[dict[str, latency.Latency], list[Row]]:
    """Latency by executor of the float network or name of the low-bit network; and ONNX Runtime's accuracy and size."""
    images = test.normalized()
    with latency.onnxruntime_peers(network, train.spread(CALIBRATION_IMAGES).normalized()) as peers:
        executors = {"torch f32": latency.torch_float(network)}
        executors |= {name: peer.executor for name, peer in peers.items()}
        executors |= {c.trained.name: latency.engine(c.program) for c in compiled}
        latencies = latency.measure(executors, images, threads=THREADS, batches=BATCHES, rounds=rounds)
        rows = []
        for name, peer in peers.items():
            logits = np.asarray(peer.executor(1)(images)).reshape(len(images), -1)
            accuracy = float((logits.argmax(1) == test.labels).mean())
            rows.append({"name": name, "accuracy": accuracy, "file_bytes": peer.file_bytes})
    return latencies, rows


def _float_row(trained: Trained, network: nn.Module, test: Dataset, latencies: dict[str, latency.Latency]) -> Row:
    guesses = predict(network, test.normalized()).argmax(1).numpy()
    accuracy = float((guesses == test.labels).mean())
    size = findings.float_bytes(network)
    return {
        "name": trained.name,
        "scheme": "float",
        "accuracy": accuracy,
        "float_accuracy": accuracy,
        "file_bytes": size,
        "float_bytes": size,
        "bit_mismatches": 0,
        "latency_ms": {name: times for name, times in latencies.items() if name.split()[-1] in ("f32", "int8")},
        "seconds_to_train": trained.seconds,
        "training": [epoch.as_dict() for epoch in trained.history],
    }


def _row(c: Compiled, float_row: Row, equality: list[Row], latencies: dict[str, latency.Latency], test: Dataset) -> Row:
    return {
        "name": c.trained.name,
        "scheme": c.scheme,
        "accuracy": float((c.guesses == test.labels).mean()),
        "float_accuracy": float_row["accuracy"],
        "file": c.file.name,
        "file_bytes": c.file.stat().st_size,
        "float_bytes": float_row["float_bytes"],
        "bit_budget": bit_budget(c.program),
        "bit_mismatches": sum(row["different"] for row in equality),
        "latency_ms": {"engine": latencies[c.trained.name], **float_row["latency_ms"]},
        "seconds_to_train": c.trained.seconds,
        "layers": findings.steps(c, test.normalized()[:1]),
        "equality": equality,
        "histograms": findings.histograms(c.program, test.normalized()[:HISTOGRAM_IMAGES]),
        "training": [epoch.as_dict() for epoch in c.trained.history],
    }


def _notes(compiled: Sequence[Compiled], rows: Sequence[Row], train: Dataset, test: Dataset) -> list[str]:
    """What the figures do not say by themselves, and where they are not as theory expects."""
    spread = 100 * float(np.sqrt(0.09 * 0.91 / len(test)))
    notes = [
        f"One training run with one seed on {len(train):,} images. The standard error of an accuracy near 91 % on "
        f"{len(test):,} test images is {spread:.1f} points, so smaller differences mean little.",
        "The low-bit networks start from the float network and learn from its soft targets too: they have seen the "
        "training images more often than it has.",
        "Epochs and learning rates were set in trial runs that looked at accuracy on these test images.",
        f"First layer: 8-bit weights and input; last layer: {LAST}. The paper of two-step "
        "quantization keeps both in float.",
        "PyTorch and ONNX Runtime run the float network (int8: quantized from it without training). PyTorch runs it "
        "as it is; ONNX Runtime folds BatchNorm.",
        "Figures change a little from run to run: training uses as many threads as are fastest, and their number "
        "changes the order of float additions.",
    ]
    steps = compiled[0].trained.ablation[1:]
    for before, after in pairwise(steps):
        if after.accuracy < before.accuracy:
            notes.append(
                f"Not as theory orders the steps of two-step quantization: {after.step} "
                f"({100 * after.accuracy:.2f} %) is below {before.step} ({100 * before.accuracy:.2f} %)."
            )
    for row in rows[1:]:
        drop, expected = 100 * (row["float_accuracy"] - row["accuracy"]), EXPECTED_DROP[row["scheme"]]
        if drop > expected:
            notes.append(f"Not as expected: {row['name']} is {drop:.2f} points below float, more than {expected}.")
        size, budget = row["file_bytes"], row["bit_budget"]
        if size > 1.02 * budget:
            notes.append(f"{row['file']}: {size:,} bytes, more than 2 % above the bit budget of {budget:,}.")
    return notes


def _text(rows: Sequence[Row], summary: Row, out: Path) -> str:
    """The result for people, as a small table and the notes on what is not as expected."""
    lines = [f"{'network':<12}{'accuracy %':>11}{'kB':>9}{'ms, 1 image':>13}{'differing bits':>16}"]
    for row in rows:
        ms = next(iter(row["latency_ms"].values()))["1"]["1"]
        accuracy, size = 100 * row["accuracy"], row["file_bytes"] / 1e3
        lines.append(f"{row['name']:<12}{accuracy:>11.2f}{size:>9.1f}{ms:>13.3f}{row['bit_mismatches']:>16}")
    lines += [f"{step['step']:<40}{100 * step['accuracy']:>7.2f} %" for step in summary["ablation"]]
    lines += [note for note in summary["notes"] if note.startswith("Not as")]
    return "\n".join([*lines, f"{out / 'report.html'}"])
