"""What every test starts from: no cost table of the user who runs the tests, no forced kernels; which compiled core."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("engines")

os.environ["BITBRANCH_TUNING"] = "off"
os.environ.pop("BITBRANCH_FAMILY", None)

CORE = "bitbranch.runtime._core"

if path := os.environ.get("BITBRANCH_TEST_CORE"):  # tools/sanitize.sh has built another one
    spec = importlib.util.spec_from_file_location(CORE, path)
    assert spec is not None and spec.loader is not None, path
    sys.modules[CORE] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[CORE])


def pytest_report_header() -> str:
    """Which compiled core the tests run on, if not the installed one."""
    return f"compiled core: {path}" if path else ""


@pytest.fixture
def planar_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines take the planar path, also where dot products are faster."""
    from bitbranch.runtime import engine

    monkeypatch.setattr(engine, "takes_dot", lambda *_: False)


@pytest.fixture
def seeded() -> None:
    """Torch draws the same numbers in every run."""
    import torch

    torch.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's number of threads; afterwards it is one again."""
    import torch

    yield torch.set_num_threads
    torch.set_num_threads(1)


ARCHIVES = {"bccd": "bccd.tar", "camvid": "camvid_240x180.tar"}


@pytest.fixture(scope="session")
def real_set(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a real set, by name: that under ``BITBRANCH_DATA``, or the archive in ``../shared/data``.

    Skips the test where it is neither here nor there.
    """
    from bitbranch.data import sets
    from bitbranch.data.places import root

    unpacked = dict[str, Path]()

    def find(name: str) -> Path:
        if (folder := root() / name).is_dir():
            return folder
        archive = Path(__file__).resolve().parents[2] / "shared" / "data" / ARCHIVES[name]
        if not archive.is_file():
            pytest.skip(f"{name} is neither at {folder} nor at {archive}")
        if name not in unpacked:
            unpacked[name] = tmp_path_factory.mktemp(name) / name
            prepare = sets.find(name).prepare
            assert prepare is not None
            prepare(archive, unpacked[name], None)
        return unpacked[name]

    return find
