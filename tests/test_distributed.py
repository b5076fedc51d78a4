"""Several processes: the same statistics and the same first steps as one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import ranks
import torch

from bitbranch import models
from bitbranch.training import runner

torch.set_num_threads(1)


States = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have left what they have, and their runs."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(Path(ranks.__file__)), str(folder)], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def of_two(folder: Path) -> list[dict[str, States]]:
    """What each of two processes has after some steps, scheme by scheme."""
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def check_close(found: States, expected: States) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def check_same(first: States, second: States) -> None:
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def figures_of(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("phase", "seconds")} for row in rows]


@pytest.mark.parametrize("scheme", ranks.SCHEMES)
def test_two_processes_agree_with_one(of_two: list[dict[str, States]], scheme: str) -> None:
    one, (first, second) = ranks.train(scheme), (states[scheme] for states in of_two)
    fresh = ranks.train(scheme, epochs=0)
    assert any(not torch.equal(one[name], fresh[name]) for name in fresh if name.endswith("weight"))
    check_same(first, second)
    check_close(first, one)


@pytest.mark.parametrize("teacher", [False, True])
def test_pixels_count_alike_in_whichever_process(of_two: list[dict[str, States]], teacher: bool) -> None:
    first, second = (states[f"pixels {teacher}"] for states in of_two)
    check_same(first, second)
    check_close(first, ranks.segmented(teacher))


def test_runs_of_two_processes_are_those_of_one(
    folder: Path, of_two: list[dict[str, States]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted within the first phase, behind it, and within the second; and not."""
    monkeypatch.setitem(models.MODELS, "pooled", ranks.pooled)
    expected = runner.run(ranks.RUN, tmp_path, progress=None)
    for states in of_two:
        assert states["runs"]["whole"].tolist() == [0] and states["runs"]["stopped"].tolist() == [130, 130, 130, 0]
    whole, stopped = (torch.load(folder / name / "net.pt")["state"] for name in ("whole", "stopped"))
    check_same(whole, stopped)
    check_close(whole, torch.load(tmp_path / "net.pt")["state"])
    for name in ("whole", "stopped"):
        found = json.loads((folder / name / "results.json").read_text())
        for figure in ("accuracy", "best_accuracy", "top5", "loss"):
            assert found[figure] == pytest.approx(expected[figure], rel=1e-4)
        zeros = expected["phases"][1]["zeros"]
        assert zeros and found["phases"][1]["zeros"] == pytest.approx(zeros, abs=2e-4)
        for there, here in zip(figures_of(folder / name), figures_of(tmp_path), strict=True):
            assert there == pytest.approx(here, rel=1e-4)


def test_what_one_process_has_solved_is_shared(of_two: list[dict[str, States]]) -> None:
    first, second = (states["held"] for states in of_two)
    assert first["1.weight_quantizer.held"].tolist() == [0.5, 1.0, 2.0] and not len(first["2.weight_quantizer.held"])
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
