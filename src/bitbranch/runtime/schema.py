"""The operations of a program as JSON, their arrays in a block of data: one row of a table per operation.

An operation is a tag and a list of fields. The tag is its kind with its code type, if it has one, as ``conv:b2``. The
fields follow the order of its row; those at the end that have the dataclass's defaults are left out. An array's field
is its shape and, for integers, its form; its elements are appended to the data. Only what is needed to build the
operation is checked here: the operation checks its values itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, NamedTuple

import numpy as np

from ..contract import CodeType, uniform_encoder
from .checks import require, same
from .packing import Reader, Writer, find_step, fit_lines
from .program import (
    Add,
    Concat,
    Conv,
    ConvTranspose,
    Encode,
    MaxPool,
    Operation,
    Requantize,
    Scale,
    SumPool,
    Threshold,
    Upsample,
)

Json = Any


class Field(NamedTuple):
    """How one argument of an operation is written.

    ``to_json(value, operation, data)`` gives its JSON; ``from_json(json, earlier, data)`` takes it back, where
    ``earlier`` are the arguments of the same operation that stand before it.
    """

    to_json: Callable[[Any, Any, Writer], Json]
    from_json: Callable[[Json, dict[str, Any], Reader], Any]


def _integers(json: Json, length: int) -> tuple[int, ...]:
    good = isinstance(json, list) and len(json) == length and all(type(n) is int for n in json)
    require(good, f"expected {length} integers, got {json!r:.100}")
    return tuple(json)


def _integer() -> Field:
    def from_json(json: Json, earlier: dict[str, Any], data: Reader) -> int:
        return _integers([json], 1)[0]

    return Field(lambda v, op, data: v, from_json)


def _tuple(length: int) -> Field:
    """A tuple of integers; one number stands for a tuple of equal ones."""

    def from_json(json: Json, earlier: dict[str, Any], data: Reader) -> tuple[int, ...]:
        return _integers([json] * length if type(json) is int else json, length)

    return Field(lambda v, op, data: v[0] if len(set(v)) == 1 else list(v), from_json)


def _weight() -> Field:
    """Its shape; the data holds its codes, which stay there."""

    def to_json(v: Any, op: Conv | ConvTranspose, data: Writer) -> Json:
        data.packed_codes(v)
        return list(v.shape)

    def from_json(json: Json, earlier: dict[str, Any], data: Reader) -> Any:
        return data.packed_codes(_integers(json, 4), earlier["weight_type"])

    return Field(to_json, from_json)


def _integer_array(dtype: type[np.integer[Any]]) -> Field:
    """``[C, form]``; the data holds its integers ``[C]``."""

    def to_json(v: Any, op: Operation, data: Writer) -> Json:
        return [len(v), data.integers(v)]

    def from_json(json: Json, earlier: dict[str, Any], data: Reader) -> Any:
        require(isinstance(json, list) and len(json) == 2, f"expected a size and a form, got {json!r:.100}")
        return _read_integers(_integers(json[:1], 1), _integers(json[1:], 1)[0], dtype, data)

    return Field(to_json, from_json)


def _read_integers(shape: tuple[int, ...], form: Json, dtype: type[np.integer[Any]], data: Reader) -> Any:
    """Integers of this shape and form, which must fit the type."""
    a = data.integers(shape, list(_integers(form, 4)) if isinstance(form, list) else _integers([form], 1)[0])
    kept = a.astype(dtype)
    require(np.array_equal(a, kept), f"integers {a.min()}..{a.max()} do not fit {np.dtype(dtype)}")
    return kept


def _thresholds() -> Field:
    """``[rows, form]`` for the thresholds of the code type, ``[rows, form, n]`` for ``n`` to a table."""

    def to_json(v: Any, op: Threshold, data: Writer) -> Json:
        return [len(v), data.integers(v), *([] if op.table is None else [v.shape[1]])]

    def from_json(json: Json, earlier: dict[str, Any], data: Reader) -> Any:
        good = isinstance(json, list) and len(json) in (2, 3)
        require(good, f"expected rows, a form and perhaps a length, got {json!r:.100}")
        length = json[2] if len(json) == 3 else earlier["code_type"].count - 1
        return _read_integers(_integers([json[0], length], 2), json[1], np.int32, data)

    return Field(to_json, from_json)


def _rank_table() -> Field:
    """``null``, or its length; the data holds the codes of its ranks."""

    def to_json(v: Any, op: Threshold, data: Writer) -> Json:
        if v is None:
            return None
        data.codes(op.code_type.from_rank(v), op.code_type)
        return v.size

    def from_json(json: Json, earlier: dict[str, Any], data: Reader) -> Any:
        code_type = earlier["code_type"]
        codes = None if json is None else data.codes(_integers([json], 1), code_type)
        return None if codes is None else code_type.to_rank(codes).astype(np.uint8)

    return Field(to_json, from_json)


def _choice(*values: str) -> Field:
    """One of these words, by its number."""

    def from_json(json: Json, earlier: dict[str, Any], data: Reader) -> str:
        (number,) = _integers([json], 1)
        require(0 <= number < len(values), f"expected one of {len(values)} choices, got {number}")
        return values[number]

    return Field(lambda v, op, data: values.index(v), from_json)


def _float_array() -> Field:
    """Its length; the data holds float32."""

    def to_json(v: Any, op: Operation, data: Writer) -> Json:
        data.floats(v)
        return v.size

    def from_json(json: Json, earlier: dict[str, Any], data: Reader) -> Any:
        return data.floats(_integers([json], 1), np.float32)

    return Field(to_json, from_json)


def _encoder_thresholds() -> Field:
    """``"step"`` where a uniform encoder has these thresholds (the data holds its step, float64), or their number."""

    def to_json(v: Any, op: Encode, data: Writer) -> Json:
        step = find_step(op.code_type, v) if v.nbytes > 8 else None
        data.floats(v if step is None else np.array([step]))
        return v.size if step is None else "step"

    def from_json(json: Json, earlier: dict[str, Any], data: Reader) -> Any:
        if json != "step":
            return data.floats(_integers([json], 1), np.float32)
        step = float(data.floats((1,), np.float64)[0])
        return uniform_encoder(earlier["code_type"], step).float32_thresholds()

    return Field(to_json, from_json)


def _pixel_table() -> Field:
    """The four widths of lines that the ranks of ``[C, 256]`` codes lie on, ``"codes"`` or ``null`` for no table."""

    def to_json(v: Any, op: Encode, data: Writer) -> Json:
        if v is None:
            return None
        lines = fit_lines(op.code_type.to_rank(v))
        if lines is not None:
            return data.lines(*lines)
        data.codes(v, op.code_type)
        return "codes"

    def from_json(json: Json, earlier: dict[str, Any], data: Reader) -> Any:
        shape, code_type = (earlier["shape"][0], 256), earlier["code_type"]
        if json is None:
            return None
        if json == "codes":
            return data.codes(shape, code_type)
        rank = data.lines(shape, list(_integers(json, 4)))
        require(rank.min() >= 0 and rank.max() < code_type.count, f"the table's lines leave code type {code_type}")
        return code_type.from_rank(rank)

    return Field(to_json, from_json)


class Row(NamedTuple):
    """An operation, which of its arguments is the code type in its tag, and its fields."""

    operation: type[Operation]
    code_type: str | None
    fields: dict[str, Field]


_CONVOLUTION = {
    "weight": _weight(),
    "padding": _tuple(4),
    "stride": _tuple(2),
    "dilation": _tuple(2),
    "groups": _integer(),
}

_SCHEMA = {
    "encode": Row(
        Encode, "code_type", {"shape": _tuple(3), "thresholds": _encoder_thresholds(), "table": _pixel_table()}
    ),
    "conv": Row(Conv, "weight_type", _CONVOLUTION),
    "conv_transpose": Row(ConvTranspose, "weight_type", _CONVOLUTION),
    "threshold": Row(Threshold, "code_type", {"thresholds": _thresholds(), "table": _rank_table()}),
    "requantize": Row(
        Requantize,
        None,
        {
            "multiplier": _integer_array(np.int32),
            "shift": _integer_array(np.uint8),
            "offset": _integer_array(np.int64),
            "lo": _integer(),
            "hi": _integer(),
        },
    ),
    "add": Row(Add, None, {"lo": _integer(), "hi": _integer()}),
    "max_pool": Row(
        MaxPool, None, {"kernel": _tuple(2), "stride": _tuple(2), "padding": _tuple(4), "dilation": _tuple(2)}
    ),
    "sum_pool": Row(SumPool, None, {"kernel": _tuple(2), "stride": _tuple(2), "padding": _tuple(4)}),
    "concat": Row(Concat, None, {}),
    "upsample": Row(Upsample, None, {"factor": _tuple(2), "mode": _choice("nearest", "bilinear")}),
    "scale": Row(Scale, None, {"scale": _float_array(), "bias": _float_array()}),
}

_KINDS = {row.operation: kind for kind, row in _SCHEMA.items()}
_DEFAULTS = {
    kind: {f.name: f.default for f in fields(row.operation) if f.default is not MISSING}
    for kind, row in _SCHEMA.items()
}


def operation_to_json(op: Operation, data: Writer) -> tuple[str, list[Json]]:
    """Its tag and its fields; the arrays' elements are appended to ``data``."""
    kind = _KINDS[type(op)]
    row, defaults = _SCHEMA[kind], _DEFAULTS[kind]
    names = list(row.fields)
    while names and names[-1] in defaults and same(getattr(op, names[-1]), defaults[names[-1]]):
        names.pop()
    tag = kind if row.code_type is None else f"{kind}:{getattr(op, row.code_type)}"
    return tag, [row.fields[name].to_json(vars(op)[name], op, data) for name in names]  # weights as they are held


def operation_from_json(tag: str, given: Json, name: Json, inputs: Json, data: Reader) -> Operation:
    """The inverse of :func:`operation_to_json`.

    Raises:
        FormatError: an unknown operation, or fields that do not build one.
        InputError: a code type or a step out of range.
    """
    kind, _, code_type = tag.partition(":")
    require(kind in _SCHEMA, f"unknown operation {tag!r:.100}")
    row = _SCHEMA[kind]
    least = len(row.fields.keys() - _DEFAULTS[kind].keys())
    good = isinstance(given, list) and least <= len(given) <= len(row.fields)
    require(good, f"{kind} cannot have the fields {given!r:.100}")
    arguments: dict[str, Any] = {} if row.code_type is None else {row.code_type: CodeType.parse(code_type)}
    for (argument, field), value in zip(row.fields.items(), given, strict=False):
        arguments[argument] = field.from_json(value, arguments, data)
    return row.operation(name, inputs, **arguments)
