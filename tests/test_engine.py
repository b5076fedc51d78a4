"""The native engine equals the NumPy reference in every bit, on every instruction set and for any number of threads."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from engines import (
    ISAS,
    PLANAR,
    Builder,
    activations,
    assert_equal,
    convolutions,
    depthwise_networks,
    kinds,
    networks,
    preferred,
    residual_networks,
    small_program,
)
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from bitbranch import contract
from bitbranch.contract import ACCUMULATOR_MAX, CodeType
from bitbranch.errors import BitbranchError, InputError
from bitbranch.runtime import choice, layout, reference, rewrite
from bitbranch.runtime import engine as engine_module
from bitbranch.runtime import program as p


@examples(300)
@given(convolutions(channels=24, size=14), kinds)
def test_convolution(case, family: str | None) -> None:
    with preferred(family):
        assert_equal(*case)


@examples(100)
@given(convolutions(), kinds)
def test_larger_convolution(case, family: str | None) -> None:
    with preferred(family):
        assert_equal(*case)


@examples(300)
@given(depthwise_networks(), st.sampled_from(["", "dictionary", "byte16", "byte"]))
def test_depthwise(case, family: str) -> None:
    assert_equal(*case, family=family)


@examples(250)
@given(networks(), kinds)
def test_network(case, family: str | None) -> None:
    with preferred(family):
        assert_equal(*case)


@examples(200)
@given(residual_networks(), kinds)
def test_residual_network(case, family: str | None) -> None:
    with preferred(family):
        assert_equal(*case)


@pytest.mark.long
@examples(3000)
@given(st.one_of(convolutions(), convolutions(channels=24, size=14), networks(), residual_networks()), kinds)
def test_many(case, family: str | None) -> None:
    with preferred(family):
        assert_equal(*case)


# ---- every row of the kernel table ----------------------------------------------------------------------------------

core = engine_module._core()
KERNELS = [(isa, k.family, k.bits, k.outputs, k.pixels) for isa in PLANAR for k in core.kernels(isa)]


def test_constants_agree_with_the_core() -> None:
    assert (layout.CHUNK, layout.MAX_PIXELS) == (core.chunk, core.max_pixels)
    assert set(choice.DICTIONARY_BITS) >= set(ISAS)


@pytest.mark.usefixtures("planar_kernels")
@pytest.mark.parametrize(("isa", "family", "bits", "outputs", "pixels"), KERNELS)
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_kernel(isa: str, family: str, bits: int, outputs: int, pixels: int, extra: int) -> None:
    """A layer that takes this kernel, at its tile's size and one less and more; the plan says that it was taken."""
    t = CodeType.parse
    if family == "dictionary":
        b = Builder((9, 1, pixels + extra), t(f"u{bits}"), 1)
        v = b.threshold(b.conv(0, outputs + extra, t("t"), (1, 3), padding=(0, 0, 1, 1)), t("u2"))
        n = 1
    elif family.startswith("sextets"):
        b = Builder((5, 1, pixels - 2 + extra), t("s8"), 1)
        v = b.threshold(b.conv(0, 10, t("s8")), t(f"u{bits}"))
        weight_type = t("t" if family == "sextets" else f"b{bits}")
        v = b.threshold(b.conv(v, outputs + extra, weight_type, (1, 3), padding=(0, 0, 1, 1)), t("u2"))
        n = 1
    elif family.startswith("xnor"):
        b = Builder((9, 1, pixels + extra), t(f"u{bits}"), 1)
        weight_type = t("t" if family == "xnor_ternary" else "b1")
        v = b.threshold(b.conv(0, outputs + extra, weight_type, (1, 3), padding=(0, 0, 1, 1)), t("u2"))
        n = 1
    elif family.startswith("byte"):
        code_type = t("s8" if family == "byte_signed" else "u8")
        b = Builder((10, 2, pixels + extra), code_type, 2)
        groups = 10 if outputs == 2 else 1
        v = b.conv(0, 10 if groups > 1 else outputs + extra, t("t" if family == "byte16" else "s8"), (1, 1), groups)
        n = 1
    else:
        weight_type = {"linear1": "b1", "linear2": "t", "linear4": "b4", "linear8": "s8", "linear16": "b8"}[family]
        b = Builder((7, 3, 1), t("s8" if bits == 8 else "u8"), 3)
        v = b.conv(0, outputs + extra, t(weight_type), (3, 1))
        n = pixels + 1 + extra
    program = b.program(b.conv(v, 3, t("s4")) if family in choice.BIASED else v)
    forced = (
        "dictionary" if family in choice.DICTIONARIES else family if family.startswith("byte") else family.split("_")[0]
    )
    with preferred(None if family.startswith("linear") else forced):
        assert_equal(program, b.batch(n), [isa], (1,))
        engine = program.engine(isa=isa)
        engine(b.batch(n))
    taken = {s.family for plan in engine._plans.values() for s in plan.steps}
    assert ("linear" if family.startswith("linear") else family) in taken


@pytest.mark.usefixtures("planar_kernels")
@examples(60)
@given(st.sampled_from(["b1", "u1", "t", "b2", "s2", "u2", "b3", "s3", "b4", "u4"]), activations, st.data())
def test_linear_layers_of_few_bit_weights(weight_type: str, code_type: CodeType, data) -> None:
    """Weights are packed where activations are int8; any depth, with and without thresholds, more images than one."""
    channels, size = data.draw(st.integers(1, 90)), data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    b = Builder((channels, *size), code_type, data.draw(st.integers(0, 2**16)))
    v = b.conv(0, data.draw(st.integers(1, 70)), CodeType.parse(weight_type), size)
    if data.draw(st.booleans()):
        v = b.conv(
            b.threshold(v, CodeType.parse(data.draw(st.sampled_from(["u2", "s8", "b8"])))), 5, CodeType.parse("t")
        )
    assert_equal(b.program(v), b.batch(data.draw(st.integers(1, 9))), PLANAR, (1, 2))


@pytest.mark.usefixtures("planar_kernels")
@pytest.mark.parametrize("weight_type", ["b1", "t", "b4"])
@pytest.mark.parametrize("value", [-99, 99])
def test_largest_sums_of_packed_weights(weight_type: str, value: float) -> None:
    """Weights and activations at their extremes over a long depth: no part of a sum passes int16 on the way."""
    b = Builder((600, 2, 2), CodeType.parse("s8"), 4)
    v = b.conv(0, 40, CodeType.parse(weight_type), (2, 2))
    weight = b.operations[v].weight.copy()
    weight[:20], weight[20:] = weight.max(), 0
    b.set_weight(v, weight)
    assert_equal(b.program(v), np.full((5, 600, 2, 2), value, np.float32), PLANAR)


# ---- edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code_type", ["u1", "u2", "u3", "u4", "b2", "b4"])
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_sums_at_the_16_bit_bound(code_type: str, extra: int) -> None:
    """The largest sum just within, at and beyond int16; only the last needs 32 bits."""
    t = CodeType.parse(code_type)
    channels = (2**15 - 1) // (t.count - 1 if code_type[0] == "u" else t.hi) + extra
    b = Builder((channels, 1, 2), t, 4)
    v = b.conv(0, 9, CodeType.parse("t"))
    weight = b.operations[v].weight.copy()
    weight[0], weight[1], weight[2] = 2, 0, np.arange(channels).reshape(-1, 1, 1) % 2 * 2
    b.set_weight(v, weight)
    limits = np.array([[t.hi * channels], [-t.hi * channels + 1], [0]] * 3, np.int32)
    v = b.add(p.Threshold("threshold", (v,), CodeType.parse("u1"), limits))
    x = np.concatenate([np.full((1, channels, 1, 2), s, np.float32) for s in (100, -100)])
    program = b.program(b.conv(v, 9, CodeType.parse("b1")))
    for family in ("dictionary", "xnor", "byte16"):
        with preferred(family):
            assert_equal(program, x, threads=(1,))


@pytest.mark.parametrize(("code_type", "magnitude"), [("u8", 128), ("u5", 1057), ("b5", 1057), ("s4", 2184)])
@pytest.mark.parametrize("extra", [0, 1])
def test_depthwise_at_the_16_bit_bound(code_type: str, magnitude: int, extra: int) -> None:
    """The largest sum of ranks just within int16, or beyond; accumulators of signed codes differ from it."""
    weight_type = CodeType.parse("s8")
    b = Builder((9, 6, 13), CodeType.parse(code_type), 12)
    v = b.conv(0, 9, weight_type, (5, 5), 9, padding=(2, 2, 2, 2))
    weight = b.operations[v].weight.copy()
    for channel in range(9):
        size = magnitude + (extra if channel == 5 else 0)
        shares = size // 25 + (np.arange(25) < size % 25)
        weight[channel] = weight_type.encode((-1) ** channel * shares).reshape(1, 5, 5)
    b.set_weight(v, weight)
    program = b.program(v)
    assert_equal(program, np.concatenate([np.full((1, 9, 6, 13), s, np.float32) for s in (100, -100)]))
    found = choice.candidates_of(program, 1)
    assert ("byte16" in found and found["byte16"].span > 25) == (extra == 0)


def test_thresholds_that_always_or_never_pass() -> None:
    for code_type in ("u1", "b2", "u4", "s8"):
        count = CodeType.parse(code_type).count - 1
        b = Builder((3, 5, 5), CodeType.parse("b2"), 5)
        v = b.conv(0, 4, CodeType.parse("t"), (3, 3), padding=(1, 1, 1, 1))
        low, high = np.iinfo(np.int32).min, np.iinfo(np.int32).max
        rows = [np.full(count, low), np.full(count, high), np.repeat([low, high], [count // 2, count - count // 2])]
        limits = np.array([*rows, np.zeros(count)], np.int64).astype(np.int32)
        v = b.add(p.Threshold("threshold", (v,), CodeType.parse(code_type), limits))
        assert_equal(b.program(b.conv(v, 3, CodeType.parse("s4"))), b.batch(2))


@pytest.mark.parametrize("code_type", ["u1", "t", "u3", "s8", "b8", "u8", "b5"])
@pytest.mark.parametrize("spread", ["even", "uneven", "equal", "extreme"])
def test_encoding_at_every_threshold(code_type: str, spread: str) -> None:
    """Reals at each threshold and its two neighbours, and the infinities."""
    t = CodeType.parse(code_type)
    n, rng = t.count - 1, np.random.default_rng(6)
    thresholds = {
        "even": (np.arange(n) - n / 2) * 0.0173,
        "uneven": np.sort(np.concatenate([rng.normal(size=n - n // 2), rng.normal(size=n // 2) * 1e-3])),
        "equal": np.zeros(n),
        "extreme": np.sort(rng.choice([-3e38, 3e38, 1e-45, 0.0, 1.0], n)),
    }[spread].astype(np.float32)
    down, up = np.nextafter(thresholds, np.float32(-np.inf)), np.nextafter(thresholds, np.float32(np.inf))
    x = np.concatenate([thresholds, down, up, np.float32([np.inf, -np.inf, 0, -0.0, 3.4e38, -3.4e38])])
    x = np.resize(x, 2 * len(x)).reshape(1, 2, 1, -1)
    b = Builder(x.shape[1:], t, 7)
    b.operations[0] = p.Encode("input", (), x.shape[1:], t, thresholds)
    assert_equal(b.program(b.conv(0, 2, CodeType.parse("t"))), x, threads=(1,))


@pytest.mark.parametrize("even", [True, False])
def test_many_thresholds(even: bool) -> None:
    """255 thresholds on every accumulator in their range, evenly spaced or not."""
    b = Builder((1, 40, 250), CodeType.parse("u8"), 8)
    v = b.conv(0, 9, CodeType.parse("s8"))
    limits = np.linspace(-9000, 9000, 255).astype(np.int32)
    limits = limits if even else np.sort(b.rng.integers(-9000, 9000, (9, 255), dtype=np.int32), axis=1)
    v = b.add(p.Threshold("threshold", (v,), CodeType.parse("s8"), np.atleast_2d(limits)))
    assert_equal(b.program(b.conv(v, 3, CodeType.parse("t"))), b.batch(2, uint8=True), threads=(1,))


@pytest.mark.parametrize("factor", [(67, 90), (1024, 3)])
def test_one_pixel_fills_a_map(factor: p.Pair) -> None:
    b = Builder((5, 1, 1), CodeType.parse("u2"), 3)
    large = b.add(p.Upsample("large", (b.threshold(b.conv(0, 9, CodeType.parse("t")), CodeType.parse("u2")),), factor))
    assert_equal(b.program(b.conv(large, 4, CodeType.parse("t"))), b.batch(2))


def test_batches_larger_than_a_part() -> None:
    b = Builder((5, 9, 9), CodeType.parse("s8"), 9)
    v = b.threshold(b.conv(0, 20, CodeType.parse("t"), (3, 3), padding=(1, 1, 1, 1)), CodeType.parse("u2"))
    program = b.program(b.conv(v, 7, CodeType.parse("t"), (9, 9)))
    engine = program.engine(threads=2)
    engine._part = 4
    for n in (1, 4, 5, 11, 3):
        x = b.batch(n)
        np.testing.assert_array_equal(engine(x), program.reference(x))


def test_no_images() -> None:
    program, x = small_program()
    for isa in ISAS:
        engine = program.engine(isa=isa)
        assert engine(x[:0]).shape == (0, 10, 1, 1)
        values = 5 if engine_module.takes_dot(program, isa) else 6
        assert [len(value) for _, value in engine.trace(x[:0])] == [0] * values


def test_several_inputs_and_outputs() -> None:
    b = Builder((3, 5, 6), CodeType.parse("u4"), 0)
    t = np.array([-0.5, 0.1, 1.2], np.float32)
    other = b.add(p.Encode("other", (), (2, 5, 6), CodeType.parse("u2"), t))
    left, right = (b.requantize(b.conv(v, 4, CodeType.parse("s4"))) for v in (0, other))
    for name, v in (("sum", b.add(p.Add("add", (left, right), -900, 900))), ("right", right)):
        b.add(p.Scale(name, (v,), np.full(4, 0.1, np.float32), np.ones(4, np.float32)))
    program = p.Program(tuple(b.operations), ((4, 5, 6), (120,)))
    x = tuple(b.rng.normal(size=(7, c, 5, 6)).astype(np.float32) for c in (3, 2))
    expected, values = reference.run(program, *x), dict(reference.trace(program, *x))
    for isa in ISAS:
        engine = program.engine(threads=2, isa=isa)
        engine._part = 3
        for got, wanted in zip(engine(*x), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)
        for number, value in engine.trace(*x):
            np.testing.assert_array_equal(value, values[number])
        assert sum(row.macs for row in engine.profile(*x, repeat=1).rows) == 7 * program.macs
        with pytest.raises(InputError, match="takes 2 inputs"):
            engine(x[0])


def test_wrong_inputs() -> None:
    program, x = small_program()
    engine = program.engine()
    for wrong in (x[0], x[:, :2], x[:, :, :5], x.astype(np.int64), np.where(x > 2, np.nan, x)):
        with pytest.raises(InputError):
            engine(wrong)
    np.testing.assert_array_equal(engine(x[:, :, ::-1].astype(np.float64)), program.reference(x[:, :, ::-1]))


def test_wrong_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    program, _ = small_program()
    with pytest.raises(InputError, match="scalar"):
        program.engine(isa="avx1024")
    with pytest.raises(InputError, match="threads"):
        program.engine(threads=0)
    with pytest.raises(InputError):
        engine_module.Engine(tmp_path / "missing.bb")
    with pytest.raises(InputError, match="path 'products': families"):
        engine_module.Engine(program, families={"*": "byte"}, path="products")
    for families in (None, {"*": "byte"}):
        with pytest.raises(InputError, match="path 'nonsense'"):
            engine_module.Engine(program, families=families, path="nonsense")
    with pytest.raises(InputError, match="families must say one by name"):
        engine_module.Engine(program, families="byte")
    with pytest.raises(InputError, match="repeat"):
        program.engine().profile(np.zeros((1, *program.input.shape), np.float32), repeat=0)
    monkeypatch.setenv("BITBRANCH_ISA", "scalar")
    assert program.engine().isa == "scalar"
    assert program.engine(isa=ISAS[0]).isa == ISAS[0]
    monkeypatch.setenv("BITBRANCH_ISA", "none")
    with pytest.raises(InputError, match="'none'"):
        program.engine()


def test_without_the_core(monkeypatch: pytest.MonkeyPatch) -> None:
    program, _ = small_program()
    engine_module._core.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "bitbranch.runtime._core", None)
    with pytest.raises(BitbranchError, match="pip install"):
        program.engine()
    engine_module._core.cache_clear()


def test_from_a_file(tmp_path) -> None:
    program, x = small_program()
    program.save(tmp_path / "net.bb")
    np.testing.assert_array_equal(engine_module.Engine(tmp_path / "net.bb")(x), program.reference(x))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_calls_from_several_threads(threads: int) -> None:
    """Calls and traces of one engine at once, with batches of several sizes."""
    program, x = small_program()
    engine, expected = program.engine(threads=threads), program.reference(x)
    wrong: list[str] = []

    def work(n: int) -> None:
        for _ in range(20):
            if not np.array_equal(engine(x[:n]), expected[:n]):
                wrong.append(f"call with {n}")
            if not np.array_equal([v for _, v in engine.trace(x[:n])][-1], expected[:n]):
                wrong.append(f"trace with {n}")

    workers = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 3, 6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_a_forked_child_runs_too() -> None:
    program, x = small_program()
    engine, expected = program.engine(threads=2), program.reference(x)
    engine(x)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(engine(x), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(engine(x), expected)


def test_profile() -> None:
    program, x = small_program()
    for isa in ISAS:
        profile = program.engine(isa=isa).profile(x, repeat=3)
        assert sum(row.macs for row in profile.rows) == program.macs * len(x)
        assert profile.seconds > 0 and 0 <= profile.glue <= 1 and profile.images == len(x)
        families = {row.family for row in profile.rows}
        if engine_module.takes_dot(program, isa):
            assert families >= {"encode", "dot", "max-pool"} and families <= {"encode", "dot", "dot16", "max-pool"}
        elif isa != "scalar":
            assert families >= {"encode", "byte_signed", "max-pool", "linear", "scale"}
            assert families & set(choice.DICTIONARIES)


def test_accumulators_reach_the_contract_bound() -> None:
    """8-bit bipolar codes times 8-bit bipolar weights, all at their extremes: the widest sums, and border terms."""
    b = Builder((70, 6, 6), CodeType.parse("b8"), 11)
    v = b.conv(0, 3, CodeType.parse("b8"), (3, 3), padding=(1, 1, 1, 1))
    weight = b.operations[v].weight.copy()
    weight[0], weight[1] = 255, 0
    b.set_weight(v, weight)
    program = b.program(v)
    assert program.values[v].hi == 70 * 9 * 255 * 255 < ACCUMULATOR_MAX
    assert_equal(program, np.full((2, 70, 6, 6), 99, np.float32))
    assert_equal(program, np.full((1, 70, 6, 6), -99, np.float32))
    assert contract.accumulator_bounds(b.operations[v].values(), CodeType.parse("b8"))[1][0] == program.values[v].hi


@pytest.mark.parametrize("size", [(9, 12), (34, 7)])
@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("kernel", [3, 9])  # of many members, too
def test_a_stream_is_pooled_before_it_is_requantized(size: p.Pair, negative: bool, kernel: int) -> None:
    """Beside codes that are not pooled, as a U-Net's first layer has them; not with negative multipliers."""
    t, w, b = CodeType.parse("u2"), CodeType.parse("t"), Builder((5, *size), CodeType.parse("u3"), seed=1)
    window = ((kernel, kernel), (2, 2), (kernel // 2,) * 4)
    sums = b.conv_like(0, w, 3, 20)
    skip = b.threshold(sums, t)
    pooled = b.add(p.MaxPool("pool", (b.threshold(sums, t),), *window))
    requantized = b.requantize(sums, negative=negative)
    stream = b.add(p.MaxPool("pool", (requantized,), *window))
    v = b.threshold(b.add(p.Add("sum", (b.requantize(b.conv_like(pooled, w, 3, 20)), stream), -900, 50000)), t)
    thin = b.add(p.MaxPool("thin", (skip,), (1, 1), (2, 2)))
    program = b.program(b.conv_like(b.add(p.Concat("both", (v, thin))), w, 1, 3))
    whole = rewrite.Rewritten(program.operations, program.values, tuple(range(len(program.operations))))
    found = rewrite.requantize_last(whole)
    kinds = [type(op) for op in program.operations]
    if not negative:
        kinds[requantized], kinds[stream] = p.MaxPool, p.Requantize
        assert found.origin[requantized] == -1
        assert found.operations[stream].inputs == (requantized,)
        assert found.values[requantized].shape == found.values[stream].shape == program.values[stream].shape
    assert [type(op) for op in found.operations] == kinds
    x = b.batch(3)
    for isa in ISAS:
        engine = engine_module.Engine(program, isa=isa, path="products")
        np.testing.assert_array_equal(engine(x), program.reference(x))
        expected = dict(reference.trace(program, x))
        for number, value in engine.trace(x):
            np.testing.assert_array_equal(value, expected[number], err_msg=f"{isa}, operation {number}")
