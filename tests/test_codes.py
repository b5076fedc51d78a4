"""Codes at their bits: what is packed comes back, row by row too, and an engine keeps nothing else."""

import copy
import gc
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import code_types, seeds

from bitbranch.contract import CodeType, Kind, uniform_encoder, weight_sums
from bitbranch.errors import FormatError
from bitbranch.runtime import codes as c
from bitbranch.runtime import program as p
from bitbranch.runtime.engine import Engine, instruction_sets

T, U2 = CodeType.parse("t"), CodeType.parse("u2")


@given(code_type=code_types, count=st.integers(1, 70), seed=seeds)
def test_codes_are_packed_at_their_bits(code_type: CodeType, count: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, code_type.count, count).astype(np.uint8)
    packed = c.pack_codes(codes, code_type)
    if code_type.kind is Kind.TERNARY:
        number = [sum(int(c) * 3**j for j, c in enumerate(codes[i : i + 5])) for i in range(0, count, 5)]
        assert packed == bytes(number)
    else:
        number = sum(int(c) << (i * code_type.bits) for i, c in enumerate(codes))
        assert packed == number.to_bytes(-(-count * code_type.bits // 8), "little")
    np.testing.assert_array_equal(c.unpack_codes(packed, count, code_type), codes)


@pytest.mark.parametrize(
    ("text", "count", "data"), [("t", 5, b"\xf3"), ("t", 4, b"\x51"), ("u3", 2, b"\x40"), ("b1", 7, b"\x80")]
)
def test_codes_that_no_writer_packed_are_refused(text: str, count: int, data: bytes) -> None:
    with pytest.raises(FormatError):
        c.unpack_codes(data, count, CodeType.parse(text))
    with pytest.raises(FormatError):
        c.PackedCodes(data, (count,), CodeType.parse(text))


@given(code_type=code_types, shape=st.tuples(*[st.integers(1, 7)] * 3), seed=seeds, data=st.data())
def test_rows_are_decoded_alone(code_type: CodeType, shape: tuple[int, ...], seed: int, data: st.DataObject) -> None:
    codes = np.random.default_rng(seed).integers(0, code_type.count, shape).astype(np.uint8)
    packed = c.PackedCodes.pack(codes, code_type)
    first, last = sorted(data.draw(st.tuples(*[st.integers(0, shape[0])] * 2)))
    np.testing.assert_array_equal(packed.rows(first, last), codes[first:last])
    np.testing.assert_array_equal(packed.decode(), codes)
    assert packed.nbytes == c.packed_size(codes.size, code_type) and packed.size == codes.size
    for found, expected in zip(packed.sums, weight_sums(code_type.decode(codes)), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_pieces_are_all_rows_and_none_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = np.random.default_rng(0).integers(0, 3, (50, 7, 3)).astype(np.uint8)
    for piece in (40, 100, 10**6):
        monkeypatch.setattr(c, "PIECE", piece)
        pieces = list(c.PackedCodes.pack(codes, T).pieces())
        assert max(part.size for _, part in pieces) <= piece
        np.testing.assert_array_equal(np.concatenate([part for _, part in pieces]), codes)
        assert [here.start for here, _ in pieces] == [0, *(here.stop for here, _ in pieces[:-1])]


def conv(weight: np.ndarray, weight_type: CodeType = T, **where: object) -> p.Conv:
    return p.Conv("conv", (0,), weight, weight_type, **where)  # type: ignore[arg-type]


def test_weights_are_read_as_codes_and_held_at_their_bits() -> None:
    weight = np.random.default_rng(1).integers(0, 3, (8, 5, 3, 3)).astype(np.uint8)
    op = conv(weight.copy(), stride=(2, 2))
    assert op.packed.nbytes == -(-weight.size // 5)
    for same in (op, copy.deepcopy(op), pickle.loads(pickle.dumps(op)), op.reading((0,))):
        assert same == op
        np.testing.assert_array_equal(same.weight, weight)
    assert op.reading((3,)).inputs == (3,) and op.reading((3,)).packed is op.packed and op.inputs == (0,)
    with pytest.raises(ValueError, match="read-only"):
        op.weight[0] = 1
    assert op != conv(weight.clip(0, 1), stride=(2, 2))


def test_weights_that_are_none_are_held_until_a_program_refuses_them() -> None:
    for weight in (np.full((1, 1, 1, 1), 3, np.uint8), np.zeros((1, 1, 1), np.uint8), np.zeros((1, 1, 1, 1), np.int8)):
        op = conv(weight)
        np.testing.assert_array_equal(op.weight, weight)
        with pytest.raises(FormatError, match="weight"):
            op.infer(p.Codes((1, 1, 1), U2))
    packed = c.PackedCodes.pack(np.zeros((1, 1, 1, 1), np.uint8), T)
    with pytest.raises(FormatError, match="PackedCodes"):
        conv(packed, CodeType.parse("s8")).infer(p.Codes((1, 1, 1), U2))  # type: ignore[arg-type]


def wide() -> p.Program:
    """A network of 1.3 million ternary weights, and little else."""
    rng, width, layers = np.random.default_rng(2), 384, 3
    encoder = uniform_encoder(U2, 0.5)
    ops: list[p.Operation] = [p.Encode("input", (), (4, 6, 6), U2, encoder.float32_thresholds())]
    channels = 4
    for i in range(layers):
        kernel = (1, 1) if i == 0 else (3, 3) if i == 1 else (1, 1)
        weight = rng.integers(0, 3, (width, channels, *kernel)).astype(np.uint8)
        padding = (1, 1, 1, 1) if kernel == (3, 3) else (0, 0, 0, 0)
        ops.append(p.Conv(f"conv{i}", (len(ops) - 1,), weight, T, (1, 1), padding))
        thresholds = np.sort(rng.integers(-40, 40, (width, 3)), axis=1).astype(np.int32)
        ops.append(p.Threshold(f"codes{i}", (len(ops) - 1,), U2, thresholds))
        channels = width
    ops.append(p.Conv("last", (len(ops) - 1,), rng.integers(0, 3, (2, width, 6, 6)).astype(np.uint8), T))
    ops.append(p.Scale("output", (len(ops) - 1,), *np.ones((2, 2), np.float32)))
    return p.Program(tuple(ops), ((2,),))


@pytest.mark.parametrize("isa", instruction_sets())
def test_an_engine_takes_memory_for_bits_not_for_codes(tmp_path: Path, isa: str) -> None:
    """What stays is the file, weights at 2 to 2.7 bits for the kernels, and less than codes at a byte would be."""
    size = wide().save(tmp_path / "net.bb")
    Engine(tmp_path / "net.bb", isa=isa)  # tables that every engine shares, modules
    gc.collect()
    tracemalloc.start()
    engine = Engine(tmp_path / "net.bb", isa=isa)
    gc.collect()
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    convolutions = [op for op in engine.program.operations if isinstance(op, p.Conv)]
    weights = sum(op.packed.size for op in convolutions)
    assert size < 0.21 * weights
    assert len({id(op.packed.data.base.obj) for op in convolutions}) == 1  # views of the file
    assert kept < size + 0.5 * weights
    assert peak < size + 0.5 * weights + 16 * c.PIECE
