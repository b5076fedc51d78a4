"""Builds the core for 64-bit ARM and tests it under qemu-user: every kernel, then the engine against the reference.

The kernels need a cross compiler and qemu. The engine needs a Python for ARM too; on Debian that comes from the
package index, unpacked under build/arm, and its packages are wheels. Nothing is installed.

    python tools/test_arm.py [--kernels] [arguments of pytest]
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
ARM = REPOSITORY / "build" / "arm"
ROOT, SITE = ARM / "root", ARM / "site"
COMPILER, EMULATORS = "aarch64-linux-gnu-g++", ("qemu-aarch64-static", "qemu-aarch64")
CPUS = {"max": "neon_dotprod", "cortex-a72": "neon"}
"""Processors that qemu plays, and the widest instruction set that each must offer."""
TESTS = ["tests/test_engine.py", "tests/test_dot.py"]
PACKAGES = ["numpy", "safetensors", "hypothesis", "pytest"]
EXAMPLES = "0.03"
"""Share of the property tests' examples: an emulated processor is slow."""


def emulator() -> str | None:
    """Where qemu is."""
    return next(filter(None, map(shutil.which, EMULATORS)), None)


def missing() -> str:
    """What to install before kernels can be tested, or nothing."""
    if platform.machine() in ("aarch64", "arm64"):
        return "this processor is a 64-bit ARM itself: the other tests are its tests"
    packages = []
    if not shutil.which(COMPILER):
        packages.append("g++-aarch64-linux-gnu")
    if emulator() is None:
        packages.append("qemu-user-static")
    if not packages:
        return ""
    return f"testing ARM needs a cross compiler and qemu: apt install {' '.join(packages)}"


def run(*command: str | Path, **options: object) -> None:
    """Run a command that must succeed."""
    subprocess.run([str(part) for part in command], check=True, **options)  # type: ignore[call-overload]


def cmake(build: Path, *settings: str) -> None:
    """Configure a cross build and build it; only changed files compile again."""
    tool = shutil.which("cmake") or Path(sysconfig.get_path("scripts")) / "cmake"
    run(
        tool, "-S", REPOSITORY, "-B", build, "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={COMPILER}",
        "-DCMAKE_EXE_LINKER_FLAGS=-static", *settings, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    run(tool, "--build", build, "--parallel", str(os.cpu_count() or 1), stdout=subprocess.DEVNULL)


def test_kernels() -> None:
    """Builds and runs the native tests, on every processor of ``CPUS``."""
    build = ARM / "native"
    cmake(build, "-DBITBRANCH_PYTHON=OFF", "-DBITBRANCH_NATIVE_TESTS=ON")
    for cpu, widest in CPUS.items():
        print(f"-- native tests on {cpu}", flush=True)
        run(emulator() or "", "-cpu", cpu, build / "bitbranch_native_tests", "--widest", widest)


def python() -> Path:
    """A Python for ARM that runs here, with what the tests import; made on first use."""
    wrapper = ARM / "python"
    if wrapper.exists():
        return wrapper
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        sys.exit("the engine's test on ARM takes its Python from Debian's packages, and there is no apt-get here")
    # An index and a state of its own: the machine's are not touched.
    state = ARM / "apt"
    (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (state / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    (state / "apt.conf").write_text(
        f'Dir::State "{state}";\nDir::State::status "{state}/status";\nDir::Cache "{state}";\n'
        'APT::Architecture "arm64";\nAPT::Architectures { "arm64"; };\nAPT::Sandbox::User "";\n'
        'Acquire::Languages "none";\nDebug::NoLocking "1";\n'
    )
    apt = {"env": {**os.environ, "APT_CONFIG": str(state / "apt.conf")}, "stdout": subprocess.DEVNULL}
    run("apt-get", "-qq", "update", **apt)
    packages = ["python3-minimal", "libpython3-dev", "libstdc++6"]
    run("apt-get", "-qq", "install", "--no-install-recommends", "--download-only", *packages, **apt)
    for package in sorted((state / "archives").glob("*.deb")):
        run("dpkg-deb", "--extract", package, ROOT)
    interpreter = next(p for p in sorted((ROOT / "usr" / "bin").glob("python3.*")) if p.name[8:].isdigit())
    run(
        sys.executable, "-m", "pip", "install", "--quiet", "--target", SITE, "--only-binary=:all:", "--upgrade",
        "--implementation", "cp", "--python-version", interpreter.name[6:],
        *(f"--platform=manylinux_2_{minor}_aarch64" for minor in (34, 28, 27, 17)),
        "--platform=manylinux2014_aarch64", *PACKAGES,
    )  # fmt: skip
    wrapper.write_text(f'#!/bin/sh\nexec {emulator()} -L "{ROOT}" "{interpreter}" "$@"\n')
    wrapper.chmod(0o755)
    return wrapper


def test_engine(arguments: list[str]) -> None:
    """Builds the module for ARM and runs the engine's tests in an emulated Python."""
    interpreter = python()
    import nanobind

    # The interpreter's own headers behind the cross compiler's: only Python's are taken from them.
    headers = next((ROOT / "usr" / "include").glob("python3.*"))
    cmake(
        ARM / "module", f"-DPython_EXECUTABLE={interpreter}", f"-DPython_INCLUDE_DIR={headers}",
        f"-Dnanobind_DIR={nanobind.cmake_dir()}",
        f"-DCMAKE_CXX_FLAGS=-idirafter {ROOT}/usr/include", "-DCMAKE_MODULE_LINKER_FLAGS=-static-libstdc++",
    )  # fmt: skip
    package = SITE / "bitbranch"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(REPOSITORY / "src" / "bitbranch", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for module in (ARM / "module").glob("_core*.so"):
        shutil.copy(module, package / "runtime")
    environment = {
        **os.environ, "PYTHONPATH": str(SITE), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
        "BITBRANCH_EXAMPLES": os.environ.get("BITBRANCH_EXAMPLES", EXAMPLES),
    }  # fmt: skip
    tests = arguments or TESTS
    run(interpreter, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, cwd=REPOSITORY, env=environment)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kernels", action="store_true", help="only the native tests, which need no Python for ARM")
    options, arguments = parser.parse_known_args()
    if problem := missing():
        sys.exit(problem)
    try:
        test_kernels()
        if not options.kernels:
            test_engine(arguments)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(error.cmd[:4])} .. failed with {error.returncode}")


if __name__ == "__main__":
    main()
