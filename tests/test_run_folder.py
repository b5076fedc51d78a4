"""What a run finds in its folder, what may change on the way, and what it says when it stops early."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitbranch import models
from bitbranch.cli.main import main
from bitbranch.errors import BitbranchError, InputError
from bitbranch.reporting import plots
from bitbranch.training import config, run_folder, runner
from bitbranch.training.loop import Training
from bitbranch.training.objectives import Classification

torch.set_num_threads(1)

BASE: dict[str, Any] = {
    "network": {"model": "vgg", "arguments": {"stages": [[8]], "hidden": 16}},
    "data": {"set": "fashion-mnist-sample", "batch": 50, "train_images": 200, "test_images": 100},
    "threads": 1,
    "save_every": 3,
    "phase": [{"name": "first", "epochs": 1, "lr": 4e-3}, {"name": "second", "epochs": 2, "lr": 1e-3}],
}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


class Interrupted(Exception):
    """Stands for a kill."""


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """End a run at its so manieth step."""
    update, taken = Training._update, [0]

    def until(self: Training, images: Tensor, labels: Tensor, rate: float) -> None:
        if taken[0] == at:
            raise Interrupted
        taken[0] += 1
        update(self, images, labels, rate)

    monkeypatch.setattr(Training, "_update", until)


def test_phases_that_have_not_begun_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 4)  # the first step of the second phase is not taken
        with pytest.raises(Interrupted):
            runner.run(BASE, tmp_path / "run", progress=None)
    other = copy.deepcopy(BASE)
    other["phase"][0]["lr"] = 1e-3
    with pytest.raises(InputError, match=r"holds a run of another configuration \(phase\.1\.lr differs\)"):
        runner.run(other, tmp_path / "run", progress=None)
    later = copy.deepcopy(BASE)
    later["phase"][1] |= {"epochs": 1, "lr": 2e-3}
    changed = runner.run(later, tmp_path / "run", progress=None)
    whole = runner.run(later, tmp_path / "whole", progress=None)
    assert changed["accuracy"] == whole["accuracy"] and json.loads((tmp_path / "run" / "config.json").read_text())[
        "phase"
    ][1]["lr"] == pytest.approx(2e-3)


def test_a_phase_on_its_way_may_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 8)
        with pytest.raises(Interrupted):
            runner.run(BASE, tmp_path, progress=None)
    other = copy.deepcopy(BASE)
    other["phase"][1]["epochs"] = 3
    with pytest.raises(InputError, match=r"\(phase\.2\.epochs differs\); train into another folder"):
        runner.run(other, tmp_path, progress=None)
    with pytest.raises(InputError, match=r"\(phase differs\)"):
        runner.run({**BASE, "phase": BASE["phase"][:1]}, tmp_path, progress=None)


def test_files_of_others_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run writes neither over its own configuration nor over networks that lie where it is to go."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps(BASE))
    assert main(["train", str(file), "--out", str(tmp_path)]) == 2
    assert "config.json, which no run has written; train into another folder" in capsys.readouterr().err
    assert json.loads(file.read_text()) == BASE
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "net.pt").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"net\.pt, which no run has written"):
        runner.run(BASE, tmp_path / "kept", progress=None)
    assert (tmp_path / "kept" / "net.pt").read_bytes() == b"mine"


def test_what_a_run_reads_it_does_not_write(tmp_path: Path) -> None:
    first = runner.run({**BASE, "phase": [{"epochs": 1}]}, tmp_path / "run", progress=None)
    before = Path(first["net"]).read_bytes()
    (tmp_path / "run" / "results.json").unlink()
    (tmp_path / "run" / "last.pt").unlink()
    for part in ({"network": {**BASE["network"], "start": first["net"]}}, {"teacher": {"checkpoint": first["net"]}}):
        with pytest.raises(InputError, match=r"the run would write over .*net\.pt, which it reads"):
            runner.run({**BASE, **part}, tmp_path / "run", progress=None)
    assert Path(first["net"]).read_bytes() == before


def test_a_run_that_left_no_checkpoint_may_be_corrected(tmp_path: Path) -> None:
    wrong = copy.deepcopy(BASE)
    wrong["phase"] = [{"epochs": 1, "lr": 1e30, "optimizer": "sgd"}]
    with pytest.raises(BitbranchError, match="lower the learning rate"):
        runner.run({**wrong, "save_every": 500}, tmp_path, progress=None)
    assert not (tmp_path / "last.pt").exists() and (tmp_path / "config.json").is_file()
    assert runner.run({**BASE, "phase": [{"epochs": 1}]}, tmp_path, progress=None)["accuracy"] > 0


def test_a_run_that_stops_says_why_in_its_report(tmp_path: Path) -> None:
    """With all rows so far; the page does not wait for more."""
    wrong = copy.deepcopy(BASE)
    wrong["phase"] = [{"epochs": 9, "lr": 1e30, "optimizer": "sgd"}]
    with pytest.raises(BitbranchError, match=r"train 1: .* at epoch 1, step 2; lower the learning rate"):
        runner.run({**wrong, "log_every": 1}, tmp_path, progress=None)
    page = (tmp_path / "report.html").read_text()
    assert "stopped: train 1: " in page and "http-equiv='refresh'" not in page
    assert [row["step"] for row in rows_of(tmp_path)] == [1]


@pytest.mark.parametrize(("losses", "shown"), [((2.31, 2.12, 2.02), "2.2"), ((2.0, 0.3, 0.011), "0.1")])
def test_losses_are_labelled_with_plain_numbers(losses: tuple[float, ...], shown: str) -> None:
    rows = [{"phase": "one", "epoch": i, "loss": loss, "accuracy": 0.5} for i, loss in enumerate(losses)]
    drawn = plots.run_curves(rows, "accuracy")
    assert "mathdefault" not in drawn and f">{shown}<" in drawn


def test_every_step_is_in_a_row(tmp_path: Path) -> None:
    """Also where an epoch has fewer than there are between two."""
    runner.run({**BASE, "log_every": 3}, tmp_path, progress=None)
    steps = [(row["phase"], row["step"]) for row in rows_of(tmp_path) if "step" in row]
    assert steps == [("first", 3), ("first", 4), *(("second", n) for n in (3, 4, 6, 8))]


def test_steps_without_training_take_no_epochs(tmp_path: Path) -> None:
    phases = [
        {"kind": "codes", "scheme": "tsq:wt-a2", "epochs": 1},
        {"kind": "transforms", "images": 50, "samples": 100},
        {"name": "tuning", "epochs": 1},
        {"name": "tuning", "epochs": 1},
    ]
    runner.run({**BASE, "train": {"epochs": 3}, "phase": phases}, tmp_path, progress=None)
    tested = [(row["phase"], row["epoch"]) for row in rows_of(tmp_path) if "test_accuracy" in row]
    assert tested == [("codes 1", 1), ("transforms 2", 0), ("tuning", 1), ("tuning (2)", 1)]


def test_phases_have_names_of_their_own_and_go_by_numbers_from_one() -> None:
    named = {**BASE, "phase": [{"name": name} for name in ("tuning", "tuning", "tuning (2)", "tuning")]}
    parsed = config.parse(named)
    names = [phase.name for phase in parsed.phase]
    assert names == ["tuning", "tuning (3)", "tuning (2)", "tuning (4)"] and config.parse(parsed.as_dict()) == parsed
    with pytest.raises(InputError, match=r"^phase\.2: smoothing is at least 0"):
        config.parse({**BASE, "phase": [{}, {"smoothing": 2}]})


def test_hints_are_judged_by_no_answers(tmp_path: Path) -> None:
    teacher = runner.run({**BASE, "phase": [{"epochs": 1}]}, tmp_path / "teacher", progress=None)["net"]
    phases = [{"kind": "hints", "guided": "conv1", "hint": "conv1", "epochs": 1}, {"name": "tuning", "epochs": 1}]
    lines: list[str] = []
    runner.run({**BASE, "teacher": {"checkpoint": teacher}, "phase": phases}, tmp_path / "run", progress=lines.append)
    rows = [row for row in rows_of(tmp_path / "run") if "step" in row]
    assert ["accuracy" in row for row in rows] == [row["phase"] == "tuning" for row in rows]
    said = {line.split(":")[0]: "train accuracy" in line for line in lines if "epoch 1/1" in line}
    assert said == {"hints 1": False, "tuning": True}


def test_zeros_are_counted_phase_by_phase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an interrupted phase of step 1 had counted is not counted again in the next one."""
    phases = [{"kind": "codes", "scheme": f"tsq:wt-a{bits}", "epochs": 1} for bits in (3, 2)]
    run = {**BASE, "phase": phases}
    whole = runner.run(run, tmp_path / "whole", progress=None)
    with monkeypatch.context() as patch:
        interrupt(patch, 3)
        with pytest.raises(Interrupted):
            runner.run(run, tmp_path / "run", progress=None)
    resumed = runner.run(run, tmp_path / "run", progress=None)
    assert [p["zeros"] for p in resumed["phases"]] == [p["zeros"] for p in whole["phases"]]


OWN = """
from torch import nn
from bitbranch import models

@models.register
def mine(num_classes: int = 10, width: int = {width}) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 10))
"""


def test_a_network_that_changed_on_the_way_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN.format(width=8))
    run = {**BASE, "network": {"model": "mine", "file": str(file)}, "phase": [{"epochs": 2}]}
    with monkeypatch.context() as patch:
        interrupt(patch, 5)
        with pytest.raises(Interrupted):
            runner.run(run, tmp_path / "run", progress=None)

    def rewrite(width: int) -> None:
        file.write_text(OWN.format(width=width))
        sys.modules.pop(f"bitbranch models {file}", None)  # as in a new process
        models.MODELS.pop("mine", None)

    rewrite(9)
    lines: list[str] = []
    with pytest.raises(InputError, match=r"last\.pt: does not fit the configuration \(.*size mismatch"):
        runner.run(run, tmp_path / "run", progress=lines.append)
    assert f"{file}: is not as it was when the run began" in lines
    rewrite(8)
    lines.clear()
    assert runner.run(run, tmp_path / "run", progress=lines.append)["accuracy"] > 0
    assert not any("is not as it was" in line for line in lines)


def test_too_little_memory_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(self: Classification, model: nn.Module, *_: object) -> tuple[Tensor, Tensor]:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: you tried to allocate "
            "1 bytes."
        )

    monkeypatch.setattr(Classification, "forward", hungry)
    with pytest.raises(BitbranchError, match=r"run: out of memory \(.*\); take a smaller data\.batch"):
        runner.run(BASE, tmp_path / "run", progress=None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train": {"smoothing": 1.5}}, "smoothing is at least 0 and below 1, got 1.5"),
        ({"train": {"fix": 2}}, "fix is 0..1, got 2"),
        ({"data": {"set": "scene-boxes", "shift": 2}}, "data.shift: is for classification"),
        ({"data": {"set": "scene-masks", "flip": True}}, "data.flip: is for classification"),
    ],
)
def test_settings_that_cannot_be_are_named_before_anything_is_trained(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        runner.run({**BASE, "phase": [{"epochs": 1}, {"epochs": 1}], **change}, tmp_path, progress=None)
    assert said in str(caught.value) and not (tmp_path / "last.pt").exists()


def test_values_that_json_lacks_are_named() -> None:
    import datetime

    dated = {**BASE, "network": {"model": "vgg", "arguments": {"a": [{"when": datetime.date(2020, 1, 1)}]}}}
    with pytest.raises(InputError, match=r"network\.arguments\.a\[0\]\.when: expected a number, a text"):
        config.parse(dated)


def test_differences_have_names() -> None:
    there = {"a": 1, "b": {"c": [1, 2]}, "phase": [{"lr": 1}, {"lr": 2}], "old": 0}
    here = {"a": 1, "b": {"c": [1, 3]}, "phase": [{"lr": 1}, {"lr": 3, "new": 0}]}
    assert list(run_folder.differing(there, here)) == ["b.c", "old", "phase.2.lr", "phase.2.new"]
    assert list(run_folder.differing(there, {**there, "phase": there["phase"][:1]})) == ["phase"]
    assert not list(run_folder.differing(there, copy.deepcopy(there)))
