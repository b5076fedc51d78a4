"""``.bb`` files: a program as a safetensors file. ``docs/format.md`` is the format on one page.

The file holds one tensor, ``data``, all parameters one after the other, and one line of metadata, ``bitbranch``: the
graph as JSON with the format's version and a checksum. Reading checks everything before it is used.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path

import numpy as np

from ..disk import write_bytes
from ..errors import BitbranchError, FormatError, InputError
from .checks import require
from .packing import Reader, Writer
from .program import Program
from .schema import Json, operation_from_json, operation_to_json

VERSION = 2
FILE_MAX = 1 << 30
"""Largest file, in bytes."""
HEADER_MAX = 1 << 23
"""Largest header (the graph), in bytes."""
_KEYS = {"version", "operations", "fields", "names", "inputs", "outputs", "info", "blake2b"}


def write(program: Program, path: str | os.PathLike[str]) -> int:
    """Save a program, atomically: an interrupted or failed call leaves the old file, or none.

    Returns:
        The file's size in bytes.

    Raises:
        InputError: the file cannot be written.
        FormatError: the program is larger than a file may be.
    """
    blob = _to_bytes(program)
    try:
        write_bytes(Path(path).resolve(), blob)
    except BitbranchError as error:
        raise InputError(str(error)) from None
    return len(blob)


def read(path: str | os.PathLike[str]) -> Program:
    """Load a program; everything in the file is checked first.

    Raises:
        FormatError: malformed, truncated or altered; the text names the file and what is wrong.
        InputError: no such file, or not readable.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait
            raise InputError(f"{path}: not a file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > FILE_MAX:
                raise FormatError(f"{path}: {size} bytes, a .bb file has at most {FILE_MAX}")
            blob = file.read(size)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # a null in the name
        raise InputError(f"{path!r}: cannot be read: {error}") from None
    try:
        return _from_bytes(blob)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None


def bit_budget(program: Program) -> int:
    """Bytes that the program's numbers need, to which a file adds at most 2 % (names, graph and checksum).

    Weights count at their nominal bits (a ternary weight as 2 bits, though a file needs 1.6); thresholds, multipliers,
    offsets, scales and tables as many bytes as they are stored in, see ``docs/format.md``. Nothing is added for the
    graph, the names and ``info``.
    """
    return _parts(program)[1].budget


def _parts(program: Program) -> tuple[dict[str, Json], Writer]:
    """The graph, without what has its default, and the data."""
    data = Writer()
    pairs = [operation_to_json(op, data) for op in program.operations]
    graph = {
        "version": VERSION,
        "operations": " ".join(tag for tag, _ in pairs),
        "fields": [fields for _, fields in pairs],
        "names": _join_names([op.name for op in program.operations]),
        "inputs": {
            str(i): op.inputs
            for i, (op, (tag, _)) in enumerate(zip(program.operations, pairs, strict=True))
            if op.inputs != _usual_inputs(i, tag)
        },
        "outputs": program.output_shapes,
        "info": dict(program.info),
    }
    return {key: value for key, value in graph.items() if value != {}}, data


def _usual_inputs(i: int, tag: str) -> tuple[int, ...]:
    """What an operation takes where the file does not say: the value before it, an input nothing."""
    return () if tag.startswith("encode:") else (i - 1,)


def _join_names(names: list[str]) -> str | list[str]:
    """In one text, ``.x`` for a name that differs from the one before in the part after its last point only."""
    if any(" " in name or name.startswith(".") for name in names):
        return names
    parents = [name.rpartition(".")[0] for name in names]
    alike = [parent != "" and parent == before for parent, before in zip(parents, ["", *parents], strict=False)]
    return " ".join(name[len(p) :] if same else name for name, p, same in zip(names, parents, alike, strict=True))


def _split_names(text: str) -> list[str]:
    """The inverse of :func:`_join_names`."""
    names: list[str] = []
    for name in text.split(" "):
        parent = names[-1].rpartition(".")[0] if names and name.startswith(".") else ""
        names.append(parent + name)
    return names


def _to_bytes(program: Program) -> bytes:
    from safetensors.numpy import save  # reading needs nothing of it

    graph, data = _parts(program)
    graph["blake2b"] = _checksum(graph, data.data)
    blob = save({"data": np.frombuffer(data.data, np.uint8)}, {"bitbranch": _dump(graph)})
    if len(blob) > FILE_MAX or len(blob) - len(data.data) > HEADER_MAX:
        raise FormatError(f"the program takes {len(blob)} bytes, more than a .bb file may have")
    return blob


def _dump(graph: Mapping[str, Json]) -> str:
    return json.dumps(graph, ensure_ascii=False, separators=(",", ":"))


def _checksum(graph: Mapping[str, Json], data: bytearray | memoryview) -> str:
    """Of the graph without its checksum, as it is written, followed by the data."""
    text = _dump({key: value for key, value in graph.items() if key != "blake2b"})
    checksum = blake2b(text.encode(errors="surrogatepass"), digest_size=16)
    checksum.update(data)
    return checksum.hexdigest()


def _from_bytes(blob: bytes) -> Program:
    graph, data = _open(blob)
    require(graph.get("version") == VERSION, f"format version {graph.get('version')!r:.20}, expected {VERSION}")
    require(graph.get("blake2b") == _checksum(graph, data), "checksum does not match: the file was altered")
    require(graph.keys() <= _KEYS, f"unknown keys {sorted(graph.keys() - _KEYS)!r:.100}")
    tags, fields, names = graph.get("operations"), graph.get("fields"), graph.get("names")
    names = _split_names(names) if isinstance(names, str) else names
    if not (isinstance(tags, str) and isinstance(fields, list) and isinstance(names, list)):
        raise FormatError("operations must be text, fields and names lists")
    count = len(fields)
    require(len(tags.split(" ")) == len(names) == count, "operations, fields and names differ in number")
    inputs = graph.get("inputs", {})
    good = isinstance(inputs, dict) and inputs.keys() <= {str(i) for i in range(count)}
    require(good, "inputs must be an object of operations that exist")

    reader, operations = Reader(data), []
    for i, (tag, given, name) in enumerate(zip(tags.split(" "), fields, names, strict=True)):
        edges = _tuple(inputs.get(str(i), _usual_inputs(i, tag)))
        try:
            operations.append(operation_from_json(tag, given, name, edges, reader))
        except (FormatError, InputError) as error:
            raise FormatError(f"operation {i} ({name!r:.100}): {error}") from None
    reader.end()
    shapes = graph.get("outputs")
    if not isinstance(shapes, list):
        raise FormatError("outputs must be a list of shapes")
    return Program(tuple(operations), tuple(map(_tuple, shapes)), graph.get("info", {}))


def _open(blob: bytes) -> tuple[dict[str, Json], memoryview]:
    """The graph and the data of a safetensors file; the data is not copied."""
    size = int.from_bytes(blob[:8], "little")
    require(len(blob) >= 8 and size <= len(blob) - 8, "too short for its header: not a .bb file, or truncated")
    require(size <= HEADER_MAX, f"a header of {size} bytes is too large")
    try:
        header = json.loads(blob[8 : 8 + size].decode())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not a safetensors file: {error}") from None
    data = memoryview(blob)[8 + size :]
    entry = {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}
    good = isinstance(header, dict) and header.keys() == {"__metadata__", "data"}
    require(good, "expected one tensor named data and a graph")
    good = header["data"] == entry and all(type(header["data"][key][-1]) is int for key in ("shape", "data_offsets"))
    require(good, f"expected {len(data)} bytes of uint8 as data, got {header['data']!r:.100}: truncated?")
    metadata = header["__metadata__"]
    texts = isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())
    require(texts and "bitbranch" in metadata, "a safetensors file, but no bitbranch program")
    try:
        graph = json.loads(metadata["bitbranch"], parse_constant=float)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the graph is no JSON: {error}") from None
    require(isinstance(graph, dict), "the graph is no JSON object")
    return graph, data


def _tuple(v: Json) -> Json:
    return tuple(v) if isinstance(v, list) else v
