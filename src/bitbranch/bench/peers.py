"""What can be measured: the engine on a program, and the other engines on the float network that it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError
from . import levels
from .files import RULES, Files
from .worker import Worker

EXECUTORS = "bitbranch.bench.executors"


@dataclass(frozen=True)
class Variant:
    """One way to use a peer; of several, the faster counts.

    Attributes:
        name: ``""`` if it is the only one.
        file: key of :data:`bitbranch.bench.files.RULES`, or ``float``, the checkpoint itself.
        options: further arguments of the executor.
    """

    name: str
    file: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Peer:
    """Another engine at one precision.

    Attributes:
        engine: function of :mod:`bitbranch.bench.executors`.
        precision: ``f32``, ``int8`` or ``1-bit``.
        variants: at least one.
        obeys: whether environment variables hold it to an instruction-set level.
    """

    engine: str
    precision: str
    variants: Sequence[Variant]
    obeys: bool = False

    @property
    def name(self) -> str:
        """As it stands in tables."""
        return f"{self.engine} {self.precision}"


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer(
            "torch",
            "f32",
            [
                Variant("contiguous", "float", {"memory_format": "contiguous_format"}),
                Variant("channels last", "float", {"memory_format": "channels_last"}),
            ],
            obeys=True,
        ),
        Peer("onnxruntime", "f32", [Variant("", "onnx")]),
        Peer(
            "onnxruntime",
            "int8",
            [
                Variant("QDQ", "onnx-qdq"),
                Variant("QDQ, unsigned activations", "onnx-qdq-u8"),
                Variant("QOperator, unsigned activations", "onnx-qoperator-u8"),
            ],
        ),
        Peer("openvino", "f32", [Variant("", "openvino", {"precision": "f32"})], obeys=True),
        Peer("openvino", "int8", [Variant("", "openvino-int8")], obeys=True),
        Peer("openvino", "1-bit", [Variant("", "openvino-binary", {"precision": "f32"})], obeys=True),
        Peer("litert", "f32", [Variant("", "litert")]),
        Peer("litert", "int8", [Variant("", "litert-int8")]),
        Peer("ncnn", "f32", [Variant("", "ncnn")]),
        Peer("ncnn", "int8", [Variant("", "ncnn-int8")]),
    )
}  # fmt: skip
"""By name."""


def choose(words: Sequence[str]) -> list[Peer]:
    """Peers by name, by engine, by precision, or ``all``.

    Raises:
        InputError: a word that stands for none.
    """
    chosen: dict[str, Peer] = {}
    for word in words:
        found = {n: p for n, p in PEERS.items() if word in ("all", n, p.engine, p.precision)}
        if not found:
            known = sorted({w for p in PEERS.values() for w in (p.engine, p.precision)})
            raise InputError(f"peer {word!r}: expected all, {', '.join(known)}, or one of {', '.join(PEERS)}")
        chosen |= found
    return [p for p in PEERS.values() if p.name in chosen]


@dataclass(frozen=True, eq=False)
class Contestant:
    """One executor at one level: a line of the table, or one of its variants.

    Attributes:
        name: of the line.
        precision: of the line.
        variant: see :class:`Variant`.
        level: see :mod:`bitbranch.bench.levels`.
        isa: the engine's instruction set; empty for peers.
        make: ``"module:function"`` that makes the executor.
        file: path, or its pattern with ``{batch}``.
        options: further arguments.
        peer: whose file is made by :class:`~bitbranch.bench.files.Files`, by its key; ``None`` for the engine.
    """

    name: str
    precision: str
    variant: str
    level: str
    isa: str
    make: str
    file: str
    options: Mapping[str, Any]
    peer: str | None = None

    def start(self, files: Files, threads: int, batches: Sequence[int], cpus: Sequence[int] | None) -> Worker:
        """Make the files and start the process.

        Raises:
            BitbranchError: a file could not be made, or the executor not be loaded.
        """
        path = self.file
        if self.peer is not None:
            made = [files.get(self.peer, batch) for batch in batches]
            by_batch = self.peer in RULES and RULES[self.peer].by_batch
            path = files.pattern(self.peer) if by_batch else str(made[0])
        environment = {"OMP_NUM_THREADS": str(threads)} | (levels.environment(self.level) or {})
        return Worker(
            self.make,
            {"file": path, "threads": threads, **self.options},
            cpus=cpus,
            environment=environment,
        )


def contestants(
    programs: Mapping[str, str],
    peers: Sequence[Peer],
    level: str,
    available: Sequence[str],
    shape: Sequence[int],
) -> tuple[list[Contestant], dict[str, str]]:
    """Who takes part at a level.

    Args:
        programs: name to the path of a ``.bb`` file.
        peers: of the float network.
        level: of instruction sets.
        available: the engine's instruction sets, the widest first.
        shape: (C, H, W) of an image.

    Returns:
        The contestants, and why the others do not take part, by name.
    """
    here: list[Contestant] = []
    out: dict[str, str] = {}
    isa = levels.engine_set(level, available)
    for name, file in programs.items():
        if isa is None:
            out[f"bitbranch {name}"] = f"the engine has no instruction set {level} on this machine"
        else:
            here.append(
                Contestant(f"bitbranch {name}", name, "", level, isa, f"{EXECUTORS}:engine", file, {"isa": isa})
            )
    for peer in peers:
        if level != levels.NATIVE and not (peer.obeys and levels.environment(level) is not None):
            out[peer.name] = f"has no switch that holds it to {level}; see its row at {levels.NATIVE}"
            continue
        for v in peer.variants:
            options = {"shape": list(shape), **v.options}
            make = f"{EXECUTORS}:{peer.engine}"
            here.append(Contestant(peer.name, peer.precision, v.name, level, "", make, "", options, v.file))
    return here, out
