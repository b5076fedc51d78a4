"""Which path runs a program: whatever is estimated to be faster, and only where both can."""

from __future__ import annotations

import pickle
import time
from typing import Any

import numpy as np
import pytest

from bitbranch.contract import CodeType
from bitbranch.errors import BitbranchError, InputError
from bitbranch.runtime import engine as engine_module
from bitbranch.runtime import paths
from bitbranch.runtime import program as p

try:
    ISAS = engine_module.instruction_sets()
except BitbranchError:
    pytest.skip("the compiled core is not installed", allow_module_level=True)


def network(
    bits: str,
    channels: int = 256,
    size: int = 14,
    groups: int = 1,
    depth: int = 3,
    weights: str = "b1",
    kernel: int = 3,
) -> p.Program:
    """Convolutions of one kind, one after the other."""
    t = CodeType.parse(bits)
    thresholds = np.linspace(-1, 1, t.count - 1).astype(np.float32)
    operations: list[p.Operation] = [p.Encode("input", (), (channels, size, size), t, thresholds)]
    rng = np.random.default_rng(0)
    for i in range(depth):
        weight = rng.integers(0, 2, (channels, channels // groups, kernel, kernel), dtype=np.uint8)
        last = (len(operations) - 1,)
        pads = {"stride": (1, 1), "padding": (kernel // 2,) * 4, "groups": groups}
        operations.append(p.Conv(f"conv{i}", last, weight, CodeType.parse(weights), **pads))
        bars = np.sort(rng.integers(-9, 9, (1, t.count - 1)), axis=1).astype(np.int32)
        operations.append(p.Threshold(f"codes{i}", (len(operations) - 1,), t, bars))
    ones = np.ones(channels, np.float32)
    scale = p.Scale("scale", (len(operations) - 2,), ones, ones)
    return p.Program((*operations[:-1], scale), ((channels, size, size),))


def test_an_estimate_is_of_all_layers() -> None:
    cost = paths.Cost((100, 50), 2.0, 3.0)
    outputs = 256 * 14 * 14
    dense = 256 * 9 * outputs * paths.FILLED / (14 * 14 / 256)  # 14 rows of 15 pixels, in four vectors of 64
    assert cost.milliseconds(network("u1", depth=1)) == pytest.approx(1e-6 * (dense / 100 + 2 * outputs))
    assert cost.milliseconds(network("u2", depth=2)) == pytest.approx(2e-6 * (dense / 50 + 2 * outputs))
    assert cost.milliseconds(network("u4", depth=2)) == cost.milliseconds(network("u2", depth=2))
    depthwise = network("u4", groups=256, depth=1)
    assert cost.milliseconds(depthwise) == pytest.approx(1e-6 * (9 * outputs * 3 + 2 * outputs))


def test_small_maps_leave_the_planar_path_half_empty() -> None:
    cost = paths.Cost((100,), 0.0, 0.0)
    for size, vectors in ((4, 1), (7, 1), (8, 2), (14, 4), (28, 13)):
        dense = 256 * 9 * 256 * size * size
        filled = size * size / (64 * vectors)
        expected = 1e-6 * dense / 100 * paths.FILLED / filled
        assert cost.milliseconds(network("u1", size=size, depth=1)) == pytest.approx(expected), size
        assert cost.milliseconds(network("u1", size=size, depth=1), "avx512") <= 1e-6 * dense / 100
    for isa in ("avx512_vnni", "avx512", "avx2"):
        assert paths.prefers_products(network("u1", size=4), isa, sextets=True)
        assert isa == "avx2" or not paths.prefers_products(network("u1", size=28), isa, sextets=True)


def test_few_bits_are_planar_without_matrices_of_bytes() -> None:
    one, four = network("u1", size=28), network("u4")
    assert not paths.prefers_products(one, "avx512_vnni", sextets=True)
    assert paths.prefers_products(four, "avx512_vnni", sextets=True)
    assert paths.prefers_products(one, "amx", sextets=True)
    assert not paths.prefers_products(network("u2", groups=256), "amx", sextets=True)
    assert paths.prefers_products(one, "unheard of", sextets=False)


def test_sums_of_few_bits_stay_narrow_without_instructions_for_bytes() -> None:
    for isa in ("avx512", "avx2"):
        assert paths.prefers_products(network("u4"), isa, sextets=False)
        assert not paths.prefers_products(network("u4", groups=256), isa, sextets=False)
    assert not paths.prefers_products(network("u2", kernel=1), "avx512", sextets=False)


def test_filtering_makes_products_of_two_bits_the_faster_ones() -> None:
    for isa in ("avx512_vnni", "avx512", "avx2"):
        assert paths.prefers_products(network("u2"), isa, sextets=False)
        assert not paths.prefers_products(network("u2", channels=16, size=32), isa, sextets=False)
    assert not paths.prefers_products(network("u1", size=28), "avx512", sextets=False)


def test_weights_of_two_bytes_take_twice_as_long() -> None:
    cost = paths.Cost((100,), 2.0, 3.0, wide=2)
    outputs = 256 * 14 * 14
    dense = 256 * 9 * outputs * paths.FILLED / (14 * 14 / 256)
    assert cost.milliseconds(network("u8", depth=1, weights="b8")) == pytest.approx(1e-6 * (dense / 50 + 2 * outputs))
    for isa in ("amx", "avx512_vnni", "avx_vnni"):
        assert paths.prefers_products(network("u8", weights="b8"), isa, sextets=True)
    for isa in ("avx512", "avx2"):
        assert not paths.prefers_products(network("u8", weights="b8"), isa, sextets=False)


def test_engines_take_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    program = network("u2", channels=8, size=6)
    x = np.random.default_rng(1).normal(size=(3, 8, 6, 6)).astype(np.float32)
    expected = program.reference(x)
    for isa in ISAS:
        for preferred in (False, True):
            monkeypatch.setattr(paths, "prefers_products", lambda *_, preferred=preferred: preferred)
            engine = engine_module.Engine(program, isa=isa)
            np.testing.assert_array_equal(engine(x), expected)
            dot = any(row.family in ("dot", "dot16") for row in engine.profile(x, repeat=1).rows)
            assert dot == (preferred and engine_module.has_dot_products(isa))


class Slow:
    """A plan that takes its time."""

    def __init__(self, plan: Any) -> None:
        self.plan = plan

    def run(self, *given: Any) -> int:
        """Some milliseconds later than the plan."""
        time.sleep(0.005)
        return self.plan.run(*given)

    def __len__(self) -> int:
        return len(self.plan)


def test_what_is_close_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    isa = next((isa for isa in ISAS if engine_module.has_dot_products(isa)), None)
    if isa is None:
        pytest.skip("no instruction set with products of bytes here")
    program = network("u2", channels=24, size=10)
    x = np.random.default_rng(1).normal(size=(5, 24, 10, 10)).astype(np.float32)
    monkeypatch.setattr(paths, "are_close", lambda *_: True)
    planned = engine_module.Engine._planned
    for slow in (False, True):

        def slowed(self: engine_module.Engine, capacity: int, lane: Any, slow: bool = slow) -> Any:
            result = planned(self, capacity, lane)
            if self._dot == slow:
                lane.plans[capacity] = Slow(lane.plans[capacity])
            return result

        with monkeypatch.context() as patch:
            patch.setattr(engine_module.Engine, "_planned", slowed)
            engine = engine_module.Engine(program, isa=isa)
        with monkeypatch.context() as patch:
            patch.setattr(engine_module.Engine, "_race", None)  # a copy does as its original
            copy = pickle.loads(pickle.dumps(engine))
        for each in (engine, copy):
            dot = any(row.family in ("dot", "dot16") for row in each.profile(x[:1], repeat=1).rows)
            assert dot == (not slow)
            np.testing.assert_array_equal(each(x), program.reference(x))


def test_far_and_small_programs_are_not_timed() -> None:
    assert paths.are_close(network("u2", channels=64, size=28), "avx512", sextets=False)
    assert not paths.are_close(network("u2", channels=8, size=6), "avx512", sextets=False)  # well below 0.1 ms
    assert not paths.are_close(network("u4", channels=256), "avx512_vnni", sextets=True)
    assert not paths.are_close(network("u2", channels=64, size=28), "unheard of", sextets=False)


def test_a_path_can_be_forced() -> None:
    program = network("u2", channels=8, size=6)
    x = np.random.default_rng(1).normal(size=(3, 8, 6, 6)).astype(np.float32)
    for isa in ISAS:
        for path in ("planar", "products"):
            engine = engine_module.Engine(program, isa=isa, path=path)
            for each in (engine, pickle.loads(pickle.dumps(engine))):
                np.testing.assert_array_equal(each(x), program.reference(x))
                dot = any(row.family in ("dot", "dot16") for row in each.profile(x, repeat=1).rows)
                assert dot == (path == "products")
    with pytest.raises(InputError, match="path 'fast': expected 'planar', 'products' or None"):
        engine_module.Engine(program, path="fast")
    with pytest.raises(InputError, match=r"path 'products': .* codes b8 do not fit a byte"):
        engine_module.Engine(network("b8", channels=8, size=6), path="products")
