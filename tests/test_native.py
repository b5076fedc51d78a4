"""The native tests: every kernel and function of every instruction set, on this processor and on an emulated ARM."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def arm() -> ModuleType:
    spec = importlib.util.spec_from_file_location("test_arm", REPOSITORY / "tools" / "test_arm.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_kernels_of_this_processor() -> None:
    cmake = shutil.which("cmake") or shutil.which("cmake", path=sysconfig.get_path("scripts"))
    if cmake is None:
        pytest.skip("needs cmake")
    build = REPOSITORY / "build" / "native"
    settings = ["-DCMAKE_BUILD_TYPE=Release", "-DBITBRANCH_PYTHON=OFF", "-DBITBRANCH_NATIVE_TESTS=ON"]
    subprocess.run([cmake, "-S", REPOSITORY, "-B", build, *settings], check=True, capture_output=True)
    subprocess.run([cmake, "--build", build, "--parallel", "2"], check=True, capture_output=True)
    result = subprocess.run([build / "bitbranch_native_tests"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "wrong on purpose is left out" in result.stderr


def test_kernels_of_an_emulated_arm() -> None:
    tool = arm()
    if problem := tool.missing():
        pytest.skip(problem)
    tool.test_kernels()
