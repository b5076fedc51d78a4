"""What a report has to say about where its figures come from."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from ..errors import BitbranchError
from ..runtime.tuning import cores, processor

PACKAGES = ("bitbranch", "numpy", "torch", "onnxruntime")


def describe_machine() -> dict[str, str]:
    """Processor, cores that this process may use, instruction sets of the engine, system."""
    from ..runtime.engine import instruction_sets

    try:
        sets = ", ".join(instruction_sets())
    except BitbranchError:
        sets = "none: the compiled core is not installed"
    return {
        "processor": processor(),
        "cores": str(cores()),
        "instruction sets": sets,
        "system": f"{platform.system()} {platform.machine()}",
    }


def describe_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of the packages that the figures depend on."""
    versions = {"python": platform.python_version()}
    for package in packages:
        versions[package] = package_version(package)
    return versions


def package_version(package: str) -> str:
    """Version of an installed package, or that it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
