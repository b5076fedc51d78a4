"""Temporary folders: gone afterwards, also those of processes that were killed; and a disk that is full."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from bitbranch import disk
from bitbranch.errors import BitbranchError

HOLD = """
import sys
from bitbranch.disk import scratch
with scratch("test") as folder:
    (folder / "file").write_bytes(b"x")
    print(folder, flush=True)
    sys.stdin.read()
"""

SOLVE = """
import torch
from torch import nn
from bitbranch.errors import BitbranchError
from bitbranch.twostep import convert
net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
                    nn.Flatten(), nn.Linear(8 * 144, 4)).eval()
try:
    convert(net, [(torch.randn(16, 1, 16, 16), torch.zeros(16))] * 4, "tsq:wt-a2", progress=None)
except BitbranchError as error:
    print(error)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for temporary files, of this process and of others."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_what_killed_processes_left_goes_and_nothing_else(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "YOUNG", -1.0)
    others = [
        subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    folders = [Path(other.stdout.readline().strip()) for other in others if other.stdout]
    assert all((folder / "file").is_file() and folder.parent == temporary for folder in folders)
    others[0].send_signal(signal.SIGKILL)
    others[0].wait()
    (temporary / "bitbranch-else-1").mkdir()
    with disk.scratch("test") as own:
        assert own.is_dir() and not folders[0].exists() and (folders[1] / "file").is_file()
    others[1].communicate("")
    assert [path.name for path in temporary.iterdir()] == ["bitbranch-else-1"]


def test_a_new_folder_is_not_taken_for_a_left_one(temporary: Path) -> None:
    (temporary / "bitbranch-test-new").mkdir()
    lock = temporary / "bitbranch-test-new" / disk.LOCK
    lock.touch()
    with disk.scratch("test"):
        assert lock.exists()
    os.utime(lock, (time.time() - 60,) * 2)
    with disk.scratch("test"):
        assert not lock.exists()


def test_a_disk_that_fills_up_while_solving_is_one_line(temporary: Path) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = subprocess.run([sys.executable, "-c", SOLVE], preexec_fn=limit, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{temporary}: temporary files cannot be written: File too large; TMPDIR may name")
    assert not list(temporary.iterdir())


def test_a_folder_that_cannot_be_made_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with (
        pytest.raises(BitbranchError, match=r"nowhere: temporary files cannot be written: No such file"),
        disk.scratch("x"),
    ):
        pass
