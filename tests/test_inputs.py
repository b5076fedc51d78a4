"""What the engine and the reference take: right answers for arrays of images of any kind, else clear errors."""

from __future__ import annotations

import numpy as np
import pytest
from engines import ISAS, Builder, small_program

from bitbranch.contract import CodeType
from bitbranch.errors import InputError
from bitbranch.runtime import program as p
from bitbranch.runtime.engine import Engine


@pytest.fixture(scope="module", params=[1, 2])
def engine(request: pytest.FixtureRequest) -> Engine:
    return small_program()[0].engine(threads=request.param)


def misaligned(x: np.ndarray) -> np.ndarray:
    raw = np.empty(x.nbytes + 1, np.uint8)[1:]
    out = raw.view(x.dtype).reshape(x.shape)
    out[...] = x
    assert not out.flags.aligned
    return out


def read_only(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


WAYS = {
    "Fortran order": np.asfortranarray,
    "channels last": lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
    "every second": lambda x: np.repeat(np.repeat(x, 2, axis=0), 2, axis=3)[::2, :, :, ::2],
    "backwards": lambda x: x[::-1, ::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1, ::-1],
    "broadcast": lambda x: np.broadcast_to(x[:1], x.shape),
    "read-only": read_only,
    "misaligned": misaligned,
    "float64": lambda x: x.astype(np.float64),
    "float16": lambda x: x.astype(np.float16),
    "big-endian float32": lambda x: x.astype(">f4"),
    "big-endian float64": lambda x: x.astype(">f8"),
    "list": lambda x: x.tolist(),
    "list of arrays": list,
    "memory view": lambda x: memoryview(np.ascontiguousarray(x)),
    "matrix of a subclass": lambda x: x.view(np.recarray),
}


@pytest.mark.parametrize("way", WAYS)
def test_arrays_of_all_kinds(engine: Engine, way: str) -> None:
    _, x = small_program()
    given = WAYS[way](x)
    plain = np.ascontiguousarray(np.asarray(given), np.float32)
    expected = engine.program.reference(plain)
    np.testing.assert_array_equal(engine(given), expected)
    np.testing.assert_array_equal(engine.program.reference(given), expected)


@pytest.mark.parametrize("way", ["Fortran order", "every second", "broadcast", "read-only"])
def test_pixels_of_all_kinds(engine: Engine, way: str) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (5, 3, 12, 12), dtype=np.uint8)
    given = WAYS[way](pixels)
    np.testing.assert_array_equal(engine(given), engine.program.reference(np.ascontiguousarray(given)))


def test_tensors(engine: Engine) -> None:
    torch = pytest.importorskip("torch")
    _, x = small_program()
    np.testing.assert_array_equal(engine(torch.from_numpy(x)), engine.program.reference(x))
    with pytest.raises(InputError, match="requires grad"):
        engine(torch.from_numpy(x).requires_grad_())


def test_infinities_and_reals_beyond_float32(engine: Engine) -> None:
    _, x = small_program()
    wide = np.where(x > 1, np.inf, np.where(x < -1, -np.inf, x)).astype(np.float32)
    expected = engine.program.reference(wide)
    np.testing.assert_array_equal(engine(wide), expected)
    beyond = np.where(x > 1, 1e300, np.where(x < -1, -1e300, x.astype(np.float64)))
    np.testing.assert_array_equal(engine(beyond), expected)


WRONG = {
    "no batch": (lambda x: x[0], "expected shape (N, 3, 12, 12), got (3, 12, 12)"),
    "five axes": (lambda x: x[None], "got (1, 6, 3, 12, 12)"),
    "a number": (lambda x: 1.5, r"got ()"),
    "an empty list": (lambda x: [], "got (0,)"),
    "nothing": (lambda x: None, "got ()"),
    "text": (lambda x: "image.png", "got ()"),
    "ragged": (lambda x: [x[0].tolist(), [1.0]], "input: not an array"),
    "too few channels": (lambda x: x[:, :2], "got (6, 2, 12, 12)"),
    "too small": (lambda x: x[..., :11], "got (6, 3, 12, 11)"),
    "channels last": (lambda x: x.transpose(0, 2, 3, 1), "got (6, 12, 12, 3)"),
    "integers": (lambda x: x.astype(np.int64), "expected float32 or uint8, got int64"),
    "signed bytes": (lambda x: x.astype(np.int8), "got int8"),
    "truth": (lambda x: x > 0, "got bool"),
    "complex": (lambda x: x.astype(np.complex64), "got complex64"),
    "objects": (lambda x: x.astype(object), "got object"),
    "strings": (lambda x: x.astype(str), "got <U"),
    "dates": (lambda x: x.astype(np.int64).view("M8[s]"), "got datetime64"),
    "structures": (lambda x: np.zeros(x.shape, [("a", "f4")]), "got [('a'"),
    "NaN": (lambda x: np.where(x > 2, np.nan, x), "input: holds NaN"),
    "one NaN at the end": (lambda x: np.concatenate([x.ravel()[:-1], [np.nan]]).reshape(x.shape), "holds NaN"),
    "NaN of float16": (lambda x: np.full(x.shape, np.nan, np.float16), "holds NaN"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_not_images(engine: Engine, what: str) -> None:
    make, says = WRONG[what]
    _, x = small_program()
    for run in (engine, engine.program.reference, lambda x: list(engine.trace(x))):
        with pytest.raises(InputError) as caught:
            run(make(x))
        assert says in str(caught.value) and "\n" not in str(caught.value)


def test_pixels_without_a_table() -> None:
    b = Builder((3, 4, 4), CodeType.parse("s8"), 1)
    b.operations[0] = p.Encode("input", (), (3, 4, 4), CodeType.parse("s8"), b.operations[0].thresholds)
    program = b.program(b.conv(0, 2, CodeType.parse("t")))
    with pytest.raises(InputError, match="mean= and std="):
        program.engine()(np.zeros((1, 3, 4, 4), np.uint8))


@pytest.mark.parametrize("isa", ISAS)
def test_no_images(isa: str) -> None:
    program, x = small_program()
    engine = program.engine(isa=isa)
    for empty in (x[:0], np.empty((0, 3, 12, 12), np.uint8), np.empty((0, 3, 12, 12), ">f8")):
        assert engine(empty).shape == (0, 10, 1, 1) and engine(empty).dtype == np.float32
        assert engine.profile(empty, repeat=1).images == 0
    with pytest.raises(InputError, match="expected shape"):
        engine(np.empty((0, 3, 12, 11), np.float32))


def test_huge_batch() -> None:
    """More images than any power of two that a plan is made for, in many parts, and one over."""
    b = Builder((1, 2, 2), CodeType.parse("u2"), 2)
    program = b.program(b.conv(0, 2, CodeType.parse("t"), (2, 2)))
    x = b.batch(100_001)
    for isa in ISAS:
        np.testing.assert_array_equal(program.engine(threads=2, isa=isa)(x), program.reference(x))


@pytest.mark.parametrize("isa", ISAS)
def test_profile_of_a_batch_whose_last_part_is_small(isa: str) -> None:
    """A smaller plan can have more steps than the one that the others of the batch are timed on."""
    program, x = small_program()
    engine = program.engine(isa=isa)
    n = engine._part + 1
    profile = engine.profile(np.resize(x, (n, *x.shape[1:])), repeat=2)
    assert profile.images == n and sum(row.macs for row in profile.rows) == program.macs * n


# ---- out= -----------------------------------------------------------------------------------------------------------


def test_out(engine: Engine) -> None:
    _, x = small_program()
    out = np.full((len(x), 10, 1, 1), np.nan, np.float32)
    assert engine(x, out=out) is out
    np.testing.assert_array_equal(out, engine.program.reference(x))
    part = np.zeros((3 * len(x), 10, 1, 1), np.float32)
    engine(x, out=part[len(x) : 2 * len(x)])
    np.testing.assert_array_equal(part[len(x) : 2 * len(x)], out)
    assert not part[: len(x)].any() and not part[2 * len(x) :].any()


def test_out_of_several_outputs() -> None:
    b = Builder((3, 6, 6), CodeType.parse("u2"), 4)
    for name, channels in (("first", 2), ("second", 5)):
        v = b.conv(0, channels, CodeType.parse("t"))
        b.add(p.Scale(name, (v,), *b.rng.normal(size=(2, channels)).astype(np.float32)))
    program = p.Program(tuple(b.operations), ((2, 6, 6), (180,)))
    engine, x = program.engine(), b.batch(3)
    expected = program.reference(x)
    out = [np.empty_like(y) for y in expected]
    for got in (engine(x), engine(x, out=out), engine(x, out=tuple(out)), out):
        for y, e in zip(got, expected, strict=True):
            np.testing.assert_array_equal(y, e)
    with pytest.raises(InputError, match=r"out: expected an array for each output \(first, second\)"):
        engine(x, out=out[0])
    whole = np.empty(1000, np.float32)
    with pytest.raises(InputError, match="out 'second': shares memory"):
        engine(x, out=(whole[:216].reshape(3, 2, 6, 6), whole[200:740].reshape(3, 180)))


WRONG_OUT = {
    "another batch": (lambda x, out: out[1:], "expected a float32 array (6, 10, 1, 1), got float32 (5, 10, 1, 1)"),
    "flat": (lambda x, out: out.reshape(6, 10), "got float32 (6, 10)"),
    "float64": (lambda x, out: out.astype(np.float64), "got float64"),
    "big-endian": (lambda x, out: out.astype(">f4"), "got >f4"),
    "a list": (lambda x, out: out.tolist(), "expected an array for each output (scale)"),
    "a number": (lambda x, out: 3, "expected an array for each output (scale)"),
    "a list of numbers": (lambda x, out: [3], "got int"),
    "strided": (lambda x, out: np.repeat(out, 2, axis=0)[::2], "C-contiguous"),
    "read-only": (lambda x, out: read_only(out), "writable"),
    "misaligned": (lambda x, out: misaligned(out), "aligned"),
    "the input": (lambda x, out: x.ravel()[:60].reshape(6, 10, 1, 1), "shares memory"),
}


@pytest.mark.parametrize("what", WRONG_OUT)
def test_wrong_out(engine: Engine, what: str) -> None:
    make, says = WRONG_OUT[what]
    _, x = small_program()
    kept = x.copy()
    with pytest.raises(InputError) as caught:
        engine(x, out=make(x, np.zeros((6, 10, 1, 1), np.float32)))
    assert says in str(caught.value)
    np.testing.assert_array_equal(x, kept)
