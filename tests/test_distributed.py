"""Several processes: the same statistics and the same first steps as one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import ranks
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    """What each of two processes has after four steps, scheme by scheme."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(Path(ranks.__file__)), str(folder)], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("scheme", ranks.SCHEMES)
def test_two_processes_agree_with_one(of_two: list[dict[str, dict[str, torch.Tensor]]], scheme: str) -> None:
    one, (first, second) = ranks.train(scheme), (states[scheme] for states in of_two)
    fresh = ranks.train(scheme, epochs=0)
    assert any(not torch.equal(one[name], fresh[name]) for name in fresh if name.endswith("weight"))
    for name, value in one.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(
            first[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_what_one_process_has_solved_is_shared(of_two: list[dict[str, dict[str, torch.Tensor]]]) -> None:
    first, second = (states["held"] for states in of_two)
    assert first["1.weight_quantizer.held"].tolist() == [0.5, 1.0, 2.0] and not len(first["2.weight_quantizer.held"])
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
