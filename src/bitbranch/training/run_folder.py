"""The folder of a run: what may be in it when a run begins or goes on, and what is never written over."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..disk import remove_leftovers, write_bytes
from ..errors import InputError
from .config import Config, parse

FREE = ("save_every", "log_every")
"""What may be changed between the parts of an interrupted run; so may phases that have not begun."""

FLOAT = "float.pt"
"""The network that float phases ended with, where others follow."""

LAST, RESULTS, CONFIGURATION = "last.pt", "results.json", "config.json"

NETWORKS = ("net.pt", "best.pt", FLOAT)

FILES = (*NETWORKS, LAST, RESULTS, CONFIGURATION, "log.csv", "log.jsonl", "report.html")
"""All that a run writes."""


def claim(folder: Path, config: Config, begun: int) -> None:
    """Whether a run may use a folder.

    Args:
        folder: of the run.
        config: of the run.
        begun: the phases that an interrupted run has begun in it; these are as they were.

    Raises:
        InputError: it holds a run of another configuration, or files that no run has written or that this one reads.
    """
    path, plain = folder / CONFIGURATION, config.as_dict()
    network = config.network
    for read in (network.file, network.start, network.trunk, *config.teacher.checkpoint):
        if read and Path(read).resolve() in {(folder / name).resolve() for name in FILES}:
            raise InputError(f"{folder}: the run would write over {read}, which it reads; train into another folder")
    over = (folder / RESULTS).is_file()
    if over or (folder / LAST).is_file():
        try:
            there = parse(json.loads(path.read_text())).as_dict()
        except (OSError, ValueError) as error:  # an InputError among them
            text = " ".join(str(error).split())
            raise InputError(f"{path}: damaged, or of another version ({text}); train into another folder") from None
        if not over:
            there["phase"], plain["phase"] = there["phase"][:begun], plain["phase"][:begun]
        for key in differing(there, plain):
            if key not in FREE:
                raise InputError(
                    f"{folder}: holds a run of another configuration ({key} differs); train into another folder, or "
                    "remove this one"
                )
    elif foreign := _foreign(folder, plain):
        raise InputError(f"{folder}: holds {foreign}, which no run has written; train into another folder")


def write_configuration(folder: Path, config: Config) -> None:
    """Make the folder where it is missing, free it of what killed runs have left, and write ``config.json``.

    Raises:
        InputError: it cannot be a folder.
        BitbranchError: the file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be the run's folder ({error.strerror})") from None
    for name in FILES:
        remove_leftovers(folder / name)
    write_bytes(folder / CONFIGURATION, _text(config.as_dict()))


def differing(there: Any, here: Any, where: str = "") -> Iterator[str]:
    """Where two nested tables differ, as ``phase.1.lr``; parts that only one of them has by their own names."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in sorted({*there, *here}):
            path = f"{where}.{key}" if where else key
            if key in there and key in here:
                yield from differing(there[key], here[key], path)
            else:
                yield path
    elif _tables(there) and _tables(here) and len(there) == len(here):
        for i, (a, b) in enumerate(zip(there, here, strict=True), 1):
            yield from differing(a, b, f"{where}.{i}")
    elif there != here:
        yield where


def _tables(value: Any) -> bool:
    return isinstance(value, Sequence) and any(isinstance(item, Mapping) for item in value)


def _text(plain: Mapping[str, Any]) -> bytes:
    return json.dumps(plain, indent=2).encode()


def _foreign(folder: Path, plain: Mapping[str, Any]) -> str:
    """A file by the name of one of a run's, in a folder where none has got as far as a checkpoint; or nothing."""
    path = folder / CONFIGURATION
    try:
        text = path.read_bytes()
        there = json.loads(text)
        ours = isinstance(there, dict) and there.keys() == plain.keys() and _text(there) == text
    except (OSError, ValueError):
        ours = False
    if ours:
        return ""
    return next((str(folder / name) for name in (CONFIGURATION, *NETWORKS) if (folder / name).exists()), "")
