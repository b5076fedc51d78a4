"""Files: a program comes back equal, within its size; anything else in a file is refused with one line."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from strategies import CODE_TYPES, programs

from bitbranch.contract import CodeType, Kind, uniform_encoder
from bitbranch.errors import FormatError, InputError
from bitbranch.runtime import container, packing
from bitbranch.runtime import program as p

in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)

S8 = CodeType(Kind.SIGNED, 8)


def network(weight_type: CodeType, code_type: CodeType) -> p.Program:
    """A small VGG of about 300,000 weights with 8-bit first and last layers, as the size rule is stated for."""
    rng = np.random.default_rng(7)
    encoder = uniform_encoder(S8, 0.0173)
    table = encoder.codes(((np.arange(256) / 255 - 0.286) / 0.353)[None])
    ops: list[p.Operation] = [p.Encode("input", (), (1, 28, 28), S8, encoder.float32_thresholds(), table)]

    def add(kind: type[p.Operation], name: str, *arguments: object) -> None:
        ops.append(kind(name, (len(ops) - 1,), *arguments))

    channels = 1
    for i, width in enumerate((64, 128, 192)):
        kind = S8 if i == 0 else weight_type
        weight = rng.integers(0, kind.count, (width, channels, 3, 3)).astype(np.uint8)
        add(p.Conv, f"features.{4 * i}", weight, kind, (1, 1), (1, 1, 1, 1))
        thresholds = np.sort(rng.integers(-900, 900, (width, code_type.count - 1)), axis=1).astype(np.int32)
        add(p.Threshold, f"features.{4 * i + 2}", code_type, thresholds)
        add(p.MaxPool, f"features.{4 * i + 3}", (2, 2), (2, 2))
        channels = width
    add(p.Conv, "classifier", rng.integers(0, 256, (10, 192, 3, 3)).astype(np.uint8), S8)
    add(p.Scale, "output", *rng.normal(size=(2, 10)).astype(np.float32))
    return p.Program(tuple(ops), ((10,),), {"name": "vgg", "scheme": "mbn:w2-a2"})


def small() -> p.Program:
    return network(CodeType.parse("t"), CodeType.parse("u2"))


@in_one_folder
@given(program=programs())
def test_a_program_comes_back_equal(tmp_path: Path, program: p.Program) -> None:
    path = tmp_path / "net.bb"
    size = program.save(path)
    again = p.load(path)
    assert size == path.stat().st_size
    assert again == program
    for a, b in zip(program.operations, again.operations, strict=True):
        assert [v.tobytes() for v in a.arrays()] == [v.tobytes() for v in b.arrays()]


@pytest.mark.parametrize(
    "names", [["a b", "c", "d", "e", "f"], ["", ".x", "x.", "a.b", "a.c"], ["a.b", "a.c", "a.c.d", "é.x", "é.y"]]
)
def test_names_come_back(names: list[str]) -> None:
    joined = container._join_names(names)
    assert (container._split_names(joined) if isinstance(joined, str) else joined) == names


@pytest.mark.parametrize("scheme", ["t u2", "b2 b2", "b1 b1", "u3 u3", "s8 u8"])
def test_the_size_is_the_bit_budget_and_two_percent(tmp_path: Path, scheme: str) -> None:
    weight_type, code_type = map(CodeType.parse, scheme.split())
    program = network(weight_type, code_type)
    parameters = sum(a.nbytes for op in program.operations if isinstance(op, p.Scale) for a in op.arrays())
    for op in program.operations:
        if isinstance(op, p.Conv):
            parameters += -(-op.weight.size * op.weight_type.bits // 8)
        if isinstance(op, p.Threshold):
            parameters += 2 * op.thresholds.size
    budget = container.bit_budget(program)
    # Uniform input thresholds and the pixel table are kept as a step and a line, far below 2 % of anything.
    assert parameters <= budget <= parameters + 64
    assert program.save(tmp_path / "net.bb") <= 1.02 * budget


def test_equal_programs_make_equal_files_that_safetensors_reads(tmp_path: Path) -> None:
    small().save(tmp_path / "a.bb")
    small().save(tmp_path / "b.bb")
    assert (tmp_path / "a.bb").read_bytes() == (tmp_path / "b.bb").read_bytes()
    with safe_open(tmp_path / "a.bb", "numpy") as file:
        graph = json.loads(file.metadata()["bitbranch"])
        assert list(file.keys()) == ["data"]
    assert graph["version"] == container.VERSION
    assert graph["operations"].split()[:3] == ["encode:s8", "conv:s8", "threshold:u2"]


def test_uniform_8_bit_thresholds_lie_on_lines() -> None:
    rng = np.random.default_rng(3)
    slope, start = rng.uniform(0.3, 40, (64, 1)), rng.normal(0, 300, (64, 1))
    rows = np.clip(np.ceil(start + slope * np.arange(255)), -2000, 4000).astype(np.int64)
    lines = packing.fit_lines(rows)
    assert lines is not None
    np.testing.assert_array_equal(packing.draw_lines(*lines, 255), rows)
    rows[5, 100] += 1 if rows[5, 101] > rows[5, 100] else 0
    lines = packing.fit_lines(rows)
    assert lines is None or np.array_equal(packing.draw_lines(*lines, 255), rows)


@settings(deadline=None)
@given(rows=st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=12, max_size=12), min_size=1, max_size=4))
def test_lines_give_the_rows_or_nothing(rows: list[list[int]]) -> None:
    a = np.sort(np.array(rows, np.int64), axis=1)
    for b in (a, a // 2**24, np.minimum(a, 5)):
        writer = packing.Writer()
        form = writer.integers(b)
        np.testing.assert_array_equal(packing.Reader(bytes(writer.data)).integers(b.shape, form), b)


@pytest.mark.parametrize("code_type", [t for t in CODE_TYPES if t.bits > 1], ids=str)
def test_a_uniform_encoder_is_kept_as_its_step(code_type: CodeType) -> None:
    for step in (1.0, 0.1, 1 / 3, 0.0078431372549, 2.0**-20, 1 / ((1 << code_type.bits) - 1)):
        thresholds = uniform_encoder(code_type, step).float32_thresholds()
        found = packing.find_step(code_type, thresholds)
        assert found is not None
        assert uniform_encoder(code_type, found).float32_thresholds().tobytes() == thresholds.tobytes()
    assert packing.find_step(code_type, np.nextafter(thresholds, np.float32(9)) + np.float32(0.01)) is None


# Saving.


def test_a_failed_save_keeps_the_old_file_and_leaves_nothing_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.bb"
    small().save(path)
    old = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(container.os, "fsync", full)
    with pytest.raises(InputError, match=r"net\.bb: cannot be written: No space left"):
        small().save(path)
    assert path.read_bytes() == old
    assert [f.name for f in tmp_path.iterdir()] == ["net.bb"]


def test_places_that_cannot_be_read_or_written_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        small().save(tmp_path / "nowhere" / "net.bb")
    with pytest.raises(InputError, match=r"gone\.bb: cannot be read"):
        p.load(tmp_path / "gone.bb")
    with pytest.raises(InputError, match="not a file"):
        p.load(tmp_path)


# Hostile files. `forged` writes a file with a right checksum, so that what is behind it is reached.


def refuse(path: Path, blob: bytes) -> str:
    """Load these bytes; returns the error, which is one line that names the file."""
    path.write_bytes(blob)
    with pytest.raises(FormatError) as caught:
        p.load(path)
    text = str(caught.value)
    assert "\n" not in text and str(path) in text and len(text) < len(str(path)) + 400
    return text


def assemble(header: object, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def forged(graph: dict, data: bytes) -> bytes:
    graph = {key: value for key, value in graph.items() if key != "blake2b"}
    graph["blake2b"] = container._checksum(graph, data)
    tensor = {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}
    return assemble({"__metadata__": {"bitbranch": json.dumps(graph)}, "data": tensor}, data)


def parts(program: p.Program) -> tuple[dict, bytes]:
    graph, data = container._parts(program)
    return json.loads(json.dumps(graph)), bytes(data.data)


def tiny() -> p.Program:
    """Every operation once or more, two inputs and two outputs."""
    t, u2 = CodeType.parse("t"), CodeType.parse("u2")
    return p.Program(
        (
            p.Encode("in", (), (2, 3, 3), t, np.array([-0.5, 0.25], np.float32), np.zeros((2, 256), np.uint8)),
            p.Conv("conv", (0,), np.ones((2, 2, 3, 3), np.uint8), t, (1, 1), (1, 1, 1, 1)),
            p.Requantize("a", (1,), *(np.array([3, 5], d) for d in (np.int32, np.uint8, np.int64)), 0, 100),
            p.Requantize("b", (1,), *(np.array([3, 5], d) for d in (np.int32, np.uint8, np.int64)), 0, 100),
            p.Add("add", (2, 3), -50, 50),
            p.Threshold("act", (4,), t, np.array([[0, 1], [2, 3]], np.int32)),
            p.MaxPool("max", (5,), (2, 2), (1, 1)),
            p.SumPool("sum", (6,), (2, 2), (1, 1)),
            p.Scale("out", (7,), np.ones(2, np.float32), np.zeros(2, np.float32)),
            p.Encode("more", (), (1, 3, 3), t, np.array([0.5, 1.5], np.float32)),
            p.ConvTranspose("up", (9,), np.full((1, 2, 2, 2), 2, np.uint8), t, (1, 1), (1, 0, 1, 0)),
            p.Concat("cat", (10, 2)),
            p.Threshold("swish", (11,), u2, np.array([[-3, 0, 2, 5]], np.int32), np.array([1, 0, 1, 2, 3], np.uint8)),
            p.Upsample("twice", (12,), (1, 2), "bilinear"),
            p.Scale("map", (13,), np.ones(4, np.float32), np.zeros(4, np.float32)),
        ),
        ((2,), (4, 3, 6)),
        {"name": "tiny"},
    )


def test_a_forged_file_reads_as_the_real_one(tmp_path: Path) -> None:
    (tmp_path / "net.bb").write_bytes(forged(*parts(tiny())))
    assert p.load(tmp_path / "net.bb") == tiny()


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.bb"
    tiny().save(path)
    blob = path.read_bytes()
    for length in range(len(blob)):
        refuse(path, blob[:length])
    refuse(path, blob + b"\0")


def test_every_altered_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.bb"
    tiny().save(path)
    blob = path.read_bytes()
    for i in range(len(blob)):
        for flip in (1 << i % 8, 0xFF):
            changed = bytearray(blob)
            changed[i] ^= flip
            refuse(path, bytes(changed))


@in_one_folder
@given(blob=st.binary(max_size=200))
def test_random_bytes_are_refused(tmp_path: Path, blob: bytes) -> None:
    refuse(tmp_path / "net.bb", blob)


ENTRY = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
GRAPH = {"bitbranch": "{}"}


@pytest.mark.parametrize(
    "header",
    [
        [],
        {},
        {"__metadata__": GRAPH},
        {"data": ENTRY},
        {"__metadata__": {"bitbranch": "{"}, "data": ENTRY},
        {"__metadata__": {"bitbranch": "[" * 100_000}, "data": ENTRY},
        {"__metadata__": {"bitbranch": "1" * 5000}, "data": ENTRY},
        {"__metadata__": {"bitbranch": "[1]"}, "data": ENTRY},
        {"__metadata__": {"bitbranch": '{"version":3}'}, "data": ENTRY},
        {"__metadata__": {"bitbranch": '{"version":NaN}'}, "data": ENTRY},
        {"__metadata__": {"bitbranch": '{"version":2}'}, "data": ENTRY},
        {"__metadata__": {"other": "{}"}, "data": ENTRY},
        {"__metadata__": GRAPH, "data": {**ENTRY, "dtype": "I8"}},
        {"__metadata__": GRAPH, "data": {**ENTRY, "data_offsets": [0, 5]}},
        {"__metadata__": GRAPH, "data": {**ENTRY, "data_offsets": [4, 0]}},
        {"__metadata__": GRAPH, "data": {**ENTRY, "shape": [2**62, 4]}},
        {"__metadata__": GRAPH, "data": {**ENTRY, "shape": [-4]}},
        {"__metadata__": GRAPH, "data": ENTRY, "more": ENTRY},
        {"__metadata__": GRAPH, "tensor": ENTRY},
    ],
)
def test_headers_that_hold_no_program_are_refused(tmp_path: Path, header: object) -> None:
    refuse(tmp_path / "net.bb", assemble(header, b"abcd"))


def test_a_huge_header_length_is_refused(tmp_path: Path) -> None:
    for length in (2**63, 2**64 - 1, 10**9, 9):
        refuse(tmp_path / "net.bb", struct.pack("<Q", length) + b"{}")


HOSTILE = [
    None,
    True,
    -1,
    0,
    1,
    2,
    7,
    2**31,
    2**63,
    10**30,
    0.5,
    1e300,
    "",
    "x",
    "conv:t",
    [],
    [1],
    [1, 1],
    [1, 1, 1, 1],
    [[1]],
    {},
    {"0": [0]},
]


def replaced(json_value: object, hostile: object) -> list[object]:
    """Copies of a JSON value, each with one of its inner values replaced."""
    copies = [hostile]
    if isinstance(json_value, list):
        for i, v in enumerate(json_value):
            copies += [[*json_value[:i], w, *json_value[i + 1 :]] for w in replaced(v, hostile)]
            copies.append(json_value[:i] + json_value[i + 1 :])
    if isinstance(json_value, dict):
        for key, v in json_value.items():
            copies += [{**json_value, key: w} for w in replaced(v, hostile)]
            copies.append({k: w for k, w in json_value.items() if k != key})
    return copies


@pytest.mark.parametrize("hostile", HOSTILE, ids=repr)
def test_any_value_of_the_graph_replaced_gives_another_program_or_an_error(tmp_path: Path, hostile: object) -> None:
    graph, data = parts(tiny())
    path = tmp_path / "net.bb"
    for changed in replaced(graph, hostile):
        if not isinstance(changed, dict):
            continue
        path.write_bytes(forged(changed, data))
        try:
            program = p.load(path)
        except FormatError as error:
            assert str(path) in str(error) and "\n" not in str(error)
        else:  # what was changed was free: a name, a saturation, a stride; it runs
            program.reference(*(np.zeros((1, *op.shape), np.float32) for op in program.inputs))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("operations", "encode:t conv:t"),
        ("operations", "encode:x"),
        ("names", ["\ud800"] * 15),
        ("names", "a b"),
        ("inputs", {"15": [0]}),
        ("inputs", {"0": [1]}),
        ("inputs", {"9": [8]}),
        ("inputs", {"4": [4, 3]}),
        ("inputs", {"4": [2]}),
        ("inputs", {"4": [-1, 2]}),
        ("outputs", [[18], [4, 3, 6]]),
        ("outputs", [2]),
        ("outputs", [[2], [2]]),
        ("outputs", [[2]]),
        ("outputs", {"0": [2]}),
        ("info", {"a": 1}),
        ("more", 1),
    ],
)
def test_graphs_that_do_not_fit_together_are_refused(tmp_path: Path, key: str, value: object) -> None:
    graph, data = parts(tiny())
    refuse(tmp_path / "net.bb", forged({**graph, key: value}, data))


def test_another_version_is_named(tmp_path: Path) -> None:
    graph, data = parts(tiny())
    for version in (1, 3):
        text = refuse(tmp_path / "net.bb", forged({**graph, "version": version}, data))
        assert f"format version {version}, expected 2" in text


def test_sizes_are_checked_before_anything_is_allocated(tmp_path: Path) -> None:
    graph, data = parts(tiny())
    for shape in ([2**14, 2**14, 1, 1], [2**40, 2**40, 1, 1], [2, 2, 0, 3], [2, 2, -3, -3]):
        fields = [*graph["fields"]]
        fields[1] = [shape, 1]
        refuse(tmp_path / "net.bb", forged({**graph, "fields": fields}, data))
    refuse(tmp_path / "net.bb", forged(graph, data + b"\0"))
    refuse(tmp_path / "net.bb", forged(graph, data[:-1]))


def test_a_line_out_of_range_is_refused() -> None:
    lines = np.full((4, 2), 2**62, np.int64)
    with pytest.raises(FormatError, match="line"):
        packing.Reader(lines.tobytes()).integers((2, 255), [8, 8, 8, 8])
    with pytest.raises(FormatError, match="line"):
        packing.Reader(bytes(4 << 20)).integers((1 << 20, 256), [1, 1, 1, 1])
