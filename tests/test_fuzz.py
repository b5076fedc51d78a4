"""The fuzzer: it finds nothing where nothing is wrong, and a wrong executor wherever it errs."""

from __future__ import annotations

import copy
from pathlib import Path

import fuzz
import numpy as np
import pytest

from bitbranch.errors import BitbranchError
from bitbranch.runtime import program as p
from bitbranch.runtime import reference

try:
    EXECUTORS = fuzz.executors()
except BitbranchError:
    pytest.skip("the compiled core is not installed", allow_module_level=True)

said: list[str] = []


def few() -> dict[str, fuzz.Execute]:
    """One engine, so that a test does not take long."""
    name = next(iter(name for name in EXECUTORS if name.endswith("x2")))
    return {name: EXECUTORS[name]}


def test_nothing_is_found(tmp_path: Path) -> None:
    assert fuzz.fuzz(7, 0, 8, tmp_path, EXECUTORS, said.append) == 0
    assert "cases 0..7 of seed 7: 0 failures" in said[-1] and not list(tmp_path.iterdir())


def test_cases_do_not_depend_on_where_a_run_starts() -> None:
    def drawn(start: int, count: int) -> list[fuzz.Case]:
        cases = []
        for index in range(start, start + count):
            cases.append(fuzz.Case())
            fuzz.run_case(3, index, cases[-1], {})
        return cases

    whole, part = drawn(0, 9), drawn(5, 4)
    for a, b in zip(whole[5:], part, strict=True):
        assert a.program == b.program and a.kind == b.kind
        for x, y in zip(a.batch, b.batch, strict=True):
            np.testing.assert_array_equal(x, y)
    assert len({case.program for case in whole}) == 9


def test_time_ends_a_run(tmp_path: Path) -> None:
    fuzz.fuzz(7, 40, 1000, tmp_path, few(), said.append, seconds=0.0)
    assert said[-1].endswith("go on with --seed 7 --start 40")


def wrong_threshold(program: p.Program, batch: fuzz.Batch) -> dict[int, np.ndarray]:
    """Codes one too low where an accumulator is exactly on a threshold: ``v > T`` instead of ``v >= T``."""
    values = dict(reference.trace(program, *batch))
    for i, op in enumerate(program.operations):
        if isinstance(op, p.Threshold) and op.table is None:
            v = values[op.inputs[0]]
            t = np.broadcast_to(op.thresholds.astype(np.int64), (v.shape[1], op.thresholds.shape[1]))
            rank = (v[:, :, None] > t[None, :, :, None, None]).sum(axis=2)
            values[i] = op.code_type.from_rank(rank)
    return values


def wrong_padding(program: p.Program, batch: fuzz.Batch) -> dict[int, np.ndarray]:
    """Bipolar padding taken for code 0, which means the least value and not 0."""
    values = dict(reference.trace(program, *batch))
    for i, op in enumerate(program.operations):
        if isinstance(op, p.Conv) and any(op.padding) and values[i].size:
            source = program.values[op.inputs[0]]
            assert isinstance(source, p.Codes)
            if source.code_type.lo < 0 < source.code_type.step - 1:
                values[i] = values[i].copy()
                values[i][..., 0, 0] += source.code_type.lo * op.values().sum(axis=(1, 2, 3), dtype=np.int64)
    return values


def wrong_last_image(program: p.Program, batch: fuzz.Batch) -> dict[int, np.ndarray]:
    """The last image of a batch of 4 is that before it, as after an error in a batch's tail."""
    values = fuzz.outputs(program, program.reference(*batch))
    if len(batch[0]) == 4:
        for y in values.values():
            y[3] = y[2]
    return values


def breaks(program: p.Program, batch: fuzz.Batch) -> dict[int, np.ndarray]:
    """Fails at one operation."""
    if any(isinstance(op, p.MaxPool) for op in program.operations):
        raise MemoryError("no room")
    return {}


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        (wrong_threshold, "Threshold"),
        (wrong_padding, "Conv"),
        (wrong_last_image, "Scale"),
        (breaks, "MemoryError: no room"),
    ],
)
def test_a_wrong_executor_is_caught(wrong: fuzz.Execute, names: str, tmp_path: Path) -> None:
    """It is named with the operation, kept as a file and its input, and found again in them; small, too."""
    said.clear()
    assert fuzz.fuzz(1, 0, 60, tmp_path, {"wrong": wrong}, said.append, most=1) == 1
    failure = next(line for line in said if line.startswith("FAILED"))
    assert "wrong" in failure and names in failure
    command = next(line for line in said if "again:" in line)
    path = Path(command.split("--replay ")[1].split()[0])
    with pytest.raises(fuzz.Difference, match="wrong"):
        fuzz.replay(path, {"wrong": wrong})
    fuzz.replay(path, few())
    assert int(command.split("smallest found: ")[1].split()[0]) <= 8


def test_zeros_of_two_signs_differ() -> None:
    case = fuzz.Case()
    fuzz.run_case(1, 3, case, {})
    assert case.program is not None
    values = {0: np.zeros(3, np.float32)}
    with pytest.raises(fuzz.Difference, match="3 of 3"):
        fuzz.differ("signs", case.program, 0, values[0], -values[0])


def test_a_wrong_bit_in_the_engine_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One threshold of every program is one too high for the engine alone."""
    plan = fuzz.Engine._new_plan

    def planned(self, *arguments):
        for op in self.program.operations:
            if isinstance(op, p.Threshold):
                changed = op.thresholds.copy()
                changed[0, 0] += changed[0, 0] < changed[0, -1] or changed.shape[1] == 1
                object.__setattr__(op, "thresholds", changed)
                break
        return plan(self, *arguments)

    monkeypatch.setattr(fuzz.Engine, "_new_plan", planned)
    execute = next(iter(few().values()))
    others = {"engine": lambda program, x: execute(copy.deepcopy(program), x)}
    assert fuzz.fuzz(2, 0, 60, tmp_path, others, said.append, most=1) == 1
