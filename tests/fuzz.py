"""Random programs and networks through every executor: no bit may differ.

    python tests/fuzz.py --count 10000 --seed 0          # or: make fuzz ARGS="--seconds 600"
    python tests/fuzz.py --replay build/fuzz/0-123.bb    # a saved failure again

Case ``(seed, index)`` is the same in every run, so a run is continued with ``--start`` and shared among processes by
ranges. Seven of eight cases are random integer programs (tests/strategies.py), which shrink when they fail; the eighth
is a random network of PyTorch (tests/random_networks.py), quantized and compiled. Both take what is added there.

Compared are PyTorch in float64 and its decomposition into branches (networks only), the NumPy reference, the program
after writing and reading its file, and the engine on every instruction set with 1, 2 and 3 threads, in one part and in
parts of the batch, at every value that it can show.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import Phase, given
from hypothesis import strategies as st

sys.path.insert(0, os.path.dirname(__file__))
from strategies import examples, images, pixels, programs

import bitbranch as bb
from bitbranch.compiler import streams
from bitbranch.errors import InputError
from bitbranch.runtime import choice, dot, reference
from bitbranch.runtime import program as p
from bitbranch.runtime.engine import Engine, instruction_sets

Batch = tuple[np.ndarray, ...]
Execute = Callable[[p.Program, Batch], "dict[int, np.ndarray]"]
"""Gives values by the number of their operation, all or some, each ``[N, C, H, W]``."""
THREADS = (1, 2, 3)
SHRINK = 15
"""Seconds for making a failing program smaller."""
NETWORK_EVERY = 8
"""One case of so many is a network."""


class Difference(Exception):
    """Two executors disagree."""


# ---- executors ------------------------------------------------------------------------------------------------------


def outputs(program: p.Program, got: p.Output) -> dict[int, np.ndarray]:
    """The outputs of a program by operation."""
    numbers = [i for i, v in enumerate(program.values) if isinstance(v, p.Reals)]
    each = (got,) if len(numbers) == 1 else got
    return {i: y.reshape(len(y), *program.values[i].shape) for i, y in zip(numbers, each, strict=True)}


def from_file(program: p.Program, batch: Batch) -> dict[int, np.ndarray]:
    """The reference on the program as it comes back from a file."""
    with tempfile.TemporaryDirectory() as folder:
        program.save(Path(folder) / "net.bb")
        read = bb.load(Path(folder) / "net.bb")
        if read != program:
            raise Difference("the program that was read is not the one that was written")
        return outputs(program, Engine(Path(folder) / "net.bb")(*batch))


def on_engine(isa: str, threads: int, path: str | None = None) -> Execute:
    """The engine: as it is, again in parts of the batch, and traced; on a path that is forced where it can be."""

    def run(program: p.Program, batch: Batch) -> dict[int, np.ndarray]:
        possible = path != "products" or not dot.refuses(program)
        engine = Engine(program, threads, isa, path=path if possible else None)
        values = outputs(program, engine(*batch))
        engine._part = threads  # any size will do
        for i, y in outputs(program, engine(*batch)).items():
            differ(f"in parts of {threads}", program, i, values[i], y)
        if threads != 2:
            values |= dict(engine.trace(*batch))
        return values

    return run


def executors() -> dict[str, Execute]:
    """All of them by name."""
    engines = {f"{isa} x{n}": on_engine(isa, n) for isa in instruction_sets() for n in THREADS}
    products = {f"{isa} products": on_engine(isa, THREADS[0], "products") for isa in instruction_sets()}
    return {"file": from_file, **engines, **products}


# ---- comparison -----------------------------------------------------------------------------------------------------


def differ(name: str, program: p.Program, operation: int, expected: np.ndarray, got: np.ndarray) -> None:
    """Raise :class:`Difference` if two values differ."""
    op = program.operations[operation]
    where = f"{name}, operation {operation} ({type(op).__name__} {op.name!r})"
    if expected.shape != got.shape:
        raise Difference(f"{where}: shape {got.shape} instead of {expected.shape}")
    # Bits, not numbers: -0 is not 0.
    a, b = (x.view(np.int32) if x.dtype == np.float32 else x for x in (expected, np.ascontiguousarray(got)))
    if expected.dtype != got.dtype or not np.array_equal(a, b):
        place = tuple(int(i) for i in np.argwhere(a != b)[0]) if (a != b).any() else ()
        raise Difference(f"{where}: {np.count_nonzero(a != b)} of {a.size} numbers, first at {place}: "
                         f"{got[place]} instead of {expected[place]}")  # fmt: skip


def compare(program: p.Program, batch: Batch, others: dict[str, Execute]) -> None:
    """Run a program everywhere and compare with the reference.

    Raises:
        Difference: names the executor, the operation and the place.
    """
    expected = dict(reference.trace(program, *batch))
    measured = dict(choice.DICTIONARY_BITS)
    forced = (None, 4, 0)[len(program.operations) % 3]  # dictionary kernels as measured, wherever possible, nowhere
    try:
        if forced is not None:
            choice.DICTIONARY_BITS.update(dict.fromkeys(measured, forced))
        for name, execute in others.items():
            try:
                values = execute(program, batch)
            except Exception as error:
                raise Difference(f"{name}: {type(error).__name__}: {error}") from error
            for i in sorted(values):
                differ(name, program, i, expected[i], values[i])
    finally:
        choice.DICTIONARY_BITS.update(measured)


# ---- cases ----------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """What was last tried."""

    kind: str = ""
    program: p.Program | None = None
    batch: Batch = ()
    operations: set[str] = field(default_factory=set)
    """Names of the operations seen so far."""

    def check(self, kind: str, program: p.Program, batch: Batch, others: dict[str, Execute]) -> None:
        """Remember a program and compare its executors."""
        self.kind, self.program, self.batch = kind, program, batch
        self.operations |= {type(op).__name__ for op in program.operations}
        compare(program, batch, others)


def program_case(seed: int, index: int, case: Case, others: dict[str, Execute]) -> None:
    """A random integer program; if it fails it is shrunk, and the smallest is the case that is left."""
    drawn, give_up = 0, float("inf")
    failed: list[tuple[object, ...]] = []

    @hypothesis.seed(seed << 32 | index)
    @hypothesis.settings(examples(2), database=None, phases=[Phase.generate, Phase.shrink], report_multiple_bugs=False)
    @given(programs(), st.integers(0, 2**32 - 1), st.integers(1, 5), st.booleans())
    def draw(program: p.Program, numbers: int, count: int, bytes_: bool) -> None:
        nonlocal drawn, give_up
        drawn += 1
        if drawn == 1:
            return  # the simplest program, with which Hypothesis begins each time
        key = (program, numbers, count, bytes_)
        if time.monotonic() > give_up and key not in failed:
            return
        of_bytes = bytes_ and all(op.table is not None for op in program.inputs)
        batch = (pixels if of_bytes else images)(program, numbers, count)
        try:
            case.check("program", program, batch, others)
        except Exception:
            failed.append(key)
            give_up = min(give_up, time.monotonic() + SHRINK)
            raise

    draw()


def network_case(seed: int, index: int, case: Case, others: dict[str, Execute]) -> None:
    """A random network, quantized and compiled; also PyTorch against branches and reference.

    Where sums are rounded, PyTorch is compared with a program whose streams are as fine as they can be: in a small
    network, a few equal sums that 16 bits move over a threshold can turn many codes behind them.
    """
    import torch
    from random_networks import COMPILED_SCHEMES, NETWORKS, ROUNDED, quantized

    rng = np.random.default_rng([seed, index])
    torch.manual_seed(int(rng.integers(2**31)))
    kind, scheme = (str(rng.choice(list(names))) for names in (NETWORKS, COMPILED_SCHEMES))
    make, shapes = NETWORKS[kind]
    network = make(rng)
    x = [torch.from_numpy(rng.normal(size=(5, *shape)).astype(np.float32)) for shape in shapes]
    try:
        q = quantized(network, scheme, *x)
    except InputError as error:
        if "zeros only" in str(error):
            return  # a layer that nothing reaches has no steps
        raise
    program = bb.compile(q, *(each[:1] for each in x))
    batch = tuple(each.numpy() for each in x)
    case.check(f"{kind} {scheme}", program, batch, others)

    exact = [each.double() for each in x]
    branches, whole = bb.decompose(q).double().eval(), q.double().eval()
    with torch.no_grad():
        for a, b in zip(*(y if isinstance(y, tuple) else (y,) for y in (branches(*exact), whole(*exact))), strict=True):
            if not torch.equal(a, b):
                raise Difference(f"branches differ from the network in {int((a != b).sum())} outputs")
    rounded = any(isinstance(m, ROUNDED) for m in network.modules())
    rounded = rounded and any(isinstance(op, p.Requantize) for op in program.operations)
    if rounded:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(streams, "STEPS_PER_LEVEL", float("inf"))
            program = bb.compile(q.float(), *(each[:1] for each in x))
    result = bb.verify(q.float(), program, [x[0] if len(x) == 1 else x])
    compared = sum(layer.codes.compared for layer in result.layers)
    if rounded:
        if result.codes_differing > 0.001 * compared:
            raise Difference(f"{result.codes_differing} of {compared} codes differ from PyTorch's\n{result}")
    elif result.mismatches:
        raise Difference(f"the reference differs from PyTorch in float64\n{result}")


def run_case(seed: int, index: int, case: Case, others: dict[str, Execute]) -> None:
    """Case ``(seed, index)``."""
    is_network = index % NETWORK_EVERY == NETWORK_EVERY - 1
    (network_case if is_network else program_case)(seed, index, case, others)


# ---- command line ---------------------------------------------------------------------------------------------------


def save(case: Case, stem: Path) -> str:
    """Keep a failure as a program and a batch; returns the command that runs it again."""
    assert case.program is not None
    stem.parent.mkdir(parents=True, exist_ok=True)
    case.program.save(stem.with_suffix(".bb"))
    np.savez(stem.with_suffix(".npz"), *case.batch)
    return f"{sys.executable} {os.path.relpath(__file__)} --replay {stem.with_suffix('.bb')}"


def replay(path: Path, others: dict[str, Execute]) -> None:
    """Compare a saved failure again."""
    with np.load(path.with_suffix(".npz")) as arrays:
        batch = tuple(arrays[f"arr_{i}"] for i in range(len(arrays.files)))
    compare(bb.load(path), batch, others)


def fuzz(
    seed: int,
    start: int,
    count: int,
    folder: Path,
    others: dict[str, Execute],
    say: Callable[[str], object],
    seconds: float = float("inf"),
    most: int = 10,
) -> int:
    """Run cases ``start .. start + count`` until the time is over or so many have failed; returns how many did."""
    case, failures, begun, said = Case(), 0, time.monotonic(), 0.0
    index = start
    for index in range(start, start + count):
        spent = time.monotonic() - begun
        if spent > seconds or failures >= most:
            break
        if spent - said > 10:
            said = spent
            say(f"case {index}, {failures} failures, {(index - start) / spent:.1f} a second")
        try:
            run_case(seed, index, case, others)
        except Exception as error:
            failures += 1
            say(f"FAILED: case {index} of seed {seed} ({case.kind}): {error}")
            if not isinstance(error, Difference):
                say(traceback.format_exc())
            command = save(case, folder / f"{seed}-{index}")
            say(f"  smallest found: {len(case.program.operations)} operations; again: {command}\n"
                f"  as it was drawn: {sys.executable} {os.path.relpath(__file__)} --seed {seed} --start {index} "
                "--count 1")  # fmt: skip
    else:
        index += 1
    say(
        f"cases {start}..{index - 1} of seed {seed}: {failures} failures in {time.monotonic() - begun:.0f} s; "
        f"{len(others)} executors ({', '.join(others)}); operations: {', '.join(sorted(case.operations))}"
        + ("" if index >= start + count else f"; go on with --seed {seed} --start {index}")
    )
    return failures


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="cases")
    parser.add_argument("--seed", type=int, default=0, help="of all cases")
    parser.add_argument("--start", type=int, default=0, help="first case")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="time after which to stop")
    parser.add_argument("--failures", type=int, default=10, help="after which to stop")
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"), help="for failures")
    parser.add_argument("--replay", type=Path, metavar="FILE.bb", help="run a saved failure instead")
    a = parser.parse_args(arguments)
    if a.replay:
        try:
            replay(a.replay, executors())
        except Difference as difference:
            print(difference)
            return 1
        print("no difference")
        return 0
    say = lambda text: print(text, flush=True)  # noqa: E731
    return min(1, fuzz(a.seed, a.start, a.count, a.folder, executors(), say, a.seconds, a.failures))


if __name__ == "__main__":
    sys.exit(main())
