"""Programs that give the same integers with less work, for the planner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from . import program as p
from .interpolation import Interpolation, interpolation


@dataclass(frozen=True, eq=False)
class Rewritten:
    """Operations, the types of their values, and which value of the program each of them is."""

    operations: tuple[p.Operation, ...]
    values: tuple[p.Value, ...]
    origin: tuple[int, ...]
    """Number of the value in the program; -1: it is none of them."""


def readers_of(operations: Sequence[p.Operation]) -> dict[int, list[int]]:
    """The operations that read each value."""
    readers: dict[int, list[int]] = {i: [] for i in range(len(operations))}
    for i, op in enumerate(operations):
        for j in op.inputs:
            readers[j].append(i)
    return readers


def pool_first(program: p.Program) -> Rewritten:
    """Max-pools moved in front of the thresholds and requantizations that they follow.

    Both are monotone, requantization where no multiplier is negative, so the largest of the results is the result of
    the largest. Where all readers of accumulators are followed by the same pool, one pool takes the accumulators, and
    each reader has only the pooled pixels left. Codes alone are pooled as codes: they are smaller.
    """
    readers = readers_of(program.operations)
    operations: list[p.Operation] = []
    values: list[p.Value] = []
    origin: list[int] = []
    number: dict[int, int] = {}  # where a value of the program is read now
    for i, op in enumerate(program.operations):
        if i in number:
            continue  # a pool that was moved
        operations.append(op.reading(tuple(number[j] for j in op.inputs)))
        values.append(program.values[i])
        origin.append(i)
        number[i] = len(operations) - 1
        for j in op.inputs:
            if origin[number[j]] == -1:  # what reads a moved pool makes what that pool made
                (after,) = readers[i]
                values[-1], origin[-1] = program.values[after], after
                number[after] = number[i]
        pool = _common_pool(program.operations, i, readers)
        value = program.values[i]
        if isinstance(op, p.Conv) and pool is not None:
            operations.append(pool.reading((number[i],)))
            values.append(pool.infer(value))
            origin.append(-1)
            number[i] = len(operations) - 1
    return Rewritten(tuple(operations), tuple(values), tuple(origin))


def interpolate_at_once(
    program: Rewritten, takes: Callable[[Interpolation, p.Value], bool] = lambda *_: True
) -> Rewritten:
    """Upsampling, and upsampling and sums that only follow it, as single interpolations.

    Args:
        program: the operations.
        takes: whether an interpolation of a value may stand for several operations.
    """
    readers = readers_of(program.operations)
    operations: list[p.Operation] = []
    values: list[p.Value] = []
    origin: list[int] = []
    number: dict[int, int] = {}
    for i, op in enumerate(program.operations):
        if i in number:
            continue  # a part of an interpolation
        last, all_of_it = i, None
        if isinstance(op, p.Upsample):
            source = program.values[op.inputs[0]]
            all_of_it = longer = interpolation(op, source)
            while longer is not None and len(readers[last]) == 1:
                (after,) = readers[last]
                longer = interpolation(program.operations[after], source, longer)
                if longer is not None and takes(longer, source):
                    last, all_of_it = after, longer
                    number[after] = -1
                else:
                    longer = None
        operations.append((all_of_it or op).reading(tuple(number[j] for j in op.inputs)))
        values.append(program.values[last])
        origin.append(program.origin[last])
        number[i] = number[last] = len(operations) - 1
    return Rewritten(tuple(operations), tuple(values), tuple(origin))


def requantize_last(program: Rewritten) -> Rewritten:
    """Max-pools in front of the requantizations that they alone follow, where other readers are not pooled.

    The accumulators, which those readers keep anyway or which are smaller, are pooled instead of the stream; only the
    pooled pixels are requantized. Where all readers are pooled alike, :func:`pool_first` does better.
    """
    readers = readers_of(program.operations)
    operations, values, origin = list(program.operations), list(program.values), list(program.origin)
    for i, op in enumerate(program.operations):
        if not isinstance(op, p.Requantize) or int(op.multiplier.min()) < 0 or len(readers[i]) != 1:
            continue
        (after,), (source,) = readers[i], op.inputs
        pool = program.operations[after]
        if not isinstance(pool, p.MaxPool) or not isinstance(program.operations[source], p.Conv):
            continue
        operations[i], operations[after] = pool.reading((source,)), op.reading((i,))
        values[i], origin[i] = pool.infer(program.values[source]), -1
    return Rewritten(tuple(operations), tuple(values), tuple(origin))


def _common_pool(operations: Sequence[p.Operation], i: int, readers: Mapping[int, list[int]]) -> p.MaxPool | None:
    """The pool that follows every reader of value ``i``, if each is monotone and one makes integers."""
    pool, integers = None, False
    for r in readers[i]:
        op = operations[r]
        if isinstance(op, p.Requantize):
            integers = True
            if int(op.multiplier.min()) < 0:
                return None
        elif not isinstance(op, p.Threshold) or op.table is not None:
            return None
        after = operations[readers[r][0]]
        if len(readers[r]) != 1 or not isinstance(after, p.MaxPool):
            return None
        if pool is not None and replace(after, name=pool.name, inputs=pool.inputs) != pool:
            return None
        pool = pool or after
    return pool if integers else None
