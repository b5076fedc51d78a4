"""The demo from end to end, on few images: everything it promises but the accuracy."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bitbranch as bb
from bitbranch.cli import latency, report
from bitbranch.cli.demo_training import workers
from bitbranch.cli.main import main
from bitbranch.data import fashion_mnist
from bitbranch.errors import InputError
from bitbranch.reporting import plots
from bitbranch.runtime.engine import instruction_sets
from bitbranch.training import checkpoint

NAMES = ["float", "tsq wt-a2", "mbn w2-a2", "mbn w1-a1"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished demo."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    threads = torch.get_num_threads()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["demo", "--quick", "--out", str(folder), "--json"]) == 0
    torch.set_num_threads(threads)
    assert json.loads(printed.getvalue()) == json.loads((folder / "summary.json").read_text()) | {"failed": False}
    return folder


@pytest.fixture(scope="module")
def summary(out: Path) -> dict[str, Any]:
    return json.loads((out / "summary.json").read_text())


def test_it_writes_what_it_promises(out: Path) -> None:
    stems = ["tsq-wt-a2", "mbn-w2-a2", "mbn-w1-a1"]
    expected = {f"{stem}{suffix}" for stem in stems for suffix in (".bb", ".pt")}
    assert {file.name for file in out.iterdir()} == expected | {"report.html", "summary.json", "net.bb", "float.pt"}
    assert (out / "net.bb").read_bytes() == (out / "tsq-wt-a2.bb").read_bytes()


def test_the_summary_has_its_fields(summary: dict[str, Any]) -> None:
    assert [n["name"] for n in summary["networks"]] == NAMES
    assert [n["scheme"] for n in summary["networks"]] == ["float", "tsq:wt-a2", "mbn:w2-a2", "mbn:w1-a1"]
    for n in summary["networks"]:
        assert n["float_accuracy"] == summary["networks"][0]["accuracy"]
        assert 0 < n["accuracy"] <= 1
        assert 0 < n["file_bytes"] <= n["float_bytes"]
        assert n["seconds_to_train"] > 0
        assert {"torch f32"} <= set(n["latency_ms"])
        for executor in n["latency_ms"].values():
            assert all(executor[threads][batch] > 0 for threads in ("1", "2") for batch in ("1", "64"))
    for n in summary["networks"][1:]:
        assert n["bit_mismatches"] == 0
        assert next(iter(n["latency_ms"])) == "engine"
        assert n["bit_budget"] > 0
    assert len(summary["ablation"]) == 6
    assert {"date", "seed", "epochs", "machine", "versions", "notes"} <= set(summary)


def test_every_executor_was_compared_and_none_differs(summary: dict[str, Any]) -> None:
    for n in summary["networks"][1:]:
        executors = " ".join(row["executor"] for row in n["equality"])
        assert all(f"{isa}, {t} thread" in executors for isa in instruction_sets() for t in (1, 2))
        assert "PyTorch in float64" in executors
        assert "branches" in executors
        assert all(row["compared"] > 0 and row["different"] == 0 for row in n["equality"])


def test_the_files_give_the_accuracy_that_the_summary_states(out: Path, summary: dict[str, Any]) -> None:
    test = fashion_mnist.load("test").spread(summary["data"]["test"])
    for n in summary["networks"][1:]:
        program = bb.load(out / n["file"])
        for outputs in (program.reference(test.normalized()), program.reference(test.images)):
            assert float((outputs.argmax(1) == test.labels).mean()) == n["accuracy"]
        assert program.info["scheme"] == n["scheme"]
        assert n["file_bytes"] == (out / n["file"]).stat().st_size


def test_a_checkpoint_compiles_to_the_same_file(out: Path, tmp_path: Path) -> None:
    assert main(["compile", str(out / "mbn-w1-a1.pt"), "--out", str(tmp_path / "net.bb")]) == 0
    assert (tmp_path / "net.bb").read_bytes() == (out / "mbn-w1-a1.bb").read_bytes()
    recipe, _ = checkpoint.load(out / "float.pt")
    assert recipe.scheme is None


def test_the_report_stands_alone(out: Path, summary: dict[str, Any]) -> None:
    page = (out / "report.html").read_text()
    # Names of XML namespaces are no links.
    links = re.sub(r'(xmlns(:\w+)?|rdf:about|rdf:resource)="[^"]*"', "", page)
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)", links)
    assert "<script" not in page
    for name in NAMES:
        assert f">{name}<" in page
    assert page.count("<svg") >= 5
    assert page.count("data:image/png;base64,") >= 12
    for title in (
        "Result",
        "Equality",
        "Latency",
        "Two-step quantization, step by step",
        "Layers",
        "Codes",
        "Training",
    ):
        assert f"<h2>{title}</h2>" in page
    assert all(note in page.replace("&#x27;", "'") for note in summary["notes"])


def test_text_from_data_is_escaped_in_the_report(summary: dict[str, Any]) -> None:
    evil = json.loads(json.dumps(summary))
    evil["networks"][1]["name"] = "<script>alert(1)</script>"
    evil["notes"] = ["<script>"]
    mistake = report.Mistake(np.zeros((4, 4), np.uint8), "<script>", "<script>")
    assert "<script" not in report.render(evil, {"<script>": [mistake]})


def test_histograms_count_every_code_once(summary: dict[str, Any]) -> None:
    for n in summary["networks"][1:]:
        for name, layer in n["histograms"].items():
            (step,) = [row for row in n["layers"] if row["name"] == name and "inputs" in row]
            assert step["inputs"] == layer["type"]
            assert len(layer["counts"]) == 1 << int(layer["type"][1:])
        first = next(iter(n["histograms"].values()))
        assert sum(first["counts"]) == 200 * 28 * 28


def test_an_error_in_one_worker_ends_the_others() -> None:
    start = time.monotonic()
    with pytest.raises(InputError, match="split 'none'"), workers() as pool:
        pool.submit(time.sleep, 100)
        pool.submit(fashion_mnist.load, "none").result()
    assert time.monotonic() - start < 60
    assert not multiprocessing.active_children()


def test_executors_take_turns() -> None:
    calls: list[str] = []

    def executor(name: str) -> latency.Executor:
        def prepare(threads: int) -> latency.Run:
            def run(images: latency.Images) -> None:
                calls.append(name)
                time.sleep(0.002 * threads)

            return run

        return prepare

    times = latency.measure(
        {"a": executor("a"), "b": executor("b")},
        np.zeros((4, 1, 2, 2), np.float32),
        threads=(1, 2),
        batches=(1, 4),
        rounds=3,
        slice_seconds=0,
    )
    assert calls == ["a", "a", "b", "b"] * 12  # one call to warm up, one that is timed
    assert 2 <= times["a"]["1"]["1"] < 4 <= times["b"]["2"]["4"]


def test_plots_are_inline_svg() -> None:
    networks = [{"name": "a", "accuracy": 0.9, "bytes": 1e5, "milliseconds": 1.0}]
    networks.append({"name": "b", "accuracy": 0.8, "bytes": None, "milliseconds": 0.1, "peer": True})
    epochs = [{"number": 1, "loss": 1.0, "accuracy": 0.5}, {"number": 2, "loss": 0.5, "accuracy": 0.6}]
    for text in (plots.trade_off(networks), plots.curves({"a": epochs, "b": []})):
        assert text.startswith("<svg")
        assert text.rstrip().endswith("</svg>")


def test_names_of_near_networks_stand_apart() -> None:
    figure, axis = plots.plt.subplots()
    axis.set(xlim=(0, 10), ylim=(0, 10))
    places = [(5.0, 5.0), (5.2, 4.2), (5.1, 5.8), (4.9, 3.4), (0.1, 9.0)]
    plots._name(axis, [(f"network {i}", at, "black") for i, at in enumerate(places)])
    boxes = [text.get_window_extent() for text in axis.texts]
    assert len(boxes) == len(places)
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert not any(box.contains(*axis.transData.transform(at)) for at in places)
        assert box.x0 >= axis.bbox.x0
    plots.plt.close(figure)
