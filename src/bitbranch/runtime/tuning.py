"""The cost table of this machine: how fast each family of kernels runs each kind of layer. ``bitbranch tune`` makes it.

It decides only which of several exact families runs a layer: results never depend on it. Without a table, or with
``BITBRANCH_TUNING=off``, the rules in :mod:`bitbranch.runtime.choice` decide.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..disk import write_bytes
from ..errors import FormatError, InputError

FORMAT = "bitbranch cost table 1"
VARIABLE = "BITBRANCH_TUNING"
"""Environment variable: ``off``, or the path of a table to use in place of the user's."""
FAMILIES = ("dictionary", "xnor", "byte16", "byte", "linear")
"""Families as tables name them; both byte families with 32-bit sums count as one."""
SHAPES = ("large", "small", "grouped", "pixel", "pixel-batch")
"""Kinds of layers: by output size, in many groups, and of one output pixel, for one image or many."""

Rates = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Shape, then ``<activation bits>x<weight bits>``, then family, to 10^9 multiply-accumulates per second."""
Table = Mapping[str, Rates]
"""Rates by instruction set."""

_BITS = re.compile(r"[1-8]x[1-8]")


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def package_version() -> str:
    """The version of bitbranch whose kernels a table is about."""
    try:
        return version("bitbranch")
    except PackageNotFoundError:
        return "0"


def path() -> Path:
    """Where this user's table for this processor and version lies.

    Raises:
        InputError: the user has no home folder.
    """
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        raise InputError("there is no home folder for a table of rates; set XDG_CACHE_HOME") from None
    name = re.sub(r"[^A-Za-z0-9]+", "-", processor()).strip("-").lower()
    return Path(home, "bitbranch", f"{name}-{package_version()}.json")


def rates(isa: str) -> Rates:
    """This machine's rates for an instruction set; empty where there is no table, or it is not to be used.

    A malformed table is ignored with a warning, once in a process.
    """
    chosen = os.environ.get(VARIABLE, "")
    if chosen == "off":
        return {}
    try:
        file = Path(chosen) if chosen else path()
        changed = file.stat().st_mtime_ns
    except (OSError, InputError):
        if chosen:
            warnings.warn(f"{VARIABLE}={chosen}: no such file; the built-in rules choose", stacklevel=2)
        return {}
    return _table(file, changed).get(isa, {})


@lru_cache(maxsize=4)
def _table(file: Path, changed: int) -> Table:
    try:
        return read(file)
    except FormatError as error:
        warnings.warn(f"{error}; ignored, the built-in rules choose (mend it with `bitbranch tune`)", stacklevel=3)
        return {}


def read(file: Path) -> Table:
    """Read a table and validate all of it.

    Raises:
        FormatError: missing, malformed, or of another processor or version; names the file and what is wrong.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{file}: not a cost table ({error})") from None
    where = str(file)
    if not isinstance(found, dict):
        raise FormatError(f"{where}: not a cost table")
    for key, wanted in (("format", FORMAT), ("processor", processor()), ("version", package_version())):
        if found.get(key) != wanted:
            raise FormatError(f"{where}: {key} is {found.get(key)!r}, expected {wanted!r}")
    validate(found.get("rates"), where)
    return found["rates"]


def validate(table: Any, where: str) -> None:
    """Check that an object is a :data:`Table`.

    Raises:
        FormatError: it is not; says where and why.
    """
    for isa, shapes in _items(table, where):
        for shape, kinds in _items(shapes, f"{where}: {isa}"):
            if shape not in SHAPES:
                raise FormatError(f"{where}: {isa}: unknown shape {shape!r}")
            for bits, families in _items(kinds, f"{where}: {isa}: {shape}"):
                here = f"{where}: {isa}: {shape}: {bits}"
                if not _BITS.fullmatch(bits):
                    raise FormatError(f"{here}: expected bits as 2x4")
                for family, rate in _items(families, here):
                    if family not in FAMILIES:
                        raise FormatError(f"{here}: unknown family {family!r}")
                    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not math.isfinite(rate):
                        raise FormatError(f"{here}: {family}: {rate!r} is not a rate")
                    if rate <= 0:
                        raise FormatError(f"{here}: {family}: {rate!r} is not above 0")


def _items(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise FormatError(f"{where}: expected an object")
    return iter(value.items())


def save(table: Table, file: Path) -> None:
    """Write a table, atomically: an interrupted call leaves the old file, or none."""
    validate(table, "the table to save")
    found = {"format": FORMAT, "processor": processor(), "version": package_version(), "rates": table}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, (json.dumps(found, indent=1) + "\n").encode())


@contextmanager
def off() -> Iterator[None]:
    """Without any table, in this process."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "off"
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def fastest(
    table: Rates, shape: str, activation_bits: int, weight_bits: int, families: Mapping[str, object]
) -> str | None:
    """The fastest of several families by a table; ``None`` where it does not know all of them.

    Args:
        table: of the instruction set.
        shape: one of :data:`SHAPES`.
        activation_bits, weight_bits: of the layer; the nearest measured pair that is not narrower stands for it.
        families: kernel families that are exact for the layer.
    """
    kinds = table.get(shape, {})
    wide = [(a, w) for a, w in (map(int, k.split("x")) for k in kinds) if a >= activation_bits and w >= weight_bits]
    if not wide:
        return None
    a, w = min(wide)
    known = kinds[f"{a}x{w}"]
    if any(named(family) not in known for family in families):
        return None
    return max(families, key=lambda family: known[named(family)])


def named(family: str) -> str:
    """A family's name in tables: without what its weights or the sign of its codes call for."""
    return family.split("_")[0]
